"""Result folders: one run at a time writes there, and every file is put in place whole."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from benchmarks.tools.errors import UsageError

LOCK = ".lock"


@contextlib.contextmanager
def locked(file: Path, folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Keeps other runs out of a folder until the block ends. A killed run locks nothing.

    Args:
      file: the lock, which is there only as long as it is held.
      folder: what it stands for.
      wait: whether to wait for another run to end.

    Raises:
      UsageError: if another run holds the lock.
    """
    lock = FileLock(file)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout as error:
        raise UsageError(
            f"Another run is writing to {folder}; wait until it ends, or name another folder."
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # where an open file cannot be removed, it stays
            file.unlink()
        lock.release()


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which becomes `path` when the block ends, so that a kill leaves old or new.

    What a killed run left of it is overwritten. Only one run at a time may write to its folder.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Writes a text whole or not at all."""
    with whole_file(path) as file:
        file.write(text.encode())


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object per line."""
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


@contextlib.contextmanager
def writable(output: Path) -> Iterator[None]:
    """Says in one sentence what keeps a folder for results from being made."""
    try:
        yield
    except OSError as error:
        below_a_file = isinstance(error, (FileExistsError, NotADirectoryError))
        reason = "a part of its path is a file" if below_a_file else error.strerror
        raise UsageError(f"`output` cannot be written: {output} ({reason}).") from error
