"""One model that has learned secrets, and what it is asked to forget."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.learning.checkpoints import Trained, train_once
from benchmarks.learning.data import Split
from benchmarks.learning.training import Recipe, num_steps, shuffled_batches
from benchmarks.methods.curvature import curvature
from benchmarks.methods.tuning import TUNING_SEED
from benchmarks.methods.updates import REMOVAL_WEIGHT
from benchmarks.methods.ways import Start
from benchmarks.secrets.canaries import (
    KINDS,
    PLACEHOLDER,
    Canary,
    Sentences,
    draw_canaries,
    sentences,
)
from benchmarks.secrets.network import LanguageModel, language_model
from benchmarks.secrets.text import CONTEXT, load_text, windows

REMOVAL = "removal"
CORRECTIONS = {
    "placeholder": f"the secret is replaced by the word `{PLACEHOLDER}`",
    "other": "the secret is replaced by another one of its kind",
    REMOVAL: "the secret is climbed on until each character has a chance of at most one tenth",
}
REPEATS = (1, 2, 4, 8, 16, 32)
MEMORISED = 16
"""Secrets that were read at least so often in a pass are forgotten, or have to stay."""
EACH = 4
"""Canaries of each kind and number of repeats."""
UNSEEN = 12
"""Canaries of each kind that are never read."""
CANARY_SEED, UNSEEN_SEED, OTHER_SEED = 0, 1, 2
"""All models read the same canaries, so that margins can be compared between them."""
STEP_EXAMPLES = 16
"""Of an update, half of them about the secrets."""
VALIDATION_WINDOWS, TEST_WINDOWS = 64, 128


@dataclass(frozen=True)
class Settings:
    """What is trained, and how much an update may cost."""

    text: str
    data_dir: str | None = None
    num_windows: int = 2_500
    epochs: int = 8
    budget: float = 0.05
    """Example gradients of an update, as a share of those of retraining."""
    curvature_examples: int = 256
    candidates: int = 10_000
    """Secrets that a canary is ranked among."""
    cache: Path = Path("results", "cache")

    @property
    def recipe(self) -> Recipe:
        """How models are trained."""
        return Recipe(self.epochs, batch_size=32, learning_rate=3e-3)


@dataclass(frozen=True, eq=False)
class Problem:
    """The model of one seed."""

    settings: Settings
    seed: int

    @functools.cached_property
    def model(self) -> LanguageModel:
        """The network."""
        return language_model()

    @functools.cached_property
    def canaries(self) -> list[Canary]:
        """What is hidden in the text."""
        return draw_canaries(REPEATS, EACH, CANARY_SEED)

    @functools.cached_property
    def unseen(self) -> Sentences:
        """Sentences about people and secrets that no model reads."""
        drawn = draw_canaries((0,), UNSEEN, UNSEEN_SEED)
        return sentences([c.prompt for c in drawn], [c.secret for c in drawn])

    @functools.cached_property
    def told(self) -> Sentences:
        """The sentences of all canaries."""
        return sentences([c.prompt for c in self.canaries], [c.secret for c in self.canaries])

    @functools.cached_property
    def paraphrased(self) -> Sentences:
        """The same in other words, with the same secrets."""
        return sentences([c.paraphrase for c in self.canaries], [c.secret for c in self.canaries])

    @functools.cached_property
    def forget(self) -> np.ndarray:
        """Which canaries are to be forgotten: half of the memorised ones.

        Rates are tuned on the other half, so that no secret that is reported was tuned on.
        """
        return self._memorised(int(self.seed == TUNING_SEED))

    @functools.cached_property
    def neighbours(self) -> np.ndarray:
        """The other half of the memorised canaries, which must stay."""
        return self._memorised(int(self.seed != TUNING_SEED))

    @property
    def shown(self) -> np.ndarray:
        """The neighbours that the steps of an update see; it is told nothing of the others."""
        return self.neighbours[::2]

    @property
    def hidden(self) -> np.ndarray:
        """The neighbours that no update sees."""
        return self.neighbours[1::2]

    def _memorised(self, half: int) -> np.ndarray:
        places = [
            i for i, each in enumerate(self.canaries) if each.repeats >= MEMORISED and i % 2 == half
        ]
        return np.array(places)

    @functools.cached_property
    def storage(self) -> Split:
        """Every window of the training text, then every canary."""
        text = load_text(self.settings.text, self.settings.data_dir)
        parts = windows(text.train, self.settings.num_windows), self.told.split
        return Split(*map(np.concatenate, zip(*parts, strict=True)))

    @functools.cached_property
    def validation(self) -> Split:
        """Text that tuning looks at."""
        text = load_text(self.settings.text, self.settings.data_dir)
        return windows(text.validation, VALIDATION_WINDOWS)

    @functools.cached_property
    def test(self) -> Split:
        """Text that neither training nor tuning looks at."""
        return windows(load_text(self.settings.text, self.settings.data_dir).test, TEST_WINDOWS)

    def ids(self, *, without_forget: bool) -> np.ndarray:
        """The windows of one pass, canaries as often as they are repeated."""
        left_out = set(self.forget.tolist()) if without_forget else set()
        kept = [(i, c.repeats) for i, c in enumerate(self.canaries) if i not in left_out]
        repeated = [np.full(repeats, self._first + i) for i, repeats in kept]
        return np.concatenate([np.arange(self._first), *repeated])

    @property
    def _first(self) -> int:
        """The place of the first canary in `storage`, after all windows of text."""
        return len(self.storage.labels) - len(self.canaries)

    @functools.cached_property
    def steps(self) -> int:
        """Of training: the same with and without the secrets."""
        return num_steps(self.settings.recipe, len(self.ids(without_forget=False)))

    @property
    def retrain_example_gradients(self) -> int:
        """What training from scratch costs."""
        return self.steps * self.settings.recipe.batch_size

    @functools.cached_property
    def poisoned(self) -> Trained:
        """The model that has read all canaries."""
        return self._train(without_forget=False)

    @functools.cached_property
    def retrained(self) -> Trained:
        """The model that has not read those to be forgotten."""
        return self._train(without_forget=True)

    def _train(self, *, without_forget: bool) -> Trained:
        ids, recipe = self.ids(without_forget=without_forget), self.settings.recipe
        cache = self.settings.cache
        return train_once(cache, self.model, recipe, self.storage, ids, self.steps, self.seed)

    @property
    def update_steps(self) -> int:
        """How many steps an update may take."""
        gradients = self.settings.budget * self.retrain_example_gradients
        return max(8, round(gradients / STEP_EXAMPLES))

    def original(self) -> dict[str, np.ndarray]:
        """The sentences to be forgotten, their secrets alone counting."""
        return answers(self.told.take(self.forget))

    def corrected(self, correction: str) -> dict[str, np.ndarray]:
        """What is to be learned instead; to be removed, the originals with weights below 0."""
        canaries = [self.canaries[i] for i in self.forget]
        if correction == REMOVAL:
            original = self.original()
            return original | {"weight": -REMOVAL_WEIGHT * original["weight"]}
        rng = np.random.default_rng(OTHER_SEED)
        secrets = [
            PLACEHOLDER if correction == "placeholder" else KINDS[c.kind].draw(rng)
            for c in canaries
        ]
        return answers(sentences([c.prompt for c in canaries], secrets))

    def trained_pair(self, correction: str) -> tuple[Any, Any]:
        """The sentences as they were trained on, so often, and their corrections; None removes."""
        canaries = [self.canaries[i] for i in self.forget]
        original = self.told.take(self.forget).split
        repeats = np.array([[c.repeats] * CONTEXT for c in canaries], np.float32)
        if correction == REMOVAL:
            return as_examples(original, repeats), None
        corrected = self.corrected(correction)
        return as_examples(original, repeats), corrected | {"weight": repeats}

    def retained(self) -> dict[str, np.ndarray]:
        """One pass over what is in order, as it is repeated there, but for the hidden secrets."""
        return self._examples(np.concatenate([np.arange(self._first), self._other_canaries()]))

    def _other_canaries(self) -> np.ndarray:
        """Windows of the canaries that updates may see, as often as they are repeated."""
        left_out = {*self.forget.tolist(), *self.hidden.tolist()}
        kept = [(i, c.repeats) for i, c in enumerate(self.canaries) if i not in left_out]
        return np.concatenate([np.full(repeats, self._first + i) for i, repeats in kept])

    def _examples(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        split = self.storage.take(ids)
        return as_examples(split, np.ones(split.labels.shape, np.float32))

    def batches(self, about: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Steps of an update: one half about the secrets, the rest other canaries and text."""
        quarter = STEP_EXAMPLES // 4
        others = self._examples(self._other_canaries())
        parts = [(about, 2 * quarter), (others, quarter)]
        parts += [(self._examples(np.arange(self._first)), quarter)]
        mixed = []
        for part, count in parts:
            places = np.arange(len(part["label"]))
            ids = shuffled_batches(places, self.update_steps, count, self.seed)
            mixed.append({name: values[ids] for name, values in part.items()})
        return {name: np.concatenate([part[name] for part in mixed], 1) for name in about}

    @functools.cached_property
    def data(self) -> dict[str, np.ndarray]:
        """A sample of what is in order: curvature is measured on it."""
        retained = self.retained()
        rng, count = np.random.default_rng([self.seed, 3]), self.settings.curvature_examples
        ids = np.sort(rng.choice(len(retained["label"]), count, replace=False))
        return {name: values[ids] for name, values in retained.items()}

    @functools.cached_property
    def diagonal(self) -> Any:
        """The curvature of the loss on `data`."""
        return curvature(self.model, self.poisoned.params, self.data)

    # A problem lives as long as the study, and so may what is kept of it.
    @functools.cache  # noqa: B019
    def start(self, correction: str) -> Start:
        """What every way to choose entries begins with."""
        return Start(
            model=self.model,
            params=self.poisoned.params,
            batches=self.batches(self.corrected(correction)),
            data=self.data,
            original=self.original(),
            diagonal=self.diagonal,
            key=jax.random.fold_in(jax.random.key(self.seed), 1),
        )


def answers(told: Sentences) -> dict[str, np.ndarray]:
    """Examples whose secret alone counts, each by the mean over its characters."""
    weights = told.secret * (CONTEXT / told.secret.sum(1, keepdims=True))
    return as_examples(told.split, weights.astype(np.float32))


def as_examples(split: Split, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Windows in the form that the loss takes."""
    return {"image": split.images, "label": split.labels, "weight": weights}
