"""How many entries do what all entries do, and which ways need fewer."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.learning.scenarios import SCENARIOS
from benchmarks.methods.bench import FULL
from benchmarks.methods.ways import PROPOSED
from benchmarks.tools.statistics import Interval, PairedDifference, holm, interval, paired_test

Rows = Sequence[dict[str, Any]]
GOAL = 0.9
"""The share of what all entries restore."""
LEAST = 0.2
"""Where all entries restore less than this on average, a share of it says nothing."""
TINY = 0.001
"""The share of the entries at which the gaps to the retrained model are compared."""


class Curve(NamedTuple):
    """Recovery of one way in one scenario, over all seeds."""

    counts: tuple[int, ...]
    recoveries: tuple[Interval, ...]


class Needed(NamedTuple):
    """How many entries a way needs for `GOAL` of what all entries restore."""

    geometric_mean: float
    low: float
    high: float
    """The 95 % t interval of its logarithm; both are the mean for a single seed."""
    misses: int
    """On how many seeds no number that was tried was enough; they count as all entries."""


class Comparison(NamedTuple):
    """The proposed way against another one, on the same poisoned models."""

    scenario: str
    other: str
    factor: float
    """How many times as many entries the other one needs."""
    needed: PairedDifference
    """Of log10 of the numbers needed."""
    needed_p: float
    """Its p value by Holm's rule over the table."""
    gap: PairedDifference
    """Points of the forget measure that the proposed way is nearer at the tiny number."""
    gap_p: float
    """Likewise."""


class AgainstAll(NamedTuple):
    """The proposed way at one number of entries against all entries, on the same models."""

    scenario: str
    entries: int
    few: Interval
    """The recovery of so many entries."""
    all: Interval
    """The recovery of all of them."""
    more: PairedDifference
    """What the few recover more."""
    p: float
    """Its p value by Holm's rule over the table."""
    test: Interval
    """Test accuracy of the few less that of all."""


def measure_of(scenario: str) -> str:
    """The figure that says whether the poison is gone: `forget` or `attack`."""
    return SCENARIOS[scenario].judged_by


def part(rows: Rows, scenario: str, known: float, way: str, count: int | None = None) -> Rows:
    """The rows of one way, at one number of entries or at all of them."""
    return [
        row
        for row in rows
        if (row["scenario"], row["known"], row["way"]) == (scenario, known, way)
        and count in (None, row["count"])
    ]


def by_seed(rows: Rows, field: str) -> dict[int, float]:
    """A figure of every seed that has it."""
    return {row["seed"]: row[field] for row in rows if row.get(field) is not None}


def restored_by_all(rows: Rows, scenario: str, known: float) -> dict[int, float]:
    """The recovery of the update of all entries, seed by seed; empty where it is below `LEAST`."""
    found = by_seed(part(rows, scenario, known, FULL), f"{measure_of(scenario)}_recovery")
    if not found or interval(list(found.values())).mean < LEAST:
        return {}
    return {seed: value for seed, value in found.items() if value > 0}


def curve(rows: Rows, scenario: str, known: float, way: str) -> Curve:
    """Recovery against the number of entries."""
    own, field = part(rows, scenario, known, way), f"{measure_of(scenario)}_recovery"
    counts = sorted({row["count"] for row in own if row[field] is not None})
    values = (list(by_seed(part(own, scenario, known, way, n), field).values()) for n in counts)
    return Curve(tuple(counts), tuple(map(interval, values)))


def needed_by_seed(rows: Rows, scenario: str, known: float, way: str) -> dict[int, float]:
    """How many entries are enough on each seed; infinite where no number that was tried was."""
    field = f"{measure_of(scenario)}_recovery"
    found = {}
    for seed, whole in restored_by_all(rows, scenario, known).items():
        own = [row for row in part(rows, scenario, known, way) if row["seed"] == seed]
        points = sorted((row["count"], row[field]) for row in own)
        if points:
            found[seed] = _first_reached(points, GOAL * whole)
    return found


def _first_reached(points: Sequence[tuple[int, float]], goal: float) -> float:
    """Where a curve first meets a goal, between its points by the logarithm of the number."""
    before = None
    for count, value in points:
        if value >= goal:
            if before is None:
                return float(count)
            least, reached = before
            share = (goal - reached) / (value - reached)
            return least * (count / least) ** share
        before = count, value
    return math.inf


