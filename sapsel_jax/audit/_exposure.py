"""Exposure: how far a secret stands out among the secrets it might have been."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from sapsel_jax.audit._inputs import check_not_empty, wide


def exposure(canary_loss: Any, alternative_losses: Any) -> jax.Array:
    """Measures how many bits of a canary a model reveals.

    The exposure is log2 |R| − log2 rank. R holds the canary and its alternatives. The rank is the
    canary's place among their losses, 1 for the lowest loss, with ties shared:
    1 + (lower) + ½ (equal). A model that never saw the canary has an exposure of 1.44 bits on
    average (log2 e, for many alternatives). The largest possible exposure is log2 |R|.

    The exposure is about low losses only. A canary whose loss was pushed above all alternatives has
    an exposure of 0 and stands out all the same; the exposure of the negated losses shows it.

    Args:
      canary_loss: of the canary, real floating-point, shape (...).
      alternative_losses: of the other secrets that could have been put in its place, drawn alike,
        shape (..., alternatives), at least one.

    Returns:
      Float32 (or wider) numbers of bits in [0, log2 |R|], shape (...); NaN where a loss is.

    Raises:
      TypeError: if losses are not real floating-point numbers.
      ValueError: if there are no alternatives or the shapes do not fit.

    Cost: one pass over the losses.

    Source: Carlini et al., "The Secret Sharer" (arXiv 1802.08232), the definition of exposure.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> print(sap.audit.exposure(jnp.array(0.5), jnp.array([0.1, 0.9, 2.0])))
      1.0
    """
    canary = wide("canary_loss", canary_loss)
    others = wide("alternative_losses", alternative_losses)
    if others.ndim == 0 or others.shape[:-1] != canary.shape:
        raise ValueError(
            "`alternative_losses` must have the shape of `canary_loss` and a last axis over "
            f"alternatives; got {list(others.shape)} and {list(canary.shape)}."
        )
    check_not_empty("alternative_losses", others)
    own = canary[..., None]
    lower = jnp.sum(others < own, axis=-1, dtype=others.dtype)
    equal = jnp.sum(others == own, axis=-1, dtype=others.dtype)
    bits = math.log2(others.shape[-1] + 1) - jnp.log2(1 + lower + equal / 2)
    return jnp.where(jnp.isnan(canary) | jnp.any(jnp.isnan(others), axis=-1), jnp.nan, bits)
