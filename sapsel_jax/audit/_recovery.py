"""How far unlearning went from the poisoned model towards the retrained one."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sapsel_jax._base.checks import check_count, check_number
from sapsel_jax.audit._inputs import check_not_empty, wide


class Recovery(NamedTuple):
    """What is left to retraining, and what was restored of it.

    Attributes:
      share: (after − poisoned) / (retrained − poisoned); NaN where that gap is too small to be
        measured.
      gap: after − retrained, the gap to retraining.
      measurable: bool, whether the poisoned and the retrained model differ by enough for a share.
      reached: bool, whether the gap is at most `small_gap`: what counts where nothing else does.
    """

    share: jax.Array
    gap: jax.Array
    measurable: jax.Array
    reached: jax.Array


def recovery(
    after: Any, poisoned: Any, retrained: Any, *, num_examples: int, small_gap: float = 0.01
) -> Recovery:
    """Measures how much of the gap between the poisoned and the retrained model was closed.

        share = (after − poisoned) / (retrained − poisoned)
        measurable = |retrained − poisoned| ≥ max(small_gap, 2 √((p(1 − p) + r(1 − r)) / n))

    p and r are the shares of the poisoned and of the retrained model, n is `num_examples`. A share
    of 1 means that all of the gap was closed. If the gap is no larger than chance would make it, a
    quotient by it says nothing: look at `gap` and `reached` then.

    Args:
      after: a share of examples of the unlearned model in [0, 1], such as an accuracy; a number or
        an array, one value per seed for instance.
      poisoned: the same of the model before unlearning.
      retrained: the same of the model trained from scratch on the data as it should have been.
      num_examples: n, how many examples each share was measured on, a Python integer of at least 1.
      small_gap: gaps below it are not measurable, and count as reached; in shares, at least 0.

    Returns:
      A `Recovery` of arrays, broadcast over the three shares. NaN shares give NaN and False.

    Raises:
      TypeError: if a share is no real floating-point number or `num_examples` no integer.
      ValueError: if an array is empty, `num_examples` is below 1, or `small_gap` negative.

    Cost: a few operations for each number; no gradient.

    Source: Warnecke et al. (arXiv 2108.11577) measure what is restored of the gap to the clean
      model; the rule for small gaps is two standard errors of a difference of shares.

    Example:
      >>> import sapsel_jax as sap
      >>> result = sap.audit.recovery(0.875, 0.75, 1.0, num_examples=1000)
      >>> print(result.share, result.gap, result.measurable)
      0.5 -0.125 True
      >>> result = sap.audit.recovery(0.875, 0.875, 0.88, num_examples=1000)
      >>> print(result.share, result.measurable, result.reached)
      nan False True
    """
    check_count("num_examples", num_examples, minimum=1)
    check_number("small_gap", small_gap, minimum=0)
    after, poisoned, retrained = (
        _shares(name, value)
        for name, value in (("after", after), ("poisoned", poisoned), ("retrained", retrained))
    )
    variance = poisoned * (1 - poisoned) + retrained * (1 - retrained)
    noise = 2 * jnp.sqrt(jnp.maximum(variance, 0) / num_examples)
    total, gap = retrained - poisoned, after - retrained
    measurable = (total != 0) & (jnp.abs(total) >= jnp.maximum(small_gap, noise))
    share = jnp.where(measurable, (after - poisoned) / jnp.where(measurable, total, 1), jnp.nan)
    return Recovery(share, gap, measurable, jnp.abs(gap) <= small_gap)


def tug_of_war(after: Any, retrained: Any) -> jax.Array:
    """Measures how close a model comes to the retrained model on several sets at once.

        ToW = Π (1 − |after − retrained|)

    Args:
      after: accuracies of the unlearned model in [0, 1], shape (..., sets), usually on the forget,
        the retained and the test examples.
      retrained: the same of the retrained model, shape (..., sets).

    Returns:
      The products over the last axis, in [0, 1]; NaN where an accuracy is.

    Raises:
      TypeError: if the accuracies are not real floating-point numbers.
      ValueError: if they are empty, scalars, or differ in shape.

    Cost: a few operations for each number; no gradient.

    Source: Zhao et al., "What makes unlearning hard and what to do about it" (arXiv 2406.01257),
      the definition of ToW.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> after, retrained = jnp.array([0.5, 1.0, 0.75]), jnp.array([0.5, 0.5, 1.0])
      >>> print(sap.audit.tug_of_war(after, retrained))
      0.375
    """
    after, retrained = _shares("after", after), _shares("retrained", retrained)
    if after.shape != retrained.shape or after.ndim == 0:
        raise ValueError(
            "`after` and `retrained` must have the same shape, with a last axis over sets; "
            f"got {list(after.shape)} and {list(retrained.shape)}."
        )
    return jnp.prod(1 - jnp.abs(after - retrained), axis=-1)


def _shares(name: str, value: Any) -> jax.Array:
    value = wide(name, value)
    check_not_empty(name, value)
    return value
