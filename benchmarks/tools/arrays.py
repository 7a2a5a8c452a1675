"""Parameters as arrays by path, in memory and in files."""

from pathlib import Path
from typing import Any

import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path

from benchmarks.tools.folders import whole_file


def leaves_by_path(params: Any) -> dict[str, Any]:
    """The leaves of a nested dict, in order, by paths such as `dense1/kernel`."""
    leaves = tree_flatten_with_path(params)[0]
    return {keystr(at, simple=True, separator="/"): leaf for at, leaf in leaves}


def write_params(path: Path, params: Any) -> None:
    """The leaves of a nested dict as an archive of arrays by path."""
    with whole_file(path) as file:
        np.savez(file, **leaves_by_path(params))
