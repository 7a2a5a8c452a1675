"""Membership: scores that are higher for sentences that the model has read."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sapsel_jax as sap

LOWEST = 0.2
"""The share of the characters that Min-K % looks at."""


def loss_score(log_chances: np.ndarray) -> float:
    """The mean log chance of a character (Yeom et al., arXiv 1709.01604)."""
    return float(np.mean(log_chances))


def zlib_score(log_chances: np.ndarray, text: str) -> float:
    """The log chance of a text over its compressed length (Carlini et al., arXiv 2012.07805)."""
    return float(np.sum(log_chances) / len(zlib.compress(text.encode())))


def min_k_score(log_chances: np.ndarray, share: float = LOWEST) -> float:
    """The mean of the lowest log chances (Shi et al., arXiv 2310.16789)."""
    count = max(1, round(share * len(log_chances)))
    return float(np.mean(np.sort(log_chances)[:count]))


def min_k_plus_score(all_log_chances: np.ndarray, labels: np.ndarray, share: float) -> float:
    """Min-K % of log chances in units of what the model expects (Zhang et al., arXiv 2404.02936).

    From each log chance the mean under the model's own prediction is taken, and the difference is
    divided by its deviation.

    Args:
      all_log_chances: of every character at each place, shape (places, characters).
      labels: the characters that stand there, shape (places,).
      share: of the places that are looked at, the lowest ones.
    """
    chances = np.exp(all_log_chances)
    means = np.sum(chances * all_log_chances, -1)
    variances = np.sum(chances * (all_log_chances - means[:, None]) ** 2, -1)
    own = np.take_along_axis(all_log_chances, labels[:, None], -1)[:, 0]
    return min_k_score((own - means) / np.sqrt(np.maximum(variances, 1e-12)), share)


def scores(all_log_chances: np.ndarray, labels: np.ndarray, text: str) -> dict[str, float]:
    """All four of one text: its log chances (places, characters) and its characters."""
    own = np.take_along_axis(all_log_chances, labels[:, None], -1)[:, 0]
    return {
        "loss": loss_score(own),
        "zlib": zlib_score(own, text),
        "min_k": min_k_score(own),
        "min_k_plus": min_k_plus_score(all_log_chances, labels, LOWEST),
    }


def areas(members: list[dict[str, float]], others: list[dict[str, float]]) -> dict[str, float]:
    """The area under the ROC curve of each attack."""
    column = lambda rows, name: jnp.asarray([row[name] for row in rows])
    auc: Any = jax.jit(sap.audit.auc)
    return {name: float(auc(column(members, name), column(others, name))) for name in members[0]}
