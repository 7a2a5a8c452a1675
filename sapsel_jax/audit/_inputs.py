"""Arrays that evidence is made of, checked and widened."""

from typing import Any

import jax
import jax.numpy as jnp

from sapsel_jax._base.checks import check_arrays, check_float_leaves
from sapsel_jax._base.precision import wide_dtype


def wide(name: str, values: Any) -> jax.Array:
    """A real floating-point array in float32 or wider."""
    check_float_leaves(name, values)
    values = jnp.asarray(values)
    return values.astype(wide_dtype(values.dtype))


def wide_vector(name: str, values: Any) -> jax.Array:
    """One number per example, of at least one example."""
    values = wide(name, values)
    if values.ndim != 1:
        raise ValueError(
            f"`{name}` must have one axis, over examples; got shape {list(values.shape)}."
        )
    check_not_empty(name, values)
    return values


def check_not_empty(name: str, values: Any) -> None:
    """At least one entry."""
    if jnp.size(values) == 0:
        raise ValueError(f"`{name}` is empty; its shape is {list(jnp.shape(values))}.")


def wide_logits(
    logits: Any, labels: Any, names: tuple[str, str] = ("logits", "labels")
) -> tuple[jax.Array, jax.Array]:
    """Logits of at least two classes and one integer label for each row of them."""
    name, labels_name = names
    logits = wide(name, logits)
    if logits.ndim == 0 or logits.shape[-1] < 2:
        raise ValueError(
            f"`{name}` must have at least 2 classes along its last axis; "
            f"got shape {list(logits.shape)}."
        )
    labels = wide_labels(labels_name, labels, name, logits)
    check_not_empty(name, logits)
    return logits, labels


def wide_labels(name: str, labels: Any, logits_name: str, logits: jax.Array) -> jax.Array:
    """Integers in the shape of the logits without their last axis, of at least 32 bits."""
    check_arrays(name, labels)
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"`{name}` must hold integers; got dtype {labels.dtype}.")
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"`{name}` must have the shape of `{logits_name}` without its last axis, "
            f"{list(logits.shape[:-1])}; got {list(labels.shape)}."
        )
    return labels.astype(jnp.int32) if labels.dtype.itemsize < 4 else labels


def is_labelled(labels: jax.Array, logits: jax.Array) -> jax.Array:
    """Which labels are classes; all others, -100 for instance, mark examples to be ignored."""
    return (labels >= 0) & (labels < logits.shape[-1])


def counted(name: str, where: Any, scores: jax.Array) -> jax.Array:
    """Which examples count: all of them where nothing is said."""
    if where is None:
        return jnp.ones(scores.shape[:1], bool)
    check_arrays(name, where)
    where = jnp.asarray(where)
    if where.dtype != bool:
        raise TypeError(f"`{name}` must hold bools; got dtype {where.dtype}.")
    if where.shape != scores.shape[:1]:
        raise ValueError(
            f"`{name}` must have one bool for each of {scores.shape[0]} examples; "
            f"got shape {list(where.shape)}."
        )
    return where


def wide_margins(name: str, margins: Any, minimum: int) -> jax.Array:
    """Margins of an ensemble, shape (models, examples), of at least `minimum` models."""
    margins = wide(name, margins)
    if margins.ndim != 2:
        raise ValueError(
            f"`{name}` must have two axes, models and examples; got shape {list(margins.shape)}."
        )
    if margins.shape[0] < minimum:
        raise ValueError(
            f"`{name}` must come from at least {minimum} models; got {margins.shape[0]}."
        )
    check_not_empty(name, margins)
    return margins


def check_same_examples(name: str, margins: jax.Array, other_name: str, other: jax.Array) -> None:
    """Two ensembles on the same examples."""
    if margins.shape[1] != other.shape[1]:
        raise ValueError(
            f"`{name}` and `{other_name}` must be of the same examples; "
            f"got {margins.shape[1]} and {other.shape[1]}."
        )
