"""Numbers of entries beyond 32 bits, as two words: JAX has no wider integers by default."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

BITS = 16
"""Of the low word. Fewer than 2¹⁶ numbers below 2³² add up without overflow in either word."""


class Count(NamedTuple):
    """The number `high · 2**BITS + low`, with `low` below `2**BITS`; or an array of them."""

    high: jax.Array
    low: jax.Array


def count_of(number: Any) -> Count:
    """A Python integer, or uint32 numbers, as a count."""
    high, low = number >> BITS, number & (2**BITS - 1)
    return Count(jnp.asarray(high, jnp.uint32), jnp.asarray(low, jnp.uint32))


def total(numbers: jax.Array) -> Count:
    """The sum over the leading axis of uint32 numbers."""
    parts = count_of(numbers)
    return _carried(jnp.sum(parts.high, 0, jnp.uint32), jnp.sum(parts.low, 0, jnp.uint32))


def totals_so_far(numbers: jax.Array, *, reverse: bool = False) -> Count:
    """The sum of each of some uint32 numbers and of all before it, along the leading axis."""
    parts = count_of(numbers)
    return _carried(*(jax.lax.cumsum(word, reverse=reverse) for word in parts))


def _carried(high: jax.Array, low: jax.Array) -> Count:
    return Count(high + (low >> BITS), low & jnp.uint32(2**BITS - 1))


def plus(a: Count, b: Count) -> Count:
    """a + b."""
    return _carried(a.high + b.high, a.low + b.low)


def at_least(a: Count, b: Count) -> jax.Array:
    """Whether a ≥ b."""
    return (a.high > b.high) | ((a.high == b.high) & (a.low >= b.low))


def equal(a: Count, b: Count) -> jax.Array:
    """Whether a = b."""
    return (a.high == b.high) & (a.low == b.low)


def excess(a: Count, b: Count, most: Any) -> jax.Array:
    """How much larger a is than b, at least 0 and at most `most`, in uint32."""
    borrow = (a.low < b.low).astype(jnp.uint32)
    high = jnp.where(at_least(a, b), a.high - b.high - borrow, 0)
    low = jnp.where(at_least(a, b), a.low - b.low + (borrow << BITS), 0)
    limit = count_of(jnp.asarray(most, jnp.uint32))
    return jnp.where(
        at_least(limit, Count(high, low)), (high << BITS) | low, (limit.high << BITS) | limit.low
    )
