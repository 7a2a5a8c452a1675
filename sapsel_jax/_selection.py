"""Scores to masks: exactly the k entries that score highest.

The k-th largest score is found by bisecting the ordered integer form of floats, one bit a pass, and
ties by bisecting the entries' positions. No sort, no concatenation and no reshape: leaves keep
their sharding, and the memory needed beside the scores is that of the mask.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sapsel_jax._checks import (
    check_bool_leaves,
    check_count,
    check_float_leaves,
    check_fraction,
    path_name,
)
from sapsel_jax._types import Mask, Params, Scores


def select_top_fraction(scores: Scores, fraction: float) -> Mask:
    """The `round(fraction * n)` entries with the highest scores, over all leaves together.

    Ties go to the entry that comes first in leaf order. NaN and -inf are never selected; where
    fewer entries remain than were asked for, all of them are.

    Args:
      scores: pytree of floating-point arrays; the dtypes may differ from leaf to leaf.
      fraction: share of all n entries, a Python number in [0, 1].

    Returns:
      A mask: pytree of bool arrays shaped like `scores`, True for the selected entries.

    Raises:
      TypeError: if `fraction` is no Python number or a leaf is not floating point.
      ValueError: if `fraction` lies outside [0, 1].

    Cost: 32 passes over the scores (64 for float64), and as many as n has bits where ties at the
      threshold must be broken; no gradient.

    Source: Malekmohammadi, Lee, Xiong (arXiv 2504.06398), abstract: the share of the parameters
      with the largest entries.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> scores = {"a": jnp.array([3.0, 1.0]), "b": jnp.array([2.0, jnp.nan])}
      >>> print(sap.select_top_fraction(scores, 0.5))
      {'a': Array([ True, False], dtype=bool), 'b': Array([ True, False], dtype=bool)}
    """
    check_fraction("fraction", fraction)
    return select_top_count(scores, round(fraction * _num_entries(scores)))


def select_top_count(scores: Scores, count: int) -> Mask:
    """The `count` entries with the highest scores, over all leaves together.

    Ties go to the entry that comes first in leaf order. NaN and -inf are never selected; where
    fewer entries remain than were asked for, all of them are.

    Args:
      scores: pytree of floating-point arrays; the dtypes may differ from leaf to leaf.
      count: how many to select, a Python integer of at least 0.

    Returns:
      A mask: pytree of bool arrays shaped like `scores`, True for the selected entries.

    Raises:
      TypeError: if `count` is no Python integer or a leaf is not floating point.
      ValueError: if `count` is negative.

    Cost: as `select_top_fraction`.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> sap.select_top_count(jnp.array([1.0, 5.0, 5.0, 5.0]), 2)  # ties: the first two
      Array([False,  True,  True, False], dtype=bool)
    """
    check_count("count", count, minimum=0)
    check_float_leaves("scores", scores)
    leaves, structure = jax.tree.flatten(scores)
    count = min(count, _num_entries(scores))
    return structure.unflatten(_top(_ordered(leaves), count))


def select_top_fraction_per_leaf(scores: Scores, fraction: float) -> Mask:
    """In each leaf of n entries, the `round(fraction * n)` with the highest scores.

    Ties, NaN and -inf are treated as in `select_top_fraction`.

    Args:
      scores: pytree of floating-point arrays; the dtypes may differ from leaf to leaf.
      fraction: share of the entries of each leaf, a Python number in [0, 1].

    Returns:
      A mask: pytree of bool arrays shaped like `scores`, True for the selected entries.

    Raises:
      TypeError: if `fraction` is no Python number or a leaf is not floating point.
      ValueError: if `fraction` lies outside [0, 1].

    Cost: as `select_top_fraction`.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> scores = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([2.0, 1.0])}
      >>> print(sap.select_top_fraction_per_leaf(scores, 0.5))
      {'a': Array([False,  True], dtype=bool), 'b': Array([ True, False], dtype=bool)}
    """
    check_fraction("fraction", fraction)
    return jax.tree.map(lambda s: select_top_count(s, round(fraction * jnp.size(s))), scores)


def select_like(mask: Mask, key: jax.Array) -> Mask:
    """Random entries, in each leaf as many as `mask` has there: the control for any selection.

    What a selection gains over this control it gains by which entries it takes, not by how many of
    each layer.

    Args:
      mask: pytree of bool arrays.
      key: a JAX random key.

    Returns:
      A mask with the structure, the shapes and the counts of `mask`; every choice of that many
      entries of a leaf is equally likely.

    Raises:
      TypeError: if a leaf is not bool.

    Cost: as `select_top_fraction`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> mask = {"a": jnp.array([True, True, False]), "b": jnp.array([False, False])}
      >>> print(sap.mask_count(sap.select_like(mask, jax.random.key(0))["a"]))
      2
    """
    check_bool_leaves("mask", mask)
    leaves, structure = jax.tree.flatten(mask)
    keys = jax.random.split(key, max(len(leaves), 1))
    drawn = [
        # 0 is kept for entries that are never selected.
        _top([jnp.maximum(jax.random.bits(k, jnp.shape(leaf), jnp.uint32), 1)], _count(leaf))[0]
        for leaf, k in zip(leaves, keys, strict=False)
    ]
    return structure.unflatten(drawn)


def select_leaves(params: Params, predicate: Callable[[str, Any], bool]) -> Mask:
    """Whole leaves, chosen by their path.

    Args:
      params: pytree of arrays.
      predicate: `predicate(path, leaf) -> bool`, with the path as `keystr(path, simple=True,
        separator="/")` writes it, such as `layer/kernel`.

    Returns:
      A mask: pytree of bool arrays shaped like `params`, each all True or all False.

    Cost: one pass over the entries.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> params = {"head": {"bias": jnp.zeros(1)}, "body": jnp.zeros(2)}
      >>> print(sap.select_leaves(params, lambda path, leaf: path.startswith("head/")))
      {'body': Array([False, False], dtype=bool), 'head': {'bias': Array([ True], dtype=bool)}}
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full(jnp.shape(leaf), bool(predicate(path_name(path), leaf))), params
    )


