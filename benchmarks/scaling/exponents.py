"""How fast something grows: the slope of its logarithm."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Row = dict[str, Any]
LIMITED = ("propagated", "select", "patch")
"""Operations that should grow hardly faster than what they work on."""
LIMIT = 1.1


class Growth(NamedTuple):
    """The exponents of one operation in one sweep; None where there is nothing to fit."""

    sweep: str
    operation: str
    seconds: float
    last_seconds: float
    """Between the two largest sizes."""
    least_seconds: float
    """Of the fastest run of each size, to which what else the machine did has added least."""
    gradients: float
    """Of the seconds over those of a gradient of the same size."""
    memory: float | None
    last_memory: float | None


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The least-squares slope of log values over log sizes."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def growths(rows: Sequence[Row]) -> list[Growth]:
    """One for each operation of each sweep, in the order of the rows."""
    pairs = list(dict.fromkeys((row["sweep"], row["operation"]) for row in rows))
    return [_growth(rows, *pair) for pair in pairs]


def series(rows: Sequence[Row], sweep: str, operation: str) -> list[Row]:
    """The rows of one operation, the smallest size first."""
    found = [row for row in rows if (row["sweep"], row["operation"]) == (sweep, operation)]
    return sorted(found, key=lambda row: row["size"])


def quantity(row: Row) -> int:
    """What the size of a row is counted in: parameters as they are, which it only comes near."""
    return row["entries"] if row["sweep"] == "parameters" else row["size"]


def _growth(rows: Sequence[Row], sweep: str, operation: str) -> Growth:
    own, gradient = series(rows, sweep, operation), series(rows, sweep, "gradient")
    sizes = [quantity(row) for row in own]
    seconds = [row["seconds"] for row in own]
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(own, gradient, strict=True)]
    memory = [row["extra_bytes"] for row in own]
    has_memory = all(memory)
    return Growth(
        sweep,
        operation,
        exponent(sizes, seconds),
        exponent(sizes[-2:], seconds[-2:]),
        exponent(sizes, [min(row["runs"]) for row in own]),
        exponent(sizes, ratios),
        exponent(sizes, memory) if has_memory else None,
        exponent(sizes[-2:], memory[-2:]) if has_memory else None,
    )


def too_fast(found: Sequence[Growth]) -> list[Growth]:
    """Those of the limited operations whose time grows faster than the limit, by its whole fit."""
    return [one for one in found if one.operation in LIMITED and one.seconds > LIMIT]
