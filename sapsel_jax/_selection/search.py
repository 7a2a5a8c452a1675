"""The entries with the largest keys over many arrays: an exact threshold, found by counting.

No sort, no concatenation and no reshape: arrays keep their sharding, and nothing of their size is
kept beside them but the masks.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Candidates that one pass counts at once. On CPU 7 measured fastest: a pass is then still bound by
# memory, and 32 bits take 11 passes.
NUM_CANDIDATES = 7

# Positions are 32-bit numbers, and the last step of a search looks a little past the end.
MAX_ENTRIES = 2**32 - NUM_CANDIDATES


def num_entries(tree: Any) -> int:
    """The number of entries over all leaves."""
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree))


def top_entries(
    leaves: list[jax.Array],
    count: Any,
    key: Callable[[jax.Array], jax.Array],
    *,
    lowest: int,
    highest: int,
    units: Sequence[int] | None = None,
) -> list[jax.Array]:
    """Masks of the `count` entries with the largest keys over all leaves; ties go to the first.

    Args:
      leaves: arrays.
      count: how many to select; may be traced.
      key: signed integers for the entries of a leaf; cheap, because it is computed in every pass.
      lowest: the smallest key, never selected.
      highest: the largest key.
      units: for each leaf the axis that units run along, as many in each; the `count` entries of
        every unit are then selected. None takes all entries together.

    Returns:
      One bool array per leaf.
    """
    if not leaves:
        return []
    total = num_entries(leaves)
    if total >= MAX_ENTRIES:
        raise NotImplementedError(
            f"Selection takes fewer than {MAX_ENTRIES} entries at a time; got {total}."
        )
    count = jnp.asarray(count, jnp.uint32)
    axes: Sequence[int | None] = [None] * len(leaves) if units is None else units
    totals = functools.partial(_totals, axes=axes)
    # Everything lies at or above the lowest key: one number, or one per unit with its sharding.
    reached = jnp.uint32(total)
    if units is not None:
        (reached,) = totals([[jnp.ones_like(leaf, bool)] for leaf in leaves])
    threshold, reached, above = _largest(
        lambda leaves, candidates: totals(
            [
                [key(leaf) >= beside(c, leaf, axis) for c in candidates]
                for leaf, axis in zip(leaves, axes, strict=True)
            ]
        ),
        leaves,
        wanted=count,
        low=(0 * reached).astype(jnp.int64 if highest > 2**31 else jnp.int32) + lowest,
        reached=reached,
        width=highest - lowest + 1,
    )
    # Ties at the threshold: the last `surplus` of them stay out.
    surplus = jnp.where(threshold == lowest, 0, reached - count)
    end, _, _ = _largest(
        lambda located, candidates: totals(
            [
                [
                    (key(leaf) == beside(threshold, leaf, axis)) & (index >= beside(c, leaf, axis))
                    for c in candidates
                ]
                for leaf, index, axis in zip(located[0], _indices(*located), axes, strict=True)
            ]
        ),
        (leaves, _strides(leaves)),
        wanted=surplus,
        low=jnp.where(surplus == 0, jnp.uint32(total), jnp.uint32(0)),
        reached=jnp.where(surplus == 0, 0, reached - above),
        width=total,
    )

    def selected(leaf: jax.Array, index: jax.Array, axis: int | None) -> jax.Array:
        keys = key(leaf)
        least, last = beside(threshold, leaf, axis), beside(end, leaf, axis)
        return (keys > least) | ((keys == least) & (index < last) & (keys > lowest))

    indices = _indices(leaves, _strides(leaves))
    return [selected(*each) for each in zip(leaves, indices, axes, strict=True)]


def _largest(
    at_or_above: Callable[[Any, list[jax.Array]], list[jax.Array]],
    arrays: Any,
    *,
    wanted: jax.Array,
    low: jax.Array,
    reached: jax.Array,
    width: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The largest of `width` integers from `low` on that `wanted` entries lie at or above.

    Each pass counts the entries at or above each of `NUM_CANDIDATES` integers. The search ends
    early where a count is exactly what is wanted. All numbers may be arrays, one for each unit.

    Args:
      at_or_above: given arrays and candidates, how many entries lie at or above each candidate.
      arrays: what it looks at.
      wanted: how many entries, at most `reached`.
      low: the smallest integer.
      reached: how many entries lie at or above it.
      width: how many integers there are; none lies at or above their end.

    Returns:
      The integer, how many entries lie at or above it and, where the search did not end early, how
      many lie above it.
    """
    num_parts = NUM_CANDIDATES + 1
    unsigned = jnp.dtype(f"uint{8 * low.dtype.itemsize}")

    def searching(state: Any) -> jax.Array:
        _, width, reached, _ = state
        return (width > 1) & jnp.any(reached != wanted)

    def narrow(state: Any) -> Any:
        # The barrier ties the arrays to the step, so that XLA computes nothing of their size before
        # the loop to keep it in memory.
        (low, width, reached, above), seen = lax.optimization_barrier((state, arrays))
        step = (width - 1) // num_parts + 1
        candidates = [low + (part * step).astype(low.dtype) for part in range(1, num_parts)]
        counts = [reached, *at_or_above(seen, candidates), above]
        part = _sum((count >= wanted).astype(jnp.int32) for count in counts[1:-1])
        low = low + (part.astype(unsigned) * step).astype(low.dtype)
        pick = lambda place: _sum(
            jnp.where(place == i, count, jnp.uint32(0)) for i, count in enumerate(counts)
        )
        return low, step, pick(part), pick(part + 1)

    start = (low, jnp.asarray(width, unsigned), reached, jnp.zeros_like(reached))
    low, _, reached, above = lax.while_loop(searching, narrow, start)
    return low, reached, above


