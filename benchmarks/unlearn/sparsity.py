"""Recovery against the number of entries that change, on the models of the comparison."""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.methods.bench import FULL, Bench, finding_rate, plan, tune
from benchmarks.methods.ways import LIKE, PROPOSED

COMPARED = (PROPOSED, LIKE + PROPOSED, "sharpest", LIKE + "sharpest", "random")
COUNTS = (3, 6, 12, 24, 48, 192)
QUICK_COUNTS = (3, 24, 192)
SHIPPED = 24
"""How many entries the patch may change, found by `PROPOSED`."""

Rates = dict[tuple[str, int], float]
"""The learning rate of each way and number of entries."""


def tune_ways(
    bench: Bench, counts: Sequence[int], advance: Callable[[str], None]
) -> tuple[Rates, list[dict[str, Any]]]:
    """The best rates on one seed, and all that were tried."""
    rates, trials = {}, []
    for way, count in plan(COMPARED, counts):
        advance(f"Tuning {_words(way, count)}")
        trial = tune([bench], way, count, _finding(rates, way, count))
        rates[way, count] = trial["chosen"]
        trials.append(trial)
    return rates, trials


def measure_ways(
    bench: Bench, counts: Sequence[int], rates: Rates, advance: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The rows of one seed."""
    rows = bench.reference_rows()
    for way, count in plan(COMPARED, counts):
        advance(f"Seed {bench.evidence.case.seed}: {_words(way, count)}")
        rows.append(bench.cell(way, count, rates[way, count], _finding(rates, way, count)))
    return rows


def shipped(bench: Bench, rates: Rates) -> Any:
    """The parameters of which the patch is made."""
    return bench.run(PROPOSED, SHIPPED, rates[PROPOSED, SHIPPED], None)[0]


def _finding(rates: Rates, way: str, count: int) -> float | None:
    return finding_rate(way, lambda name: rates[name, count])


def _words(way: str, count: int) -> str:
    return "all entries" if way == FULL else f"{way.replace('_', ' ')}, {count} entries"
