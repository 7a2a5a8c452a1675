"""What the cells of the study say: recoveries, and every selection against its control.

One figure judges a cell, so that one test does: the mean of its shares that should be high, test
accuracy, accuracy on the corrected examples and, where there is an attack, the share it fails on.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from benchmarks.methods.rankings import LIKE, RANKED
from benchmarks.methods.updates import STUDIED_UPDATES
from benchmarks.tools.statistics import Interval, PairedDifference, holm, interval, paired_test

ALPHA = 0.05
"""What a corrected p value has to be below."""
WHOLE = ("last_layer", "full")

Row = dict[str, Any]
Cell = tuple[str, float | None, str]
"""Method, fraction and update."""


class Comparison(NamedTuple):
    """A selection less another method, on the same poisoned models."""

    part: str
    method: str
    other: str
    fraction: float
    update: str
    difference: PairedDifference
    """Of the judging figure, a share between −1 and 1."""
    corrected: float
    """Its p value after Holm's correction over the part's table."""

    @property
    def survives(self) -> bool:
        """Whether it is to be claimed."""
        return self.corrected < ALPHA


class Findings(NamedTuple):
    """One part of the study."""

    part: str
    num_seeds: int
    poisoned: dict[str, Interval]
    retrained: dict[str, Interval]
    figures: dict[Cell, dict[str, Interval]]
    """For each cell `figure` and, by the fields of a row, what it is made of."""
    recoveries: dict[Cell, Interval]
    """How much of the gap between the poisoned and the retrained model's figure is closed."""
    controlled: list[Comparison]
    """Every ranking with its control of the same counts per leaf."""
    whole: list[Comparison]
    """Every ranking with the last layer and with all parameters."""

    @property
    def updates(self) -> list[str]:
        """The updates that were run, in the order of `STUDIED_UPDATES`."""
        run = {update for _, _, update in self.recoveries}
        return [update for update in STUDIED_UPDATES if update in run]

    @property
    def fractions(self) -> list[float]:
        """The shares of the entries that its masks select, rising."""
        return sorted({share for _, share, _ in self.recoveries if share is not None})


def figure(row: Row) -> float:
    """What a cell is judged by, a share."""
    shares = [row["test_accuracy"], row["forget_accuracy"]]
    if row["attack_success"] is not None:
        shares.append(1 - row["attack_success"])
    return sum(shares) / len(shares)


def find(part: str, rows: Iterable[Row]) -> Findings | None:
    """The findings of one part; None where it has no seed that is complete.

    Args:
      part: its name.
      rows: cells of the study, of this part or of any.
    """
    by_seed: dict[int, dict[Cell, Row]] = {}
    for row in rows:
        if row["part"] == part:
            cell = row["method"], row["fraction"], row["update"]
            by_seed.setdefault(row["seed"], {})[cell] = row
    most = max((len(cells) for cells in by_seed.values()), default=0)
    seeds = [cells for _, cells in sorted(by_seed.items()) if len(cells) == most]
    ends = [("poisoned", None, "none"), ("retrained", None, "none")]
    cells = [cell for cell in (seeds[0] if seeds else {}) if cell not in ends]
    if not cells:
        return None
    figures = {cell: [figure(rows_of[cell]) for rows_of in seeds] for cell in (*ends, *cells)}
    low, high = (figures[end] for end in ends)
    recoveries = {
        cell: interval(
            [(x - a) / (b - a) for x, a, b in zip(figures[cell], low, high, strict=True)]
        )
        for cell in cells
    }
    summaries = {cell: _summary([rows_of[cell] for rows_of in seeds]) for cell in (*ends, *cells)}
    return Findings(
        part=part,
        num_seeds=len(seeds),
        poisoned=summaries.pop(ends[0]),
        retrained=summaries.pop(ends[1]),
        figures=summaries,
        recoveries=recoveries,
        controlled=_compare(part, figures, [lambda m, f: (LIKE + m, f)]),
        whole=_compare(part, figures, [lambda _, __, name=name: (name, None) for name in WHOLE]),
    )


def _summary(rows: Sequence[Row]) -> dict[str, Interval]:
    fields = ("test_accuracy", "forget_accuracy", "attack_success", "changed_entries")
    values = {name: [row[name] for row in rows] for name in fields}
    summary = {name: interval(v) for name, v in values.items() if v[0] is not None}
    return summary | {"figure": interval([figure(row) for row in rows])}


def _compare(
    part: str, figures: dict[Cell, list[float]], others: Sequence[Any]
) -> list[Comparison]:
    pairs = [
        (method, other(method, fraction), fraction, update)
        for (method, fraction, update) in figures
        for other in others
        if method in RANKED and update in STUDIED_UPDATES
    ]
    tests = [
        paired_test(figures[method, fraction, update], figures[*other, update])
        for method, other, fraction, update in pairs
    ]
    corrected = holm([test.p_value for test in tests])
    return [
        Comparison(part, method, other[0], fraction or 0.0, update, test, p)
        for (method, other, fraction, update), test, p in zip(pairs, tests, corrected, strict=True)
    ]
