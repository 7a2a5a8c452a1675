"""Sums over the examples of a batch, a microbatch at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sapsel_jax._base.checks import batch_size, check_choice, check_count
from sapsel_jax._base.fusion import unfused
from sapsel_jax._base.precision import widen_floats
from sapsel_jax._base.types import Batch


def check_options(microbatch: Any, reduction: str = "mean") -> None:
    """Checks how a function over a batch is to sum."""
    if microbatch is not None:
        check_count("microbatch", microbatch, minimum=1)
    check_choice("reduction", reduction, ("mean", "sum"))


def count_examples(batch: Batch, weights: Any) -> int:
    """The number of examples of a batch, which the weights must fit."""
    num_examples = batch_size("batch", batch)
    if weights is not None and jnp.shape(weights) != (num_examples,):
        raise ValueError(
            f"`weights` must hold one number per example, shape ({num_examples},); "
            f"got shape {jnp.shape(weights)}."
        )
    return num_examples


def sum_over_examples(
    chunk_sum: Callable[[Any], Any], examples: Any, num_examples: int, microbatch: int | None
) -> Any:
    """The sum of `chunk_sum` over chunks of at most `microbatch` examples.

    `chunk_sum` maps a pytree with a leading axis over examples to a pytree of sums over them. Whole
    chunks run in a `lax.scan`, so memory is that of one chunk; a rest of fewer examples follows.

    A chunk is every so-manieth example, not a run of neighbours: where the examples are spread over
    devices, each device then has its share of every chunk, and none of them moves.
    """
    if microbatch is None or microbatch >= num_examples:
        return chunk_sum(examples)
    num_chunks, rest = divmod(num_examples, microbatch)
    whole = num_chunks * microbatch
    table = jax.tree.map(
        lambda x: x[:whole].reshape(microbatch, num_chunks, *x.shape[1:]), examples
    )

    def chunk(index: jax.Array) -> Any:
        return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, index, 1, False), table)

    indices = jnp.arange(num_chunks)
    shapes = jax.eval_shape(lambda i: chunk_sum(chunk(i)), indices[0])
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    add = lambda total, i: (optax.tree.add(total, chunk_sum(chunk(i))), None)
    total, _ = lax.scan(add, zeros, indices)
    if rest:
        total = optax.tree.add(total, chunk_sum(jax.tree.map(lambda x: x[whole:], examples)))
    return total


def even_chunk(num_examples: int, most: int) -> int:
    """A number of examples of at most `most` that are worked on at once.

    If there is one above half of `most` that leaves no rest, it is that; of several the one that
    most devices can share evenly, if their number is a power of two.
    """
    if num_examples <= most:
        return num_examples
    even = [n for n in range(most // 2 + 1, most + 1) if num_examples % n == 0]
    return max(even, key=lambda n: (n & -n, n), default=most)


def one_by_one(chunk_sum: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same sum, from what `chunk_sum` says of each example alone."""

    def total(chunk: Any) -> Any:
        of_one = lambda example: chunk_sum(jax.tree.map(lambda x: x[None], example))
        return jax.tree.map(lambda x: jnp.sum(unfused(x), 0), jax.vmap(of_one)(chunk))

    return total


def reduce_sum(total: Any, num_examples: int, weights: Any, reduction: str) -> Any:
    """A weighted sum over examples as it was asked for: as it is, or over the sum of weights."""
    if reduction == "sum":
        return total
    count = num_examples if weights is None else jnp.sum(widen_floats(jnp.asarray(weights)))
    return jax.tree.map(lambda x: x / jnp.asarray(count, x.dtype), total)


def draw_examples(batch: Batch, key: jax.Array, shape: tuple[int, ...]) -> Batch:
    """Random examples of a batch, with the leading axes `shape`."""
    rows = jax.random.randint(key, shape, 0, batch_size("batch", batch), jnp.int32)
    return jax.tree.map(lambda x: jnp.asarray(x)[rows], batch)
