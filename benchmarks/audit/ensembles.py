"""Many models in place of one: what U-LiRA and KLOM compare.

Poisoned models, the same unlearned by a method, and models retrained on the data as it should have
been; all of one seed's data, each from its own start and in its own order.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sapsel_jax as sap
from benchmarks.learning.checkpoints import Trained, kept, training_hash
from benchmarks.learning.data import Split
from benchmarks.learning.models import AT_ONCE, Model
from benchmarks.learning.training import Recipe, shuffled_batches
from benchmarks.methods.case import Case
from benchmarks.methods.masks import METHODS
from benchmarks.methods.tuning import best, try_all
from benchmarks.methods.updates import UPDATES, Update, as_batch
from benchmarks.tools.timing import timed

UPDATE = "iterative"
"""By which poisoned models are unlearned."""


class Evidence(NamedTuple):
    """What an ensemble of unlearned models gives away, against one of retrained models.

    Attributes:
      klom_median: of KLOM over the examples, in nats.
      klom_95: its 95th percentile: the examples that were forgotten worst.
      lira_accuracy: of U-LiRA over all examples; 1/2 is chance.
      lira_95: the 95th percentile of its accuracies for single examples.
    """

    klom_median: float
    klom_95: float
    lira_accuracy: float
    lira_95: float


def train_models(
    cache: Path,
    model: Model,
    recipe: Recipe,
    storage: Split,
    ids: np.ndarray,
    steps: int,
    seeds: range,
) -> Trained:
    """Trains one model for each seed, as `benchmarks.learning.training.train` does, in one program.

    Args:
      cache: folder of trained parameters; what is there is not trained again.
      model: the network.
      recipe: how it is trained.
      storage: examples.
      ids: which of them to train on.
      steps: of each model.
      seeds: of the start and the order of each model.

    Returns:
      Parameters with a leading axis over models.
    """
    order = np.stack([shuffled_batches(ids, steps, recipe.batch_size, seed) for seed in seeds])
    start = stack([model.init(seed) for seed in seeds])
    work = lambda: _train(model, recipe.learning_rate, start, as_batch(storage), order)
    name = training_hash(model, recipe, storage, ids, steps, *seeds)
    return kept(cache, f"ensemble-{name}", start, work, f"{len(seeds)} models of {model.name}")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _train(model: Model, learning_rate: float, start: Any, data: Any, order: Any) -> Any:
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, order.shape[1]))
    at_once = AT_ONCE[model.name]
    return sap.audit.train_ensemble(
        model.loss, start, data, order, optimizer=optimizer, at_once=at_once
    )[0]


def stack(models: list[Any]) -> Any:
    """Many pytrees as one with a leading axis over models."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)


def unstack(models: Any) -> list[Any]:
    """The pytree of each model."""
    count = jax.tree.leaves(models)[0].shape[0]
    return [jax.tree.map(lambda leaf, i=i: leaf[i], models) for i in range(count)]


def margins(model: Model, models: Any, split: Split) -> np.ndarray:
    """The margin of every example's label under every model, shape (models, examples)."""
    rows = [_margin(model, params, *split) for params in unstack(models)]
    return np.stack(rows)


@functools.partial(jax.jit, static_argnums=0)
def _margin(model: Model, params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    return sap.audit.margin(model.apply(params, images), labels)


def tune(case: Case, method: str, update: str) -> float:
    """The value of the update's tuned number that serves this case best: never a reported one."""
    mask, spec = METHODS[method].select(case.material), UPDATES[update]

    def run(value: float) -> Any:
        return spec.run(case.model, case.params, mask, case.corrections, value)[0]

    return spec.trials[best(try_all(case, run, spec.trials))]


def unlearn_models(case: Case, models: Any, method: str, update: str, value: float) -> Any:
    """Selects and updates every model of an ensemble, each with its own curvature and batches.

    Args:
      case: the data and what to correct.
      models: poisoned parameters with a leading axis over models.
      method: a key of `METHODS`.
      update: a key of `UPDATES`.
      value: of the update's tuned number.

    Returns:
      New parameters with a leading axis over models.
    """
    return stack(
        [
            _unlearn(case, params, i, method, UPDATES[update], value)
            for i, params in enumerate(unstack(models))
        ]
    )


def _unlearn(case: Case, params: Any, index: int, method: str, update: Update, value: float) -> Any:
    key = jax.random.fold_in(case.material.key, index)
    mask = METHODS[method].select(case.material._replace(params=params, key=key))
    return update.run(case.model, params, mask, case.corrections, value)[0]


def evidence(unlearned: np.ndarray, retrained: np.ndarray) -> Evidence:
    """KLOM and U-LiRA of two ensembles' margins, shape (models, examples), as many of each."""
    divergences = np.asarray(sap.audit.klom(unlearned, retrained))
    lira = sap.audit.u_lira(unlearned, retrained)
    return Evidence(
        klom_median=float(np.median(divergences)),
        klom_95=float(np.quantile(divergences, 0.95)),
        lira_accuracy=float(lira.accuracy),
        lira_95=float(np.quantile(np.asarray(lira.per_example), 0.95)),
    )


class Ensembles:
    """The ensembles of one seed, each trained when it is first needed."""

    def __init__(self, case: Case, count: int, cache: Path, tell: Callable[[str], None]):
        """Nothing is trained yet; `tell` is told what is trained."""
        self._case, self._count, self._cache, self._tell = case, count, cache, tell

    def rows(self, method: str, value: float | None) -> Iterator[dict[str, Any]]:
        """The figures of an ensemble, a row for each set of examples."""
        case = self._case
        if method == "poisoned":
            models, seconds = self._poisoned
        elif method == "retrained":
            models, seconds = self._retrained(2)
        else:
            assert value is not None
            work = functools.partial(unlearn_models, case, self._poisoned.params, method, UPDATE)
            models, seconds = timed(lambda: work(value))
        aim = self._aim.params
        for name, split in {"forget": case.poisoned.original, "test": case.dataset.test}.items():
            both = [margins(case.model, each, split) for each in (models, aim)]
            yield {
                **case.names,
                "seed": case.seed,
                "method": method,
                "update": "none" if value is None else UPDATE,
                "tuned_value": value,
                "set": name,
                "examples": len(split.labels),
                "models": self._count,
                "seconds": seconds,
                **evidence(*both)._asdict(),
            }

    @functools.cached_property
    def _poisoned(self) -> Trained:
        poisoned = self._case.poisoned
        return self._train("poisoned", poisoned.train, np.arange(len(poisoned.train.labels)), 0)

    @functools.cached_property
    def _aim(self) -> Trained:
        return self._retrained(1)

    def _retrained(self, turn: int) -> Trained:
        case = self._case
        everything = np.arange(len(case.poisoned.train.labels))
        ids = case.poisoned.retained if case.removes else everything
        return self._train("retrained", case.dataset.train, ids, turn)

    def _train(self, words: str, storage: Split, ids: np.ndarray, turn: int) -> Trained:
        self._tell(f"Seed {self._case.seed}: training {self._count} {words} models")
        # Starts and orders of their own, none of them those of the single models.
        first = 1000 * self._case.seed + turn * self._count
        seeds = range(first, first + self._count)
        recipe = self._case.settings.recipe
        work = (self._case.model, recipe, storage, ids, self._case.steps, seeds)
        return train_models(self._cache, *work)
