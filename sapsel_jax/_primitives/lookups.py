"""Rows and blocks that are looked up: `gather`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sapsel_jax._primitives.signature import Kept, Signature

PROMISED = lax.GatherScatterMode.PROMISE_IN_BOUNDS


def axes(signature: Signature, position: int, marked: Sequence[bool]) -> Kept:
    """Axes of the table that are read from end to end, and batch axes."""
    table, out = signature.shapes[0], signature.out
    numbers, sizes = signature.params["dimension_numbers"], signature.params["slice_sizes"]
    kept: Kept = [None] * len(signature.shapes[position])
    if position:
        return kept
    lost = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    offsets = [a for a in range(len(table)) if a not in lost]
    for axis, target in zip(offsets, numbers.offset_dims, strict=True):
        if sizes[axis] == table[axis]:
            kept[axis] = target
    # The axes of the numbers, but for the last, are the other axes of the output in order.
    batch = [a for a in range(len(out)) if a not in numbers.offset_dims]
    pairs = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
    for axis, place in pairs:
        kept[axis] = batch[place]
    return kept


def run(signature: Signature) -> Callable[..., Sequence[Any]] | None:
    """A lookup whose numbers are promised to be in range, with one derivative where they are not.

    JAX's forward derivative reads the nearest entry there and its reverse derivative is 0, so that
    tangents and cotangents would be of different functions. Here both are 0.
    """
    params = signature.params
    if params["mode"] != PROMISED:
        return None
    names = ("dimension_numbers", "slice_sizes", "indices_are_sorted", "unique_indices")
    options = {name: params[name] for name in names}

    @jax.custom_jvp
    def read(table: jax.Array, ids: jax.Array) -> jax.Array:
        return lax.gather(table, ids, mode=PROMISED, **options)

    read.defjvps(
        lambda t, _, __, ids: lax.gather(t, ids, mode="fill", fill_value=0, **options), None
    )
    return lambda table, ids: [read(table, ids)]


def reads_rows(signature: Signature) -> bool:
    """Whether an operation reads whole rows of a table, `table[ids]`."""
    numbers, table = signature.params["dimension_numbers"], signature.shapes[0]
    rank = len(signature.out)
    last = tuple(range(rank - len(table) + 1, rank))
    return (
        tuple(numbers.collapsed_slice_dims) == (0,)
        and tuple(numbers.start_index_map) == (0,)
        and tuple(numbers.offset_dims) == last
        and not numbers.operand_batching_dims
        and tuple(signature.params["slice_sizes"]) == (1, *table[1:])
    )


def rows_read(signature: Signature, ids: jax.Array) -> jax.Array:
    """The row that each number reads, or -1 where it reads none that could move.

    Out of range, `mode="clip"` reads the first or last row, so that different numbers may read one
    row. Other modes read a constant there, or promise that it does not happen and have gradient 0.
    """
    last = signature.shapes[0][0] - 1
    clipped = jnp.clip(ids, 0, min(last, jnp.iinfo(ids.dtype).max))
    rows = clipped.astype(jnp.int32)
    if signature.params["mode"] == lax.GatherScatterMode.CLIP:
        return rows
    return jnp.where(clipped == ids, rows, -1)
