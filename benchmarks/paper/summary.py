"""The cells of the comparison as one line per procedure, and what they say of the claims."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from benchmarks.learning.scenarios import SCENARIOS
from benchmarks.measures.metrics import SMALL_GAP
from benchmarks.measures.summary import Line, summarise
from benchmarks.paper.contest import REFERENCES, Arm
from benchmarks.paper.procedures import PROCEDURES, PROPOSED
from benchmarks.tools.statistics import Interval, PairedDifference, holm, interval, paired_test

Rows = Sequence[dict[str, Any]]
FORGET_MEASURE = {name: scenario.judged_by for name, scenario in SCENARIOS.items()}
"""The figure that says whether a scenario's poison is gone."""
FORGET_GOAL, TEST_GOAL = 0.95, 0.8
CLAIMS = {
    (PROPOSED, "sharpest"): "the gain to expect, from every unit alike, does better than sharpness "
    "alone",
    (PROPOSED, "random_per_unit"): "the ranking adds something beyond taking from every unit alike",
    (PROPOSED, "saliency_per_unit"): "curvature adds something to the gradient there",
    (PROPOSED, "full"): "few entries so chosen do better than all parameters",
    (PROPOSED, "last_layer"): "few entries so chosen do better than the last layer",
    ("sharpest", "random_like_sharpest"): "the ranking by curvature adds something beyond its "
    "choice of layers",
    ("sharpest", "full"): "the sharpest parameters do better than all of them",
    ("sharpest", "last_layer"): "the sharpest parameters do better than the last layer",
    ("sharpest", "flattest"): "the sharpest parameters do better than the flattest",
}
"""Which procedure is compared with which, on the same poisoned models, and what that would show."""


class Standing(NamedTuple):
    """One procedure in one scenario, over all seeds."""

    method: str
    line: Line
    tug_of_war: Interval
    membership: Interval | None
    """Area under the curve of the attack by modified entropy."""
    relearning: Interval | None
    """The area between its relearning curve and the retrained model's."""
    share: float
    """Example gradients over retraining's."""


class Comparison(NamedTuple):
    """One procedure against another: points by which it is nearer to the retrained model."""

    scenario: str
    method: str
    other: str
    measure: str
    difference: PairedDifference
    corrected: float
    """The p value by Holm's rule over the table."""

    @property
    def verdict(self) -> str:
        """In one word."""
        if self.corrected >= 0.05:
            return "no difference shown"
        return "nearer" if self.difference.mean > 0 else "further"


def of(rows: Rows, scenario: str, arm: Arm, known: float = 1.0) -> list[dict[str, Any]]:
    """The rows of one procedure; references fit every arm and share."""
    return [
        row
        for row in rows
        if row["scenario"] == scenario
        and row["method"] == arm.method
        and (
            row["method"] in REFERENCES
            or (row["known"], row["fraction"], row["budget"]) == (known, arm.fraction, arm.budget)
        )
    ]


def standing(rows: Rows) -> Standing:
    """The means of one procedure's rows."""
    method = rows[0]["method"]
    kind = "none" if method in REFERENCES else "any"
    (line,) = summarise([row | {"update": kind, "tuned_value": None} for row in rows])

    def over_seeds(field: str) -> Interval | None:
        values = [row[field] for row in rows if row.get(field) is not None]
        return interval(values) if len(values) == len(rows) else None

    costs = [row["selection_example_gradients"] + row["update_example_gradients"] for row in rows]
    return Standing(
        method=method,
        line=line,
        tug_of_war=interval([row["tug_of_war"] for row in rows]),
        membership=over_seeds("membership_entropy"),
        relearning=over_seeds("relearning_absolute"),
        share=max(c / row["retrain_example_gradients"] for c, row in zip(costs, rows, strict=True)),
    )


def standings(rows: Rows, scenario: str, arms: Iterable[Arm], known: float = 1.0) -> list[Standing]:
    """References first, then every procedure that has rows, in the order of the arms."""
    wanted = [*(Arm(name, 1.0, 1.0) for name in REFERENCES), *arms]
    found = [of(rows, scenario, arm, known) for arm in wanted]
    return [standing(part) for part in found if part]


def reached(line: Line, short: str, goal: float) -> bool | None:
    """Whether a goal is met; None where the scenario has no such figure.

    A recovery of at least `goal`; where there is too little to recover, a gap of at most one point.
    """
    if short in line.recoveries:
        return line.recoveries[short].mean >= goal
    return abs(line.gaps[short].mean) <= SMALL_GAP if short in line.gaps else None


def best_rival(
    rows: Rows, scenario: str, arms: Sequence[Arm], distance: Callable[[dict[str, Any]], float]
) -> str | None:
    """The procedure nearest to the retrained model among those that are not ours."""
    rivals = [
        arm for arm in arms if arm.method in PROCEDURES and not arm.method.startswith(OUR_PREFIXES)
    ]
    means = {}
    for arm in rivals:
        if part := of(rows, scenario, arm):
            means[arm.method] = interval([distance(row) for row in part]).mean
    return min(means, key=lambda name: means[name]) if means else None


OUR_PREFIXES = ("decrease", "newton_step", "sharpest")


def gap_of(short: str) -> Callable[[dict[str, Any]], float]:
    """The distance of a figure to the retrained model's."""
    return lambda row: abs(row[f"{short}_gap"])


def area(row: dict[str, Any]) -> float:
    """The distance of the relearning curve to the retrained model's."""
    return row["relearning_absolute"]


def against_rivals(rows: Rows, scenarios: Iterable[str], arms: Sequence[Arm]) -> list[Comparison]:
    """The proposed procedure against the best other one, by scenario and measure."""
    pairs = []
    for scenario in scenarios:
        short = FORGET_MEASURE[scenario]
        measures = {short: gap_of(short), "test": gap_of("test"), "relearning": area}
        for measure, distance in measures.items():
            rival = best_rival(rows, scenario, arms, distance)
            if rival is not None:
                pairs.append((scenario, PROPOSED, rival, measure, distance))
    return _compare(rows, arms, pairs)


def claims(rows: Rows, scenarios: Iterable[str], arms: Sequence[Arm]) -> list[Comparison]:
    """Every pair of `CLAIMS`, by the forget measure and by test accuracy."""
    pairs = [
        (scenario, method, other, short, gap_of(short))
        for method, other in CLAIMS
        for scenario in scenarios
        for short in (FORGET_MEASURE[scenario], "test")
    ]
    return _compare(rows, arms, pairs)


def _compare(rows: Rows, arms: Sequence[Arm], pairs: list[Any]) -> list[Comparison]:
    by_name = {arm.method: arm for arm in arms}
    found: list[tuple[str, str, str, str, PairedDifference]] = []
    for scenario, method, other, measure, distance in pairs:
        if not {method, other} <= by_name.keys():
            continue
        own, others = (
            {row["seed"]: distance(row) for row in of(rows, scenario, by_name[name])}
            for name in (method, other)
        )
        seeds = sorted(own.keys() & others.keys())
        if seeds:
            test = paired_test([others[seed] for seed in seeds], [own[seed] for seed in seeds])
            found.append((scenario, method, other, measure, test))
    corrected = holm([test.p_value for *_, test in found])
    return [
        Comparison(scenario, method, other, measure, test, p)
        for (scenario, method, other, measure, test), p in zip(found, corrected, strict=True)
    ]
