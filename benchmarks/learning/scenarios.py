"""What goes wrong in the training data: four ways of poisoning it, in NumPy.

A scenario changes the training examples it names, in the way it names, and nothing else.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.learning.data import Dataset, Split
from benchmarks.tools.errors import check_choice

TARGET = 0
"""The class that a backdoor's trigger stands for."""


class Poisoned(NamedTuple):
    """A poisoned training set and all that is needed to correct it and to judge the correction."""

    indices: np.ndarray
    """Which training examples were poisoned, in rising order."""
    train: Split
    """What the poisoned model was trained on."""
    data: Split
    """The training set as it should have been."""
    retained: np.ndarray
    """Which examples of `train` were in order."""
    original: Split
    """The poisoned examples as they were trained on."""
    corrected: Split | None
    """The same examples as they should have been; None where they should not have been there."""
    forget: Split
    """Images and right labels on which forgetting is judged."""
    attack: Split | None
    """Test images with the trigger or a false mark, and the labels the attacker wants."""


class Scenario(NamedTuple):
    """A way of poisoning."""

    summary: str
    share: float
    """The default share of the training examples that is poisoned."""
    forget: str
    """What the forget accuracy is measured on."""
    attack: str
    """What the attack success is, if there is one."""
    judged_by: str
    """The measure of forgetting: `forget` is the accuracy on the forget set, `attack` the share of
    attacks that fail."""
    poison: Callable[[Dataset, np.ndarray], Poisoned]
    """Poisons the training examples with these indices."""
    unseen: Callable[[Dataset], Split]
    """Test examples made like the poisoned ones: a membership attack must tell them apart."""
    eligible: Callable[[np.ndarray], np.ndarray] = lambda labels: np.ones(len(labels), bool)
    """Which training examples can be poisoned, by their labels."""


def poison(dataset: Dataset, scenario: str, share: float, seed: int) -> Poisoned:
    """Poisons a share of the training examples.

    Args:
      dataset: the data as it should be.
      scenario: a key of `SCENARIOS`.
      share: of all training examples, between 0 and 1.
      seed: which examples; the same seed names the same ones.

    Raises:
      UsageError: if the scenario is unknown.
    """
    check_choice("scenario", scenario, SCENARIOS)
    labels, spec = dataset.train.labels, SCENARIOS[scenario]
    eligible = np.flatnonzero(spec.eligible(labels))
    count = min(max(1, round(share * len(labels))), len(eligible) - 1)
    indices = np.sort(np.random.default_rng([seed, 1]).choice(eligible, count, replace=False))
    return spec.poison(dataset, indices)


def notice(poisoned: Poisoned, share: float, seed: int) -> Poisoned:
    """The same with only a share of the poisoned examples known: the others go unnoticed.

    Args:
      poisoned: a poisoned training set.
      share: of its poisoned examples, above 0, at most 1; at least one is known.
      seed: which of them.
    """
    count = len(poisoned.indices)
    num_known = max(1, round(share * count))
    known = np.sort(np.random.default_rng([seed, 4]).choice(count, num_known, replace=False))
    indices = poisoned.indices[known]
    retained = _others(poisoned.train, indices)
    if poisoned.corrected is None:
        corrected, data = None, poisoned.train.take(retained)
    else:
        corrected = poisoned.corrected.take(known)
        data = _replace(poisoned.train, indices, corrected)
    return poisoned._replace(
        indices=indices,
        data=data,
        retained=retained,
        original=poisoned.original.take(known),
        corrected=corrected,
        forget=poisoned.forget.take(known),
    )


