"""The rows that the study of selections keeps, and the files they stand in."""

from pathlib import Path
from typing import ClassVar, NamedTuple

from pydantic import NonNegativeFloat, NonNegativeInt

from benchmarks.tools.records import Journal, Row, Share


class TrialRow(Row):
    """All trials of an update with one mask, and the value that was chosen."""

    key: ClassVar = ("part", "method", "fraction", "update")

    part: str
    method: str
    fraction: Share | None
    update: str
    tuned: str
    values: list[float]
    validation_accuracy: list[Share]
    forget_accuracy: list[Share]
    chosen: float
    at_edge: bool


class CellRow(Row):
    """The figures of an update with one mask, on one seed."""

    key: ClassVar = (*TrialRow.key, "seed")

    part: str
    method: str
    fraction: Share | None
    update: str
    seed: NonNegativeInt
    dataset: str
    variant: str
    model: str
    scenario: str
    test_accuracy: Share
    forget_accuracy: Share
    attack_success: Share | None
    test_recovery: float | None
    forget_recovery: float | None
    attack_recovery: float | None
    changed_entries: NonNegativeInt
    total_entries: NonNegativeInt
    selection_seconds: NonNegativeFloat | None = None
    update_seconds: NonNegativeFloat | None = None
    selection_example_gradients: NonNegativeInt | None = None
    update_example_gradients: NonNegativeInt | None = None
    retrain_example_gradients: NonNegativeInt | None = None
    tuned_value: float | None = None
    """These six not for the poisoned and the retrained model."""


class OverlapRow(Row):
    """How much of a mask stays after a change of one kind."""

    key: ClassVar = ("part", "method", "kind", "seed")

    part: str
    method: str
    kind: str
    seed: NonNegativeInt
    overlap: Share


class VariantRow(Row):
    """What the second-order update reaches with some options, on one seed."""

    key: ClassVar = (
        "part",
        "damping",
        "num_steps",
        "adapt_damping",
        "fraction",
        "curvature",
        "num_data",
        "seed",
    )

    part: str
    damping: float
    num_steps: NonNegativeInt
    adapt_damping: bool
    fraction: Share
    curvature: str
    num_data: NonNegativeInt | None
    seed: NonNegativeInt
    validation_accuracy: Share
    forget_accuracy: Share
    objective: float
    converged: bool
    steps_taken: NonNegativeInt
    iterations: NonNegativeInt


class Journals(NamedTuple):
    """All that the study has measured."""

    trials: Journal
    cells: Journal
    overlaps: Journal
    variants: Journal


def open_journals(folder: Path) -> Journals:
    """The journals of a folder."""
    return Journals(
        Journal(folder / "tuning.jsonl", TrialRow),
        Journal(folder / "results.jsonl", CellRow),
        Journal(folder / "stability.jsonl", OverlapRow),
        Journal(folder / "defaults.jsonl", VariantRow),
    )
