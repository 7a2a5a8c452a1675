"""The entries with the largest keys over many arrays: an exact threshold, found by counting.

No sort, no concatenation and no reshape: arrays keep their sharding, and nothing of their size is
kept beside them but the masks.
"""

import functools
import math
from collections.abc import Callable
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
) -> list[jax.Array]:
    """Masks of the `count` entries with the largest keys over all leaves; ties go to the first.

    Args:
      leaves: arrays.
      count: how many to select; may be traced.
      key: signed integers for the entries of a leaf; cheap, because it is computed in every pass.
      lowest: the smallest key, never selected.
      highest: the largest key.

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
    threshold, reached, above = _largest(
        lambda leaves, candidates: [[key(leaf) >= c for c in candidates] for leaf in leaves],
        leaves,
        wanted=count,
        low=jnp.asarray(lowest, jnp.int64 if highest > 2**31 else jnp.int32),
        reached=jnp.uint32(total),
        width=highest - lowest + 1,
    )
    # Ties at the threshold: the last `surplus` of them stay out.
    surplus = jnp.where(threshold == lowest, 0, reached - count)
    end, _, _ = _largest(
        lambda located, candidates: [
            [(key(leaf) == threshold) & (index >= c) for c in candidates]
            for leaf, index in zip(located[0], _indices(*located), strict=True)
        ],
        (leaves, _strides(leaves)),
        wanted=surplus,
        low=jnp.where(surplus == 0, jnp.uint32(total), jnp.uint32(0)),
        reached=jnp.where(surplus == 0, 0, reached - above),
        width=total,
    )

    def selected(keys: jax.Array, index: jax.Array) -> jax.Array:
        return (keys > threshold) | ((keys == threshold) & (index < end) & (keys > lowest))

    indices = _indices(leaves, _strides(leaves))
    return [selected(key(leaf), index) for leaf, index in zip(leaves, indices, strict=True)]


def _largest(
    at_or_above: Callable[[Any, list[jax.Array]], list[list[jax.Array]]],
    arrays: Any,
    *,
    wanted: jax.Array,
    low: jax.Array,
    reached: jax.Array,
    width: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The largest of `width` integers from `low` on that `wanted` entries lie at or above.

    Each pass counts the entries at or above each of `NUM_CANDIDATES` integers. The search ends
    early where a count is exactly what is wanted.

    Args:
      at_or_above: given arrays and candidates, which entries lie at or above each candidate.
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
        return (width > 1) & (reached != wanted)

    def narrow(state: Any) -> Any:
        # The barrier ties the arrays to the step, so that XLA computes nothing of their size before
        # the loop to keep it in memory.
        (low, width, reached, above), seen = lax.optimization_barrier((state, arrays))
        step = (width - 1) // num_parts + 1
        candidates = [low + (part * step).astype(low.dtype) for part in range(1, num_parts)]
        counts = jnp.stack([reached, *_totals(at_or_above(seen, candidates)), above])
        part = jnp.sum(counts[1:-1] >= wanted, dtype=jnp.int32)
        low = low + (part.astype(unsigned) * step).astype(low.dtype)
        return low, step, counts[part], counts[part + 1]

    start = (low, jnp.asarray(width, unsigned), reached, jnp.uint32(0))
    low, _, reached, above = lax.while_loop(searching, narrow, start)
    return low, reached, above


def _totals(selected: list[list[jax.Array]]) -> list[jax.Array]:
    """For each of several conditions, how many entries of all leaves meet it."""
    counts = [_counts([condition.astype(jnp.uint32) for condition in leaf]) for leaf in selected]
    return [functools.reduce(jnp.add, of_leaves) for of_leaves in zip(*counts, strict=True)]


def _counts(selected: list[jax.Array]) -> list[jax.Array]:
    if jax.typeof(selected[0]).sharding.mesh.size > 1:
        # Over several devices: XLA adds partial sums up, but gathers partial tuples of sums.
        return [jnp.sum(s, dtype=jnp.uint32) for s in selected]
    # On one device: a reduction of a tuple reads the leaf once. By rows first, which XLA's CPU
    # backend spreads over threads.
    shape = selected[0].shape
    by_rows = len(shape) > 1 and math.prod(shape[1:]) >= 128
    rows = lax.reduce(
        selected,
        [jnp.uint32(0)] * len(selected),
        lambda a, b: [x + y for x, y in zip(a, b, strict=True)],
        range(1 if by_rows else 0, len(shape)),
    )
    return [jnp.sum(row, dtype=jnp.uint32) for row in rows]


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
