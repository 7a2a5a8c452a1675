"""The rows of a comparison as one line per method: means over seeds with their intervals."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.measures.metrics import ACCURACIES
from benchmarks.tools.statistics import Interval, interval


class Line(NamedTuple):
    """One method and update, over all seeds; what a scenario does not have is left out."""

    method: str
    update: str
    accuracies: dict[str, Interval]
    recoveries: dict[str, Interval]
    """Only where every seed has a gap that is wide enough."""
    gaps: dict[str, Interval]
    """What is left to the retrained model: after − retrained."""
    changed: float
    total: int
    selection_gradients: float
    update_gradients: float
    selection_seconds: float
    update_seconds: float
    tuned_value: float | None

    @property
    def gradients(self) -> float:
        """Example gradients of selection and update."""
        return self.selection_gradients + self.update_gradients


def summarise(rows: Sequence[dict[str, Any]]) -> list[Line]:
    """One line per method and update, in the order they first appear."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["update"]), []).append(row)
    return [_line(*names, group) for names, group in groups.items()]


def paired_difference(
    rows: Sequence[dict[str, Any]], update: str, method: str, other: str, field: str
) -> Interval:
    """The mean over seeds of one method's figure less another's on the same poisoned model."""
    figures = {(row["method"], row["seed"]): row[field] for row in rows if row["update"] == update}
    seeds = [seed for name, seed in figures if name == method]
    return interval([figures[method, seed] - figures[other, seed] for seed in seeds])


def _line(method: str, update: str, rows: list[dict[str, Any]]) -> Line:
    def mean(field: str) -> float:
        return interval([row[field] for row in rows]).mean

    def intervals(fields: dict[str, str]) -> dict[str, Interval]:
        return {
            short: interval([row[field] for row in rows])
            for short, field in fields.items()
            if all(row[field] is not None for row in rows)
        }

    return Line(
        method=method,
        update=update,
        accuracies=intervals(ACCURACIES),
        recoveries=intervals({short: f"{short}_recovery" for short in ACCURACIES}),
        gaps=intervals({short: f"{short}_gap" for short in ACCURACIES}),
        changed=mean("changed_entries"),
        total=rows[0]["total_entries"],
        selection_gradients=mean("selection_example_gradients"),
        update_gradients=mean("update_example_gradients"),
        selection_seconds=mean("selection_seconds"),
        update_seconds=mean("update_seconds"),
        tuned_value=rows[0]["tuned_value"],
    )
