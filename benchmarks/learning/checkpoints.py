"""Trained parameters by a hash of all that they depend on, so that nothing is trained twice."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.learning.data import Split
from benchmarks.learning.models import Model
from benchmarks.learning.training import Recipe, train
from benchmarks.tools.folders import leaves_by_path
from benchmarks.tools.timing import timed

SECONDS = "seconds of training"


class Trained(NamedTuple):
    """A trained model."""

    params: Any
    seconds: float
    """What training took when it was done, compilation included where it was the first."""


def training_hash(
    model: Model, recipe: Recipe, storage: Split, ids: np.ndarray, steps: int, seed: int
) -> str:
    """A name for the result of `train`: it changes with the data, the configuration or the seed."""
    digest = hashlib.sha256()
    configuration = (model.name, model.description, *recipe, steps, seed, jax.__version__)
    digest.update(json.dumps(configuration).encode())
    for array in (*storage, ids):
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:32]


def train_once(
    folder: Path,
    model: Model,
    recipe: Recipe,
    storage: Split,
    ids: np.ndarray,
    steps: int,
    seed: int,
) -> Trained:
    """What `train` returns, from `folder` if it was trained before."""
    path = folder / f"{training_hash(model, recipe, storage, ids, steps, seed)}.npz"
    like = model.init(seed)
    if not path.exists():
        params, seconds = timed(lambda: train(model, recipe, storage, ids, steps, seed))
        _save(path, params, seconds)
    with np.load(path) as arrays:
        leaves = [arrays[name] for name in leaves_by_path(like)]
        return Trained(jax.tree.unflatten(jax.tree.structure(like), leaves), float(arrays[SECONDS]))


def _save(path: Path, params: Any, seconds: float) -> None:
    """Writes the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.asarray(leaf) for name, leaf in leaves_by_path(params).items()}
    handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".npz")
    with os.fdopen(handle, "wb") as file:
        np.savez(file, allow_pickle=False, **{SECONDS: np.float64(seconds)}, **arrays)
    Path(partial).replace(path)
