"""What is measured: accuracy, recovery, changed entries."""

from typing import Any

import jax
import numpy as np

import sapsel_jax as sap
from benchmarks.learning.data import Dataset, Split
from benchmarks.learning.models import Model
from benchmarks.learning.scenarios import Poisoned
from benchmarks.learning.training import predict

SMALL_GAP = 0.01
"""Accuracies closer than this, or than two standard errors, leave nothing to recover."""
ACCURACIES = {"test": "test_accuracy", "forget": "forget_accuracy", "attack": "attack_success"}
"""The figures that are compared with the retrained model's, by the word their fields begin with."""


def accuracy(model: Model, params: Any, split: Split) -> float:
    """The share of the images that the model gives their label."""
    return float(np.mean(np.asarray(predict(model, params, split.images)) == split.labels))


def judged_sets(dataset: Dataset, poisoned: Poisoned) -> dict[str, Split | None]:
    """What each of `ACCURACIES` is measured on; None where the scenario has no such figure."""
    sets = (dataset.test, poisoned.forget, poisoned.attack)
    return dict(zip(ACCURACIES.values(), sets, strict=True))


def accuracies(model: Model, params: Any, sets: dict[str, Split | None]) -> dict[str, Any]:
    """The figures that are compared with the retrained model's."""
    return {
        name: None if split is None else accuracy(model, params, split)
        for name, split in sets.items()
    }


def towards_retraining(
    sets: dict[str, Split | None],
    after: dict[str, Any],
    poisoned: dict[str, Any],
    retrained: dict[str, Any],
) -> dict[str, Any]:
    """For each figure what is recovered, and what is left to the retrained model."""
    fields: dict[str, Any] = {}
    for short, name in ACCURACIES.items():
        split = sets[name]
        fields[f"{short}_recovery"] = fields[f"{short}_gap"] = None
        if split is not None:
            figures = (after[name], poisoned[name], retrained[name])
            fields[f"{short}_recovery"] = recovery(*figures, len(split.labels))
            fields[f"{short}_gap"] = after[name] - retrained[name]
    return fields


def recovery(after: float, poisoned: float, retrained: float, num_examples: int) -> float | None:
    """`sap.audit.recovery` of three shares; None where there is too little to recover."""
    with jax.enable_x64(True):  # the shares are float64, and 1 point is to stay 1 point
        found = sap.audit.recovery(
            after, poisoned, retrained, num_examples=num_examples, small_gap=SMALL_GAP
        )
    return float(found.share) if found.measurable else None


def count_entries(tree: Any) -> int:
    """The number of entries of all leaves."""
    return sum(np.size(leaf) for leaf in jax.tree.leaves(tree))


def count_changed(before: Any, after: Any) -> int:
    """How many entries have other bits than before."""
    return int(sap.mask_count(sap.audit.changed_mask(before, after)))


def layer_shares(mask: Any) -> dict[str, float]:
    """For each layer, the first part of its leaves' paths, its share of the selected entries."""
    counts: dict[str, int] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(mask)[0]:
        layer = jax.tree_util.keystr(keys[:1], simple=True)
        counts[layer] = counts.get(layer, 0) + int(np.sum(leaf))
    total = max(sum(counts.values()), 1)
    return {layer: count / total for layer, count in counts.items()}
