"""Products of a mean loss's curvature over a batch with vectors."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from sapsel_jax._base.checks import batch_size
from sapsel_jax._base.examples import sum_over_examples
from sapsel_jax._base.losses import loss_sum, one_scalar
from sapsel_jax._base.types import Batch, LossFn, Params

Product: TypeAlias = Callable[[Params], Params]
"""A symmetric matrix as the function that multiplies a vector by it."""


def hessian_product(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    *,
    microbatch: int | None = None,
    args: tuple[Any, ...] = (),
) -> Product:
    """v ↦ H v, with H the Hessian of the mean loss."""

    def on_chunk(chunk: Batch) -> Product:
        return linear_part(jax.grad(lambda p: loss_sum(loss_fn, p, chunk, args)), params)

    return _mean_product(on_chunk, batch, microbatch)


def gauss_newton_product(
    model_fn: Callable[..., Any],
    output_loss_fn: Callable[[Any, Any], jax.Array],
    params: Params,
    batch: Batch,
    *,
    microbatch: int | None = None,
    args: tuple[Any, ...] = (),
) -> Product:
    """v ↦ G v, with G the mean of Jᵀ H_c J: J of the model's outputs, H_c of the loss in them."""
    output_loss = one_scalar(output_loss_fn, "output_loss_fn")

    def on_chunk(chunk: Batch) -> Product:
        outputs_of = lambda p: jax.vmap(lambda example: model_fn(p, example, *args))(chunk)
        loss_of = lambda outputs: jnp.sum(jax.vmap(output_loss)(outputs, chunk))
        outputs, push = jax.linearize(outputs_of, params)
        curve = linear_part(jax.grad(loss_of), outputs)
        pull = jax.linear_transpose(push, params)
        return lambda v: pull(curve(push(v)))[0]

    return _mean_product(on_chunk, batch, microbatch)


def linear_part(fn: Callable[[Any], Any], at: Any) -> Product:
    """The derivative of a function at a point, with what does not depend on the vector done."""
    return jax.linearize(fn, at)[1]


def _mean_product(
    on_chunk: Callable[[Batch], Product], batch: Batch, microbatch: int | None
) -> Product:
    num_examples = batch_size("data", batch)
    if microbatch is None or microbatch >= num_examples:
        whole = on_chunk(batch)
        return lambda v: optax.tree.scale(1 / num_examples, whole(v))
    return lambda v: optax.tree.scale(
        1 / num_examples,
        sum_over_examples(lambda chunk: on_chunk(chunk)(v), batch, num_examples, microbatch),
    )
