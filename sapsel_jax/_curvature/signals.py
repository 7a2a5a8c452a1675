"""The signals that curvature propagation carries, at one variable."""

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sapsel_jax._base.precision import widen
from sapsel_jax._curvature.noise import Noise, Pair
from sapsel_jax._primitives.contraction import contract
from sapsel_jax._primitives.tangents import Label, Tangent


class Signal:
    """What reaches one variable: pairs pulled back to it, and noise that is added there."""

    def __init__(self) -> None:
        """Begins with nothing."""
        self.pulled: list[Pair] = []
        self.noise: list[Noise] = []

    def alone(self) -> list[Noise]:
        """The noise whose products with all else have no expectation."""
        return [one for one in self.noise if one.diagonal is not None]

    def exact(self) -> bool:
        """Whether all of it is noise whose diagonal is known."""
        return not self.pulled and all(one.exact for one in self.noise)

    def pairs(self, without: Sequence[Noise] = ()) -> list[Pair]:
        """All of it, but for some noise."""
        return [*self.pulled, *(one.pair for one in self.noise if one not in without)]

    def curvature(self, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """The diagonal at this variable, without the products that have no expectation."""
        total, alone = jnp.zeros(shape, dtype), self.alone()
        pairs = self.pairs(without=alone)
        if pairs:
            first, second = add(pairs).both()
            total += first.astype(dtype) * second.astype(dtype)
        return total + sum(one.diagonal.astype(dtype) for one in alone if one.diagonal is not None)

    def along(self, tangent: Tangent, order: Sequence[Label], dtype: Any) -> jax.Array:
        """(Aᵀ b₁) ⊙ (Aᵀ b₂), with the columns of A the tangents of this variable."""
        if not self.pairs():
            return jnp.zeros([label.size for label in order], dtype)
        pair = add(self.pairs())
        if pair.sign is not None:
            return pair.sign * contract([tangent], pair.first.astype(dtype), order) ** 2
        both = jnp.stack(pair.both()).astype(dtype)
        first, second = contract([tangent], both, order, num_rows=1)
        return first * second


def add(pairs: Sequence[Pair]) -> Pair:
    """The sum of pairs."""
    sign = common_sign(pairs)
    if sign is not None:
        return Pair(_sum(pair.first for pair in pairs), None, sign)
    first, second = zip(*(pair.both() for pair in pairs), strict=True)
    return Pair(_sum(first), _sum(second))


def _sum(arrays: Iterable[jax.Array]) -> jax.Array:
    """In wide numbers, as noise has them; what came back through narrow operations does not."""
    return functools.reduce(operator.add, map(widen, arrays))


def common_sign(pairs: Sequence[Pair]) -> jax.Array | None:
    """The sign that all second signals are the first ones times, if there is one."""
    signs = [pair.sign for pair in pairs]
    return signs[0] if signs and all(sign is signs[0] for sign in signs) else None
