"""Result folders: one run at a time writes there, and every file is put in place whole."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from benchmarks.tools.errors import UsageError, note

LOCK = ".lock"


@contextlib.contextmanager
def result_folder(output: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `output` when the block ends without an error.

    Until then it stands beside `output`, under a hidden name that the next run for this `output`
    finds again: what a killed run left there is removed.

    Raises:
      UsageError: if `output` holds anything already or cannot be written, or if another run is
        writing it.
    """
    output = output.absolute()
    with contextlib.ExitStack() as held:
        with writable(output):
            _refuse_used(output)
            output.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(output.with_name(f".{output.name}{LOCK}"), output))
            _refuse_used(output)
            partial = output.with_name(f".{output.name}.partial")
            if partial.exists():
                shutil.rmtree(partial)
                note(f"removed {partial}, which a killed run had left.")
            held.callback(shutil.rmtree, partial, ignore_errors=True)
            partial.mkdir()
        yield partial
        with writable(output):
            _refuse_used(output)
            partial.replace(output)


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


def _refuse_used(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise UsageError(f"`output` must name a folder; {output} is a file.")
    if output.is_dir() and any(output.iterdir()):
        raise UsageError(
            f"`output` already holds files: {output}; name a new folder or remove that one."
        )
