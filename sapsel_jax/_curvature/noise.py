"""Random pairs whose outer product is a Hessian in expectation: E[n₁ n₂ᵀ] = ∇²⟨g, f⟩.

Each is made of independent signs, anew for every block and example.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sapsel_jax._base.precision import widen
from sapsel_jax._curvature.blocks import Block, in_variables
from sapsel_jax._graph.graph import Values

BITS = 32

Operation = Callable[..., Any]
Arrays = Sequence[jax.Array]


class Signs:
    """Independent signs, drawn at once as the bits of words and taken piece by piece."""

    def __init__(self, words: jax.Array) -> None:
        self._words = words
        self._taken = 0

    def take(self, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """The next signs, as an array of 1 and -1."""
        size = math.prod(shape)
        words = self.take_words(num_words(size))
        places = jnp.arange(min(BITS, size), dtype=jnp.uint32)
        bits = (words[:, None] >> places[None]) & 1
        return 2 * bits.reshape(-1)[:size].reshape(shape).astype(dtype) - 1

    def take_words(self, count: int) -> jax.Array:
        """The next words."""
        start, self._taken = self._taken, self._taken + count
        return self._words[start : self._taken]


def num_words(size: int) -> int:
    """How many words hold so many signs."""
    return -(-size // BITS)


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """Two signals at one variable; with a `sign` the second is the first times it."""

    first: jax.Array
    second: jax.Array | None
    sign: jax.Array | None = None

    def both(self) -> tuple[jax.Array, jax.Array]:
        """The two signals."""
        if self.second is not None:
            return self.first, self.second
        return self.first, self.sign * self.first  # type: ignore[operator]


@dataclasses.dataclass(frozen=True, eq=False)
class Noise:
    """What a block adds to the signals at one of its inputs.

    Attributes:
      pair: what is added.
      diagonal: entries whose expectation is the diagonal of the block's Hessian in this input.
        Where that is enough, it takes the place of products of noise, whose error is larger. None
        for noise drawn for several inputs together, as products with its other parts count too.
      exact: `diagonal` is no estimate.
    """

    pair: Pair
    diagonal: jax.Array | None
    exact: bool


def draw(block: Block, values: Values, adjoints: Sequence[jax.Array], signs: Signs) -> list[Noise]:
    """The noise of a block at each of its noisy inputs; `adjoints` are those of its outputs."""
    points = [values[var] for var in block.noisy]
    fn = in_variables(block.node, block.noisy, values)
    drawn = [signs.take(x.shape, x.dtype) for x in points]
    return DRAW[block.rule](block, fn, points, adjoints, drawn)


def _elementwise(
    block: Block, fn: Operation, points: Arrays, adjoints: Arrays, drawn: Arrays
) -> list[Noise]:
    """√|κ| r and sign(κ) √|κ| r, with κ = g φ'' at each entry."""
    (x,), (adjoint,), (r,) = points, adjoints, drawn
    ones = jnp.ones_like(x)
    slope = lambda y: jax.jvp(lambda z: fn(z)[0], (y,), (ones,))[1]
    bend = widen(adjoint) * widen(jax.jvp(slope, (x,), (ones,))[1])
    first = jnp.sqrt(jnp.abs(bend)) * widen(r)
    return [Noise(Pair(first, jnp.sign(bend) * first), bend, True)]


def _logsumexp(
    block: Block, fn: Operation, points: Arrays, adjoints: Arrays, drawn: Arrays
) -> list[Noise]:
    """A root of c (diag p − p pᵀ) times r, with the softmax p the slope of logsumexp.

    Of the many roots this takes the triangular one. Column k sets class k against all later ones:
    √(p_k / (T_k T_k+1)) (T_k+1 e_k − Σ p_j e_j over j > k), with T the tail sums of p. Where two
    classes share the probability a single column is left, and no error; the symmetric root
    √p ⊙ r − p (√p · r) has errors up to twice as large on trained networks.
    """
    (x,), (adjoint,), (r,), axes = points, adjoints, drawn, block.node.params["axes"]
    (out,), back = jax.vjp(fn, x)
    (p,), (weighted,) = back([jnp.ones_like(out)]), back([adjoint])
    c = weighted.sum(axes, keepdims=True)
    root = _along_one_axis(_multinomial_root, axes, widen(p), widen(r))
    first = (widen(jnp.sqrt(jnp.abs(c))) * root).astype(x.dtype)
    sign, diagonal = jnp.sign(c), c * p * (1 - p)
    # One logsumexp: both signals differ by one sign, so that a single one needs to be carried.
    if c.size == 1:
        return [Noise(Pair(first, None, sign.reshape(())), diagonal, True)]
    return [Noise(Pair(first, sign * first), diagonal, True)]


def _softmax(
    block: Block, fn: Operation, points: Arrays, adjoints: Arrays, drawn: Arrays
) -> list[Noise]:
    """P √|d| r and P sign(d) √|d| r with P = 1 − p 1ᵀ: the Hessian of ⟨g, softmax⟩ is P diag(d) Pᵀ.

    d = p ⊙ (g − p · g) is what the adjoint becomes before the softmax p.
    """
    (x,), (adjoint,), (r,), axes = points, adjoints, drawn, block.node.params["axes"]
    (p,), back = jax.vjp(fn, x)
    (d,) = back([adjoint])
    root = jnp.sqrt(jnp.abs(d)) * r
    project = lambda y: y - p * y.sum(axes, keepdims=True)
    pair = Pair(project(root), project(jnp.sign(d) * root))
    return [Noise(pair, d * (1 - 2 * p), True)]


def _multinomial_root(p: jax.Array, r: jax.Array) -> jax.Array:
    """The triangular root of diag p − p pᵀ times r, along the last axis."""
    axis = p.ndim - 1
    later = jnp.concatenate([p[..., 1:], jnp.zeros_like(p[..., :1])], axis)
    later = lax.cumsum(later, axis, reverse=True)
    safe = jnp.where(later > 0, later, 1)
    share = jnp.where(later > 0, jnp.sqrt(p / (p + safe)) * r, 0)
    pushed = share / jnp.sqrt(safe)
    return share * jnp.sqrt(safe) - p * (lax.cumsum(pushed, axis) - pushed)


def _along_one_axis(
    fn: Callable[..., jax.Array], axes: Sequence[int], *arrays: jax.Array
) -> jax.Array:
    """Applies a function along these axes, as one last axis."""
    last = range(-len(axes), 0)
    moved = [jnp.moveaxis(x, axes, last) for x in arrays]
    shape = moved[0].shape
    result = fn(*(x.reshape(*shape[: len(shape) - len(axes)], -1) for x in moved))
    return jnp.moveaxis(result.reshape(shape), last, axes)


def _product(
    block: Block, fn: Operation, points: Arrays, adjoints: Arrays, drawn: Arrays
) -> list[Noise]:
    """S v and K (v / S), for a sum of products of entries of two inputs.

    The scale S of an entry is the root of the size of its row of K, so that the noise is where the
    curvature is. As every product has the coefficient 1, the squares of all rows of K are one
    product of g² with ones.
    """
    (adjoint,) = adjoints
    ones = [jnp.ones_like(x) for x in points]
    squares = jax.vjp(fn, *ones)[1]([jnp.square(adjoint)])
    scales = [jnp.sqrt(jnp.sqrt(square)) for square in squares]
    divided = [_divide(v, s) for v, s in zip(drawn, scales, strict=True)]
    products = jax.vjp(fn, *divided)[1]([adjoint])
    pairs = [Pair(s * v, kv) for v, s, kv in zip(drawn, scales, products, strict=True)]
    return [Noise(pair, None, False) for pair in pairs]


def _general(
    block: Block, fn: Operation, points: Arrays, adjoints: Arrays, drawn: Arrays
) -> list[Noise]:
    """s v and K v / s: one product with random signs v, and a scale s that is even in v.

    The scale balances the two and has one value for each of the rows in which K has blocks.
    """
    pull = lambda *xs: jax.vjp(fn, *xs)[1](list(adjoints))
    products = jax.jvp(pull, tuple(points), tuple(drawn))[1]
    sizes = [_mean_square(kv, block.rows) for kv in products]
    square = sum(size * kv.size for size, kv in zip(sizes, products, strict=True))
    scale = jnp.sqrt(jnp.sqrt(square / sum(kv.size for kv in products)))
    return [
        Noise(Pair(scale * v, _divide(kv, scale)), v * kv if len(points) == 1 else None, False)
        for v, kv in zip(drawn, products, strict=True)
    ]


DRAW: dict[str, Callable[[Block, Operation, Arrays, Arrays, Arrays], list[Noise]]] = {
    "elementwise": _elementwise,
    "logsumexp": _logsumexp,
    "softmax": _softmax,
    "product": _product,
    "general": _general,
}
"""How the noise of a block is drawn, by its rule: from the block, its operation in the noisy
inputs, their values, the adjoints of its outputs, and signs like the values."""


def _divide(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Their ratio, or 0 where the scale is 0."""
    return jnp.where(scale > 0, x / jnp.where(scale > 0, scale, 1), 0)


def _mean_square(x: jax.Array, rows: Sequence[int]) -> jax.Array:
    """For each row, or one number where there are none."""
    if not rows:
        return jnp.mean(jnp.square(x))
    axes = tuple(axis for axis in range(x.ndim) if axis not in rows)
    return jnp.mean(jnp.square(x), axes, keepdims=True)
