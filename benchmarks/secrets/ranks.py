"""Exposure: where a secret stands among the secrets that could have been drawn instead."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

import sapsel_jax as sap
from benchmarks.secrets.canaries import Canary, candidates
from benchmarks.secrets.network import LanguageModel, losses_of
from benchmarks.secrets.text import CONTEXT, encode

AT_ONCE = 500


class Exposure(NamedTuple):
    """In bits."""

    by_rank: float
    extrapolated: float


@functools.partial(jax.jit, static_argnums=0)
def secret_losses(
    model: LanguageModel, params: Any, prompt: jax.Array, num_prompt: jax.Array, secrets: jax.Array
) -> jax.Array:
    """The loss of each secret after the prompt, summed over its characters, in nats.

    The prompt is read once; each secret looks at its keys and values.

    Args:
      model: the network.
      params: its parameters.
      prompt: its characters, then anything, shape (context,).
      num_prompt: how many of them there are.
      secrets: their characters, shape (secrets, length).
    """
    logits, past = model.extend(params, prompt[None])
    past = jax.tree.map(lambda x: x[0], past)
    first = -jax.nn.log_softmax(logits[0, num_prompt - 1])[secrets[:, 0]]

    def rest(secret: jax.Array) -> jax.Array:
        logits, _ = model.extend(params, secret[None, :-1], past, num_prompt)
        return jnp.sum(losses_of(logits[0], secret[1:]))

    return first + jax.lax.map(rest, secrets, batch_size=AT_ONCE)


def extrapolated_exposure(canary_loss: float, losses: np.ndarray) -> float:
    """Exposure with the losses of the candidates taken for a skew normal distribution, in bits.

    It is −log2 of the share of this distribution that lies below the canary's loss, and so can be
    above log2 of the number of candidates.
    """
    skew, place, scale = _fit_skew_normal(losses)
    return float(-stats.skewnorm.logcdf(canary_loss, skew, place, scale) / math.log(2))


def _fit_skew_normal(losses: np.ndarray) -> tuple[float, float, float]:
    """Shape, location and scale by the moments: mean, variance and skewness."""
    mean, deviation = np.mean(losses), np.std(losses)
    skewness = np.clip(stats.skew(losses), -0.99, 0.99)
    power = abs(skewness) ** (2 / 3)
    delta = np.sign(skewness) * math.sqrt(
        math.pi / 2 * power / (power + ((4 - math.pi) / 2) ** (2 / 3))
    )
    scale = deviation / math.sqrt(1 - 2 * delta**2 / math.pi)
    place = mean - scale * delta * math.sqrt(2 / math.pi)
    return float(delta / math.sqrt(1 - delta**2)), float(place), float(scale)


def exposure(
    model: LanguageModel, params: Any, canary: Canary, count: int, seed: int = 0
) -> Exposure:
    """The exposure of a canary among `count` candidates, by rank and extrapolated."""
    prompt = encode(canary.prompt.ljust(CONTEXT, "\n"))
    secrets = [canary.secret, *_candidates(canary, count, seed)]
    tokens = np.stack([encode(secret) for secret in secrets])
    given = (params, prompt, np.int32(len(canary.prompt)), tokens)
    losses = np.asarray(secret_losses(model, *given))
    by_rank = sap.audit.exposure(jnp.asarray(losses[0]), jnp.asarray(losses[1:]))
    return Exposure(float(by_rank), extrapolated_exposure(losses[0], losses[1:]))


_candidates = functools.cache(candidates)
