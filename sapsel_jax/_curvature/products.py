"""Products of a mean loss's curvature over a batch with vectors."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from sapsel_jax._base.checks import batch_size
from sapsel_jax._base.losses import Loss, one_scalar
from sapsel_jax._base.precision import widen
from sapsel_jax._base.types import Batch, Params
from sapsel_jax._curvature.hessians import hessian_map, jacobian_maps

Product: TypeAlias = Callable[[Params], Params]
"""A symmetric matrix as the function that multiplies a vector by it."""


def hessian_product(loss: Loss, params: Params, batch: Batch) -> Product:
    """v ↦ H v, with H the Hessian of the mean loss."""

    def on_chunk(chunk: Batch) -> Product:
        return hessian_map(lambda p: loss.total(p, chunk), params)

    return _mean_product(on_chunk, loss, batch)


def gauss_newton_product(
    model_fn: Callable[..., Any],
    output_loss_fn: Callable[[Any, Any], jax.Array],
    loss: Loss,
    params: Params,
    batch: Batch,
) -> Product:
    """v ↦ G v, with G the mean of Jᵀ H_c J: J of the model's outputs, H_c of the loss in them.

    `loss` is the two together: it says how to sum, and with which arguments the model is called.
    """
    output_loss = one_scalar(output_loss_fn, "output_loss_fn")

    def on_chunk(chunk: Batch) -> Product:
        outputs_of = lambda p: jax.vmap(lambda example: model_fn(p, example, *loss.args))(chunk)
        loss_of = lambda outputs: jnp.sum(widen(jax.vmap(output_loss)(outputs, chunk)))
        outputs, push, pull = jacobian_maps(outputs_of, params)
        curve = hessian_map(loss_of, outputs)
        return lambda v: pull(curve(push(v)))

    return _mean_product(on_chunk, loss, batch)


def _mean_product(on_chunk: Callable[[Batch], Product], loss: Loss, batch: Batch) -> Product:
    num_examples = batch_size("data", batch)
    if not loss.precision.apart and (loss.microbatch is None or loss.microbatch >= num_examples):
        whole = on_chunk(batch)
        return lambda v: optax.tree.scale(1 / num_examples, whole(v))
    return lambda v: optax.tree.scale(
        1 / num_examples, loss.sum_over(lambda chunk: on_chunk(chunk)(v), batch)
    )
