"""Work that can be cut off: what is finished stands in a file, and a later run goes on from there.

A folder belongs to the settings it was begun with. Rows are added to its records as they are
finished; a line that a kill left half written is dropped when the record is opened again.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.tools.errors import UsageError


class Record:
    """Rows of a `.jsonl` file, each known by some of its fields.

    Attributes:
      key: the names of those fields.
      rows: what stands in the file, in the order it was added.
    """

    def __init__(self, path: Path, key: Sequence[str]):
        """Reads the file, if there is one; `key` names the fields that tell its rows apart."""
        self._path, self.key = path, tuple(key)
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            text = path.read_bytes()
            whole = text[: text.rfind(b"\n") + 1]
            if len(whole) < len(text):
                os.truncate(path, len(whole))
            self.rows = [json.loads(line) for line in whole.decode().splitlines()]
        self._done = {self._of(row) for row in self.rows}

    def __contains__(self, key: tuple[Any, ...]) -> bool:
        """Whether a row with these values of the key's fields is there."""
        return key in self._done

    def append(self, *rows: dict[str, Any]) -> None:
        """Adds rows; when it returns they are on the disk.

        Raises:
          ValueError: if a row is there already.
        """
        keys = [self._of(row) for row in rows]
        if len(set(keys) - self._done) < len(keys):
            raise ValueError(f"A row of {self._path.name} is recorded twice; got {keys}.")
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())
        self.rows += rows
        self._done.update(keys)

    def _of(self, row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row[field] for field in self.key)


def open_folder(output: Path, settings: dict[str, Any]) -> Path:
    """A folder for records, begun with these settings or continued with the same.

    Args:
      output: the folder; made if it is not there.
      settings: what the rows depend on, kept in `settings.json`.

    Raises:
      UsageError: if `output` holds something else, was begun with other settings, or cannot be
        written.
    """
    path = output / "settings.json"
    try:
        output.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if any(entry.name != ".settings.json" for entry in output.iterdir()):
                raise UsageError(f"`output` already holds other files: {output}.")
            write_whole(path, json.dumps(settings, indent=2) + "\n")
        begun = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"`output` cannot be written: {output} ({error.strerror}).") from error
    except ValueError as error:
        raise UsageError(f"`output` holds a {path.name} that cannot be read: {path}.") from error
    settings = json.loads(json.dumps(settings))
    differing = sorted(
        name for name in {*settings, *begun} if settings.get(name) != begun.get(name)
    )
    if differing:
        raise UsageError(
            f"`output` was begun with other settings ({', '.join(differing)}): {output}; name a "
            "new folder or use the same ones."
        )
    return output


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole, beside its place first, so that a kill leaves the old one or the new."""
    partial = path.with_name(f".{path.name}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
