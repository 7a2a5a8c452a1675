"""The matrix of a second-order step: a Hessian, or the Gauss-Newton part of one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sapsel_jax._base.losses import Loss
from sapsel_jax._base.types import Batch, Diagonal, Params
from sapsel_jax._curvature.exact import exact_diagonal
from sapsel_jax._curvature.gauss_newton import gauss_newton_diagonal
from sapsel_jax._curvature.hessians import hessian_map
from sapsel_jax._curvature.products import Product, gauss_newton_product, hessian_product


class Matrix(NamedTuple):
    """The Hessian of a mean loss, or its Gauss-Newton matrix where the model is given.

    Attributes:
      loss: the loss, and how it is summed over examples.
      model_fn: `model_fn(params, example, *args) -> outputs`, or None for the Hessian.
      output_loss_fn: `output_loss_fn(outputs, example) -> scalar`, given with `model_fn`.
      penalty_fn: `penalty_fn(params) -> scalar`, whose Hessian is added to the Gauss-Newton matrix.
    """

    loss: Loss
    model_fn: Callable[..., Any] | None
    output_loss_fn: Callable[[Any, Any], jax.Array] | None
    penalty_fn: Callable[[Params], jax.Array] | None

    def product(self, params: Params, batch: Batch) -> Product:
        """v ↦ H v over the examples of a batch."""
        if self.model_fn is None or self.output_loss_fn is None:
            return hessian_product(self.loss, params, batch)
        product = gauss_newton_product(self.model_fn, self.output_loss_fn, self.loss, params, batch)
        if self.penalty_fn is None:
            return product
        penalty = hessian_map(self.penalty_fn, params)
        return lambda v: optax.tree.add(product(v), penalty(v))

    def diagonal(self, params: Params, batch: Batch) -> Diagonal:
        """The diagonal of H over the examples of a batch."""
        microbatch, args = self.loss.microbatch, self.loss.args
        if self.model_fn is None or self.output_loss_fn is None:
            return exact_diagonal(self.loss.fn, microbatch=microbatch)(params, batch, *args)
        diagonal = gauss_newton_diagonal(self.model_fn, self.output_loss_fn, microbatch=microbatch)(
            params, batch, *args
        )
        if self.penalty_fn is None:
            return diagonal
        penalty_fn = self.penalty_fn
        penalty = exact_diagonal(lambda p, _: penalty_fn(p))(params, jnp.zeros(1))
        return optax.tree.add(diagonal, penalty)
