"""The rows that the study keeps, and the files they stand in."""

from pathlib import Path
from typing import ClassVar

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

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


class CellRow(Row):
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
    test_accuracy: Share
    forget_accuracy: Share
    attack_success: Share | None
    retain_accuracy: Share
    test_recovery: float | None
    test_gap: float
    forget_recovery: float | None
    forget_gap: float
    attack_recovery: float | None
    attack_gap: float | None
    tug_of_war: Share
    changed_entries: NonNegativeInt
    total_entries: PositiveInt
    moved: NonNegativeFloat
    distance: NonNegativeFloat
    leaves: dict[str, NonNegativeInt]
    """How many entries of each leaf may change."""
    membership_entropy: Share | None = None
    membership_logistic: Share | None = None
    relearning_counts: list[NonNegativeInt] | None = None
    relearning: list[Share] | None = None
    relearning_signed: float | None = None
    relearning_absolute: NonNegativeFloat | None = None
    """These six only where a model is attacked."""
    selection_example_gradients: NonNegativeInt
    update_example_gradients: NonNegativeInt
    retrain_example_gradients: PositiveInt


def open_journals(folder: Path) -> tuple[Journal, Journal]:
    """The trials and the cells of a folder."""
    return Journal(folder / "tuning.jsonl", TrialRow), Journal(folder / "results.jsonl", CellRow)
