"""Scores to masks: exactly the entries, units or leaves that score highest."""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sapsel_jax._accumulate import wide_dtype
from sapsel_jax._checks import (
    check_bool_leaves,
    check_count,
    check_float_leaves,
    check_fraction,
    check_integer,
    named_leaves,
    path_name,
)
from sapsel_jax._search import num_entries, top_entries
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
      NotImplementedError: if there are 2³² entries or more.

    Cost: at most 11 passes over the scores (22 where a leaf is float64), and one for every 3 bits
      of n where ties at the threshold must be broken; no gradient. The memory beside the scores is
      that of the mask.

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
      NotImplementedError: if there are 2³² entries or more.

    Cost: as `select_top_fraction`.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> sap.select_top_count(jnp.array([1.0, 5.0, 5.0, 5.0]), 2)  # ties: the first two
      Array([False,  True,  True, False], dtype=bool)
    """
    check_count("count", count, minimum=0)
    check_float_leaves("scores", scores)
    return _top_scores(scores, min(count, num_entries(scores)))


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
    check_float_leaves("scores", scores)
    return jax.tree.map(lambda s: select_top_count(s, round(fraction * jnp.size(s))), scores)


def select_top_units(
    scores: Scores,
    fraction: float,
    *,
    axis: int = -1,
    groups: Callable[[str, Any], Hashable] | None = None,
) -> Mask:
    """Whole units, such as output channels: those with the highest mean scores over all leaves.

    A unit is one slice of a leaf along `axis`, with the slices of the same position in the leaves
    of its group: a channel's kernel and its bias. A scalar leaf is one unit.

    Args:
      scores: pytree of floating-point arrays; the dtypes may differ from leaf to leaf.
      fraction: share of all units, a Python number in [0, 1].
      axis: the axis of each leaf that its units run along: -1 for flax and haiku, whose kernels
        keep outputs last; 0 for equinox, which keeps them first.
      groups: `groups(path, leaf) -> name`, with the path as in `select_leaves`; leaves of one name
        share their units, such as `lambda path, leaf: path.rpartition("/")[0]` for the leaves of
        one layer. By default every leaf stands alone.

    Returns:
      A mask: pytree of bool arrays shaped like `scores`. Exactly `round(fraction * units)` units
      are selected; ties go to the first in leaf order. A unit that holds NaN or -inf never is.

    Raises:
      TypeError: if `fraction` is no Python number, `axis` no Python integer, or a leaf is not
        floating point.
      ValueError: if `fraction` lies outside [0, 1], a leaf has no such axis, or leaves of one group
        differ in their number of units.

    Cost: one pass over the scores, and a selection among the units.

    Source: Li et al., "Pruning Filters for Efficient ConvNets" (arXiv 1608.08710), ranks whole
      filters; the score is the caller's choice here.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> scores = {"bias": jnp.array([0.0, 9.0]), "kernel": jnp.array([[4.0, 1.0], [6.0, 2.0]])}
      >>> print(sap.select_top_units(scores, 0.5, groups=lambda path, leaf: "layer")["kernel"])
      [[False  True]
       [False  True]]
    """
    check_fraction("fraction", fraction)
    check_integer("axis", axis)
    check_float_leaves("scores", scores)
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, scores))
    paths = [path for path, _ in named_leaves(scores)]
    axes = [_unit_axis(path, leaf, axis) for path, leaf in zip(paths, leaves, strict=True)]
    units = [1 if a is None else leaf.shape[a] for a, leaf in zip(axes, leaves, strict=True)]
    members: dict[Hashable, list[int]] = {}
    for i, (path, leaf) in enumerate(zip(paths, leaves, strict=True)):
        name = ("leaf", i) if groups is None else ("group", groups(path, leaf))
        members.setdefault(name, []).append(i)

    means = []
    for first, *rest in members.values():
        for i in rest:
            if units[i] != units[first]:
                raise ValueError(
                    f"`groups` must join leaves with the same number of units; '{paths[first]}' "
                    f"has {units[first]} and '{paths[i]}' has {units[i]}."
                )
        group = [first, *rest]
        size = sum(leaves[i].size for i in group) // max(units[first], 1)
        means.append(sum(_unit_sums(leaves[i], axes[i]) for i in group) / size)
    masks = {}
    chosen = select_top_fraction(means, fraction)
    for group, picked in zip(members.values(), chosen, strict=True):
        for i in group:
            shape = [n if a == axes[i] else 1 for a, n in enumerate(leaves[i].shape)]
            # No picked unit holds NaN; to say so gives the mask the leaf's shape and sharding.
            masks[i] = picked.reshape(shape) & ~jnp.isnan(leaves[i])
    return structure.unflatten(masks[i] for i in range(len(leaves)))


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
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, mask))
    keys = jax.random.split(key, max(len(leaves), 1))
    return structure.unflatten(map(_random_entries, leaves, keys))


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


def _top_scores(scores: Scores, count: int) -> Mask:
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, scores))
    wide = any(leaf.dtype == jnp.float64 for leaf in leaves)
    return structure.unflatten(_top_floats(leaves, jnp.uint32(count), wide=wide))


# Compiled here, as is `_random_entries`, because JAX would compile the loops inside anew in every
# call that is not itself under `jit`.
@functools.partial(jax.jit, static_argnames="wide")
def _top_floats(leaves: list[jax.Array], count: jax.Array, *, wide: bool) -> list[jax.Array]:
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

    return top_entries(leaves, count, key, lowest=-infinity, highest=infinity)


@jax.jit
def _random_entries(selected: jax.Array, key: jax.Array) -> jax.Array:
    # The draw stays uniform when it is crossed with the mask, and so has the mask's sharding.
    draw = jax.random.bits(key, selected.shape, jnp.uint32) >> 1 ^ selected
    draw = jnp.maximum(draw, 1).astype(jnp.int32)  # 0 is never selected
    count = jnp.sum(selected, dtype=jnp.uint32)
    return top_entries([draw], count, lambda keys: keys, lowest=0, highest=2**31 - 1)[0]


def _unit_axis(path: str, leaf: jax.Array, axis: int) -> int | None:
    """The axis that units run along, counted from the front; a scalar has none."""
    if leaf.ndim == 0:
        return None
    if not -leaf.ndim <= axis < leaf.ndim:
        raise ValueError(
            f"`axis` must lie in [{-leaf.ndim}, {leaf.ndim - 1}] for leaf '{path}' of shape "
            f"{list(leaf.shape)}; got {axis}."
        )
    return axis % leaf.ndim


def _unit_sums(leaf: jax.Array, axis: int | None) -> jax.Array:
    others = [a for a in range(leaf.ndim) if a != axis]
    return jnp.atleast_1d(jnp.sum(leaf, others, dtype=wide_dtype(leaf.dtype)))
