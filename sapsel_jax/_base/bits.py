"""Arrays on the host as the bits they are made of."""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np


def is_number(dtype: Any) -> bool:
    """Bools, and numbers that JAX has: in the machine's byte order, without padding."""
    widest = 16 if jnp.issubdtype(dtype, jnp.complexfloating) else 8
    known = dtype == np.bool_ or jnp.issubdtype(dtype, jnp.number)
    return known and dtype.isnative and dtype.itemsize <= widest


def dtype_named(name: str) -> np.dtype:
    """A dtype of bools or numbers, from its name."""
    dtype = jnp.dtype(name)
    if dtype.name != name or not is_number(dtype):
        raise ValueError(f"{name!r} is no dtype of bools or numbers.")
    return dtype


def word_of(itemsize: int) -> np.dtype:
    """The largest unsigned integer of which an entry holds a whole number, least byte first."""
    return np.dtype(f"<u{math.gcd(itemsize, 8)}")


def words_of(array: np.ndarray) -> np.ndarray:
    """The bits of an array, a row per entry; a view where its memory is in one piece."""
    word = word_of(array.dtype.itemsize)
    shape = (array.size, array.dtype.itemsize // word.itemsize)
    return np.ascontiguousarray(array).reshape(-1).view(word).reshape(shape)


def fingerprint(leaves: Sequence[tuple[str, np.ndarray]]) -> str:
    """SHA-256 of paths, shapes, dtypes and bits, in the order in which they are given."""
    layout = [[path, list(leaf.shape), leaf.dtype.name] for path, leaf in leaves]
    digest = hashlib.sha256(json.dumps(layout).encode())
    for _, leaf in leaves:
        digest.update(words_of(leaf).data)
    return digest.hexdigest()