def needed(rows: Rows, scenario: str, known: float, way: str) -> Needed | None:
    """Over all seeds; None where there is nothing to restore."""
    numbers = needed_by_seed(rows, scenario, known, way)
    if not numbers:
        return None
    mean, half_width = interval(list(_logs(rows, numbers).values()))
    half_width = half_width or 0.0
    misses = sum(math.isinf(value) for value in numbers.values())
    return Needed(10**mean, 10 ** (mean - half_width), 10 ** (mean + half_width), misses)


def _logs(rows: Rows, numbers: dict[int, float]) -> dict[int, float]:
    """log10 of the numbers needed, at most that of all entries."""
    total = max((row["total_entries"] for row in rows), default=1)
    return {seed: math.log10(min(value, total)) for seed, value in numbers.items()}


def tiny_count(rows: Rows) -> int:
    """The largest number that was tried of at most `TINY` of the entries, or the smallest one."""
    counts = sorted({row["count"] for row in rows if row["count"]})
    total = max(row["total_entries"] for row in rows)
    return max((n for n in counts if n <= TINY * total), default=counts[0])


def compare(
    rows: Rows, scenarios: Sequence[str], known: float, ways: Sequence[str]
) -> list[Comparison]:
    """The proposed way against all others, wherever there is something to restore."""
    count, found = tiny_count(rows), []
    for scenario in scenarios:
        own = _logs(rows, needed_by_seed(rows, scenario, known, PROPOSED))
        gaps = _gaps(rows, scenario, known, PROPOSED, count)
        for other in ways:
            if other == PROPOSED or not own:
                continue
            others = _logs(rows, needed_by_seed(rows, scenario, known, other))
            seeds = sorted(own.keys() & others.keys())
            other_gaps = _gaps(rows, scenario, known, other, count)
            both = sorted(gaps.keys() & other_gaps.keys())
            if seeds and both:
                fewer = paired_test([others[s] for s in seeds], [own[s] for s in seeds])
                nearer = paired_test([other_gaps[s] for s in both], [gaps[s] for s in both])
                found.append((scenario, other, fewer, nearer))
    needed_ps = holm([fewer.p_value for _, _, fewer, _ in found])
    gap_ps = holm([nearer.p_value for *_, nearer in found])
    return [
        Comparison(scenario, other, 10**fewer.mean, fewer, p, nearer, q)
        for (scenario, other, fewer, nearer), p, q in zip(found, needed_ps, gap_ps, strict=True)
    ]


def compare_with_all(rows: Rows, scenarios: Sequence[str], known: float) -> list[AgainstAll]:
    """At every number of entries that was tried, where all entries restore something."""
    found = []
    for scenario in scenarios:
        if not restored_by_all(rows, scenario, known):
            continue
        field = f"{measure_of(scenario)}_recovery"
        whole = part(rows, scenario, known, FULL)
        for count in curve(rows, scenario, known, PROPOSED).counts:
            own = part(rows, scenario, known, PROPOSED, count)
            few, every = _pairs(own, whole, field)
            test, test_of_all = _pairs(own, whole, "test_accuracy")
            lost = interval([a - b for a, b in zip(test, test_of_all, strict=True)])
            means = interval(few), interval(every)
            found.append(AgainstAll(scenario, count, *means, paired_test(few, every), 1.0, lost))
    ps = holm([each.more.p_value for each in found])
    return [each._replace(p=p) for each, p in zip(found, ps, strict=True)]


def _pairs(first: Rows, second: Rows, field: str) -> tuple[list[float], list[float]]:
    """A figure of both on the seeds that both have."""
    one, other = by_seed(first, field), by_seed(second, field)
    seeds = sorted(one.keys() & other.keys())
    return [one[seed] for seed in seeds], [other[seed] for seed in seeds]


def _gaps(rows: Rows, scenario: str, known: float, way: str, count: int) -> dict[int, float]:
    """The distance of the forget measure to the retrained model's."""
    own = part(rows, scenario, known, way, count)
    return {seed: abs(gap) for seed, gap in by_seed(own, f"{measure_of(scenario)}_gap").items()}
