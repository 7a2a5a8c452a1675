"""Trained parameters by a hash of all that they depend on, so that nothing is trained twice."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.learning.data import Split
from benchmarks.learning.models import Model
from benchmarks.learning.training import Recipe, train
from benchmarks.tools.arrays import leaves_by_path
from benchmarks.tools.errors import UsageError, note
from benchmarks.tools.folders import LOCK, locked, whole_file
from benchmarks.tools.timing import timed

SECONDS = "seconds of training"
CHECKSUM = "checksum"


class Trained(NamedTuple):
    """A trained model."""

    params: Any
    seconds: float
    """What training took when it was done, compilation included where it was the first."""


class Damaged(Exception):
    """A kept model that cannot be what was kept; its text says why."""


def training_hash(
    model: Model, recipe: Recipe, storage: Split, ids: np.ndarray, steps: int, *seeds: int
) -> str:
    """A name for what is trained: it changes with the data, the configuration or the seeds."""
    configuration = (model.name, model.description, *recipe, steps, *seeds, jax.__version__)
    return _digest(json.dumps(configuration), (*storage, ids))[:32]


def train_once(
    folder: Path,
    model: Model,
    recipe: Recipe,
    storage: Split,
    ids: np.ndarray,
    steps: int,
    seed: int,
) -> Trained:
    """What `train` returns, from `folder` if it was trained before.

    A file that is damaged is moved aside, and its model trained again. Who may read the files is
    up to the umask, as for any file that a program writes: a model may tell what it was trained on,
    so set `umask 077` where the data are private.

    Raises:
      UsageError: if training gives parameters that are not finite.
    """
    name = training_hash(model, recipe, storage, ids, steps, seed)
    work = lambda: train(model, recipe, storage, ids, steps, seed)
    return kept(folder, name, model.init(seed), work, f"{model.name} with seed {seed}")


def kept(folder: Path, name: str, like: Any, work: Callable[[], Any], about: str) -> Trained:
    """What `work` returns, from `folder` if it was done before.

    Args:
      folder: where parameters are kept.
      name: of the file, by a hash of all that they depend on.
      like: a pytree with the shapes and dtypes of the parameters.
      work: trains them.
      about: what is trained, for the error.

    Raises:
      UsageError: if training gives parameters that are not finite.
    """
    path = folder / f"{name}.npz"
    if path.exists():
        try:
            return _load(path, like)
        except Damaged as damage:
            aside = path.with_name(f"{path.name}.damaged")
            path.replace(aside)
            note(f"{path} is damaged ({damage}); it is now {aside.name}, and is trained again.")
    params, seconds = timed(work)
    if not _are_finite(jax.tree.leaves(params)):
        raise UsageError(f"Training of {about} gave parameters that are not finite.")
    params = jax.tree.map(np.asarray, params)
    _save(path, params, seconds)
    return Trained(params, seconds)


def _save(path: Path, params: Any, seconds: float) -> None:
    arrays = leaves_by_path(params) | {SECONDS: np.array(seconds)}
    arrays[CHECKSUM] = np.array(_digest(json.dumps(list(arrays)), arrays.values()))
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent / LOCK, path.parent, wait=True), whole_file(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def _load(path: Path, like: Any) -> Trained:
    """Reads what `_save` wrote; raises `Damaged` where it is anything else."""
    with path.open("rb") as file:
        try:
            with np.load(file, allow_pickle=False) as archive:
                arrays = dict(archive)
        except Exception as error:  # a damaged archive raises a dozen types
            raise Damaged("it is no archive of arrays") from error
    checksum = arrays.pop(CHECKSUM, None)
    if checksum is None or str(checksum) != _digest(json.dumps(list(arrays)), arrays.values()):
        raise Damaged("its checksum is missing or wrong")
    leaves = [arrays.get(name) for name in leaves_by_path(like)]
    for leaf, want in zip(leaves, jax.tree.leaves(like), strict=True):
        if leaf is None or leaf.shape != want.shape or leaf.dtype != want.dtype:
            raise Damaged("its parameters are not those of this network")
    if SECONDS not in arrays or not _are_finite(leaves):
        raise Damaged("its parameters are not finite")
    return Trained(jax.tree.unflatten(jax.tree.structure(like), leaves), float(arrays[SECONDS]))


def _are_finite(leaves: Iterable[Any]) -> bool:
    return all(np.isfinite(leaf).all() for leaf in leaves)


def _digest(text: str, arrays: Iterable[np.ndarray]) -> str:
    digest = hashlib.sha256(text.encode())
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
