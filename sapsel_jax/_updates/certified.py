"""Updates of one form for the one call, each with a certificate."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from sapsel_jax._base.checks import check_count, check_number
from sapsel_jax._base.examples import draw_examples
from sapsel_jax._base.losses import Loss, wide_loss
from sapsel_jax._base.precision import widen
from sapsel_jax._base.types import Batch, LossFn, Mask, Params
from sapsel_jax._updates.certificates import Certificate, Reason, judge, no_number
from sapsel_jax._updates.corrections import read_correction
from sapsel_jax._updates.first_order import first_order_step
from sapsel_jax._updates.iterative import descend
from sapsel_jax._updates.masked import check_update, is_finite, keep_unselected, on_mask


class Update(Protocol):
    """How `unlearn` changes the selected parameters."""

    def __call__(
        self,
        loss_fn: LossFn,
        params: Params,
        original: Batch,
        corrected: Batch | None,
        data: Batch,
        *,
        mask: Mask | None = None,
        num_examples: int | None = None,
        microbatch: int | None = None,
        args: tuple[Any, ...] = (),
    ) -> tuple[Params, Certificate]:
        """New parameters, and whether to trust them; the arguments are as in `unlearn`."""
        ...


def with_first_order(*, step_size: Any) -> Update:
    """Makes the closed-form step an update for `unlearn`, with a certificate.

    The step is θ ← θ − τ · m ⊙ Δ, as in `first_order_update`. It is taken if the new parameters are
    finite and the loss that it is to lower (see `Certificate`) does not rise.

    Args:
      step_size: τ of `first_order_update`, at least 0; may be traced.

    Returns:
      A function for the argument `update` of `unlearn`. Its certificate predicts the loss change to
      first order; its residual is NaN.

    Raises:
      TypeError: if `step_size` is no number.
      ValueError: if `step_size` is negative or not finite.

    Cost: of the update: as `first_order_update`, one more gradient equivalent on `data`, and two
      forward passes over `data`.

    Source: as `first_order_update`; the certificate is own.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> def loss_fn(w, y):
      ...     return 0.5 * jnp.sum((w - y) ** 2)
      >>> result = sap.unlearn(
      ...     loss_fn, jnp.ones(2), jnp.ones((1, 2)), jnp.zeros((1, 2)), jnp.zeros((1, 2)),
      ...     key=jax.random.key(0), fraction=0.5, update=sap.with_first_order(step_size=0.5),
      ... )
      >>> print(result.params)
      [0.5 1. ]
    """
    check_number("step_size", step_size, minimum=0)

    def update(
        loss_fn: LossFn,
        params: Params,
        original: Batch,
        corrected: Batch | None,
        data: Batch,
        *,
        mask: Mask | None = None,
        num_examples: int | None = None,
        microbatch: int | None = None,
        args: tuple[Any, ...] = (),
    ) -> tuple[Params, Certificate]:
        check_update(params, mask)
        correction = read_correction(params, original, corrected, data, num_examples, microbatch)
        loss = wide_loss(loss_fn, params, data, microbatch, args)
        change = correction.gradient_change(loss, widen(params))
        moved, taken = first_order_step(params, change, step_size, mask)
        return certified(
            loss, params, moved, data, change=change, taken=taken, mask=mask, iterations=1
        )

    return update


def with_iteration(
    *, optimizer: optax.GradientTransformation, num_steps: int, batch_size: int, key: jax.Array
) -> Update:
    """Makes steps of any optax optimizer an update for `unlearn`, with a certificate.

    Each step descends on the mean loss of a random batch, as in `iterative_update`. Half of the
    batch is drawn from the corrected examples and half from `data`. If examples are removed, all of
    it is drawn from `data`.

    Args:
      optimizer: any optax transformation; it is wrapped by `selective`.
      num_steps: how many steps, a Python integer of at least 1.
      batch_size: examples per step, an even Python integer of at least 2.
      key: a JAX random key, for the draws.

    Returns:
      A function for the argument `update` of `unlearn`. Its certificate is about the mean loss on
      `data`, predicts to first order, and has NaN as its residual. If the steps together raise that
      loss, none of them is taken. A single step that is not finite is left out, as in
      `iterative_update`; if no step is finite, the certificate says so. The loss curve is not
      returned: call `iterative_update` for it.

    Raises:
      TypeError: if a count is no Python integer.
      ValueError: if `num_steps` is below 1, `batch_size` below 2 or odd.

    Cost: of the update: `num_steps` gradient equivalents on `batch_size` examples, one on `data`,
      and two forward passes over `data`; the memory of all batches at once.

    Source: as `iterative_update`; the certificate is own.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import sapsel_jax as sap
      >>> def loss_fn(w, y):
      ...     return 0.5 * jnp.sum((w - y) ** 2)
      >>> update = sap.with_iteration(
      ...     optimizer=optax.sgd(0.5), num_steps=2, batch_size=2, key=jax.random.key(1)
      ... )
      >>> result = sap.unlearn(
      ...     loss_fn, jnp.ones(2), jnp.ones((1, 2)), jnp.zeros((1, 2)), jnp.zeros((1, 2)),
      ...     key=jax.random.key(0), fraction=0.5, update=update,
      ... )
      >>> print(result.params)
      [0.25 1.  ]
    """
    check_count("num_steps", num_steps, minimum=1)
    check_count("batch_size", batch_size, minimum=2)
    if batch_size % 2:
        raise ValueError(f"`batch_size` must be even; got {batch_size}.")

    def update(
        loss_fn: LossFn,
        params: Params,
        original: Batch,
        corrected: Batch | None,
        data: Batch,
        *,
        mask: Mask | None = None,
        num_examples: int | None = None,
        microbatch: int | None = None,
        args: tuple[Any, ...] = (),
    ) -> tuple[Params, Certificate]:
        check_update(params, mask)
        read_correction(params, original, corrected, data, num_examples, microbatch)
        first, second = jax.random.split(key)
        about = data if corrected is None else corrected
        moved, _, taken = descend(
            loss_fn,
            params,
            draw_examples(about, first, (num_steps, batch_size // 2)),
            optimizer=optimizer,
            mask=mask,
            retained=draw_examples(data, second, (num_steps, batch_size // 2)),
            args=args,
        )
        loss = wide_loss(loss_fn, params, data, microbatch, args)
        return certified(
            loss, params, moved, data, taken=jnp.any(taken), mask=mask, iterations=num_steps
        )

    return update


def certified(
    loss: Loss,
    params: Params,
    moved: Params,
    data: Batch,
    *,
    change: Params | None = None,
    taken: jax.Array,
    mask: Mask | None,
    iterations: int,
) -> tuple[Params, Certificate]:
    """The moved parameters if they hold, the old ones if not, and what is known of them.

    `change` is the slope of the loss that was to fall; None stands for the mean loss on `data`.
    `taken` says whether any finite step was taken.
    """
    params = jax.tree.map(jnp.asarray, params)
    start, end = widen(params), widen(moved)
    step = optax.tree.sub(end, start)
    step = step if mask is None else on_mask(step, mask)
    slope = loss.gradient(start, data)
    change = slope if change is None else change
    rise, level = loss.change(start, end, data)
    actual = rise - optax.tree.vdot(optax.tree.sub(slope, change), step)
    predicted = optax.tree.vdot(change, step)
    finite = taken & is_finite(change, mask) & jnp.isfinite(actual)
    reason = judge(actual, level, finite)
    holds = reason == Reason.CONVERGED
    certificate = Certificate(
        converged=holds,
        reason=reason,
        num_steps=holds.astype(jnp.int32),
        iterations=jnp.int32(iterations),
        relative_residual=no_number(actual.dtype),
        damping=jnp.zeros_like(actual),
        predicted_change=jnp.where(holds, predicted, 0),
        actual_change=jnp.where(holds, actual, 0),
    )
    return keep_unselected(params, moved, mask, holds), certificate


def refuted(certificate: Certificate, enough: jax.Array) -> Certificate:
    """The certificate as it is, or one that says that too few entries were selected."""
    zero = lambda x: jnp.where(enough, x, jnp.zeros_like(x))
    reason = jnp.asarray(certificate.reason)
    return certificate._replace(
        converged=certificate.converged & enough,
        reason=jnp.where(enough, reason, Reason.TOO_FEW_SELECTED).astype(reason.dtype),
        num_steps=zero(certificate.num_steps),
        predicted_change=zero(certificate.predicted_change),
        actual_change=zero(certificate.actual_change),
    )
