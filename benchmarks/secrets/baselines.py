"""What is usual for language models: losses that push the secret away and keep the rest."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import sapsel_jax as sap
from benchmarks.secrets.network import LanguageModel, losses_of

BETA = 0.1
"""The inverse temperature of NPO, as in its paper."""


def grad_diff_loss(model: LanguageModel, params: Any, example: dict[str, jax.Array]) -> jax.Array:
    """Climbs on the secrets without end, and descends on the rest (Liu et al., arXiv 2203.12817).

    Secrets are the examples with a `reference`, the loss that the model had before; of the others
    it is NaN.
    """
    loss = model.loss(params, example)
    return jnp.where(jnp.isnan(example["reference"]), loss, -loss)


def npo_loss(model: LanguageModel, params: Any, example: dict[str, jax.Array]) -> jax.Array:
    """Negative preference optimisation (Zhang et al., arXiv 2404.05868), and the loss of the rest.

    Of a secret it is (2 / β) log(1 + (p / p_before)^β), p the chance of its characters.
    """
    losses = losses_of(model.apply(params, example["image"][None])[0], example["label"])
    is_secret = ~jnp.isnan(example["reference"])
    summed = jnp.sum(jnp.where(example["weight"] > 0, losses, 0))
    before = jnp.where(is_secret, example["reference"], 0)
    pushed = 2 / BETA * jax.nn.softplus(BETA * (before - summed))
    return jnp.where(is_secret, pushed, jnp.mean(example["weight"] * losses))


BASELINES: dict[str, Callable[..., jax.Array]] = {
    "grad_diff": grad_diff_loss,
    "npo": npo_loss,
}


@functools.partial(jax.jit, static_argnums=(0, 1))
def descend(
    name: str, model: LanguageModel, params: Any, batches: dict[str, jax.Array], rate: jax.Array
) -> Any:
    """Steps of adam on the loss of that name, all entries moving."""
    loss = functools.partial(BASELINES[name], model)
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, len(batches["label"])))
    return sap.iterative_update(loss, params, batches, optimizer=optimizer)[0]


def with_references(
    model: LanguageModel, params: Any, batches: dict[str, Any], num_secrets: int
) -> dict[str, Any]:
    """Batches whose first `num_secrets` examples are secrets, with the sums of their losses."""

    @jax.jit
    def summed(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        losses = losses_of(model.apply(params, batch["image"]), batch["label"])
        return jnp.sum(jnp.where(batch["weight"] > 0, losses, 0), -1)

    references = jax.lax.map(lambda batch: summed(params, batch), batches)
    secret = jnp.arange(references.shape[1]) < num_secrets
    return batches | {"reference": jnp.where(secret, references, jnp.nan)}
