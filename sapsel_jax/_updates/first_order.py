"""The closed-form step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sapsel_jax._base.checks import check_number
from sapsel_jax._base.losses import wide_loss
from sapsel_jax._base.precision import widen
from sapsel_jax._base.types import Batch, LossFn, Mask, Params
from sapsel_jax._updates.corrections import read_correction
from sapsel_jax._updates.masked import check_update, is_finite, keep_unselected
from sapsel_jax._updates.selective import selective


def first_order_update(
    loss_fn: LossFn,
    params: Params,
    original: Batch,
    corrected: Batch | None,
    *,
    step_size: Any,
    mask: Mask | None = None,
    num_examples: int | None = None,
    microbatch: int | None = None,
    args: tuple[Any, ...] = (),
) -> Params:
    """Takes one closed-form step that replaces the originals' influence by the corrections'.

        θ ← θ − τ · m ⊙ Δ,    Δ = (Σ ∇ℓ(corrected, θ) − Σ ∇ℓ(original, θ)) / N

    Args:
      loss_fn: `loss_fn(params, example, *args) -> scalar`, the loss of one example.
      params: pytree of floating-point arrays, where the loss was trained to.
      original: batch of the examples as they were trained on.
      corrected: batch of the same examples as they should have been; None removes the originals.
      step_size: τ, at least 0; may be traced.
      mask: pytree of bool arrays shaped like `params`, True for the entries that may move; None
        moves all of them.
      num_examples: N, the size of the training set as it should have been; None averages over the
        originals.
      microbatch: how many examples are worked on at once, at least 1; the default is all of them.
        Memory grows with it in proportion; the result does not depend on it but for rounding.
      args: further arguments of `loss_fn`, passed through as they are.

    Returns:
      New parameters with the structure, shapes and dtypes of `params`; bit-identical outside the
      mask. If the step would leave a selected entry NaN or infinite, it is not taken, and all
      parameters are returned as they were. Parameters narrower than float32 are widened for the
      computation and rounded once.

    Raises:
      TypeError: if `params` holds anything but real floating-point arrays or `mask` anything but
        bool arrays, or `loss_fn` returns anything but one real scalar.
      ValueError: if a batch is empty, `corrected` differs from `original` in structure or number,
        `mask` does not fit `params`, or a number is out of range.

    Cost: one gradient equivalent on the originals and one on the corrections.

    Source: Warnecke et al. (arXiv 2108.11577), the first-order update; the mask as in
      Malekmohammadi, Lee, Xiong (arXiv 2504.06398).

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> def loss_fn(w, y):
      ...     return 0.5 * jnp.sum((w - y) ** 2)
      >>> original, corrected = jnp.array([[4.0, 4.0]]), jnp.array([[1.0, 1.0]])
      >>> mask = jnp.array([True, False])
      >>> sap.first_order_update(
      ...     loss_fn, jnp.array([2.0, 2.0]), original, corrected, step_size=1.0, mask=mask
      ... )
      Array([-1.,  2.], dtype=float32)
    """
    check_number("step_size", step_size, minimum=0)
    check_update(params, mask)
    correction = read_correction(params, original, corrected, None, num_examples, microbatch)
    loss = wide_loss(loss_fn, params, original, microbatch, args)
    change = correction.gradient_change(loss, widen(params))
    return first_order_step(params, change, step_size, mask)[0]


def first_order_step(
    params: Params, change: Params, step_size: Any, mask: Mask | None
) -> tuple[Params, jax.Array]:
    """The step along a change of gradient, if every selected entry stays finite; whether it did."""
    params = jax.tree.map(jnp.asarray, params)
    optimizer = optax.sgd(step_size) if mask is None else selective(optax.sgd(step_size), mask)
    updates, _ = optimizer.update(change, optimizer.init(params), params)
    add = lambda p, u: (widen(p) + u).astype(p.dtype)
    moved = jax.tree.map(add, params, updates)
    finite = is_finite(moved, mask)
    return keep_unselected(params, moved, mask, finite), finite
