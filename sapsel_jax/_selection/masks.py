"""Masks as sets of parameters: algebra, counts, tables, files."""

import itertools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sapsel_jax._base.archives import Archive, load_archive, placed, save_archive, sizes_of
from sapsel_jax._base.checks import (
    by_path,
    check_bool_leaves,
    check_mask,
    check_same_leaves,
    named_leaves,
    named_shapes,
    places_of,
)
from sapsel_jax._base.columns import aligned
from sapsel_jax._base.counts import BITS, Count, count_of, excess, total
from sapsel_jax._base.processes import on_host
from sapsel_jax._base.types import Mask, Params

FILE_KIND = "sapsel_jax mask 1"


def mask_union(a: Mask, b: Mask) -> Mask:
    """Selects the entries that are selected in `a`, in `b`, or in both.

    Entry i of the result is aᵢ or bᵢ: the union a ∪ b.

    Args:
      a: pytree of bool arrays.
      b: pytree of bool arrays with the structure and shapes of `a`.

    Returns:
      A mask shaped like `a`.

    Raises:
      TypeError: if a leaf is not bool.
      ValueError: if the trees differ in structure or shapes.

    Cost: one pass over the entries; no gradient.

    Source: the union of sets.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> sap.mask_union(jnp.array([True, False, False]), jnp.array([True, True, False]))
      Array([ True,  True, False], dtype=bool)
    """
    _check_pair(a, b)
    return jax.tree.map(jnp.logical_or, a, b)


def mask_intersection(a: Mask, b: Mask) -> Mask:
    """Selects the entries that are selected in both `a` and `b`.

    Entry i of the result is aᵢ and bᵢ: the intersection a ∩ b.

    Args:
      a: pytree of bool arrays.
      b: pytree of bool arrays with the structure and shapes of `a`.

    Returns:
      A mask shaped like `a`.

    Raises:
      TypeError: if a leaf is not bool.
      ValueError: if the trees differ in structure or shapes.

    Cost: one pass over the entries; no gradient.

    Source: the intersection of sets.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> sap.mask_intersection(jnp.array([True, False, False]), jnp.array([True, True, False]))
      Array([ True, False, False], dtype=bool)
    """
    _check_pair(a, b)
    return jax.tree.map(jnp.logical_and, a, b)


def mask_complement(a: Mask) -> Mask:
    """Selects the entries that are not selected in `a`.

    Entry i of the result is not aᵢ.

    Args:
      a: pytree of bool arrays.

    Returns:
      A mask shaped like `a`.

    Raises:
      TypeError: if a leaf is not bool.

    Cost: one pass over the entries; no gradient.

    Source: the complement of a set.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> sap.mask_complement(jnp.array([True, False]))
      Array([False,  True], dtype=bool)
    """
    check_bool_leaves("a", a)
    return jax.tree.map(jnp.logical_not, a)


def mask_count(m: Mask) -> jax.Array:
    """Counts the selected entries.

    All leaves are counted together: Σᵢ mᵢ.

    Args:
      m: pytree of bool arrays.

    Returns:
      A uint32 scalar; 2³² − 1 if there are more.

    Raises:
      TypeError: if a leaf is not bool.

    Cost: one pass over the entries; no gradient.

    Source: own.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> print(sap.mask_count({"a": jnp.array([True, False]), "b": jnp.array(True)}))
      2
    """
    return excess(_selected(m), count_of(0), 2**32 - 1)


def mask_density(m: Mask) -> jax.Array:
    """Computes the share of the entries that are selected.

    The share is `mask_count(m)` divided by the number of entries of all leaves.

    Args:
      m: pytree of bool arrays.

    Returns:
      A float32 scalar in [0, 1]; 0 for a tree without entries.

    Raises:
      TypeError: if a leaf is not bool.

    Cost: one pass over the entries; no gradient.

    Source: own.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> print(sap.mask_density(jnp.array([True, False, False, False])))
      0.25
    """
    num_entries = max(sum(jnp.size(leaf) for leaf in jax.tree.leaves(m)), 1)
    high, low = (word.astype(jnp.float32) for word in _selected(m))
    return (high * 2**BITS + low) / float(num_entries)


def _selected(m: Mask) -> Count:
    """How many entries of all leaves are selected."""
    check_bool_leaves("m", m)
    counts = [jnp.sum(leaf, dtype=jnp.uint32) for leaf in jax.tree.leaves(m)]
    return total(jnp.asarray(counts, jnp.uint32))


def mask_overlap(a: Mask, b: Mask) -> jax.Array:
    """Measures how far two masks agree, by the Jaccard index.

    The index is |a ∩ b| / |a ∪ b|: 1 for equal masks, 0 for masks that share no entry.

    Args:
      a: pytree of bool arrays.
      b: pytree of bool arrays with the structure and shapes of `a`.

    Returns:
      A float32 scalar in [0, 1]; 1 where both masks select nothing.

    Raises:
      TypeError: if a leaf is not bool.
      ValueError: if the trees differ in structure or shapes.

    Cost: one pass over the entries; no gradient.

    Source: P. Jaccard, "The distribution of the flora in the alpine zone" (1912).

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> print(sap.mask_overlap(jnp.array([True, True, False]), jnp.array([False, True, False])))
      0.5
    """
    both = mask_count(mask_intersection(a, b))
    either = mask_count(mask_union(a, b))
    return jnp.where(either == 0, 1.0, both / jnp.maximum(either, 1)).astype(jnp.float32)


