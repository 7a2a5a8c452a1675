"""One scenario's figures as a table: each procedure, its distance to retraining, its cost."""

from collections.abc import Sequence
from typing import Any

from benchmarks.paper.contest import Arm
from benchmarks.paper.summary import Rows, Standing, standings
from benchmarks.reporting.tables import (
    NONE,
    WORDS,
    markdown_table,
    percent,
    plain_name,
    seconds,
    towards_retraining,
)
from benchmarks.tools.statistics import Interval


def figures_table(rows: Rows, scenario: str, arms: Sequence[Arm]) -> str:
    """Markdown, a line for each procedure; in bold the nearest to the retrained model."""
    lines = standings(rows, scenario, arms)
    shorts = list(lines[0].line.accuracies)
    columns = ["procedure", *(f"{WORDS[short]} %" for short in shorts)]
    columns += [*(f"{short} recovery %" for short in shorts), "tug-of-war", "membership"]
    columns += ["relearning area", "changed %", "cost %", "seconds"]
    aim = next(each for each in lines if each.method == "retrained")
    table = [_figure_cells(each, shorts) for each in lines]
    contenders = [i for i, each in enumerate(lines) if each.line.update == "any"]
    for column, distance in enumerate(_distances(shorts, aim), start=1):
        values = {i: distance(lines[i]) for i in contenders}
        known = {i: value for i, value in values.items() if value is not None}
        best = min(known.values(), default=None)
        for i, value in known.items():
            if best is not None and value <= best + 1e-9:
                table[i][column] = f"**{table[i][column]}**"
    return markdown_table(columns, table)


def _distances(shorts: Sequence[str], aim: Standing) -> list[Any]:
    """For each column from the first accuracy on: how far a procedure is from the best there."""
    gaps = [lambda s, short=short: abs(s.line.gaps[short].mean) for short in shorts]
    nothing = [lambda s: None for _ in shorts]

    def membership(each: Standing) -> float | None:
        if each.membership is None or aim.membership is None:
            return None
        return abs(each.membership.mean - aim.membership.mean)

    return [
        *gaps,
        *nothing,
        lambda s: -s.tug_of_war.mean,
        membership,
        lambda s: None if s.relearning is None else s.relearning.mean,
    ]


def _figure_cells(each: Standing, shorts: Sequence[str]) -> list[str]:
    line = each.line
    return [
        plain_name(each.method),
        *(percent(line.accuracies[short]) for short in shorts),
        *(towards_retraining(line, short) for short in shorts),
        f"{each.tug_of_war.mean:.3f}",
        NONE if each.membership is None else f"{each.membership.mean:.3f}",
        NONE if each.relearning is None else area_text(each.relearning),
        f"{100 * line.changed / line.total:.1f}",
        f"{100 * each.share:.2f}",
        seconds(line.selection_seconds + line.update_seconds),
    ]


def area_text(value: Interval) -> str:
    """A mean area with its interval."""
    return f"{100 * value.mean:.1f}" + (
        "" if value.half_width is None else f" ±{100 * value.half_width:.1f}"
    )
