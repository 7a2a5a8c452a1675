"""Shares of examples: what a model gets right, and what an attacker gets from it."""

from typing import Any

import jax
import jax.numpy as jnp

from sapsel_jax.audit._inputs import is_labelled, wide_labels, wide_logits


def accuracy(logits: Any, labels: Any) -> jax.Array:
    """Computes the share of the examples that the model gets right.

    An example is right if the logit of its label is its largest logit.

    Args:
      logits: real floating-point array, shape (..., examples, classes), at least 2 classes.
      labels: integers in [0, classes), shape (..., examples). An example with any other label, such
        as -100, is ignored.

    Returns:
      Float32 (or wider) shares in [0, 1], shape (...); NaN where every example is ignored. Among
      equal logits the first counts. An example with a NaN among its logits counts as wrong, so that
      a broken model scores 0.

    Raises:
      TypeError: if `logits` are not real floating-point numbers or `labels` no integers.
      ValueError: if there are no examples, fewer than 2 classes, or the shapes do not fit.

    Cost: one pass over the logits.

    Source: the usual definition.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> logits = jnp.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0], [5.0, 0.0]])
      >>> print(sap.audit.accuracy(logits, jnp.array([0, 1, 1, 0])))
      0.75
      >>> print(sap.audit.accuracy(logits, jnp.array([0, 1, -100, 0])))  # three examples count
      1.0
    """
    logits, labels = wide_logits(logits, labels)
    _check_examples(labels)
    return _share(_is_hit(logits, labels), is_labelled(labels, logits), logits.dtype)


def attack_success(logits: Any, targets: Any, labels: Any) -> jax.Array:
    """Computes the share of the attacked examples that are taken for the class the attacker wants.

    An attack succeeds if the largest logit belongs to the target. Examples that belong to the
    target class anyway say nothing and do not count.

    Args:
      logits: real floating-point array of the examples with the trigger, shape
        (..., examples, classes), at least 2 classes.
      targets: integers in [0, classes), what the attacker wants, shape (..., examples).
      labels: integers in [0, classes), what is right, shape (..., examples). An example whose label
        or target is any other number, such as -100, is ignored.

    Returns:
      Float32 (or wider) shares in [0, 1], shape (...); NaN where every example is ignored or
      belongs to its target. An example with a NaN among its logits counts as a failed attack.

    Raises:
      TypeError: if `logits` are not real floating-point numbers, or `targets` or `labels` no
        integers.
      ValueError: if there are no examples, fewer than 2 classes, or the shapes do not fit.

    Cost: one pass over the logits.

    Source: Gu, Dolan-Gavitt, Garg, "BadNets" (arXiv 1708.06733), the attack success rate.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> logits = jnp.array([[2.0, 1.0], [0.0, 3.0], [4.0, 0.0]])  # taken for 0, 1, 0
      >>> print(sap.audit.attack_success(logits, jnp.array([0, 0, 0]), jnp.array([1, 1, 0])))
      0.5
    """
    logits, targets = wide_logits(logits, targets, ("logits", "targets"))
    labels = wide_labels("labels", labels, "logits", logits)
    _check_examples(targets)
    counts = is_labelled(targets, logits) & is_labelled(labels, logits) & (targets != labels)
    return _share(_is_hit(logits, targets), counts, logits.dtype)


def _share(hits: jax.Array, counts: jax.Array, dtype: Any) -> jax.Array:
    """Of the examples that count, along the last axis."""
    return jnp.sum(hits & counts, axis=-1, dtype=dtype) / jnp.sum(counts, axis=-1, dtype=dtype)


def _is_hit(logits: jax.Array, labels: jax.Array) -> jax.Array:
    best = jnp.argmax(logits, axis=-1).astype(labels.dtype)
    return (best == labels) & ~jnp.any(jnp.isnan(logits), axis=-1)


def _check_examples(labels: jax.Array) -> None:
    if labels.ndim == 0:
        raise ValueError("`logits` must have an axis over examples before that over classes.")
