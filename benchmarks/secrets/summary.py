"""Figures over seeds, from the rows of the study."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

import sapsel_jax as sap
from benchmarks.secrets.updates import Plan
from benchmarks.tools.statistics import Interval, interval

Rows = Sequence[dict[str, Any]]


def of_plan(rows: Rows, plan: Plan) -> list[dict[str, Any]]:
    """The rows of a plan, a row per seed."""
    names = Plan._fields
    found = [row for row in rows if tuple(row[name] for name in names) == plan]
    return sorted(found, key=lambda row: row["seed"])


def over_seeds(rows: Rows, figure: Callable[[dict[str, Any]], float | None]) -> Interval | None:
    """The mean of a figure with its interval; None where a row has none."""
    values = [figure(row) for row in rows]
    known = [value for value in values if value is not None]
    return interval(known) if known and len(known) == len(values) else None


def fewest(rows: Rows, plans: Sequence[Plan]) -> int | None:
    """The fewest entries with which no forgotten secret is extracted on any seed, nor with more."""
    enough = None
    for plan in sorted(plans, key=lambda plan: plan.entries, reverse=True):
        own = of_plan(rows, plan)
        if not own or any(row["extracted"] > 0 for row in own):
            break
        enough = plan.entries
    return enough


def mean_exposure(row: dict[str, Any], ids: Iterable[int], name: str = "exposed") -> float | None:
    """The mean over these canaries, in bits; None where it was not measured."""
    return None if row.get(name) is None else float(np.mean([row[name][str(i)] for i in ids]))


def median_klom(rows: Rows, retrained: Rows) -> float | None:
    """The median of KLOM over the characters of the forgotten secrets; None for a single seed.

    The median, because the mean of KLOM is infinite for ensembles of three models.
    """
    if len(rows) < 2 or len(retrained) < 2:
        return None
    margins = [jnp.asarray([row["margins"] for row in part]) for part in (rows, retrained)]
    return float(np.median(sap.audit.klom(*margins)))
