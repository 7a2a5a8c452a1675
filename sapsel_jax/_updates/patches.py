"""The changed entries of an update, to be shipped, applied and reverted to the same bits."""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sapsel_jax._base.archives import placed
from sapsel_jax._base.bits import dtype_named, fingerprint, word_of, words_of
from sapsel_jax._base.checks import (
    by_path,
    check_arrays,
    check_count,
    check_same_tree,
    named_leaves,
    places_of,
)
from sapsel_jax._base.columns import aligned
from sapsel_jax._base.processes import on_host
from sapsel_jax._base.types import Params


@dataclasses.dataclass(frozen=True, eq=False)
class LeafPatch:
    """The changed entries of one leaf.

    Attributes:
      path: of the leaf, as text.
      shape: of the leaf.
      dtype: of the leaf, by name.
      positions: int64, shape (changed,): where they lie in the leaf, counted along its last axis
        first, in rising order.
      old: their bits before the update, unsigned integers, shape (changed, words).
      new: their bits after it.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    positions: np.ndarray
    old: np.ndarray
    new: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Patch:
    """What an update changed, and the parameters it belongs to.

    Attributes:
      leaves: one `LeafPatch` for each leaf, in the order of their paths.
      before: fingerprint of the parameters before the update: SHA-256 of their paths, shapes,
        dtypes and bits. It is the same for a nested tree and for the flat dictionary of its arrays.
      after: fingerprint of the parameters after the update.
    """

    leaves: tuple[LeafPatch, ...]
    before: str
    after: str

    @property
    def num_changed(self) -> int:
        """How many entries the patch changes."""
        return sum(leaf.positions.size for leaf in self.leaves)

    @property
    def num_entries(self) -> int:
        """How many entries the parameters have."""
        return sum(math.prod(leaf.shape) for leaf in self.leaves)

    def __repr__(self) -> str:
        """One line: counts and the beginnings of both fingerprints."""
        return (
            f"Patch({self.num_changed:,} of {self.num_entries:,} entries, "
            f"{self.before[:8]} -> {self.after[:8]})"
        )


def make_patch(before: Params, after: Params) -> Patch:
    """Collects the entries whose bits differ, as a patch to ship, apply and revert.

    Bits are compared: -0.0 differs from 0.0, and NaN differs from a NaN with other bits. The patch
    holds the position, the old and the new bits of each such entry, and a fingerprint of both
    trees. Where leaves span several processes, all of them call this together, and `apply_patch`
    and `revert_patch` as well; each gets the whole patch.

    Args:
      before: pytree of arrays of bools or numbers, any shapes, not traced: the parameters before
        the update.
      after: pytree of arrays with the structure, shapes and dtypes of `before`.

    Returns:
      A patch, held in host memory.

    Raises:
      TypeError: if a leaf is no array of bools or numbers in the machine's byte order, or is
        traced.
      ValueError: if the trees differ in structure, shapes or dtypes.

    Cost: one pass over the entries and a hash of both trees, on the host; no gradient.

    Source: own; the fingerprint is SHA-256.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> before = {"w": jnp.array([1.0, 2.0, 3.0])}
      >>> patch = sap.make_patch(before, {"w": jnp.array([1.0, 5.0, 3.0])})
      >>> patch.num_changed
      1
      >>> print(sap.apply_patch(before, patch))
      {'w': Array([1., 5., 3.], dtype=float32)}
    """
    _check_held("before", before)
    _check_held("after", after)
    check_same_tree("after", after, "before", before)
    pairs = [
        (path, on_host(old), on_host(new))
        for (path, old), (_, new) in zip(
            by_path(named_leaves(before)), by_path(named_leaves(after)), strict=True
        )
    ]
    leaves = []
    for path, old, new in pairs:
        if old.dtype != new.dtype:
            raise ValueError(
                f"`after` and `before` must have the same dtypes; at '{path}' they are "
                f"{new.dtype} and {old.dtype}."
            )
        old_words, new_words = words_of(old), words_of(new)
        changed = np.flatnonzero((old_words != new_words).any(axis=1))
        values = old_words[changed], new_words[changed]
        leaves.append(LeafPatch(path, old.shape, old.dtype.name, changed, *values))
    return Patch(
        tuple(leaves),
        fingerprint([(path, old) for path, old, _ in pairs]),
        fingerprint([(path, new) for path, _, new in pairs]),
    )


def apply_patch(params: Params, patch: Patch) -> Params:
    """Writes the new values of a patch into the parameters.

    The new bits replace the old ones at every changed position. Leaves are matched by their paths,
    so that a patch of a nested tree fits the flat dictionary of the same arrays. The fingerprint is
    checked before and after: the result can be reverted.

    Args:
      params: pytree of arrays, not traced: the parameters before the update, to the bit.
      patch: a `Patch`, from `make_patch` or `load_patch`.

    Returns:
      The parameters after the update, to the bit. Unchanged leaves are passed on as they are. A
      changed NumPy array becomes a NumPy array, and a changed JAX array a JAX array on the same
      mesh.

    Raises:
      TypeError: if a leaf is no array of bools or numbers in the machine's byte order, or is
        traced, or `patch` is no `Patch`.
      ValueError: if the parameters are not those that the patch belongs to, or the patch is
        damaged.

    Cost: a hash of the parameters before and after, and a copy of the changed leaves, on the host;
      no gradient.

    Source: own.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> before, after = jnp.array([1.0, 2.0]), jnp.array([1.0, 5.0])
      >>> patch = sap.make_patch(before, after)
      >>> sap.apply_patch(before, patch)
      Array([1., 5.], dtype=float32)
    """
    return _exchange(params, patch, "before", "after")


def revert_patch(params: Params, patch: Patch) -> Params:
    """Writes the old values of a patch back into the parameters.

    The old bits replace the new ones at every changed position. After `apply_patch` this restores
    every bit. Leaves are matched and fingerprints checked as in `apply_patch`.

    Args:
      params: pytree of arrays, not traced: the parameters after the update, to the bit.
      patch: a `Patch`, from `make_patch` or `load_patch`.

    Returns:
      The parameters before the update, to the bit; the kinds of arrays are as in `apply_patch`.

    Raises:
      TypeError: if a leaf is no array of bools or numbers in the machine's byte order, or is
        traced, or `patch` is no `Patch`.
      ValueError: if the parameters are not those that the patch led to, or the patch is damaged.

    Cost: as `apply_patch`.

    Source: own.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> patch = sap.make_patch(jnp.zeros(2), jnp.array([0.0, 1.0]))
      >>> sap.revert_patch(jnp.array([0.0, 1.0]), patch)
      Array([0., 0.], dtype=float32)
      >>> sap.revert_patch(jnp.array([0.5, 1.0]), patch)
      Traceback (most recent call last):
      ValueError: `patch` must fit `params` to the bit; their fingerprint is ...
    """
    return _exchange(params, patch, "after", "before")


def describe_patch(patch: Patch, *, most: int = 24) -> str:
    """Describes a patch by a table, for people.

    A line for each changed entry says in which leaf and where in it the entry lies, what it was,
    what it is, and the difference. The largest differences come first, entries without one last.

    Args:
      patch: a `Patch`, from `make_patch` or `load_patch`.
      most: how many entries to list, at least 1; one last line counts the others.

    Returns:
      Text, without a final line break. Numbers have six digits.

    Raises:
      TypeError: if `patch` is no `Patch` or `most` no Python integer.
      ValueError: if the patch is damaged or `most` is below 1.

    Cost: one pass over the changed entries, on the host; no gradient.

    Source: own.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> before = {"bias": jnp.zeros(2), "kernel": jnp.ones((2, 3))}
      >>> after = {"bias": jnp.array([0.0, 0.5]), "kernel": before["kernel"].at[1, 2].set(-1.0)}
      >>> print(sap.describe_patch(sap.make_patch(before, after)))
      leaf    index  before  after  difference
      kernel  1, 2        1     -1          -2
      bias    1           0    0.5         0.5
    """
    check_patch(patch)
    check_count("most", most, minimum=1)
    entries = [entry for leaf in patch.leaves for entry in _entries(leaf)]
    entries.sort(key=lambda entry: entry[-1], reverse=True)
    rows = [("leaf", "index", "before", "after", "difference"), *(e[:-1] for e in entries[:most])]
    table = aligned(rows, right=(2, 3, 4))
    rest = len(entries) - most
    return f"{table}\nand {rest:,} more" if rest > 0 else table


def _entries(leaf: LeafPatch) -> Iterator[tuple[str, str, str, str, str, float]]:
    """The cells of each changed entry, and the size of its change."""
    dtype = dtype_named(leaf.dtype)
    wide = np.complex128 if jnp.issubdtype(dtype, jnp.complexfloating) else np.float64
    old, new = (words.reshape(-1).view(dtype) for words in (leaf.old, leaf.new))
    places: Any = [()] * leaf.positions.size
    if leaf.shape:
        places = np.stack(np.unravel_index(leaf.positions, leaf.shape), 1)
    for index, before, after in zip(places, old.astype(wide), new.astype(wide), strict=True):
        with np.errstate(invalid="ignore"):
            change = after - before
        size = -1.0 if np.isnan(change) else float(abs(change))
        place = ", ".join(map(str, index))
        yield leaf.path, place, f"{before:.6g}", f"{after:.6g}", f"{change:.6g}", size


def check_patch(patch: Any) -> None:
    """A patch whose parts fit together, whoever put them there."""
    if not isinstance(patch, Patch):
        raise TypeError(f"`patch` must be a Patch; got {type(patch).__name__}.")
    for leaf in patch.leaves:
        fault = _fault(leaf)
        if fault:
            raise ValueError(f"`patch` is damaged at '{leaf.path}': {fault}.")


def _exchange(params: Params, patch: Patch, start: str, end: str) -> Params:
    """Replaces one side's values by the other side's; both results must have their fingerprints."""
    _check_held("params", params)
    check_patch(patch)
    leaves, structure = jax.tree.flatten(params)
    paths = [path for path, _ in named_leaves(params)]
    _check_layout(list(zip(paths, leaves, strict=True)), patch)
    places = places_of([change.path for change in patch.leaves], paths)

    def digest() -> str:
        # In the order of the patch, which in older files is the order of the tree.
        return fingerprint([(paths[place], on_host(leaves[place])) for place in places])

    got, want = digest(), getattr(patch, start)
    if got != want:
        raise ValueError(
            f"`patch` must fit `params` to the bit; their fingerprint is {got[:16]} and the patch "
            f"has {want[:16]} {start} the update."
        )
    for change, place in zip(patch.leaves, places, strict=True):
        values = {"before": change.old, "after": change.new}
        leaves[place] = _written(leaves[place], change, values[start], values[end])
    got, want = digest(), getattr(patch, end)
    if got != want:
        raise ValueError(
            f"`patch` is damaged: it leads to parameters with the fingerprint {got[:16]} and says "
            f"{want[:16]}."
        )
    return structure.unflatten(leaves)


def _written(leaf: Any, change: LeafPatch, present: np.ndarray, words: np.ndarray) -> Any:
    """A copy with other words in it; the leaf itself where nothing changes."""
    if not change.positions.size:
        return leaf
    copy = np.array(on_host(leaf), order="C")
    if not np.array_equal(words_of(copy)[change.positions], present):
        raise ValueError(
            f"`patch` is damaged at '{change.path}': the values that it replaces are not those of "
            "`params`."
        )
    words_of(copy)[change.positions] = words
    if isinstance(leaf, jax.Array):
        return placed(copy, leaf)
    return copy[()] if isinstance(leaf, np.generic) else copy


def _fault(leaf: LeafPatch) -> str | None:
    """What is wrong with one leaf of a patch."""
    size, positions = math.prod(leaf.shape), leaf.positions
    try:
        itemsize = dtype_named(leaf.dtype).itemsize
    except (TypeError, ValueError):
        return f"{leaf.dtype!r} is no dtype of numbers"
    if not isinstance(positions, np.ndarray) or positions.dtype.kind not in "iu":
        return "its positions are no integers"
    if positions.ndim != 1:
        return f"its positions have the shape {list(positions.shape)}"
    if (positions[1:] <= positions[:-1]).any():
        return "its positions do not rise"
    if positions.size and positions[0] < 0:
        return f"position {positions[0]} lies before the first entry"
    if positions.size and positions[-1] >= size:
        return f"position {positions[-1]} lies past the last of {size} entries"
    word = word_of(itemsize)
    for name, words in (("old", leaf.old), ("new", leaf.new)):
        shape = (positions.size, itemsize // word.itemsize)
        if not isinstance(words, np.ndarray) or (words.dtype, words.shape) != (word, shape):
            return f"its {name} values are not {word.name}{list(shape)}"
    return None


def _check_layout(leaves: list[tuple[str, Any]], patch: Patch) -> None:
    """Parameters with the paths, shapes and dtypes of the patch."""
    ours = by_path([(path, f"{leaf.dtype}{list(leaf.shape)}") for path, leaf in leaves])
    theirs = by_path([(leaf.path, f"{leaf.dtype}{list(leaf.shape)}") for leaf in patch.leaves])
    for own, other in itertools.zip_longest(ours, theirs):
        if own == other:
            continue
        if own and other and own[0] == other[0]:
            difference = f"at '{own[0]}' they are {other[1]} and {own[1]}"
        elif other is None or (own and own[0] < other[0]):
            difference = f"only `params` has '{own[0]}'"
        else:
            difference = f"only `patch` has '{other[0]}'"
        raise ValueError(f"`patch` must fit `params` to the bit; {difference}.")


def _check_held(name: str, tree: Any) -> None:
    """Arrays of bools or numbers whose values are at hand."""
    check_arrays(name, tree)
    for path, leaf in named_leaves(tree):
        where = f"leaf '{path}'" if path else "the tree"
        if isinstance(leaf, Tracer):
            raise TypeError(f"`{name}` must hold arrays with values; {where} is traced.")
        if not isinstance(leaf, np.ndarray | np.generic | jax.Array):
            kind = type(leaf).__name__
            raise TypeError(f"`{name}` must hold arrays only; {where} is a {kind}.")
