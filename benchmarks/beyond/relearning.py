"""Steps meant to make a model slow to relearn: noise, distance, agreement of signs.

All variants move the same entries, those that `PROPOSED` finds.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.beyond.ideas import Idea
from benchmarks.beyond.steps import Loss, Rule, mean_gradient, take_steps
from benchmarks.methods.bench import RATES, Bench
from benchmarks.methods.ways import PROPOSED, WAYS, Start

SIZES = (24, 320)
"""About 0.4 % and 5 % of the entries of the network on digits."""
RATES_OF = {24: 0.03, 320: 0.01}
"""The learning rates with which the entries are found, and where another number is tuned."""
STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


def half_gradients(loss: Loss, params: Any, batch: Any) -> tuple[Any, Any]:
    """The gradients of the halves of a batch: about the poison, and retained."""
    half = len(batch["label"]) // 2
    of = lambda part: mean_gradient(loss, params, jax.tree.map(lambda x: x[part], batch))
    return of(slice(half)), of(slice(half, None))


def where_signs_agree(loss: Loss, params: Any, batch: Any) -> Any:
    """The mean gradient, 0 where the halves of the batch pull to different sides.

    Source: Sondej et al., "Robust LLM Unlearning with MUDMAN" (arXiv 2506.12484), disruption
      masking.
    """
    agree = lambda a, b: jnp.where(a * b > 0, (a + b) / 2, 0)
    return jax.tree.map(agree, *half_gradients(loss, params, batch))


def away(loss: Loss, params: Any, batch: Any, origin: Any, mask: Any, strength: Any) -> Any:
    """The gradient of the mean loss less `strength` times the distance to where it began."""
    gradient = mean_gradient(loss, params, batch)
    moved = jax.tree.map(lambda p, o, m: jnp.where(m, p - o, 0), params, origin, mask)
    length = optax.tree.norm(moved) + jnp.finfo(jnp.float32).tiny
    return jax.tree.map(lambda g, d: g - strength * d / length, gradient, moved)


def add_noise(params: Any, mask: Any, key: jax.Array, strength: float) -> Any:
    """Gaussian noise on a mask, in units of the root mean square of each leaf."""
    leaves, structure = jax.tree.flatten(params)
    keys = structure.unflatten(list(jax.random.split(key, len(leaves))))

    def noisy(leaf: jax.Array, chosen: jax.Array, key: jax.Array) -> jax.Array:
        noise = jax.random.normal(key, leaf.shape) * jnp.sqrt(jnp.mean(leaf**2))
        return jnp.where(chosen, leaf + strength * noise, leaf)

    return jax.tree.map(noisy, params, mask, keys)


def _begin(vary: Callable[..., Any]) -> Callable[[Bench], Callable[[int, float], Any]]:
    """An idea from `vary(start, mask, rate, value)`, which returns parameters."""

    def begin(bench: Bench) -> Callable[[int, float], Any]:
        start = bench.start

        @functools.cache
        def mask_of(count: int) -> Any:
            return WAYS[PROPOSED].run(start, count, RATES_OF[count])[1]

        return lambda count, value: vary(start, mask_of(count), RATES_OF[count], value)

    return begin


def _steps(rule: Rule) -> Callable[..., Any]:
    return lambda start, mask, rate, value: take_steps(
        start.model, rule, start.params, mask, start.batches, value
    )


def _noise(start: Start, mask: Any, rate: float, value: float) -> Any:
    params = add_noise(start.params, mask, start.key, value)
    return take_steps(start.model, mean_gradient, params, mask, start.batches, rate)


def _away(start: Start, mask: Any, rate: float, value: float) -> Any:
    args = (start.params, mask, value)
    return take_steps(start.model, away, start.params, mask, start.batches, rate, *args)


def _idea(
    summary: str,
    vary: Callable[..., Any],
    tuned: str = "strength",
    controls: tuple[str, ...] = ("plain",),
) -> Idea:
    trials = STRENGTHS if tuned == "strength" else RATES
    where = (("label", "backdoor"), 1.0, SIZES)
    return Idea(summary, *where, tuned, trials, _begin(vary), controls, "relearning")


IDEAS = {
    "weight_noise": _idea("noise on the entries before the steps", _noise),
    "far_away": _idea("steps that are drawn away from the poisoned parameters, too", _away),
    "sign_agreement": _idea(
        "only where the gradients on corrected and on retained examples agree in sign",
        _steps(where_signs_agree),
        "learning rate",
    ),
    "plain": _idea("the same entries, plain steps", _steps(mean_gradient), "learning rate", ()),
}
