"""One poisoned model with its data: what every comparison starts from."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.learning.checkpoints import Trained, train_once
from benchmarks.learning.data import Dataset, Split
from benchmarks.learning.models import Model
from benchmarks.learning.scenarios import Poisoned, notice, poison
from benchmarks.learning.settings import Settings
from benchmarks.learning.training import num_steps, train
from benchmarks.measures.metrics import accuracies, judged_sets
from benchmarks.methods.masks import Material
from benchmarks.methods.updates import REMOVAL_WEIGHT, Corrections, as_batch, make_batches
from benchmarks.tools.timing import timed


@dataclass(frozen=True)
class Case:
    """One seed: a poisoned model, what it was trained on, and what to correct it with."""

    settings: Settings
    seed: int
    model: Model
    dataset: Dataset
    poisoned: Poisoned
    params: Any
    """The poisoned model's parameters."""
    steps: int
    """Training steps of the poisoned and of the retrained model alike."""
    cache: Path | None = None
    """Folder of trained parameters; None trains again."""

    @property
    def removes(self) -> bool:
        """Whether records are removed rather than corrected."""
        return self.poisoned.corrected is None

    @property
    def about(self) -> tuple[Split, float]:
        """What an update learns of the poisoned examples, and its weight: below 0 to climb on."""
        poisoned = self.poisoned
        if poisoned.corrected is None:
            return poisoned.original, -REMOVAL_WEIGHT
        return poisoned.corrected, 1.0

    @property
    def retrain_example_gradients(self) -> int:
        """What retraining costs."""
        return self.steps * self.settings.recipe.batch_size

    @property
    def sets(self) -> dict[str, Split | None]:
        """What each accuracy is measured on."""
        return judged_sets(self.dataset, self.poisoned)

    def evaluate(self, params: Any) -> dict[str, Any]:
        """The figures that are compared with the retrained model's."""
        return accuracies(self.model, params, self.sets)

    @functools.cached_property
    def retrained(self) -> Trained:
        """The model trained from scratch on the data as it should have been, for as many steps."""
        storage = self.dataset.train
        ids = self.poisoned.retained if self.removes else np.arange(len(storage.labels))
        return _train(self.settings, self.cache, self.model, storage, ids, self.steps, self.seed)

    @functools.cached_property
    def references(self) -> dict[str, dict[str, Any]]:
        """The figures of the poisoned and of the retrained model."""
        return {
            "poisoned": self.evaluate(self.params),
            "retrained": self.evaluate(self.retrained.params),
        }

    @property
    def names(self) -> dict[str, Any]:
        """The fields by which a row tells whose figures it holds."""
        return {
            "dataset": self.dataset.name,
            "variant": self.dataset.variant,
            "model": self.settings.model,
            "scenario": self.settings.scenario,
        }

    @functools.cached_property
    def material(self) -> Material:
        """What a selection may look at."""
        most = self.settings.curvature_examples
        return Material(
            model=self.model,
            params=self.params,
            sample=as_batch(_sample(self.poisoned.train, most, [self.seed, 3])),
            original=as_batch(self.poisoned.original),
            fraction=self.settings.fraction,
            key=jax.random.key(self.seed),
        )

    @functools.cached_property
    def corrections(self) -> Corrections:
        """What an update may learn from."""
        poisoned, settings = self.poisoned, self.settings
        about, weight = self.about
        retained = poisoned.train.take(poisoned.retained)
        batches, own_batches = (
            make_batches(
                about,
                weight,
                mixed_in,
                steps=max(1, round(settings.budget * self.steps)),
                batch_size=settings.recipe.batch_size,
                seed=self.seed,
            )
            for mixed_in in (retained, None)
        )
        return Corrections(
            original=as_batch(poisoned.original),
            corrected=None if poisoned.corrected is None else as_batch(poisoned.corrected),
            data=as_batch(_sample(poisoned.data, settings.curvature_examples, [self.seed, 5])),
            num_examples=len(poisoned.data.labels),
            batches=batches,
            own_batches=own_batches,
        )


def make_case(settings: Settings, seed: int, cache: Path | None = None) -> Case:
    """Poisons the data of a seed and trains on it.

    Args:
      settings: which data, which poison and which network.
      seed: of everything.
      cache: folder of trained parameters; None trains again.
    """
    dataset, poisoned = poisoned_data(settings, seed)
    model = settings.build(dataset)
    everything = np.arange(len(poisoned.train.labels))
    steps = num_steps(settings.recipe, len(everything))
    trained = _train(settings, cache, model, poisoned.train, everything, steps, seed)
    return Case(settings, seed, model, dataset, poisoned, trained.params, steps, cache)


def poisoned_data(settings: Settings, seed: int) -> tuple[Dataset, Poisoned]:
    """The data of a seed, as they should be and as they are trained on."""
    dataset = settings.load(seed)
    poisoned = poison(dataset, settings.scenario, settings.poison_share, seed)
    return dataset, poisoned if settings.known == 1 else notice(poisoned, settings.known, seed)


def _train(
    settings: Settings,
    cache: Path | None,
    model: Model,
    storage: Split,
    ids: np.ndarray,
    steps: int,
    seed: int,
) -> Trained:
    work = (model, settings.recipe, storage, ids, steps, seed)
    return Trained(*timed(lambda: train(*work))) if cache is None else train_once(cache, *work)


def _sample(split: Split, most: int, seed: list[int]) -> Split:
    """Draws at most so many examples."""
    count = len(split.labels)
    ids = np.random.default_rng(seed).choice(count, min(most, count), replace=False)
    return split.take(np.sort(ids))
