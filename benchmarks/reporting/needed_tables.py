"""How many entries each way needs, and the proposed way against all others, as text."""

from collections.abc import Sequence
from typing import Any

from benchmarks.methods.ways import PROPOSED
from benchmarks.reporting.needed import (
    TINY,
    AgainstAll,
    Comparison,
    Rows,
    measure_of,
    needed,
    restored_by_all,
    tiny_count,
)
from benchmarks.reporting.tables import (
    NONE,
    markdown_table,
    percent,
    plain_name,
    probability,
    short_number,
)
from benchmarks.tools.statistics import Interval, interval


def needed_table(rows: Rows, scenarios: Sequence[str], known: float, ways: Sequence[str]) -> str:
    """A row per way, a column per scenario, and what all entries restore."""
    table = []
    for way in ways:
        cells = []
        for scenario in scenarios:
            found = needed(rows, scenario, known, way)
            cells.append(NONE if found is None else _number(found, rows[0]["total_entries"]))
        table.append([f"**{plain_name(way)}**" if way == PROPOSED else plain_name(way), *cells])
    whole = [restored_by_all(rows, scenario, known) for scenario in scenarios]
    restored = [percent(interval(list(each.values()))) if each else NONE for each in whole]
    table.append(["all entries restore, %", *restored])
    return markdown_table(["way", *(f"{s}, {measure_of(s)}" for s in scenarios)], table)


def _number(found: Any, total: int) -> str:
    text = short_number(found.geometric_mean)
    if found.low < found.high:
        text += f" ({short_number(found.low)} to {short_number(min(found.high, total))})"
    return f"{text}, {found.misses} missed" if found.misses else text


def comparison_text(found: Sequence[Comparison], rows: Rows) -> str:
    """The proposed way against each other one: how many times as many entries, how much nearer."""
    count = tiny_count(rows)
    table = [
        [
            each.scenario,
            plain_name(each.other),
            f"{each.factor:.1f}",
            probability(each.needed_p),
            f"{100 * each.gap.mean:+.1f}",
            probability(each.gap_p),
        ]
        for each in found
    ]
    headings = [
        "scenario",
        "against",
        "times as many entries",
        "p",
        f"points nearer at {count} entries",
        "p ",
    ]
    note = (
        f"`{PROPOSED}` against each other way, on the same poisoned models: how many times as many "
        "entries the other one needs (a geometric mean; what was never reached counts as all "
        f"entries), and how much nearer its forget measure is to the retrained model's at {count} "
        f"entries, the largest number tried of at most {100 * TINY:g} %. p values are those of "
        "paired t tests, corrected by Holm's rule over the column; under 0.05 a difference is "
        "claimed."
    )
    return f"{note}\n\n{markdown_table(headings, table)}" if table else "Nothing to compare."


def all_text(found: Sequence[AgainstAll]) -> str:
    """The proposed way at every number of entries against all entries."""
    table = [
        [
            each.scenario,
            f"{each.entries:,}",
            percent(each.few),
            percent(each.all),
            percent(Interval(each.more.mean, each.more.half_width), signed=True),
            probability(each.p),
            percent(each.test, signed=True),
        ]
        for each in found
    ]
    headings = ["scenario", "entries", "few restore, %", "all restore, %", "difference", "p"]
    note = (
        f"`{PROPOSED}` against all entries, on the same poisoned models: what each restores, and "
        "the test accuracy of the few less that of all, in points. p values are those of paired t "
        "tests of the difference, corrected by Holm's rule over the column."
    )
    table_text = markdown_table([*headings, "test accuracy, points"], table)
    return f"{note}\n\n{table_text}" if table else "Nothing to compare."