def describe_mask(m: Mask) -> str:
    """Describes a mask by a table, for people.

    A line for each leaf, and one for all leaves, says how many entries are selected, how many there
    are, and the share.

    Args:
      m: pytree of bool arrays, not traced.

    Returns:
      Text, without a final line break. Leaves are named by their paths, such as `layer/kernel`.

    Raises:
      TypeError: if a leaf is not bool or is traced.

    Cost: one pass over the entries; no gradient.

    Source: own.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> mask = {"bias": jnp.array([True]), "kernel": jnp.array([[True, False, False, False]])}
      >>> print(sap.describe_mask(mask))
      leaf    selected  entries   share
      bias           1        1  100.0%
      kernel         1        4   25.0%
      total          2        5   40.0%
    """
    check_bool_leaves("m", m)
    rows = [(name, int(mask_count(leaf)), jnp.size(leaf)) for name, leaf in named_leaves(m)]
    rows.append(("total", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    cells = [("leaf", "selected", "entries", "share")]
    cells += [(name, f"{s:,}", f"{n:,}", f"{s / max(n, 1):.1%}") for name, s, n in rows]
    return aligned(cells, right=(1, 2, 3))


def save_mask(path: str | os.PathLike[str], mask: Mask) -> None:
    """Writes a mask to a file, one bit per entry, with the paths and shapes of its leaves.

    The file is first written beside its final place and then renamed: an interrupted call leaves no
    part of a mask at `path`. Where leaves span several processes, all of them call this together;
    each writes the whole file, to one place or each to its own.

    Args:
      path: where to write, replacing what is there.
      mask: pytree of bool arrays, not traced.

    Returns:
      None.

    Raises:
      TypeError: if a leaf is not bool or is traced.
      OSError: if the file cannot be written.

    Cost: one pass over the entries on the host; about one bit per entry on disk, or less.

    Source: own.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> mask = {"kernel": jnp.array([True, False])}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     sap.save_mask(folder + "/a.mask", mask)
      ...     print(sap.load_mask(folder + "/a.mask", like=mask))
      {'kernel': Array([ True, False], dtype=bool)}
    """
    check_bool_leaves("mask", mask)
    leaves = [(name, on_host(leaf)) for name, leaf in named_leaves(mask)]
    header = {"kind": FILE_KIND, "leaves": [[name, list(leaf.shape)] for name, leaf in leaves]}
    bits = np.concatenate([np.packbits(leaf) for _, leaf in leaves] or [np.zeros(0, np.uint8)])
    save_archive(path, header, bits=bits)


def load_mask(path: str | os.PathLike[str], like: Params) -> Mask:
    """Reads a mask that `save_mask` wrote.

    Leaves are matched by their paths, so that a mask of a nested tree can be read for the flat
    dictionary of the same arrays. No code in the file is run. A damaged or hostile file takes no
    more memory than a mask for `like`.

    Args:
      path: the file.
      like: pytree of arrays or `jax.ShapeDtypeStruct` that the mask must fit: the parameters.

    Returns:
      A mask with the structure of `like`, sharded like it where it lies on a mesh.

    Raises:
      TypeError: if a leaf of `like` is no array.
      ValueError: if the file is damaged or no mask, or if it differs from `like` in paths or
        shapes.
      OSError: if the file cannot be read.

    Cost: one pass over the entries on the host.

    Source: own.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     sap.save_mask(folder + "/a.mask", {"kernel": jnp.array([True, False])})
      ...     sap.load_mask(folder + "/a.mask", like={"weight": jnp.zeros(2)})
      Traceback (most recent call last):
      ValueError: `mask` and `like` must have the same structure; they first differ at 'kernel' ...
    """
    wanted = named_shapes(like)

    def read(header: Any, archive: Archive) -> tuple[list[Any], list[np.ndarray]]:
        if header["kind"] != FILE_KIND:
            raise ValueError("The file is of another kind.")
        saved = [
            (name, jax.ShapeDtypeStruct(sizes_of(shape), jnp.bool_))
            for name, shape in header["leaves"]
        ]
        if _shapes(saved) != _shapes(wanted):
            return saved, []  # refused below, before memory is taken for it
        ends = list(itertools.accumulate(-(-leaf.size // 8) for _, leaf in saved))
        return saved, np.split(archive.read("bits", sum(ends[-1:])), ends)[:-1]

    saved, packed = load_archive(path, read, arrays=("bits",), saved_by="save_mask")
    check_same_leaves("mask", by_path(saved), "like", by_path(wanted))
    leaves, structure = jax.tree.flatten(like)
    places = places_of([name for name, _ in wanted], [name for name, _ in saved])
    return structure.unflatten(
        placed(np.unpackbits(packed[place], count=shape.size).reshape(shape.shape).view(bool), leaf)
        for place, (_, shape), leaf in zip(places, wanted, leaves, strict=True)
    )


def _shapes(leaves: list[Any]) -> list[Any]:
    return [(name, leaf.shape) for name, leaf in by_path(leaves)]


def _check_pair(a: Mask, b: Mask) -> None:
    check_bool_leaves("b", b)
    check_mask("a", a, "b", b)
