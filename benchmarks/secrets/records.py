"""The rows that the study keeps, and the files they stand in."""

from pathlib import Path
from typing import ClassVar

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from benchmarks.tools.records import Journal, Row, Share


class TrialRow(Row):
    """All values that were tried for a plan, and the best one."""

    key: ClassVar = ("correction", "update", "way", "entries")

    correction: str
    update: str
    way: str
    entries: NonNegativeInt
    values: list[PositiveFloat]
    objectives: list[float]
    chosen: PositiveFloat


class CellRow(Row):
    """The figures of one model."""

    key: ClassVar = ("correction", "update", "way", "entries", "seed")

    correction: str
    update: str
    way: str
    entries: NonNegativeInt
    seed: NonNegativeInt
    text: str
    model: str
    changed_entries: NonNegativeInt
    total_entries: PositiveInt
    leaves: dict[str, NonNegativeInt]
    """How many entries of each leaf may change."""
    extracted: Share
    """Of the forgotten secrets, those that the likeliest characters spell."""
    memorisation: Share
    strength: Share
    paraphrased: Share
    unseen: Share
    shown_extracted: Share
    shown_memorisation: Share
    hidden_extracted: Share
    hidden_memorisation: Share
    perplexity: PositiveFloat
    membership: dict[str, Share]
    memorisation_8_bits: Share
    memorisation_4_bits: Share
    margins: list[float]
    samples: list[str]
    exposed: dict[str, NonNegativeFloat] | None = None
    extrapolated: dict[str, NonNegativeFloat] | None = None
    searched: Share | None = None
    relearned: dict[str, Share] | None = None
    selection_example_gradients: NonNegativeInt
    update_example_gradients: NonNegativeInt
    retrain_example_gradients: PositiveInt


def open_journals(folder: Path) -> tuple[Journal, Journal]:
    """The trials and the cells of a folder."""
    return Journal(folder / "tuning.jsonl", TrialRow), Journal(folder / "results.jsonl", CellRow)
