"""A decoder-only transformer as one scan over its blocks, and where its parameters lie on a mesh.

Its shapes are enough to compile for: a size whose parameters no machine at hand could hold can be
measured on paper.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

ROWS, COLUMNS = "data", "model"
"""The axes of the mesh: examples lie along the first, and every matrix along both."""


class Size(NamedTuple):
    """How large a transformer is, and how long its texts are."""

    blocks: int
    width: int
    heads: int
    vocabulary: int
    length: int


class Leaf(NamedTuple):
    """The shape of a leaf, and the axes of the mesh that its axes lie along."""

    shape: tuple[int, ...]
    place: PartitionSpec


def layout(size: Size) -> dict[str, Any]:
    """The leaves of the parameters; those of the blocks are stacked along their first axis."""
    width, blocks = size.width, size.blocks
    wide = lambda n, m: Leaf((blocks, n, m), PartitionSpec(None, ROWS, COLUMNS))
    back = lambda n, m: Leaf((blocks, n, m), PartitionSpec(None, COLUMNS, ROWS))
    scale = Leaf((blocks, width), PartitionSpec(None, COLUMNS))
    return {
        "tokens": Leaf((size.vocabulary, width), PartitionSpec(COLUMNS, ROWS)),
        "places": Leaf((size.length, width), PartitionSpec(None, COLUMNS)),
        "blocks": {
            "norm1": scale,
            "inputs": wide(width, 3 * width),
            "output": back(width, width),
            "norm2": scale,
            "up": wide(width, 4 * width),
            "down": back(4 * width, width),
        },
        "norm": Leaf((width,), PartitionSpec(COLUMNS)),
        "head": Leaf((width, size.vocabulary), PartitionSpec(ROWS, COLUMNS)),
    }


def on_leaves(fn: Callable[[Leaf], Any], size: Size) -> Any:
    """What a function says of every leaf, as a tree shaped like the parameters."""
    return jax.tree.map(fn, layout(size), is_leaf=lambda x: isinstance(x, Leaf))


def num_entries(size: Size) -> int:
    """The number of parameters."""
    return sum(jax.tree.leaves(on_leaves(lambda leaf: math.prod(leaf.shape), size)))


def random_params(size: Size) -> Any:
    """Normal kernels over the root of their inputs, and scales of 1."""
    keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(layout(size)))))

    def leaf_of(path: Any, leaf: Leaf) -> jax.Array:
        key = next(keys)
        if "norm" in jax.tree_util.keystr(path):
            return jnp.ones(leaf.shape)
        return jax.random.normal(key, leaf.shape) / leaf.shape[-2] ** 0.5

    is_leaf = lambda x: isinstance(x, Leaf)
    return jax.tree_util.tree_map_with_path(leaf_of, layout(size), is_leaf=is_leaf)


def loss_of(size: Size) -> Callable[[Any, Any], jax.Array]:
    """The mean cross entropy of ONE text: tokens and the next ones, each (length,)."""
    of_head = (size.length, size.heads, size.width // size.heads)
    is_seen = np.tril(np.ones((size.length, size.length), bool))

    def attend(x: jax.Array, block: Any) -> jax.Array:
        parts = jnp.split(x @ block["inputs"], 3, axis=-1)
        queries, keys, values = (part.reshape(of_head) for part in parts)
        scores = jnp.einsum("qhd,khd->hqk", queries, keys) * of_head[-1] ** -0.5
        shares = jax.nn.softmax(jnp.where(is_seen, scores, -1e9))
        return jnp.einsum("hqk,khd->qhd", shares, values).reshape(x.shape) @ block["output"]

    def apply(x: jax.Array, block: Any) -> tuple[jax.Array, None]:
        x = x + attend(_norm(x, block["norm1"]), block)
        return x + jax.nn.gelu(_norm(x, block["norm2"]) @ block["up"]) @ block["down"], None

    def loss_fn(params: Any, example: Any) -> jax.Array:
        tokens, following = example
        x = params["tokens"][tokens] + params["places"]
        # What a block holds is computed again on the way back, as it is in training at such sizes.
        x, _ = jax.lax.scan(jax.checkpoint(apply), x, params["blocks"])
        logits = _norm(x, params["norm"]) @ params["head"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, following).mean()

    return loss_fn


def _norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5) * scale
