"""Sums over the examples of a batch, a microbatch at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

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
    """
    if microbatch is None or microbatch >= num_examples:
        return chunk_sum(examples)
    num_chunks, rest = divmod(num_examples, microbatch)
    whole = num_chunks * microbatch
    chunks = jax.tree.map(
        lambda x: x[:whole].reshape(num_chunks, microbatch, *x.shape[1:]), examples
    )
    shapes = jax.eval_shape(chunk_sum, jax.tree.map(lambda x: x[0], chunks))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(lambda acc, c: (optax.tree.add(acc, chunk_sum(c)), None), zeros, chunks)
    if rest:
        total = optax.tree.add(total, chunk_sum(jax.tree.map(lambda x: x[whole:], examples)))
    return total


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
