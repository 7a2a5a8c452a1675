"""Work that can be cut off: what is finished stands in a file, and a later run goes on from there.

A folder belongs to the settings it was begun with, and to one run at a time. Rows are added to its
journals as they are finished, and beside each journal stands a checksum of every line, so that a
digit that changed on the disk is noticed before it is averaged.
"""

import contextlib
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, Field, ValidationError

from benchmarks.tools.errors import UsageError, note
from benchmarks.tools.folders import LOCK, locked, whole_file, writable, write_whole

Share = Annotated[float, Field(ge=0, le=1)]


class Row(BaseModel, strict=True, extra="forbid", allow_inf_nan=False):
    """The fields of a journal's rows; each kind of row is a subclass.

    Attributes:
      key: the names of those fields that tell rows apart.
    """

    key: ClassVar[tuple[str, ...]]


class Journal:
    """Rows of a `.jsonl` file, each known by some of its fields.

    Attributes:
      kind: the fields of its rows.
      rows: what stands in the file, in the order it was added.
    """

    def __init__(self, path: Path, kind: type[Row]):
        """Reads the file, if there is one.

        Half a line at its end, left by a run that was killed while it wrote, is dropped. A file
        without checksums, made by an earlier version, gets them for its rows as they are. Where
        there is only the packed file, `.jsonl.gz`, its rows can be read and none added.

        Raises:
          UsageError: if a line is damaged or repeats another.
        """
        self._path, self.kind = path, kind
        self._sums = path.with_name(f"{path.name}.sums")
        self.rows: list[dict[str, Any]] = []
        self._places: dict[tuple[Any, ...], int] = {}
        self._packed = not path.exists() and packed(path).exists()
        if self._packed:  # gzip has checksums of its own
            for number, line in enumerate(read_lines(path), 1):
                self._read(number, line, None)
            return
        lines = self._whole_lines()
        sums = self._sums.read_bytes() if self._sums.exists() else None
        known = None if sums is None else set(sums.split())
        for number, line in enumerate(lines, 1):
            self._read(number, line, known)
        if lines and sums is None:
            note(f"{path} had no checksums; its {len(lines)} rows are taken as they are.")
        right = b"".join(_checksum(line) + b"\n" for line in lines)
        if right != (sums or b""):
            with whole_file(self._sums) as file:
                file.write(right)

    def __contains__(self, key: tuple[Any, ...]) -> bool:
        """Whether a row with these values of the key's fields is there."""
        return key in self._places

    def __getitem__(self, key: tuple[Any, ...]) -> dict[str, Any]:
        """The row with these values of the key's fields."""
        return self.rows[self._places[key] - 1]

    def append(self, *rows: dict[str, Any]) -> None:
        """Adds rows; when it returns they are on the disk.

        Raises:
          ValueError: if a row is there already.
          UsageError: if a row is not of the journal's kind, because a figure is not finite, or if
            the journal is packed.
        """
        if not rows:
            return
        if self._packed:
            name = packed(self._path)
            raise UsageError(f"{name} is packed; unpack it with `gunzip {name}` to add rows.")
        lines = [json.dumps(row, separators=(",", ":")).encode() for row in rows]
        for line, row in zip(lines, rows, strict=True):
            try:
                self.kind.model_validate_json(line)
            except ValidationError as error:
                name = ", ".join(f"{field} {row.get(field)}" for field in self.kind.key)
                raise UsageError(
                    f"The row of {name} cannot be added to {self._path}: {_reason(error)}."
                ) from error
        keys = [self._of(row) for row in rows]
        if len(set(keys) - self._places.keys()) < len(keys):
            raise ValueError(f"A row of {self._path.name} is recorded twice; got {keys}.")
        # Checksums first: where a kill comes between, one without its row is harmless.
        _add(self._sums, [_checksum(line) for line in lines])
        _add(self._path, lines)
        for key, row in zip(keys, rows, strict=True):
            self.rows.append(row)
            self._places[key] = len(self.rows)

    def _of(self, row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row[field] for field in self.kind.key)

    def _whole_lines(self) -> list[bytes]:
        if not self._path.exists():
            return []
        *lines, rest = self._path.read_bytes().split(b"\n")
        if rest and _is_json(rest):
            _add(self._path, [b""])  # only the end of the line was missing
        elif rest.startswith(b"{"):
            os.truncate(self._path, sum(len(line) + 1 for line in lines))
            note(f"dropped half a line at the end of {self._path}, which a killed run had left.")
            return lines
        return [*lines, rest] if rest else lines

    def _read(self, number: int, line: bytes, known: set[bytes] | None) -> None:
        """Adds a row of the file, after a check of all that can be wrong with it."""
        try:
            self.kind.model_validate_json(line)
        except ValidationError as error:
            raise self._damaged(number, _reason(error)) from error
        row = json.loads(line)
        key = self._of(row)
        if key in self._places:
            raise self._damaged(number, f"it repeats line {self._places[key]}")
        if known is not None and _checksum(line) not in known:
            raise self._damaged(number, f"it is not what {self._sums.name} has a checksum of")
        self.rows.append(row)
        self._places[key] = number

    def _damaged(self, number: int, reason: str) -> UsageError:
        return UsageError(
            f"Line {number} of {self._path} is damaged: {reason}; restore the file, or delete the "
            "line to measure its row again."
        )


