"""The rows that the study keeps, and the files they stand in."""

from pathlib import Path
from typing import ClassVar

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from benchmarks.methods.evidence import EvidenceRow
from benchmarks.tools.records import Journal, Row, Share


class TrialRow(Row):
    """All learning rates that were tried for a way and a number of entries, and the best one."""

    key: ClassVar = ("scenario", "way", "count")

    scenario: str
    way: str
    count: PositiveInt
    rates: list[PositiveFloat]
    objectives: list[float]
    chosen: PositiveFloat


class CellRow(EvidenceRow):
    """The figures of one way with so many entries, on one seed."""

    key: ClassVar = ("scenario", "known", "way", "count", "seed")

    dataset: str
    variant: str
    model: str
    scenario: str
    known: Share
    way: str
    count: NonNegativeInt
    seed: NonNegativeInt
    leaves: dict[str, NonNegativeInt]
    """How many entries of each leaf may change."""
    selection_example_gradients: NonNegativeInt
    update_example_gradients: NonNegativeInt
    retrain_example_gradients: PositiveInt


def open_journals(folder: Path) -> tuple[Journal, Journal]:
    """The trials and the cells of a folder."""
    return Journal(folder / "tuning.jsonl", TrialRow), Journal(folder / "results.jsonl", CellRow)
