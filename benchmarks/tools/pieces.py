"""A measurement in named pieces: what a stopped run had finished is not measured again."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.tools.command import Run
from benchmarks.tools.folders import write_jsonl
from benchmarks.tools.records import Journal, Row, read_lines

Rows = list[dict[str, Any]]
Work = Callable[[], Iterable[dict[str, Any]]]


class Piece(Row):
    """The rows that a piece of work gave."""

    key: ClassVar = ("piece",)

    piece: str
    rows: list[dict[str, Any]]


class Pieces:
    """Pieces of work, and the file in which their rows stand as soon as one is done."""

    def __init__(self, run: Run):
        """Reads what an earlier run has finished."""
        self._journal = Journal(run.folder / "pieces.jsonl", Piece)
        self._run = run

    def missing(self, names: Iterable[str]) -> int:
        """How many of them are to be done."""
        return sum((name,) not in self._journal for name in names)

    def do(self, name: str, work: Work) -> Rows:
        """The rows of a piece, which is done now if it was not before."""
        if (name,) not in self._journal:
            self._run.say(name)
            rows = json.loads(json.dumps(list(work())))  # the same in the run that measures them
            self._journal.append({"piece": name, "rows": rows})
        return self._journal[name,]["rows"]


def measure(run: Run, plan: Mapping[str, Work]) -> Rows:
    """Does what is missing of a plan and writes all rows to `results.jsonl`."""
    pieces = Pieces(run)
    run.expect(pieces.missing(plan))
    rows = [row for name, work in plan.items() for row in pieces.do(name, work)]
    write_jsonl(run.folder / "results.jsonl", rows)
    return rows


def read_rows(folder: Path, name: str = "results.jsonl") -> Rows:
    """The rows of a file in a folder, packed or not."""
    return [json.loads(line) for line in read_lines(folder / name)]
