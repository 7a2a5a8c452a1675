"""Random pairs whose outer product is a Hessian in expectation: E[n₁ n₂ᵀ] = ∇²⟨g, f⟩.

Every pair is made of independent signs, so that nothing else is left of it in expectation.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sapsel_jax._affine import is_affine
from sapsel_jax._blocks import Block
from sapsel_jax._graph import Graph, restrict

BITS = 32


class Signs:
    """Independent signs for one example, drawn at once and taken piece by piece."""

    def __init__(self, key: jax.Array, sizes: Sequence[int]) -> None:
        self.words = sum(-(-size // BITS) for size in sizes)
        self.bits = jax.random.bits(key, (self.words,), jnp.uint32)
        self.taken = 0

    def take(self, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """The next signs, as an array of 1 and -1."""
        size = 1
        for length in shape:
            size *= length
        words = -(-size // BITS)
        bits = self.bits[self.taken : self.taken + words]
        self.taken += words
        places = jnp.arange(min(BITS, max(size, 1)), dtype=jnp.uint32)
        flags = (bits[:, None] >> places) & 1
        signs = flags.reshape(-1)[:size].reshape(shape).astype(dtype)
        return 2 * signs - 1


class Noise:
    """What a block adds to one of its inputs.

    Attributes:
      first: what is added to the first signal.
      second: what is added to the second; None where that is the first times the `sign`.
      sign: 1 or -1 for the whole example, where `second` is None.
      product: entries whose expectation is the diagonal of the block's Hessian in this input.
      is_diagonal: whether that Hessian is diagonal and `product` exactly its diagonal.
    """

    def __init__(self, first, second, product, *, sign=None, is_diagonal=False):
        self.first, self.second, self.product = first, second, product
        self.sign, self.is_diagonal = sign, is_diagonal


def sizes_of(graph: Graph, block: Block) -> list[int]:
    """How many signs the noise of a block takes, piece by piece."""
    return [graph.size(block.node.ins[i]) for i in block.noisy]


def draw(
    graph: Graph,
    block: Block,
    inputs: Sequence[Any],
    adjoints: Sequence[jax.Array],
    signs: Signs,
) -> list[Noise]:
    """The noise of a block for each of its noisy inputs; `adjoints` are of its outputs."""
    points = [inputs[i] for i in block.noisy]
    fn = restrict(block.node, block.noisy, inputs)
    drawn = [signs.take(jnp.shape(x), x.dtype) for x in points]
    if block.rule == "elementwise":
        return [_elementwise(fn, points[0], adjoints[0], drawn[0])] * len(points)
    if block.rule == "logsumexp":
        return [_logsumexp(fn, points[0], adjoints[0], drawn[0], block.node.params["axes"])]
    return _general(graph, block, fn, points, adjoints, drawn)


def _elementwise(fn: Any, x: jax.Array, adjoint: jax.Array, r: jax.Array) -> Noise:
    """κ = g φ'' at each entry: √|κ| r and sign(κ) √|κ| r."""
    ones = jnp.ones_like(x)
    slope = lambda y: jax.jvp(lambda z: fn(z)[0], (y,), (ones,))[1]
    bend = adjoint * jax.jvp(slope, (x,), (ones,))[1]
    first = jnp.sqrt(jnp.abs(bend)) * r
    return Noise(first, jnp.sign(bend) * first, bend, is_diagonal=True)


def _logsumexp(
    fn: Any, x: jax.Array, adjoint: jax.Array, r: jax.Array, axes: tuple[int, ...]
) -> Noise:
    """A root of c (diag p − p pᵀ), with the softmax p the slope of logsumexp.

    Of the many roots this takes the triangular one, whose column k sets class k against all later
    ones, √(p_k / (T_k T_k+1)) (T_k+1 e_k − Σ_j>k p_j e_j) with T the tail sums of p. Between two
    classes that share the probability it has one column, and so no noise at all; the symmetric
    root √p ⊙ r − p (√p · r) has errors one and a half times as large on trained networks.
    """
    (out,), back = jax.vjp(fn, x)
    (p,), (weighted,) = back([jnp.ones_like(out)]), back([adjoint])
    c = weighted.sum(axes, keepdims=True)
    first = jnp.sqrt(jnp.abs(c)) * _along_one_axis(_multinomial_root, axes, p, r)
    sign = jnp.sign(c)
    product = c * p * (1 - p)
    if c.size == 1:
        return Noise(first, None, product, sign=sign.reshape(()))
    return Noise(first, sign * first, product)


def _multinomial_root(p: jax.Array, r: jax.Array) -> jax.Array:
    """The triangular root of diag p − p pᵀ times r, along the last axis."""
    later = jnp.concatenate([p[..., 1:], jnp.zeros_like(p[..., :1])], -1)
    later = lax.cumsum(later, p.ndim - 1, reverse=True)
    safe = jnp.where(later > 0, later, 1)
    share = jnp.where(later > 0, jnp.sqrt(p / (p + safe)) * r, 0)
    before = share / jnp.sqrt(safe)
    return share * jnp.sqrt(safe) - p * (lax.cumsum(before, p.ndim - 1) - before)


def _along_one_axis(fn: Any, axes: Sequence[int], *arrays: jax.Array) -> jax.Array:
    """Applies a function along these axes, as one last axis."""
    shape, places = arrays[0].shape, range(-len(axes), 0)
    moved = [jnp.moveaxis(x, axes, places) for x in arrays]
    lead = moved[0].shape[: len(shape) - len(axes)]
    result = fn(*(x.reshape(*lead, -1) for x in moved))
    return jnp.moveaxis(result.reshape(moved[0].shape), places, axes)


def _general(
    graph: Graph,
    block: Block,
    fn: Any,
    points: Sequence[jax.Array],
    adjoints: Sequence[jax.Array],
    drawn: Sequence[jax.Array],
) -> list[Noise]:
    """s v and K v / s, with K v one product and the scale s of each row even in v."""

    def pull(*xs: jax.Array) -> Any:
        return jax.vjp(fn, *xs)[1](list(adjoints))

    products = jax.jvp(pull, tuple(points), tuple(drawn))[1]
    if len(points) == 1:
        apart = block.rows
        axes = tuple(a for a in range(points[0].ndim) if a not in apart)
        squares = [jnp.mean(jnp.square(products[0]), axes, keepdims=True)]
    else:
        count = sum(x.size for x in points)
        squares = [sum(jnp.sum(jnp.square(kv)) for kv in products) / count] * len(points)
    noise = []
    for i, v, kv, square in zip(block.noisy, drawn, products, squares, strict=True):
        scale = jnp.sqrt(jnp.sqrt(square))
        safe = jnp.where(scale > 0, scale, 1)
        second = jnp.where(scale > 0, kv / safe, 0)
        alone = is_affine(graph, block.node, [i])
        product = jnp.zeros_like(v) if alone else v * kv
        noise.append(Noise(scale * v, second, product, is_diagonal=alone))
    return noise
