"""Parameters rounded to few bits, as models are shipped: it may bring back what was forgotten."""

from typing import Any

import jax
import numpy as np


def rounded(params: Any, bits: int) -> Any:
    """Each leaf on a grid of 2^bits − 1 numbers, even and about 0, up to its largest magnitude."""
    return jax.tree.map(lambda leaf: _on_grid(np.asarray(leaf), 2 ** (bits - 1) - 1), params)


def _on_grid(leaf: np.ndarray, steps: int) -> np.ndarray:
    largest = np.max(np.abs(leaf))
    step = np.where(largest == 0, 1, largest / steps).astype(leaf.dtype)
    return np.round(leaf / step) * step
