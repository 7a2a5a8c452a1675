"""Training from scratch: one compiled scan for the poisoned and the retrained model alike."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.learning.data import Split
from benchmarks.learning.models import Model


class Recipe(NamedTuple):
    """How long and how fast: adam, with a learning rate that falls to zero on a half cosine.

    With weight decay, decoupled as in adamw, it first rises from zero over a tenth of the steps.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.0

    def optimizer(self, steps: int) -> optax.GradientTransformation:
        """For so many steps."""
        if not self.weight_decay:
            return optax.adam(optax.cosine_decay_schedule(self.learning_rate, steps))
        rate = optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, steps // 10, steps)
        return optax.adamw(rate, weight_decay=self.weight_decay)


RECIPES = {
    ("digits", "mlp"): Recipe(epochs=60, batch_size=32, learning_rate=3e-3),
    ("digits", "cnn"): Recipe(epochs=60, batch_size=32, learning_rate=5e-3),
    ("mnist", "mlp"): Recipe(epochs=20, batch_size=128, learning_rate=1e-3),
    ("mnist", "cnn"): Recipe(epochs=8, batch_size=128, learning_rate=3e-3),
    ("cifar10", "mlp"): Recipe(epochs=20, batch_size=128, learning_rate=1e-3),
    ("cifar10", "cnn"): Recipe(epochs=15, batch_size=128, learning_rate=3e-3),
    ("digits", "convnet"): Recipe(epochs=60, batch_size=32, learning_rate=3e-3),
    ("mnist", "convnet"): Recipe(epochs=5, batch_size=64, learning_rate=3e-3, weight_decay=0.3),
    ("cifar10", "convnet"): Recipe(epochs=6, batch_size=64, learning_rate=3e-3, weight_decay=0.3),
    ("digits", "resnet"): Recipe(epochs=30, batch_size=32, learning_rate=3e-3),
    ("mnist", "resnet"): Recipe(epochs=8, batch_size=128, learning_rate=3e-3),
    ("cifar10", "resnet"): Recipe(epochs=30, batch_size=128, learning_rate=3e-3),
}


def num_steps(recipe: Recipe, num_examples: int) -> int:
    """How many batches the recipe takes for a training set of that size."""
    return recipe.epochs * (num_examples // recipe.batch_size)


def shuffled_batches(ids: np.ndarray, steps: int, batch_size: int, seed: int) -> np.ndarray:
    """Indices of shape (steps, batch_size): passes over `ids`, each in a new order."""
    rng = np.random.default_rng([seed, 2])
    passes = -(-steps * batch_size // len(ids))
    order = np.concatenate([rng.permutation(ids) for _ in range(passes)])
    return order[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)


def train(
    model: Model, recipe: Recipe, storage: Split, ids: np.ndarray, steps: int, seed: int
) -> Any:
    """Trains on the examples of `storage` that `ids` names.

    The arrays keep their shapes when records are left out, so that one compiled function serves
    the poisoned model and the retrained one.

    Returns:
      The parameters.
    """
    batches = shuffled_batches(ids, steps, recipe.batch_size, seed)
    return _train(model, recipe, model.init(seed), *storage, batches)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _train(
    model: Model,
    recipe: Recipe,
    params: Any,
    images: jax.Array,
    labels: jax.Array,
    batches: jax.Array,
) -> Any:
    optimizer = recipe.optimizer(batches.shape[0])

    def step(state: Any, ids: jax.Array) -> Any:
        params, optimizer_state = state

        def mean_loss(p: Any) -> jax.Array:
            logits = model.apply(p, images[ids])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[ids]).mean()

        gradient = jax.grad(mean_loss)(params)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), batches)
    return params


@functools.partial(jax.jit, static_argnums=0)
def predict(model: Model, params: Any, images: jax.Array) -> jax.Array:
    """The class that the model gives each image, -1 where a logit is NaN."""
    logits = compute_logits(model, params, images)
    return jnp.where(jnp.isnan(logits).any(-1), -1, logits.argmax(-1)).astype(jnp.int32)


def compute_logits(model: Model, params: Any, images: jax.Array) -> jax.Array:
    """Of each image; few at a time, so that they stay in the cache."""
    return jax.lax.map(lambda x: model.apply(params, x[None])[0], images, batch_size=50)
