"""The language model: a decoder-only transformer over characters, in nnx."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.learning.models import CEILING, Model
from benchmarks.secrets.text import CONTEXT, VOCABULARY

WIDTH, HEADS, BLOCKS = 64, 4, 2
Past = tuple[jax.Array, jax.Array]
"""The keys and values of earlier tokens in one block, each (earlier tokens, heads, head width)."""


class Attention(nnx.Module):
    """Causal attention; the earlier tokens of `past` can be looked at, too."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        """Takes the width of a token and the number of heads, which divides it."""
        self.heads = heads
        self.inputs = nnx.Linear(width, 3 * width, rngs=rngs)
        self.output = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: jax.Array, past: Past, mask: jax.Array) -> tuple[jax.Array, Past]:
        """Tokens (n, tokens, width) to tokens, and their keys and values."""
        n, tokens, width = x.shape
        parts = self.inputs(x).reshape(n, tokens, 3, self.heads, width // self.heads)
        queries, keys, values = (parts[:, :, i] for i in range(3))
        every = [
            jnp.concatenate([jnp.broadcast_to(old, (n, *old.shape)), new], 1)
            for old, new in zip(past, (keys, values), strict=True)
        ]
        scores = jnp.einsum("nqhd,nkhd->nhqk", queries, every[0]) * (width // self.heads) ** -0.5
        shares = jax.nn.softmax(jnp.where(mask, scores, -1e9))
        seen = jnp.einsum("nhqk,nkhd->nqhd", shares, every[1])
        return self.output(seen.reshape(n, tokens, width)), (keys, values)


class Block(nnx.Module):
    """Attention, then two dense layers with GELU, each behind a LayerNorm."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        """Takes the width of a token and the number of heads."""
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = Attention(width, heads, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array, past: Past, mask: jax.Array) -> tuple[jax.Array, Past]:
        """Tokens to tokens, and their keys and values."""
        seen, own = self.attention(self.norm1(x), past, mask)
        x = x + seen
        return x + self.down(nnx.gelu(self.up(self.norm2(x)))), own


class Transformer(nnx.Module):
    """Embeddings of characters and of places, blocks `block1`, `block2`, ..., and `head`."""

    def __init__(self, width: int, heads: int, blocks: int, *, rngs: nnx.Rngs):
        """Takes the width of a token, the number of heads and the number of blocks."""
        self.num_blocks, self.shape = blocks, (heads, width // heads)
        self.characters = nnx.Embed(len(VOCABULARY), width, rngs=rngs)
        self.places = nnx.Embed(CONTEXT, width, rngs=rngs)
        for i in range(blocks):
            setattr(self, f"block{i + 1}", Block(width, heads, rngs=rngs))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, len(VOCABULARY), rngs=rngs)

    def __call__(
        self, tokens: jax.Array, past: Sequence[Past] | None = None, num_past: Any = 0
    ) -> tuple[jax.Array, list[Past]]:
        """Tokens (n, t) to logits (n, t, characters), and the keys and values of each block.

        `past` holds those of earlier tokens, of which the first `num_past` count.
        """
        if past is None:
            nothing = jnp.zeros((0, *self.shape))
            past = [(nothing, nothing)] * self.num_blocks
        count, earlier = tokens.shape[1], len(past[0][0])
        old = jnp.broadcast_to(jnp.arange(earlier) < num_past, (count, earlier))
        mask = jnp.concatenate([old, jnp.tril(jnp.ones((count, count), bool))], 1)
        x = self.characters(tokens) + self.places(num_past + jnp.arange(count))
        own = []
        for i, each in enumerate(past):
            x, kept = getattr(self, f"block{i + 1}")(x, each, mask)
            own.append(kept)
        return self.head(self.norm(x)), own


@dataclass(frozen=True, eq=False)
class LanguageModel(Model):
    """The network as pure functions; an example holds characters, the next ones and weights.

    `image` stands for the characters and `label` for the next ones, as the training loop and the
    ways to choose entries know them.
    """

    network: Any = None
    """The structure of the network without its parameters."""

    def loss(self, params: Any, example: dict[str, jax.Array]) -> jax.Array:
        """Cross entropy of ONE window: the mean over its characters, each times its weight."""
        logits = self.apply(params, example["image"][None])[0]
        return jnp.mean(example["weight"] * losses_of(logits, example["label"]))

    def bounded_loss(self, params: Any, example: dict[str, jax.Array]) -> jax.Array:
        """The same, but where weights are below 0 no character counts for more than `CEILING`."""
        losses = losses_of(self.apply(params, example["image"][None])[0], example["label"])
        climbed = jnp.minimum(losses, CEILING)
        weight = example["weight"]
        return jnp.mean(weight * jnp.where(weight < 0, climbed, losses))

    def extend(self, params: Any, tokens: jax.Array, past: Any = None, num_past: Any = 0) -> Any:
        """Logits after each token, and the keys and values, given those of earlier tokens."""
        return nnx.merge(self.network, params)(tokens, past, num_past)


def losses_of(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The cross entropy at each place, in nats: logits (..., characters), labels (...)."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)
    return -chosen[..., 0]


@functools.cache
def language_model(width: int = WIDTH, heads: int = HEADS, blocks: int = BLOCKS) -> LanguageModel:
    """The network of that size; the same object each time, so that it is compiled once."""
    create = lambda seed: Transformer(width, heads, blocks, rngs=nnx.Rngs(seed))
    structure, _ = nnx.split(nnx.eval_shape(lambda: create(0)), nnx.Param)
    return LanguageModel(
        name="transformer",
        description=f"transformer of {blocks} blocks, width {width}, context {CONTEXT}",
        last_layer="head",
        init=lambda seed: nnx.to_pure_dict(nnx.state(create(seed), nnx.Param)),
        apply=lambda params, tokens: nnx.merge(structure, params)(jnp.asarray(tokens))[0],
        layer_inputs=lambda params, tokens: {},
        network=structure,
    )
