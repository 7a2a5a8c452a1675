"""Arrays that span several processes, of which each holds a part."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_spread(leaf: Any) -> bool:
    """Whether other processes hold parts of an array that this one lacks."""
    held = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
    return not held and not leaf.is_fully_replicated


def on_host(leaf: Any) -> np.ndarray:
    """An array's values; those of one that is spread are gathered by all processes together."""
    if is_spread(leaf):
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)
