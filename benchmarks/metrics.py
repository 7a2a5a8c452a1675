"""What is measured: accuracy, recovery, changed entries."""

import math
from typing import Any

import jax
import numpy as np

from benchmarks.data import Split
from benchmarks.models import Model
from benchmarks.training import predict

SMALL_GAP = 0.01
"""Accuracies closer than this, or than two standard errors, leave nothing to recover."""


def accuracy(model: Model, params: Any, split: Split) -> float:
    """The share of the images that the model gives their label."""
    return float(np.mean(np.asarray(predict(model, params, split.images)) == split.labels))


def recovery(after: float, poisoned: float, retrained: float, num_examples: int) -> float | None:
    """How much of the gap between the poisoned and the retrained model is closed: 1 is all of it.

    Args:
      after: a share of examples, such as an accuracy, of the unlearned model.
      poisoned: the same of the poisoned model.
      retrained: the same of the retrained model.
      num_examples: how many examples all three were measured on.

    Returns:
      (after − poisoned) / (retrained − poisoned); None where that gap is under 1 point or under 2
      standard errors of the difference of two shares.
    """
    variance = sum(share * (1 - share) for share in (poisoned, retrained)) / num_examples
    gap = retrained - poisoned
    if abs(gap) < max(SMALL_GAP, 2 * math.sqrt(variance)):
        return None
    return (after - poisoned) / gap


def count_entries(tree: Any) -> int:
    """The number of entries of all leaves."""
    return sum(np.size(leaf) for leaf in jax.tree.leaves(tree))


def count_changed(before: Any, after: Any) -> int:
    """How many entries have other bits than before."""
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return sum(int(np.sum(_bits(a) != _bits(b))) for a, b in pairs)


def _bits(leaf: Any) -> np.ndarray:
    return np.ascontiguousarray(leaf, np.float32).view(np.uint32)
