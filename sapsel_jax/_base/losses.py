"""Sums of losses and of their gradients over a batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sapsel_jax._base.checks import batch_size, check_scalar
from sapsel_jax._base.examples import sum_over_examples
from sapsel_jax._base.precision import widen
from sapsel_jax._base.types import Batch, LossFn, Params


def one_scalar(fn: Callable[..., Any], name: str = "loss_fn") -> Callable[..., jax.Array]:
    """The same function, which refuses while it is traced to return anything but one real scalar.

    It stands around the function where that is called, not where it is handed on, so that whoever
    compiles by the function itself finds it again.
    """

    def checked(*inputs: Any) -> jax.Array:
        returned = fn(*inputs)
        check_scalar(name, returned)
        return returned

    return checked


def loss_sum(loss_fn: LossFn, params: Params, batch: Batch, args: tuple[Any, ...]) -> jax.Array:
    """Σ ℓ over the examples of a batch."""
    loss = one_scalar(loss_fn)
    return jnp.sum(jax.vmap(lambda example: loss(params, example, *args))(batch))


def gradient_sum(
    loss_fn: LossFn, params: Params, batch: Batch, microbatch: int | None, args: tuple[Any, ...]
) -> Params:
    """Σ ∇ℓ over the examples of a batch, float32 or wider."""
    params = jax.tree.map(jnp.asarray, params)

    def chunk_sum(chunk: Batch) -> Params:
        gradient = jax.grad(lambda p: loss_sum(loss_fn, p, chunk, args))(params)
        return widen(gradient)

    return sum_over_examples(chunk_sum, batch, batch_size("batch", batch), microbatch)


def loss_change(
    loss_fn: LossFn,
    before: Params,
    after: Params,
    data: Batch,
    microbatch: int | None,
    args: tuple[Any, ...],
) -> tuple[jax.Array, jax.Array]:
    """The change of the mean loss, summed up from that of each example, and its size before."""
    loss = one_scalar(loss_fn)

    def chunk_sum(chunk: Batch) -> tuple[jax.Array, jax.Array]:
        losses = lambda p: widen(jax.vmap(lambda example: loss(p, example, *args))(chunk))
        old, new = losses(before), losses(after)
        return jnp.sum(new - old), jnp.sum(jnp.abs(old))

    num_data = batch_size("data", data)
    total = sum_over_examples(chunk_sum, data, num_data, microbatch)
    return total[0] / num_data, total[1] / num_data
