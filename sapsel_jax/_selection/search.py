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

from sapsel_jax._base.counts import (
    Count,
    at_least,
    count_of,
    equal,
    excess,
    plus,
    total,
    totals_so_far,
)

# Candidates that one pass counts at once. On CPU 7 measured fastest: a pass is then still bound by
# memory, and 32 bits take 11 passes.
NUM_CANDIDATES = 7

# Positions in a leaf are 32-bit numbers, and the last step of a search looks a little past the end.
MAX_ENTRIES = 2**32 - NUM_CANDIDATES


def num_entries(tree: Any) -> int:
    """The number of entries over all leaves."""
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree))


def top_entries(
    leaves: list[jax.Array],
    count: Count,
    key: Callable[[jax.Array], jax.Array],
    *,
    lowest: int,
    highest: int,
    units: Sequence[int] | None = None,
) -> list[jax.Array]:
    """Masks of the `count` entries with the largest keys over all leaves; ties go to the first.

    Args:
      leaves: arrays.
      count: how many to select, at most the number of entries; may be traced.
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
    largest = max(leaf.size for leaf in leaves)
    if largest >= MAX_ENTRIES:
        raise NotImplementedError(
            f"Selection takes leaves of fewer than {MAX_ENTRIES} entries; got one of {largest}."
        )
    axes: Sequence[int | None] = [None] * len(leaves) if units is None else units
    numbers = functools.partial(_numbers, axes=axes)
    # Everything lies at or above the lowest key: one number, or one per unit with its sharding.
    reached = count_of(num_entries(leaves))
    if units is not None:
        reached = total(*numbers([[jnp.ones_like(leaf, bool)] for leaf in leaves]))
    threshold, reached = _largest(
        lambda leaves, candidates: [
            total(number)
            for number in numbers(
                [
                    [key(leaf) >= beside(c, leaf, axis) for c in candidates]
                    for leaf, axis in zip(leaves, axes, strict=True)
                ]
            )
        ],
        leaves,
        wanted=count,
        low=(0 * reached.low).astype(jnp.int64 if highest > 2**31 else jnp.int32) + lowest,
        reached=reached,
        width=highest - lowest + 1,
    )

    # Ties at the threshold: the last ones stay out, leaf by leaf, as many as there are too many.
    def count_ties(leaves: list[jax.Array]) -> jax.Array:
        # As a difference: where one number is counted, XLA's CPU backend keeps an array for it.
        leaves = lax.optimization_barrier(leaves)
        pairs = []
        for leaf, axis in zip(leaves, axes, strict=True):
            least = beside(threshold, leaf, axis)
            pairs.append([key(leaf) >= least, key(leaf) > least])
        reached, above = numbers(pairs)
        return reached - above

    exact = equal(reached, count) | (threshold == lowest)
    none = jnp.stack([0 * reached.low] * len(leaves))
    ties = lax.cond(jnp.all(exact), lambda _: none, count_ties, leaves)
    later = totals_so_far(jnp.concatenate([ties[1:], none[:1]]), reverse=True)
    in_all = jax.tree.map(lambda word: word[None], reached)
    surplus = jnp.where(exact[None], 0, excess(in_all, plus(count, later), ties))
    sizes = jnp.asarray([leaf.size for leaf in leaves], jnp.uint32)
    sizes = sizes.reshape(-1, *[1] * reached.low.ndim)
    end, _ = _largest(
        lambda located, candidates: [
            count_of(number)
            for number in numbers(
                [
                    [
                        (key(leaf) == beside(threshold, leaf, axis))
                        & (index >= beside(c[i], leaf, axis))
                        for c in candidates
                    ]
                    for i, (leaf, index, axis) in enumerate(
                        zip(located[0], _indices(*located), axes, strict=True)
                    )
                ]
            )
        ],
        (leaves, _strides(leaves)),
        wanted=count_of(surplus),
        low=jnp.where(surplus == 0, sizes, 0),
        reached=count_of(jnp.where(surplus == 0, 0, ties)),
        width=largest,
    )

    def selected(leaf: jax.Array, index: jax.Array, end: jax.Array, axis: int | None) -> jax.Array:
        keys = key(leaf)
        least, last = beside(threshold, leaf, axis), beside(end, leaf, axis)
        return (keys > least) | ((keys == least) & (index < last) & (keys > lowest))

    indices = _indices(leaves, _strides(leaves))
    return [
        selected(leaf, index, end[i], axis)
        for i, (leaf, index, axis) in enumerate(zip(leaves, indices, axes, strict=True))
    ]


def _largest(
    at_or_above: Callable[[Any, list[jax.Array]], list[Count]],
    arrays: Any,
    *,
    wanted: Count,
    low: jax.Array,
    reached: Count,
    width: int,
) -> tuple[jax.Array, Count]:
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
      The integer, and how many entries lie at or above it.
    """
    num_parts = NUM_CANDIDATES + 1
    unsigned = jnp.dtype(f"uint{8 * low.dtype.itemsize}")

    def searching(state: Any) -> jax.Array:
        _, width, reached = state
        return (width > 1) & ~jnp.all(equal(reached, wanted))

    def narrow(state: Any) -> Any:
        # The barrier ties the arrays to the step, so that XLA computes nothing of their size before
        # the loop to keep it in memory.
        (low, width, reached), seen = lax.optimization_barrier((state, arrays))
        step = (width - 1) // num_parts + 1
        candidates = [low + (part * step).astype(low.dtype) for part in range(1, num_parts)]
        counts = [reached, *at_or_above(seen, candidates)]
        part = _sum(at_least(count, wanted).astype(jnp.int32) for count in counts[1:])
        part = jnp.where(equal(reached, wanted), 0, part)  # found already
        low = low + (part.astype(unsigned) * step).astype(low.dtype)
        pick = lambda *words: _sum(
            jnp.where(part == i, word, jnp.uint32(0)) for i, word in enumerate(words)
        )
        return low, step, jax.tree.map(pick, *counts)

    low, _, reached = lax.while_loop(
        searching, narrow, (low, jnp.asarray(width, unsigned), reached)
    )
    return low, reached


def beside(number: jax.Array, leaf: jax.Array, axis: int | None) -> jax.Array:
    """One number per unit, shaped to meet the entries of a leaf."""
    if axis is None:
        return number
    return number.reshape([n if a == axis else 1 for a, n in enumerate(leaf.shape)])


def _numbers(selected: list[list[jax.Array]], axes: Sequence[int | None]) -> list[jax.Array]:
    """For each of several conditions, how many entries of each leaf, or unit of it, meet it."""
    counts = [
        _counts([condition.astype(jnp.uint32) for condition in leaf], axis)
        for leaf, axis in zip(selected, axes, strict=True)
    ]
    return [jnp.stack(of_leaves) for of_leaves in zip(*counts, strict=True)]


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
    """How far one step along each axis of each leaf goes in the order of its entries."""
    return [
        [jnp.uint32(math.prod(leaf.shape[axis + 1 :])) for axis in range(leaf.ndim)]
        for leaf in leaves
    ]


def _indices(leaves: list[jax.Array], strides: list[list[jax.Array]]) -> list[jax.Array]:
    """The position of every entry in its leaf, without a reshape."""
    indices = []
    for leaf, steps in zip(leaves, strides, strict=True):
        index = jnp.zeros(leaf.shape, jnp.uint32)
        for axis, step in enumerate(steps):
            index += lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * step
        indices.append(index)
    return indices
