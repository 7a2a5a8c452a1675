"""Archives of arrays with a header, written whole or not at all and read without pickle."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding

T = TypeVar("T")


def save_archive(path: str | os.PathLike[str], header: Any, **arrays: Any) -> None:
    """Writes beside the final place first, then renames."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, header=np.array(json.dumps(header)), **arrays)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_archive(
    path: str | os.PathLike[str], read: Callable[[Any, Any], T], *, saved_by: str
) -> T:
    """What `read(header, arrays)` makes of a file; whatever it raises means another file."""
    with open(path, "rb") as file:
        try:
            with np.load(file, allow_pickle=False) as archive:
                return read(json.loads(str(archive["header"])), archive)
        except Exception as error:  # a damaged archive raises a dozen types
            raise ValueError(
                f"`path` must name a file that `{saved_by}` wrote; got {path}."
            ) from error


def placed(array: np.ndarray, like: Any) -> jax.Array:
    """On the devices of `like`, where that is spread over a mesh."""
    sharding = getattr(like, "sharding", None)
    return jax.device_put(array, sharding if isinstance(sharding, NamedSharding) else None)
