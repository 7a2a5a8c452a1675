"""The sections of the report about few entries and about the patch."""

from collections.abc import Callable

import sapsel_jax as sap
from benchmarks.measures.metrics import ACCURACIES
from benchmarks.methods.bench import FULL
from benchmarks.methods.ways import CHECK_COST, LIKE, PROPOSED, WAYS
from benchmarks.reporting.needed import (
    GOAL,
    Rows,
    compare,
    measure_of,
    needed,
    part,
    restored_by_all,
)
from benchmarks.reporting.needed_tables import comparison_text, needed_table
from benchmarks.reporting.tables import markdown_table, percent, plain_name, short_number
from benchmarks.tools.statistics import interval
from benchmarks.unlearn.comparison import Comparison
from benchmarks.unlearn.sparsity import COMPARED, SHIPPED


def headline(comparison: Comparison) -> str:
    """How many entries are enough, how many their control needs, and what it costs."""
    settings, rows = comparison.settings, comparison.sparsity_rows
    total = rows[0]["total_entries"]
    goal = f"{100 * GOAL:.0f} % of what an update of all {total:,} entries restores"
    about = (rows, settings.scenario, settings.known)
    own, control = needed(*about, PROPOSED), needed(*about, LIKE + PROPOSED)
    num_seeds = len(restored_by_all(*about))
    if own is None or control is None:
        found = "There is too little to restore to say how many entries it takes."
    elif own.misses:
        found = f"On {own.misses} of {num_seeds} seeds no number that was tried restores {goal}."
    else:
        share = 100 * own.geometric_mean / total
        others = f"need {short_number(control.geometric_mean)}"
        if control.misses:
            others = f"do not on {control.misses} of {num_seeds} seeds"
        found = (
            f"{short_number(own.geometric_mean)} entries ({share:.2g} %) restore {goal}; random "
            f"entries, as many in each leaf, {others}."
        )
    parts = _shares(part(rows, settings.scenario, settings.known, PROPOSED))
    return f"{found} Selection costs {parts[0]:.1f} % of retraining and the steps {parts[1]:.1f} %."


def few_entries(comparison: Comparison) -> list[str]:
    """Recovery and test accuracy at every number of entries, and how many entries are enough."""
    settings, rows = comparison.settings, comparison.sparsity_rows
    scenario, known, measure = settings.scenario, settings.known, measure_of(settings.scenario)
    ways = "; ".join(f"`{way}`: {WAYS[way].summary}" for way in COMPARED if way in WAYS)
    return [
        _by_count(comparison, f"{measure} recovery", lambda own: _towards_retraining(own, measure)),
        _by_count(
            comparison,
            "test accuracy",
            lambda own: percent(interval([row["test_accuracy"] for row in own])),
        ),
        "All ways take the same steps of adam, and their learning rates had the same trials for "
        f"each number of entries (`sparsity-tuning.jsonl`). {ways}; `{LIKE}…`: random entries, as "
        f"many in each leaf as that way took. {CHECK_COST}",
        f"Entries that restore {100 * GOAL:.0f} % of what all entries restore: the geometric mean "
        "over the seeds and its 95 % t interval.",
        needed_table(rows, [scenario], known, COMPARED),
        comparison_text(compare(rows, [scenario], known, COMPARED), rows),
    ]


def patch_text(comparison: Comparison) -> list[str]:
    """What the patch does; and which entries it changes, from what to what, if there are any."""
    caption = _patch_caption(comparison)
    if not comparison.patch.num_changed:
        return [caption]
    return [caption, sap.describe_patch(comparison.patch, most=SHIPPED)]


def _patch_caption(comparison: Comparison) -> str:
    settings = comparison.settings
    about = (comparison.sparsity_rows, settings.scenario, settings.known)
    (after,) = (row for row in part(*about, PROPOSED, SHIPPED) if row["seed"] == 1)
    before, aim = (
        next(row for row in part(*about, name) if row["seed"] == 1)
        for name in ("poisoned", "retrained")
    )
    effects = ", ".join(
        f"{short} {100 * before[field]:.1f} to {100 * after[field]:.1f} "
        f"(retrained {100 * aim[field]:.1f})"
        for short, field in ACCURACIES.items()
        if after[field] is not None
    )
    if not comparison.patch.num_changed:
        return (
            f"On seed 1 {plain_name(PROPOSED)} kept the poisoned model: the loss that its steps "
            "descend on had not fallen. The patch changes nothing."
        )
    return (
        f"The patch changes {comparison.patch.num_changed} of "
        f"{comparison.patch.num_entries:,} entries of the poisoned model of seed 1, found by "
        f"{plain_name(PROPOSED)}. In per cent: {effects}."
    )


def _shares(rows: Rows) -> tuple[float, float]:
    """Selection and steps in per cent of retraining's example gradients."""
    whole = sum(row["retrain_example_gradients"] for row in rows)
    selection, steps = (
        100 * sum(row[f"{name}_example_gradients"] for row in rows) / whole
        for name in ("selection", "update")
    )
    return selection, steps


def _by_count(comparison: Comparison, words: str, figure: Callable[[Rows], str]) -> str:
    """A row per way, a column per number of entries."""
    settings, rows = comparison.settings, comparison.sparsity_rows
    counts = sorted({row["count"] for row in rows if row["count"]})
    cell = lambda way, count: figure(part(rows, settings.scenario, settings.known, way, count))
    table = []
    for way in COMPARED:
        name = f"**{plain_name(way)}**" if way == PROPOSED else plain_name(way)
        table.append([name, *(cell(way, count) for count in counts)])
    columns = [f"{words} %, by entries", *map(str, counts)]
    ends = {"poisoned": "poisoned", "retrained": "retrained", "all entries": FULL}
    told = ", ".join(f"{name} {cell(way, 0)}" for name, way in ends.items())
    return f"{markdown_table(columns, table)}\n\n{words.capitalize()}, %: {told}."


def _towards_retraining(own: Rows, short: str) -> str:
    """The recovery in per cent; where too little can be recovered on a seed, Δ and the gap."""
    recoveries = [row[f"{short}_recovery"] for row in own]
    if None not in recoveries:
        return percent(interval(recoveries))
    return f"Δ {percent(interval([row[f'{short}_gap'] for row in own]), signed=True)}"
