"""The rows that the study keeps, and the files they stand in."""

from pathlib import Path
from typing import ClassVar

from pydantic import NonNegativeInt, PositiveFloat

from benchmarks.methods.evidence import EvidenceRow
from benchmarks.tools.records import Journal, Row, Share


class TrialRow(Row):
    """All values that were tried for an idea at a size, and the one that was chosen."""

    key: ClassVar = ("scenario", "idea", "size")

    scenario: str
    idea: str
    size: NonNegativeInt
    trials: list[PositiveFloat]
    objectives: list[float]
    chosen: PositiveFloat


class CellRow(EvidenceRow):
    """The figures of one idea at a size, on one seed; or of a model it is compared with."""

    key: ClassVar = ("scenario", "idea", "known", "size", "seed")

    dataset: str
    variant: str
    model: str
    scenario: str
    known: Share
    idea: str
    size: NonNegativeInt
    seed: NonNegativeInt


def open_journals(folder: Path) -> tuple[Journal, Journal]:
    """The trials and the cells of a folder."""
    return Journal(folder / "tuning.jsonl", TrialRow), Journal(folder / "results.jsonl", CellRow)
