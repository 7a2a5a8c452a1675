"""Scores to masks by units, such as output channels: whole units, or equally much of each unit."""

import bisect
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sapsel_jax._base.checks import (
    check_float_leaves,
    check_fraction,
    check_integer,
    named_leaves,
)
from sapsel_jax._base.precision import wide_dtype
from sapsel_jax._base.types import Mask, Scores
from sapsel_jax._selection.entries import select_top_count, select_top_fraction, top_floats
from sapsel_jax._selection.search import beside, num_entries

Groups = Callable[[str, Any], Hashable] | None


def select_top_units(
    scores: Scores, fraction: float, *, axis: int = -1, groups: Groups = None
) -> Mask:
    """Selects whole units, such as output channels: the highest mean scores first.

    A unit is one slice of a leaf along `axis`, with the slices at the same position in the other
    leaves of its group: a channel's kernel and its bias. Its score is the mean of its entries. All
    units are ranked together. A scalar leaf is one unit.

    Args:
      scores: pytree of floating-point arrays; the dtypes may differ from leaf to leaf.
      fraction: share of all units, a Python number in [0, 1].
      axis: the axis of each leaf that its units run along: -1 for flax and haiku, whose kernels
        keep outputs last; 0 for equinox, which keeps them first.
      groups: `groups(path, leaf) -> name`, with the path as in `select_leaves`. Leaves of one name
        share their units: `lambda path, leaf: path.rpartition("/")[0]` joins the leaves of one
        layer. By default every leaf stands alone.

    Returns:
      A mask: pytree of bool arrays shaped like `scores`. Exactly `round(fraction * units)` units
      are selected; ties go to the first in leaf order. A unit that holds NaN or -inf never is.

    Raises:
      TypeError: if `fraction` is no Python number, `axis` no Python integer, or a leaf is not
        floating point.
      ValueError: if `fraction` lies outside [0, 1], a leaf has no such axis, or leaves of one group
        differ in their number of units.
      NotImplementedError: if a leaf has 2³² − 7 units or more.

    Cost: one pass over the scores, and a selection among the units; no gradient.

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
    leaves, units = _divide(scores, axis, groups)
    means = [
        sum(_unit_sums(leaves[i], a) for i, a in group.axes.items()) / group.unit_size
        for group in units
    ]
    masks = {}
    for group, picked in zip(units, select_top_fraction(means, fraction), strict=True):
        for i, unit_axis in group.axes.items():
            # No picked unit holds NaN; to say so gives the mask the leaf's shape and sharding.
            masks[i] = beside(picked, leaves[i], unit_axis) & ~jnp.isnan(leaves[i])
    return _shaped_like(scores, [masks[i] for i in range(len(leaves))])


def select_top_fraction_per_unit(
    scores: Scores, fraction: float, *, axis: int = -1, groups: Groups = None
) -> Mask:
    """Selects `round(fraction * n)` of all n entries, equally many of each unit.

    A unit is an output channel, for example; see `select_top_units`. Every unit gives its entry
    with the highest score, then every unit gives its second, and so on. Units with fewer entries
    give all they have. If not all units can join the last round, the highest scores decide. So the
    mask reaches every unit, even if the highest scores lie in few units.

    Args:
      scores: pytree of floating-point arrays; the dtypes may differ from leaf to leaf.
      fraction: share of all entries, a Python number in [0, 1].
      axis: as in `select_top_units`.
      groups: as in `select_top_units`. Biases that stand alone are units of one entry each, so they
        are selected first. Biases in one group with their kernel compete with it.

    Returns:
      A mask: pytree of bool arrays shaped like `scores`. Ties go to the entry that comes first in
      leaf order. NaN and -inf are never selected, and no other unit gives more in their place.

    Raises:
      TypeError: if `fraction` is no Python number, `axis` no Python integer, or a leaf is not
        floating point.
      ValueError: if `fraction` lies outside [0, 1], a leaf has no such axis, or leaves of one group
        differ in their number of units.
      NotImplementedError: if a leaf has 2³² − 7 entries or more.

    Cost: five times as much as `select_top_fraction`, measured on 30 million entries on CPU; no
      gradient.

    Source: Zhang et al., "Gradient-based Parameter Selection for Efficient Fine-Tuning" (arXiv
      2312.10136), selects the same number of connections of every neuron; the score is the caller's
      choice here.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> scores = jnp.array([[9.0, 1.0], [8.0, 2.0], [7.0, 0.0]])  # two units, in columns
      >>> print(sap.select_top_fraction_per_unit(scores, 0.5))
      [[ True False]
       [ True  True]
       [False False]]
    """
    check_fraction("fraction", fraction)
    leaves, units = _divide(scores, axis, groups)

    def total(count: int) -> int:
        return sum(group.num_units * min(count, group.unit_size) for group in units)

    most = max((group.unit_size for group in units), default=0)
    wanted = round(fraction * num_entries(leaves))
    each = bisect.bisect_right(range(most + 1), wanted, key=total) - 1
    selected = _top_of_each(leaves, units, each)
    if total(each) < wanted:
        candidates = [
            jnp.where(more & ~already, leaf, -jnp.inf)
            for leaf, already, more in zip(
                leaves, selected, _top_of_each(leaves, units, each + 1), strict=True
            )
        ]
        last = select_top_count(candidates, wanted - total(each))
        selected = [a | b for a, b in zip(selected, last, strict=True)]
    return _shaped_like(scores, selected)


class _Group(NamedTuple):
    """Leaves that share their units."""

    axes: dict[int, int]
    """For each of them, by its place, the axis that units run along."""
    num_units: int
    unit_size: int
    """The entries of a unit over all of its leaves."""


def _divide(scores: Scores, axis: int, groups: Groups) -> tuple[list[jax.Array], list[_Group]]:
    """The leaves, scalars as arrays of one entry, and which of them belong together."""
    check_integer("axis", axis)
    check_float_leaves("scores", scores)
    leaves, axes = [], []
    members: dict[Hashable, list[int]] = {}
    named = named_leaves(scores)
    for i, (path, leaf) in enumerate(named):
        leaf = jnp.asarray(leaf)
        name = ("leaf", i) if groups is None else ("group", groups(path, leaf))
        members.setdefault(name, []).append(i)
        axes.append(_unit_axis(path, leaf, axis))
        leaves.append(jnp.atleast_1d(leaf))
    units = [leaf.shape[a] for leaf, a in zip(leaves, axes, strict=True)]
    found = []
    for group in members.values():
        first, *rest = group
        for i in rest:
            if units[i] != units[first]:
                raise ValueError(
                    "`groups` must join leaves with the same number of units; "
                    f"'{named[first][0]}' has {units[first]} and '{named[i][0]}' has {units[i]}."
                )
        size = sum(leaves[i].size for i in group) // max(units[first], 1)
        found.append(_Group({i: axes[i] for i in group}, units[first], size))
    return leaves, found


def _shaped_like(scores: Scores, masks: list[jax.Array]) -> Mask:
    """The masks as a tree, those of scalars as scalars."""
    leaves, structure = jax.tree.flatten(scores)
    shaped = [mask.reshape(jnp.shape(leaf)) for leaf, mask in zip(leaves, masks, strict=True)]
    return structure.unflatten(shaped)


def _top_of_each(leaves: list[jax.Array], groups: list[_Group], count: int) -> list[jax.Array]:
    """Masks of the `count` entries of every unit with the highest scores."""
    masks = [jnp.zeros_like(leaf, bool) for leaf in leaves]
    for group in groups:
        if group.num_units * group.unit_size:
            parts, axes = [leaves[i] for i in group.axes], tuple(group.axes.values())
            picked = top_floats(parts, min(count, group.unit_size), units=axes)
            for i, mask in zip(group.axes, picked, strict=True):
                masks[i] = mask
    return masks


def _unit_axis(path: str, leaf: jax.Array, axis: int) -> int:
    """The axis that units run along, counted from the front; a scalar is one unit."""
    if leaf.ndim == 0:
        return 0
    if not -leaf.ndim <= axis < leaf.ndim:
        raise ValueError(
            f"`axis` must lie in [{-leaf.ndim}, {leaf.ndim - 1}] for leaf '{path}' of shape "
            f"{list(leaf.shape)}; got {axis}."
        )
    return axis % leaf.ndim


def _unit_sums(leaf: jax.Array, axis: int) -> jax.Array:
    others = [a for a in range(leaf.ndim) if a != axis]
    return jnp.sum(leaf, others, dtype=wide_dtype(leaf.dtype))
