"""The rows that the comparison of procedures keeps, and the files they stand in."""

from pathlib import Path
from typing import ClassVar

from pydantic import NonNegativeFloat, NonNegativeInt

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


class CellRow(Row):
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
    total_entries: NonNegativeInt
    moved: NonNegativeFloat
    distance: NonNegativeFloat
    membership_entropy: Share | None = None
    membership_logistic: Share | None = None
    relearning_counts: list[NonNegativeInt] | None = None
    relearning: list[Share] | None = None
    relearning_signed: float | None = None
    relearning_absolute: NonNegativeFloat | None = None
    """These six only where a model is attacked."""
    selection_seconds: NonNegativeFloat
    update_seconds: NonNegativeFloat
    selection_example_gradients: NonNegativeInt
    update_example_gradients: NonNegativeInt
    retrain_example_gradients: NonNegativeInt


def open_journals(folder: Path) -> tuple[Journal, Journal]:
    """The trials and the cells of a folder."""
    return Journal(folder / "tuning.jsonl", TrialRow), Journal(folder / "results.jsonl", CellRow)
