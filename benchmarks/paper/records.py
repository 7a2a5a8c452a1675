"""The rows that the comparison of procedures keeps, and the files they stand in."""

from pathlib import Path
from typing import ClassVar

from pydantic import NonNegativeFloat, NonNegativeInt

from benchmarks.methods.evidence import EvidenceRow
from benchmarks.tools.records import Journal, Row, Share


class TrialRow(Row):
    """All trials of a procedure at one size, and the trial that was chosen."""

    key: ClassVar = ("scenario", "method", "fraction", "budget")

    scenario: str
    method: str
    fraction: Share
    budget: Share
    trials: list[dict[str, float]]
    validation_accuracy: list[Share]
    forget_accuracy: list[Share]
    chosen: dict[str, float]


class CellRow(EvidenceRow):
    """All figures of a procedure at one size, on one seed."""

    key: ClassVar = ("scenario", "known", "method", "fraction", "budget", "seed")

    dataset: str
    variant: str
    model: str
    scenario: str
    known: Share
    method: str
    fraction: Share
    budget: Share
    seed: NonNegativeInt
    selection_seconds: NonNegativeFloat
    update_seconds: NonNegativeFloat
    selection_example_gradients: NonNegativeInt
    update_example_gradients: NonNegativeInt
    retrain_example_gradients: NonNegativeInt


def open_journals(folder: Path) -> tuple[Journal, Journal]:
    """The trials and the cells of a folder."""
    return Journal(folder / "tuning.jsonl", TrialRow), Journal(folder / "results.jsonl", CellRow)
