"""Result folders: written whole, beside their place, and put there at the end, or not at all."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path

from benchmarks.tools.errors import UsageError


@contextlib.contextmanager
def result_folder(output: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `output` when the block ends without an error.

    Raises:
      UsageError: if `output` holds anything already or cannot be written.
    """
    output = output.absolute()
    _refuse_used(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise _unwritable(output, error) from error
    try:
        yield partial
        partial.chmod(0o777 & ~_umask())
        _refuse_used(output)
        try:
            partial.replace(output)
        except OSError as error:
            raise _unwritable(output, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def leaves_by_path(params: Any) -> dict[str, Any]:
    """The leaves of a nested dict, in order, by paths such as `dense1/kernel`."""
    leaves = tree_flatten_with_path(params)[0]
    return {keystr(at, simple=True, separator="/"): leaf for at, leaf in leaves}


def write_params(path: Path, params: Any) -> None:
    """The leaves of a nested dict as an archive of arrays by path."""
    np.savez(path, **leaves_by_path(params))


def _refuse_used(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise UsageError(f"`output` must name a folder; {output} is a file.")
    if output.is_dir() and any(output.iterdir()):
        raise UsageError(
            f"`output` already holds files: {output}; name a new folder or remove that one."
        )


def _unwritable(output: Path, error: OSError) -> UsageError:
    below_a_file = isinstance(error, (FileExistsError, NotADirectoryError))
    reason = "a part of its path is a file" if below_a_file else error.strerror
    return UsageError(f"`output` cannot be written: {output} ({reason}).")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