def beside(number: jax.Array, leaf: jax.Array, axis: int | None) -> jax.Array:
    """One number per unit, shaped to meet the entries of a leaf."""
    if axis is None:
        return number
    return number.reshape([n if a == axis else 1 for a, n in enumerate(leaf.shape)])


def _totals(selected: list[list[jax.Array]], axes: Sequence[int | None]) -> list[jax.Array]:
    """For each of several conditions, how many entries of all leaves, or of each unit, meet it."""
    counts = [
        _counts([condition.astype(jnp.uint32) for condition in leaf], axis)
        for leaf, axis in zip(selected, axes, strict=True)
    ]
    return [_sum(of_leaves) for of_leaves in zip(*counts, strict=True)]


def _counts(selected: list[jax.Array], axis: int | None) -> list[jax.Array]:
    shape = selected[0].shape
    others = [a for a in range(len(shape)) if a != axis]
    if jax.typeof(selected[0]).sharding.mesh.size > 1:
        # Over several devices: XLA adds partial sums up, but gathers partial tuples of sums.
        return [jnp.sum(s, others, dtype=jnp.uint32) for s in selected]
    # On one device: a reduction of a tuple reads the leaf once. By rows first where all is one
    # number, which XLA's CPU backend spreads over threads.
    by_rows = axis is None and len(shape) > 1 and math.prod(shape[1:]) >= 128
    rows = lax.reduce(
        selected,
        [jnp.uint32(0)] * len(selected),
        lambda a, b: [x + y for x, y in zip(a, b, strict=True)],
        others[1:] if by_rows else others,
    )
    return [jnp.sum(row, dtype=jnp.uint32) for row in rows] if axis is None else rows


def _sum(arrays: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, arrays)


def _strides(leaves: list[jax.Array]) -> list[list[jax.Array]]:
    """How far one step along each axis of each leaf goes in leaf order."""
    return [
        [jnp.uint32(math.prod(leaf.shape[axis + 1 :])) for axis in range(leaf.ndim)]
        for leaf in leaves
    ]


def _indices(leaves: list[jax.Array], strides: list[list[jax.Array]]) -> list[jax.Array]:
    """The position of every entry in leaf order, without a reshape."""
    indices, offset = [], 0
    for leaf, steps in zip(leaves, strides, strict=True):
        index = jnp.full(leaf.shape, offset, jnp.uint32)
        for axis, step in enumerate(steps):
            index += lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * step
        indices.append(index)
        offset += leaf.size
    return indices