def _num_entries(tree: Any) -> int:
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree))


def _count(selected: jax.Array) -> jax.Array:
    return jnp.sum(selected, dtype=jnp.uint32)


def _ordered(scores: Sequence[Any]) -> list[jax.Array]:
    """Unsigned integers in the order of the scores; 0 for what is never selected."""
    leaves = [jnp.asarray(leaf) for leaf in scores]
    wide = any(leaf.dtype == jnp.float64 for leaf in leaves)
    float_dtype, int_dtype = (jnp.float64, jnp.uint64) if wide else (jnp.float32, jnp.uint32)
    sign = jnp.asarray(1 << (63 if wide else 31), int_dtype)

    def ordered(leaf: jax.Array) -> jax.Array:
        leaf = leaf.astype(float_dtype)
        bits = lax.bitcast_convert_type(leaf, int_dtype)
        # By its bits, because a comparison with 0.0 would also take denormal numbers for it.
        bits = jnp.where(bits == sign, jnp.zeros_like(bits), bits)
        keys = jnp.where(bits >= sign, ~bits, bits | sign)
        return jnp.where(jnp.isnan(leaf) | (leaf == -jnp.inf), jnp.zeros_like(keys), keys)

    return [ordered(leaf) for leaf in leaves]


def _top(keys: list[jax.Array], count: Any) -> list[jax.Array]:
    """Masks of the `count` largest keys over all arrays; ties to the first, 0 never."""
    if not keys:
        return []
    num_entries = _num_entries(keys)
    if num_entries >= 2**32:
        raise NotImplementedError(
            f"Selection numbers the entries by 32 bits; got {num_entries} of them."
        )

    def total(selected: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
        counts = [_count(selected(k, i)) for k, i in zip(keys, _indices(keys), strict=True)]
        return sum(counts, jnp.uint32(0))

    count = jnp.minimum(jnp.asarray(count, jnp.uint32), total(lambda k, _: k > 0))
    threshold = _largest(
        lambda t: total(lambda k, _: k >= t) >= count, keys[0].dtype, 8 * keys[0].dtype.itemsize
    )
    missing = count - total(lambda k, _: k > threshold)
    # Ties are all wanted but for a few cases, and then need no search.
    end = lax.cond(
        total(lambda k, _: k == threshold) > missing,
        lambda: _largest(
            lambda e: total(lambda k, i: (k == threshold) & (i < e)) <= missing,
            jnp.uint32,
            num_entries.bit_length(),
        ),
        lambda: jnp.uint32(num_entries),
    )
    return [
        (k > threshold) | ((k == threshold) & (i < end) & (k > 0))
        for k, i in zip(keys, _indices(keys), strict=True)
    ]


def _largest(holds: Callable[[jax.Array], jax.Array], dtype: Any, num_bits: int) -> jax.Array:
    """The largest unsigned integer of `num_bits` bits for which a falling condition holds."""

    def set_bit(step: jax.Array, value: jax.Array) -> jax.Array:
        bit = jnp.asarray(num_bits - 1 - step, dtype)
        candidate = value | (jnp.asarray(1, dtype) << bit)
        return jnp.where(holds(candidate), candidate, value)

    return lax.fori_loop(0, num_bits, set_bit, jnp.zeros((), dtype))


def _indices(arrays: list[jax.Array]) -> list[jax.Array]:
    """The position of every entry in leaf order, without a reshape."""
    indices, offset = [], 0
    for array in arrays:
        index = jnp.full(array.shape, offset, jnp.uint32)
        for axis in range(array.ndim):
            stride = math.prod(array.shape[axis + 1 :])
            index += lax.broadcasted_iota(jnp.uint32, array.shape, axis) * jnp.uint32(stride)
        indices.append(index)
        offset += array.size
    return indices
