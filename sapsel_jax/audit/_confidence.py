"""What a model's logits say of one example: its margin and its modified entropy."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sapsel_jax.audit._inputs import wide_logits


def margin(logits: Any, labels: Any) -> jax.Array:
    """Measures how sure the model is of a label, by the margin of its logit.

    The margin is logit_y − logsumexp of the other logits. It equals log(p_y / (1 − p_y)), and is
    computed without rounding p_y to 1.

    Args:
      logits: real floating-point array, shape (..., classes), at least 2 classes.
      labels: integers in [0, classes), shape (...).

    Returns:
      Float32 (or wider) margins in nats, shape (...): any real number, infinite where logits are;
      NaN where a logit is NaN, and where the label is none of the classes: there the example is to
      be ignored.

    Raises:
      TypeError: if `logits` are not real floating-point numbers or `labels` no integers.
      ValueError: if there are no entries, fewer than 2 classes, or the shapes do not fit.

    Cost: one pass over the logits.

    Source: Carlini et al., "Membership Inference Attacks From First Principles"
      (arXiv 2112.03570): the logit-scaled confidence, in its stable form.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> print(sap.audit.margin(jnp.array([[3.0, 1.0], [0.0, 0.5]]), jnp.array([0, 0])))
      [ 2.  -0.5]
    """
    logits, labels = wide_logits(logits, labels)
    own = _is_class(logits, labels)
    rest = jax.nn.logsumexp(jnp.where(own, -jnp.inf, logits), axis=-1)
    return _pick(logits, own) - rest


def modified_entropy(logits: Any, labels: Any) -> jax.Array:
    """Measures how unsure the model is of a label: members have low values.

        −(1 − p_y) log p_y − Σ_{i ≠ y} p_i log(1 − p_i)

    The wrong classes enter by log(1 − p_i), so a confidently wrong answer has a high value. With
    log p_i in its place, as in some public code, it would look like a member.

    Args:
      logits: real floating-point array, shape (..., classes), at least 2 classes.
      labels: integers in [0, classes), shape (...).

    Returns:
      Float32 (or wider) numbers of nats, at least 0, shape (...): infinite where p_y is 0; NaN
      where a logit is NaN or +∞, and where the label is none of the classes: there the example is
      to be ignored.

    Raises:
      TypeError: if `logits` are not real floating-point numbers or `labels` no integers.
      ValueError: if there are no entries, fewer than 2 classes, or the shapes do not fit.

    Cost: a few passes over the logits.

    Source: Song, Mittal, "Systematic Evaluation of Privacy Risks of Machine Learning Models"
      (arXiv 2003.10595), the definition of Mentr.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> logits = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1]]))
      >>> print(sap.audit.modified_entropy(logits, jnp.array([0, 0])).round(3))
      [0.693 0.021]
    """
    logits, labels = wide_logits(logits, labels)
    own = _is_class(logits, labels)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    # Of a class above 1/2, and there is one at most, 1 − p and log p may round to nothing: it is
    # the others that say how small they are.
    sure = log_p > -math.log(2)
    rest = jax.nn.logsumexp(jnp.where(sure, -jnp.inf, log_p), axis=-1, keepdims=True)
    log_not_p = jnp.where(sure, rest, jnp.log1p(-jnp.exp(jnp.where(sure, -1.0, log_p))))
    log_p = jnp.where(sure, jnp.log1p(-jnp.exp(rest)), log_p)
    right = _times(jnp.exp(_pick(log_not_p, own)), _pick(log_p, own))
    wrong = jnp.sum(jnp.where(own, 0, _times(jnp.exp(log_p), log_not_p)), axis=-1)
    return jnp.abs(right + wrong)  # neither is above 0


def _is_class(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return labels[..., None] == lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)


def _pick(values: jax.Array, own: jax.Array) -> jax.Array:
    """The value of the label's class; NaN where it is none of the classes."""
    value = jnp.sum(jnp.where(own, values, 0), axis=-1)
    return jnp.where(jnp.any(own, axis=-1), value, jnp.nan)


def _times(p: jax.Array, log: jax.Array) -> jax.Array:
    """p · log, with 0 · ∞ = 0: the limit of p log p."""
    return jnp.where(p == 0, 0, p * log)
