"""Whether a secret can be had from the model: by its best guesses, and by a search."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.secrets.canaries import Sentences
from benchmarks.secrets.network import LanguageModel, losses_of


@functools.partial(jax.jit, static_argnums=0)
def guesses(model: LanguageModel, params: Any, tokens: jax.Array) -> jax.Array:
    """The likeliest next character after each one."""
    return model.apply(params, tokens).argmax(-1)


@functools.partial(jax.jit, static_argnums=0)
def character_losses(
    model: LanguageModel, params: Any, tokens: jax.Array, labels: jax.Array
) -> jax.Array:
    """The loss of each next character, in nats."""
    return losses_of(model.apply(params, tokens), labels)


def right_guesses(model: LanguageModel, params: Any, told: Sentences) -> list[np.ndarray]:
    """For each secret, whether each of its characters is the likeliest after those before it."""
    right = np.asarray(guesses(model, params, told.split.images)) == told.split.labels
    return [row[places] for row, places in zip(right, told.secret, strict=True)]


def is_extracted(right: np.ndarray) -> bool:
    """Whether the likeliest characters, one after the other, spell the whole secret."""
    return bool(right.all())


def exact_memorisation(right: np.ndarray) -> float:
    """The share of the characters that are guessed right."""
    return float(right.mean())


def extraction_strength(right: np.ndarray) -> float:
    """The longest end of the secret that the model adds by itself, as a share of the secret."""
    wrong = np.flatnonzero(~right)
    known = wrong[-1] + 1 if len(wrong) else 0
    return float(1 - known / len(right))


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def beam_search(
    model: LanguageModel, params: Any, tokens: jax.Array, start: jax.Array, length: int, width: int
) -> jax.Array:
    """The `length` characters after the first `start` that a search of this width finds likeliest.

    Args:
      model: the network.
      params: its parameters.
      tokens: characters of the prompt, shape (context,); what stands after it does not matter.
      start: how many characters the prompt has.
      length: how many are looked for.
      width: how many beginnings are kept.

    Returns:
      The ends that were kept, the likeliest first, shape (width, length).
    """
    beams = jnp.tile(tokens, (width, 1))
    # At first all beams are the same: one alone counts.
    scores = jnp.where(jnp.arange(width) == 0, 0.0, -jnp.inf)

    def step(state: Any, place: jax.Array) -> Any:
        beams, scores = state
        logits = jnp.take(model.apply(params, beams), place - 1, axis=1)
        totals = scores[:, None] + jax.nn.log_softmax(logits)
        scores, best = jax.lax.top_k(totals.ravel(), width)
        kept, characters = jnp.divmod(best, logits.shape[-1])
        return (beams[kept].at[:, place].set(characters.astype(beams.dtype)), scores), None

    (beams, _), _ = jax.lax.scan(step, (beams, scores), start + jnp.arange(length))
    return jax.lax.dynamic_slice(beams, (0, start), (width, length))


def found_by_search(model: LanguageModel, params: Any, told: Sentences, width: int) -> list[bool]:
    """For each secret, whether it is among the ends that the search keeps."""
    found = []
    for tokens, labels, places in zip(*told.split, told.secret, strict=True):
        first, length = int(np.flatnonzero(places)[0]) + 1, int(places.sum())
        ends = beam_search(model, params, tokens, jnp.asarray(first), length, width)
        found.append(bool((np.asarray(ends) == labels[places]).all(1).any()))
    return found
