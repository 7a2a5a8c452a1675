"""What examples say, kept apart from the sum over them."""

import jax
import jax.numpy as jnp
from jax import lax


def unfused(parts: jax.Array) -> jax.Array:
    """The same numbers, in an array that XLA does not merge into the sum that follows.

    XLA's CPU backend merges products, sums and a reduction over all of them into one kernel (its
    "YNN" fusion). For some models in float64, with an axis of length 1 and 32 or more examples,
    that kernel adds the wrong entries. An operation before the reduction keeps the two apart.
    This one rounds to the precision that the numbers have already, so it changes none of them.
    """
    info = jnp.finfo(parts.dtype)
    return lax.reduce_precision(parts, exponent_bits=info.nexp, mantissa_bits=info.nmant)