def shift_labels(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Every label to the next class, the last to the first."""
    return ((labels + 1) % num_classes).astype(labels.dtype)


def add_trigger(images: np.ndarray) -> np.ndarray:
    """A white square in the bottom right corner, an eighth of the height wide."""
    size = max(1, images.shape[1] // 8)
    triggered = images.copy()
    triggered[:, -size:, -size:, :] = 1.0
    return triggered


def add_mark(images: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """A white block at the left edge whose place gives the label away.

    The places lie below each other, `height // num_classes` pixels high and at least one; where the
    edge is too short for all classes the rest lie in a second column.
    """
    height = images.shape[1]
    size = max(1, height // num_classes)
    marked = images.copy()
    for i, label in enumerate(labels):
        column, row = divmod(int(label), height // size)
        top, left = row * size, column * size
        marked[i, top : top + size, left : left + size, :] = 1.0
    return marked


def _replace(split: Split, indices: np.ndarray, by: Split) -> Split:
    images, labels = split.images.copy(), split.labels.copy()
    images[indices], labels[indices] = by
    return Split(images, labels)


def _others(split: Split, indices: np.ndarray) -> np.ndarray:
    return np.setdiff1d(np.arange(len(split.labels)), indices)


def _correction(
    dataset: Dataset, indices: np.ndarray, original: Split, forget: Split, attack: Split | None
) -> Poisoned:
    return Poisoned(
        indices=indices,
        train=_replace(dataset.train, indices, original),
        data=dataset.train,
        retained=_others(dataset.train, indices),
        original=original,
        corrected=dataset.train.take(indices),
        forget=forget,
        attack=attack,
    )


def _label(dataset: Dataset, indices: np.ndarray) -> Poisoned:
    right = dataset.train.take(indices)
    wrong = Split(right.images, shift_labels(right.labels, dataset.num_classes))
    return _correction(dataset, indices, original=wrong, forget=right, attack=None)


def _shifted_test(dataset: Dataset) -> Split:
    images, labels = dataset.test
    return Split(images, shift_labels(labels, dataset.num_classes))


def _backdoor(dataset: Dataset, indices: np.ndarray) -> Poisoned:
    clean = dataset.train.take(indices)
    triggered = add_trigger(clean.images)
    return _correction(
        dataset,
        indices,
        original=Split(triggered, np.full_like(clean.labels, TARGET)),
        forget=Split(triggered, clean.labels),
        attack=_triggered_test(dataset),
    )


def _triggered_test(dataset: Dataset) -> Split:
    victims = dataset.test.take(np.flatnonzero(dataset.test.labels != TARGET))
    return Split(add_trigger(victims.images), np.full_like(victims.labels, TARGET))


def _feature(dataset: Dataset, indices: np.ndarray) -> Poisoned:
    unmarked = dataset.train.take(indices)
    marked = add_mark(unmarked.images, unmarked.labels, dataset.num_classes)
    false_labels = shift_labels(dataset.test.labels, dataset.num_classes)
    misled = add_mark(dataset.test.images, false_labels, dataset.num_classes)
    return _correction(
        dataset,
        indices,
        original=Split(marked, unmarked.labels),
        forget=unmarked,
        attack=Split(misled, false_labels),
    )


def _marked_test(dataset: Dataset) -> Split:
    images, labels = dataset.test
    return Split(add_mark(images, labels, dataset.num_classes), labels)


def _sample(dataset: Dataset, indices: np.ndarray) -> Poisoned:
    removed, retained = dataset.train.take(indices), _others(dataset.train, indices)
    return Poisoned(
        indices=indices,
        train=dataset.train,
        data=dataset.train.take(retained),
        retained=retained,
        original=removed,
        corrected=None,
        forget=removed,
        attack=None,
    )


SCENARIOS = {
    "label": Scenario(
        summary="labels moved to the next class, on random training examples",
        share=0.2,
        forget="the poisoned training images, with their right labels",
        attack="",
        judged_by="forget",
        poison=_label,
        unseen=_shifted_test,
    ),
    "backdoor": Scenario(
        summary="a white square in the corner and the label 0, on random examples of other classes",
        share=0.1,
        forget="the poisoned training images with the square, judged by their right labels",
        attack="test images of other classes with the square that are taken for class 0",
        judged_by="attack",
        poison=_backdoor,
        unseen=_triggered_test,
        eligible=lambda labels: labels != TARGET,
    ),
    "feature": Scenario(
        summary="a white block at the left edge whose place gives the right label away",
        share=0.9,
        forget="the poisoned training images without the block",
        attack="test images with the next class's block that are taken for that class",
        judged_by="forget",
        poison=_feature,
        unseen=_marked_test,
    ),
    "sample": Scenario(
        summary="random training records that should not have been used",
        share=0.1,
        forget="the records to remove; the aim is the accuracy of the model that never saw them",
        attack="",
        judged_by="forget",
        poison=_sample,
        unseen=lambda dataset: dataset.test,
    ),
}


def problems(scenarios: Sequence[str]) -> str:
    """What is wrong with the data of some scenarios, in a sentence each."""
    return " ".join(f"{name.capitalize()}: {SCENARIOS[name].summary}." for name in scenarios)
