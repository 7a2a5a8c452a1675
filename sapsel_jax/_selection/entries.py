"""Scores to masks: exactly the entries that score highest, and whole leaves."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sapsel_jax._base.checks import (
    check_bool_leaves,
    check_count,
    check_float_leaves,
    check_fraction,
    path_name,
)
from sapsel_jax._base.counts import Count, count_of
from sapsel_jax._base.types import Mask, Params, Scores
from sapsel_jax._selection.search import num_entries, top_entries


def select_top_fraction(scores: Scores, fraction: float) -> Mask:
    """Selects the `round(fraction * n)` entries with the highest scores, over all leaves together.

    Ties go to the entry that comes first in leaf order. NaN and -inf are never selected. If fewer
    entries remain than were asked for, all of them are selected.

    Args:
      scores: pytree of floating-point arrays; the dtypes may differ from leaf to leaf.
      fraction: share of all n entries, a Python number in [0, 1].

    Returns:
      A mask: pytree of bool arrays shaped like `scores`, True for the selected entries.

    Raises:
      TypeError: if `fraction` is no Python number or a leaf is not floating point.
      ValueError: if `fraction` lies outside [0, 1].
      NotImplementedError: if a leaf has 2³² − 7 entries or more.

    Cost: at most 11 passes over the scores (22 where a leaf is float64), and one for every 3 bits
      of n where ties at the threshold must be broken; no gradient. The mask is the only other
      memory of the size of the scores.

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
    check_float_leaves("scores", scores)
    return select_top_count(scores, round(fraction * num_entries(scores)))


def select_top_count(scores: Scores, count: int) -> Mask:
    """Selects the `count` entries with the highest scores, over all leaves together.

    Ties go to the entry that comes first in leaf order. NaN and -inf are never selected. If fewer
    entries remain than were asked for, all of them are selected.

    Args:
      scores: pytree of floating-point arrays; the dtypes may differ from leaf to leaf.
      count: how many to select, a Python integer of at least 0.

    Returns:
      A mask: pytree of bool arrays shaped like `scores`, True for the selected entries.

    Raises:
      TypeError: if `count` is no Python integer or a leaf is not floating point.
      ValueError: if `count` is negative.
      NotImplementedError: if a leaf has 2³² − 7 entries or more.

    Cost: as `select_top_fraction`.

    Source: as `select_top_fraction`.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> sap.select_top_count(jnp.array([1.0, 5.0, 5.0, 5.0]), 2)  # ties: the first two
      Array([False,  True,  True, False], dtype=bool)
    """
    check_count("count", count, minimum=0)
    check_float_leaves("scores", scores)
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, scores))
    return structure.unflatten(top_floats(leaves, min(count, num_entries(leaves))))


def select_top_fraction_per_leaf(scores: Scores, fraction: float) -> Mask:
    """Selects in each leaf the same share of its entries, the highest scores first.

    In a leaf of n entries it takes the `round(fraction * n)` with the highest scores. Ties, NaN
    and -inf are treated as in `select_top_fraction`.

    Args:
      scores: pytree of floating-point arrays; the dtypes may differ from leaf to leaf.
      fraction: share of the entries of each leaf, a Python number in [0, 1].

    Returns:
      A mask: pytree of bool arrays shaped like `scores`, True for the selected entries.

    Raises:
      TypeError: if `fraction` is no Python number or a leaf is not floating point.
      ValueError: if `fraction` lies outside [0, 1].
      NotImplementedError: if a leaf has 2³² − 7 entries or more.

    Cost: as `select_top_fraction`.

    Source: own: `select_top_fraction`, leaf by leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> scores = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([2.0, 1.0])}
      >>> print(sap.select_top_fraction_per_leaf(scores, 0.5))
      {'a': Array([False,  True], dtype=bool), 'b': Array([ True, False], dtype=bool)}
    """
    check_fraction("fraction", fraction)
    check_float_leaves("scores", scores)
    return jax.tree.map(lambda s: select_top_count(s, round(fraction * jnp.size(s))), scores)


