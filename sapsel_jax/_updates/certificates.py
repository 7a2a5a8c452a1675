"""What is known about an update: whether to trust it, and why not."""

import enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Reason(enum.IntEnum):
    """Why an update ended."""

    CONVERGED = 0
    """Every step was solved to its tolerance and did not raise the loss it was to lower."""
    NO_CONVERGENCE = 1
    """The solver ended above its tolerance."""
    NEGATIVE_CURVATURE = 2
    """Along some direction the damped curvature is not positive: there is no minimum to step to."""
    NOT_FINITE = 3
    """A gradient, a product or the new parameters were NaN or infinite."""
    NO_CONTRACTION = 4
    """The iteration of `lissa` grew: `scale` is too small for the curvature, or it is negative."""
    NO_DECREASE = 5
    """The step would have raised the loss that it was to lower, or it is too small for the dtype of
    the parameters."""
    TOO_FEW_SELECTED = 6
    """Fewer entries were selected than asked for, because the scores of others are NaN, as they are
    where curvature is NaN or infinite; or no entry was selected at all. Only `unlearn` gives this
    reason, because an update does not know how many entries were asked for."""


class Certificate(NamedTuple):
    """What an update knows about its result: a pytree of scalars.

    The loss that a step is to lower is L(D~, θ) − ⟨∇L(D, θ₀), θ⟩: the mean loss of the corrected
    training set, less the slope that the original training left. If the original training
    converged, that slope is 0 and this is the corrected loss itself.

    Attributes:
      converged: bool; False means that a step did not hold: the parameters are then the result of
        the last step that held, or the old parameters if none held.
      reason: int32, a `Reason`.
      num_steps: int32, how many steps were accepted.
      iterations: int32, iterations of the solver, over all steps.
      relative_residual: ‖(H + damping·I) s + g‖ / ‖g‖ of the last step s; NaN where nothing was
        solved.
      damping: of the last step, in units of the mean loss, after it was adapted if that was asked
        for; 0 for updates without damping.
      predicted_change: predicted loss change of the accepted steps, to second order.
      actual_change: measured loss change of the accepted steps.
    """

    converged: jax.Array
    reason: jax.Array
    num_steps: jax.Array
    iterations: jax.Array
    relative_residual: jax.Array
    damping: jax.Array
    predicted_change: jax.Array
    actual_change: jax.Array


def no_number(dtype: Any) -> jax.Array:
    """A NaN that `jax_debug_nans` does not stop at: it is put there, not computed."""
    return jax.device_put(np.asarray(np.nan, dtype))


def rounding(level: jax.Array) -> jax.Array:
    """How much a loss of this size may rise by rounding alone."""
    return 4 * jnp.finfo(level.dtype).eps * jnp.abs(level)


def judge(actual: jax.Array, level: jax.Array, finite: jax.Array) -> jax.Array:
    """The reason a step ends with, from the change of a loss of this size: did it hold?"""
    reason = jnp.where(actual <= rounding(level), Reason.CONVERGED, Reason.NO_DECREASE)
    return jnp.where(finite, reason, Reason.NOT_FINITE).astype(jnp.int32)