def packed(path: Path) -> Path:
    """Where a file of rows stands when it is packed."""
    return path.with_name(f"{path.name}.gz")


def read_lines(path: Path) -> list[bytes]:
    """The lines of a file of rows, packed or not.

    Raises:
      UsageError: if it is damaged.
    """
    if path.exists():
        return path.read_bytes().splitlines()
    try:
        return gzip.decompress(packed(path).read_bytes()).splitlines()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{packed(path)} is damaged: it cannot be unpacked.") from error


@contextlib.contextmanager
def study_folder(output: Path, settings: dict[str, Any]) -> Iterator[Path]:
    """A folder for journals, begun with these settings or continued with the same.

    No other run can open it until the block ends.

    Args:
      output: the folder; made if it is not there.
      settings: what the rows depend on, kept in `settings.json`.

    Raises:
      UsageError: if `output` holds something else, was begun with other settings, cannot be
        written, or is in use.
    """
    with contextlib.ExitStack() as held:
        with writable(output):
            output.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(output / LOCK, output))
            _check_settings(output, settings)
        yield output


def _check_settings(output: Path, settings: dict[str, Any]) -> None:
    path = output / "settings.json"
    if not path.exists():
        if any(entry.name not in (LOCK, f".{path.name}.partial") for entry in output.iterdir()):
            raise UsageError(f"`output` already holds other files: {output}.")
        write_whole(path, json.dumps(settings, indent=2) + "\n")
    unreadable = f"`output` holds a {path.name} that cannot be read: {path}"
    try:
        begun = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise UsageError(f"{unreadable}, line {error.lineno} ({error.msg}).") from error
    except ValueError as error:
        raise UsageError(f"{unreadable} (it is not text).") from error
    if not isinstance(begun, dict):
        raise UsageError(f"{unreadable}, line 1 (it holds no object).")
    settings = json.loads(json.dumps(settings))
    differing = sorted(
        name for name in {*settings, *begun} if settings.get(name) != begun.get(name)
    )
    if differing:
        raise UsageError(
            f"`output` was begun with other settings ({', '.join(differing)}): {output}; name a "
            "new folder or use the same ones."
        )


def _checksum(line: bytes) -> bytes:
    return hashlib.sha256(line).hexdigest()[:8].encode()


def _add(path: Path, lines: Sequence[bytes]) -> None:
    with path.open("ab") as file:
        file.write(b"".join(line + b"\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _reason(error: ValidationError) -> str:
    """The first thing that is wrong, in the words of the schema."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return "it is not JSON"
    where = ".".join(map(str, first["loc"]))
    words = first["msg"][0].lower() + first["msg"][1:]
    return f"`{where}`: {words}" if where else words