def select_like(mask: Mask, key: jax.Array) -> Mask:
    """Selects random entries, in each leaf as many as `mask` has there.

    It is the control for any selection. Every choice of that many entries of a leaf is equally
    likely. If a selection beats this control, the reason is which entries it takes, not how many of
    each layer.

    Args:
      mask: pytree of bool arrays, any shapes; may be traced.
      key: a JAX random key.

    Returns:
      A mask with the structure and shapes of `mask`, and with its count in each leaf.

    Raises:
      TypeError: if a leaf is not bool.
      NotImplementedError: if a leaf has 2³² − 7 entries or more.

    Cost: as `select_top_fraction`.

    Source: own.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> mask = {"a": jnp.array([True, True, False]), "b": jnp.array([False, False])}
      >>> print(sap.mask_count(sap.select_like(mask, jax.random.key(0))["a"]))
      2
    """
    check_bool_leaves("mask", mask)
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, mask))
    keys = jax.random.split(key, max(len(leaves), 1))
    return structure.unflatten(map(_random_entries, leaves, keys))


def select_leaves(params: Params, predicate: Callable[[str, Any], bool]) -> Mask:
    """Selects whole leaves by their paths.

    All entries of a leaf are selected if `predicate(path, leaf)` is true, and none if it is false.

    Args:
      params: pytree of arrays or of `jax.ShapeDtypeStruct`.
      predicate: `predicate(path, leaf) -> bool`, with the path as `keystr(path, simple=True,
        separator="/")` writes it, such as `layer/kernel`.

    Returns:
      A mask: pytree of bool arrays shaped like `params`, each all True or all False.

    Raises:
      Exception: what `predicate` raises; nothing of its own.

    Cost: one pass over the entries; no gradient.

    Source: own.

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


def top_floats(
    leaves: list[jax.Array], count: int | jax.Array, *, units: tuple[int, ...] | None = None
) -> list[jax.Array]:
    """`top_entries` by floats; NaN and -inf are never selected."""
    wide = any(leaf.dtype == jnp.float64 for leaf in leaves)
    return _top_floats(leaves, count_of(count), wide=wide, units=units)


# Compiled here, as is `_random_entries`, because JAX would compile the loops inside again in every
# call that is not itself under `jit`.
@functools.partial(jax.jit, static_argnames=("wide", "units"))
def _top_floats(
    leaves: list[jax.Array], count: Count, *, wide: bool, units: tuple[int, ...] | None
) -> list[jax.Array]:
    float_dtype, int_dtype = (jnp.float64, jnp.int64) if wide else (jnp.float32, jnp.int32)
    infinity = np.array(np.inf, float_dtype).view(int_dtype).item()

    def key(leaf: jax.Array) -> jax.Array:
        """Integers in the order of the scores; NaN, which lies beyond infinity, joins -inf.

        By their bits, because a backend may take denormal numbers for zero when it compares floats.
        """
        bits = lax.bitcast_convert_type(leaf.astype(float_dtype), int_dtype)
        magnitude = bits & jnp.iinfo(int_dtype).max
        ordered = jnp.where(bits < 0, -magnitude, magnitude)
        return jnp.where(magnitude > infinity, -infinity, ordered)

    return top_entries(leaves, count, key, lowest=-infinity, highest=infinity, units=units)


@jax.jit
def _random_entries(selected: jax.Array, key: jax.Array) -> jax.Array:
    # The draw stays uniform when it is crossed with the mask, and so has the mask's sharding.
    draw = jax.random.bits(key, selected.shape, jnp.uint32) >> 1 ^ selected.astype(jnp.uint32)
    draw = jnp.maximum(draw, 1).astype(jnp.int32)  # 0 is never selected
    count = count_of(jnp.sum(selected, dtype=jnp.uint32))
    return top_entries([draw], count, lambda keys: keys, lowest=0, highest=2**31 - 1)[0]
