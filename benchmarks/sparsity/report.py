"""The report of the study."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.learning.models import CEILING
from benchmarks.learning.scenarios import problems
from benchmarks.methods.bench import ATTACKED, FULL, REFERENCES
from benchmarks.methods.ways import CHECK_COST, LIKE, PROPOSED, WAYS
from benchmarks.reporting.curves import draw_sparsity
from benchmarks.reporting.needed import (
    GOAL,
    Rows,
    by_seed,
    compare,
    compare_with_all,
    measure_of,
    needed,
    part,
)
from benchmarks.reporting.needed_tables import all_text, comparison_text, needed_table
from benchmarks.reporting.tables import (
    NONE,
    markdown_table,
    percent,
    plain_name,
    short_number,
)
from benchmarks.sparsity.study import Study
from benchmarks.tools.origin import Origin
from benchmarks.tools.page import opening, write_page
from benchmarks.tools.statistics import interval

_FIGURES = ("forget_accuracy", "attack_success")


def write_sparsity(folder: Path, study: Study, trials: Rows, rows: Rows, origin: Origin) -> None:
    """Pictures and pages from what stands in the journals."""
    scenarios = [name for name in study.settings if part(rows, name, 1.0, FULL)]
    if not scenarios:
        return
    any_row = rows[0]
    model = f"{any_row['model']} of {any_row['total_entries']:,} entries"
    title = f"{any_row['dataset']}, {model}"
    if any_row["variant"] != "original":
        title = f"{any_row['dataset']} ({any_row['variant']}), {model}"
    text = [
        f"# How few entries have to change: {title}",
        opening(
            f"The training data, in one of {len(scenarios)} ways. {problems(scenarios)}",
            "Networks that were trained on such data took a few steps of adam in which only so "
            "many entries may change. Which ones, each way below chooses; its control takes random "
            "entries, as many in each leaf.",
            _headline(rows, scenarios),
        ),
        f"Made by `{origin.command}`. Every way takes the same {_steps(rows)} example "
        f"gradients for its steps, {100 * _share(rows):.1f} % of retraining's. Learning rates were "
        f"tuned for every way and every number of entries on {_seeds(study.num_tuning_seeds)} that "
        f"{'is' if study.num_tuning_seeds == 1 else 'are'} not reported, by accuracy on validation "
        f"data and on the corrected examples. {CHECK_COST}",
        "One half of the examples of each step is retained. The other half are corrected "
        "examples, and inputs that had a wrong answer with the right one: a backdoor's images with "
        "the trigger and their own labels. Records to remove are climbed on instead, until their "
        f"loss is {CEILING:g}.",
        "## Recovery against the number of entries",
    ]
    for known in study.known[::-1]:
        shown = [name for name in scenarios if part(rows, name, known, FULL)]
        if not shown:
            continue
        name = f"sparsity-{100 * known:g}.png"
        heading = f"{title}: {100 * known:g} % of the poison known"
        draw_sparsity(folder / name, heading, rows, shown, known, study.ways)
        text += [f"![recovery against the number of entries]({name})"]
        text += [f"## Entries needed, {100 * known:g} % of the poison known"]
        text += [needed_table(rows, shown, known, study.ways)]
        text += [comparison_text(compare(rows, shown, known, study.ways), rows)]
        text += [f"## Few entries against all, {100 * known:g} % of the poison known"]
        text += [all_text(compare_with_all(rows, shown, known))]
    text += ["## Relearning and membership", _attack_table(rows, scenarios, study)]
    text += ["## Where the entries lie", _leaf_table(rows, scenarios, study.attacked)]
    text += ["## The ways", _ways(study.ways), "## Tuning", _edges(trials)]
    write_page(folder, "\n\n".join(text) + "\n")


def _headline(rows: Rows, scenarios: Sequence[str]) -> str:
    total, told = rows[0]["total_entries"], []
    for scenario in scenarios:
        found = needed(rows, scenario, 1.0, PROPOSED)
        if found is None:
            told.append(f"{scenario}: there is nothing to restore")
        elif found.misses:
            told.append(f"{scenario}: on {found.misses} of the seeds no number that was tried")
        else:
            share = 100 * found.geometric_mean / total
            told.append(f"{scenario}: {found.geometric_mean:.0f} entries, {share:.2g} %")
    return (
        f"Entries that restore {100 * GOAL:.0f} % of what an update of all {total:,} entries "
        f"restores, found by `sap.sparsify_update`: {'; '.join(told)}."
    )


def _steps(rows: Rows) -> str:
    return f"{max(row['update_example_gradients'] for row in rows if row['way'] == FULL):,}"


def _share(rows: Rows) -> float:
    row = next(row for row in rows if row["way"] == FULL)
    return row["update_example_gradients"] / row["retrain_example_gradients"]


def _seeds(number: int) -> str:
    return "one seed" if number == 1 else f"{number} seeds"


def _attack_table(rows: Rows, scenarios: Sequence[str], study: Study) -> str:
    table = []
    for scenario in scenarios:
        for way in (*REFERENCES, *(w for w in ATTACKED if w == FULL or w in study.ways)):
            count = 0 if way in (*REFERENCES, FULL) else study.attacked
            own = [
                row
                for row in part(rows, scenario, 1.0, way, count)
                if row.get("membership_entropy") is not None
            ]
            if own:
                judged = next(f for f in _FIGURES if f.startswith(measure_of(scenario)))
                figures = ["test_accuracy", judged, "membership_entropy"]
                figures += ["relearning_signed", "relearning_absolute"]
                means = [percent(interval([row[name] for row in own])) for name in figures]
                entries = short_number(interval([row["changed_entries"] for row in own]).mean)
                for name in ("relearning_retained", "relearning_retained_gap"):
                    found = list(by_seed(own, name).values())
                    means.append(percent(interval(found)) if found else NONE)
                table.append([scenario, plain_name(way), entries, *means])
    headings = ["scenario", "way", "changed", "test accuracy %", "forget or attack %"]
    headings += ["membership AUC %", "relearning, signed %", "relearning, absolute %"]
    headings += ["by retained data, %", "more than retrained, points"]
    text = (
        "Membership: the attack by modified entropy, poisoned examples against unseen ones made "
        "alike; the aim is the retrained model's figure. Relearning: the area between the model's "
        "relearning curve and the retrained model's; 0 is as slow to relearn as that one. By "
        "retained data: what comes back by steps on retained examples alone, and how much more "
        "than with the retrained model; older records have no such figure."
    )
    return f"{text}\n\n{markdown_table(headings, table)}"


def _leaf_table(rows: Rows, scenarios: Sequence[str], count: int) -> str:
    leaves = list(rows[0]["leaves"]) or list(
        next(row["leaves"] for row in rows if row["way"] == FULL)
    )
    table = []
    for scenario in scenarios:
        for way in WAYS:
            own = part(rows, scenario, 1.0, way, count)
            if own:
                means = [interval([row["leaves"].get(leaf, 0) for row in own]) for leaf in leaves]
                table.append([scenario, plain_name(way), *(f"{x.mean:.1f}" for x in means)])
    heading = f"The mean number of entries in each leaf, of {count}."
    return f"{heading}\n\n{markdown_table(['scenario', 'way', *leaves], table)}"


def _ways(ways: Sequence[str]) -> str:
    lines = [f"- `{name}`: {WAYS[name].summary}." for name in WAYS if name in ways]
    control = f"- `{LIKE}…`: the control of a way: random entries, as many in each leaf as it took."
    return "\n".join([*lines, control])


def _edges(trials: Rows) -> str:
    edges = [
        f"{row['scenario']}, {plain_name(row['way'])}, {row['count']}"
        for row in trials
        if row["chosen"] in (row["rates"][0], row["rates"][-1])
    ]
    rates = ", ".join(f"{rate:g}" for rate in trials[0]["rates"]) if trials else ""
    return f"Rates tried: {rates}. {len(edges)} of {len(trials)} choices lie at an edge of these."
