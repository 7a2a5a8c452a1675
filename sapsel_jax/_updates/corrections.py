"""What is corrected, and how that changes the gradient of the mean loss."""

from typing import Any, NamedTuple

import optax

from sapsel_jax._base.checks import batch_size, check_count, check_float_leaves, check_same_tree
from sapsel_jax._base.examples import check_options
from sapsel_jax._base.losses import Loss, wide_loss
from sapsel_jax._base.precision import widen
from sapsel_jax._base.types import Batch, LossFn, Params


def gradient_change(
    loss_fn: LossFn,
    params: Params,
    original: Batch,
    corrected: Batch | None,
    *,
    num_examples: int | None = None,
    microbatch: int | None = None,
    args: tuple[Any, ...] = (),
) -> Params:
    """Computes how corrections change the gradient of the mean loss.

        Δ = (Σ ∇ℓ(corrected, θ) − Σ ∇ℓ(original, θ)) / N

    Args:
      loss_fn: `loss_fn(params, example, *args) -> scalar`, the loss of one example.
      params: pytree of floating-point arrays, where the loss was trained to.
      original: batch of the examples as they were trained on.
      corrected: batch of the same examples as they should have been; None removes the originals.
      num_examples: N, the size of the training set as it should have been; None averages over the
        originals. `mean_update` takes such averages if the originals come in several batches.
      microbatch: how many examples are worked on at once, at least 1; the default is all of them.
        Memory grows with it in proportion; the result does not depend on it but for rounding.
      args: further arguments of `loss_fn`, passed through as they are.

    Returns:
      A pytree shaped like `params`, float32 or wider: Δ, which every update is computed from. The
      sums over examples are kept in float32 or wider, too: narrower parameters are widened for the
      computation, and the examples with them.

    Raises:
      TypeError: if `params` holds anything but real floating-point arrays, or `loss_fn` returns
        anything but one real scalar.
      ValueError: if a batch is empty, `corrected` differs from `original` in structure or number,
        or a count is too small.

    Cost: one gradient equivalent on the originals and one on the corrections.

    Source: Warnecke et al. (arXiv 2108.11577), the gradient difference of both their updates.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> def loss_fn(w, y):
      ...     return 0.5 * jnp.sum((w - y) ** 2)
      >>> original, corrected = jnp.array([[4.0, 4.0]]), jnp.array([[1.0, 3.0]])
      >>> sap.gradient_change(loss_fn, jnp.zeros(2), original, corrected, num_examples=2)
      Array([1.5, 0.5], dtype=float32)
    """
    correction = read_correction(params, original, corrected, None, num_examples, microbatch)
    loss = wide_loss(loss_fn, params, original, microbatch, args)
    return correction.gradient_change(loss, widen(params))


class Correction(NamedTuple):
    """What an update takes back, and what it puts in its place.

    Attributes:
      original: batch of the examples as they were trained on.
      corrected: batch of the same examples as they should have been; None removes the originals.
      data: batch of the training set as it should have been, or a sample; None where an update
        looks at no other examples.
      num_examples: N, what the change of a sum is divided by.
    """

    original: Batch
    corrected: Batch | None
    data: Batch | None
    num_examples: int

    def gradient_change(self, loss: Loss, params: Params) -> Params:
        """Δ, as in `gradient_change`, at parameters in float32 or wider."""
        change = optax.tree.scale(-1, loss.gradient_sum(params, self.original))
        if self.corrected is not None:
            change = optax.tree.add(change, loss.gradient_sum(params, self.corrected))
        return optax.tree.scale(1 / self.num_examples, change)


def read_correction(
    params: Params,
    original: Batch,
    corrected: Batch | None,
    data: Batch | None,
    num_examples: Any,
    microbatch: Any,
) -> Correction:
    """Checks what every update is given.

    `num_examples` defaults to the size of `data`, or to the number of originals without any.
    """
    check_float_leaves("params", params)
    check_options(microbatch)
    num_originals = batch_size("original", original)
    if corrected is not None:
        check_same_tree("corrected", corrected, "original", original)
    if num_examples is not None:
        check_count("num_examples", num_examples, minimum=1)
    default = num_originals if data is None else batch_size("data", data)
    return Correction(original, corrected, data, num_examples or default)
