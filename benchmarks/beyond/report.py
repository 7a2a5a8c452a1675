"""The report of the study."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.beyond.study import ALL, TOLERATED, Study
from benchmarks.learning.scenarios import problems
from benchmarks.methods.bench import REFERENCES
from benchmarks.reporting.needed import Rows, by_seed, measure_of
from benchmarks.reporting.tables import NONE, markdown_table, percent, plain_name, probability
from benchmarks.tools.origin import Origin
from benchmarks.tools.page import opening, write_page
from benchmarks.tools.statistics import Interval, PairedDifference, holm, interval, paired_test

CLAIMED = 0.05
"""The corrected p value under which a difference is claimed."""


class Contest(NamedTuple):
    """An idea against its control, on the same poisoned models."""

    scenario: str
    idea: str
    control: str
    size: int
    figure: str
    better: PairedDifference
    """By how much the idea is better; below 0 it is worse."""
    p: float
    """Its p value by Holm's rule over the report."""


def write_beyond(folder: Path, study: Study, trials: Rows, rows: Rows, origin: Origin) -> None:
    """Pages from what stands in the journals."""
    contests = find_contests(study, rows)
    any_row = rows[0]
    variant = "" if any_row["variant"] == "original" else f" ({any_row['variant']})"
    title = f"{any_row['dataset']}{variant}, {any_row['model']}"
    budget = f"{100 * study.settings.budget:g} % of retraining's example gradients"
    text = [
        f"# Beyond masks of entries: {title}",
        opening(
            "The training data. " + problems(list(dict.fromkeys(s for s, _ in study.problems))),
            "Networks that were trained on such data were corrected by other ideas than a choice "
            "of entries, each beside its control on the same networks.",
            _in_short(contests),
        ),
        verdict(contests),
        f"Made by `{origin.command}`. The steps of an idea take at most {budget}; the projection "
        "takes none. The number that is tuned was chosen on seeds that are not reported, by "
        "accuracy on validation data and on the corrected examples. An idea against relearning "
        f"takes the largest value whose objective is at most {100 * TOLERATED:g} points below the "
        "best one.",
    ]
    for scenario, known in study.problems:
        text += [f"## {scenario}, {100 * known:g} % of the poison known"]
        text += [_figures(study, rows, scenario, known)]
    text += ["## Against the controls", _contests(contests), "## The ideas", _ideas(study)]
    text += ["## Tuning", _tuning(trials)]
    write_page(folder, "\n\n".join(text) + "\n")


def _in_short(contests: Sequence[Contest]) -> str:
    pairs = dict.fromkeys((each.idea, each.control) for each in contests)
    shown = [each for each in contests if each.p < CLAIMED and each.better.mean > 0]
    ideas = dict.fromkeys(f"{plain_name(c.idea)} against {plain_name(c.control)}" for c in shown)
    return (
        f"In {len(ideas)} of {len(pairs)} comparisons with a control an idea is shown to be better"
        f"{': ' * bool(ideas)}{', '.join(ideas)}."
    )


def find_contests(study: Study, rows: Rows) -> list[Contest]:
    """Every idea that has a control, wherever both were measured."""
    found = []
    for scenario, known in study.problems:
        for name, size in study.cases(scenario, known):
            figure, sign = judged(name, scenario)
            own = by_seed(part(rows, scenario, known, name, size), figure)
            for control in ALL[name].controls:
                other = by_seed(part(rows, scenario, known, control, size), figure)
                seeds = sorted(own.keys() & other.keys())
                if seeds:
                    pairs = [[sign * each[seed] for seed in seeds] for each in (own, other)]
                    about = (scenario, name, control, size, figure)
                    found.append(Contest(*about, paired_test(*pairs), 1.0))
    ps = holm([each.better.p_value for each in found])
    return [each._replace(p=p) for each, p in zip(found, ps, strict=True)]


def judged(idea: str, scenario: str) -> tuple[str, int]:
    """The figure that an idea is judged by, and 1 where more of it is better, else -1."""
    if ALL[idea].judged_by == "relearning":
        return "relearning_signed", -1
    return f"{measure_of(scenario)}_recovery", 1


def part(rows: Rows, scenario: str, known: float, idea: str | None, size: int) -> Rows:
    """The rows of one idea at one size."""
    wanted = (scenario, known, idea, size)
    return [
        row for row in rows if (row["scenario"], row["known"], row["idea"], row["size"]) == wanted
    ]


def verdict(contests: Sequence[Contest]) -> str:
    """Which ideas beat their control and which do not, a line each."""
    lines = []
    for name, control in dict.fromkeys((each.idea, each.control) for each in contests):
        own = [each for each in contests if (each.idea, each.control) == (name, control)]
        won = [each for each in own if each.p < CLAIMED and each.better.mean > 0]
        lost = [each for each in own if each.p < CLAIMED and each.better.mean < 0]
        where = lambda some: ", ".join(map(_place, some))
        words = f"better on {where(won)}" if won else "nowhere shown to be better"
        words += f", worse on {where(lost)}" if lost else ""
        lines.append(f"- **{plain_name(name)}** against {plain_name(control)}: {words}.")
    return "\n".join(lines)


def _place(contest: Contest) -> str:
    return contest.scenario + (f" at {contest.size}" if contest.size else "")


def _figures(study: Study, rows: Rows, scenario: str, known: float) -> str:
    recovered, gap = f"{measure_of(scenario)}_recovery", "test_gap"
    fields = (recovered, gap, "relearning_signed", "relearning_retained_gap", "changed_entries")
    table = []
    for name, size in [*((name, 0) for name in REFERENCES), *study.cases(scenario, known)]:
        own = part(rows, scenario, known, name, size)
        means = [_mean(own, field) for field in fields]
        shown = [NONE if each is None else percent(each) for each in means[:-1]]
        changed = NONE if means[-1] is None else f"{means[-1].mean:,.0f}"
        table.append([plain_name(name), str(size) if size else NONE, *shown, changed])
    headings = ["idea", "size", f"{measure_of(scenario)} recovery, %", "test gap, points"]
    headings += ["relearning, %", "by retained data, points", "changed entries"]
    note = (
        "Means over the seeds with 95 % t intervals. Relearning: the signed area between the "
        "model's relearning curve and the retrained model's, below 0 where the model is slower to "
        "relearn. By retained data: how much more of the poison comes back by steps on retained "
        "examples than with the retrained model."
    )
    return f"{note}\n\n{markdown_table(headings, table)}"


def _mean(rows: Rows, field: str) -> Interval | None:
    values = list(by_seed(rows, field).values())
    return interval(values) if values else None


def _contests(contests: Sequence[Contest]) -> str:
    table = [
        [
            each.scenario,
            plain_name(each.idea),
            plain_name(each.control),
            str(each.size) if each.size else NONE,
            plain_name(each.figure.removesuffix("_signed")),
            percent(Interval(each.better.mean, each.better.half_width), signed=True),
            probability(each.p),
        ]
        for each in contests
    ]
    headings = ["scenario", "idea", "control", "size", "figure", "better by, points", "p"]
    note = (
        "Paired over the same poisoned models; p values are those of t tests, corrected by Holm's "
        f"rule over the table. Under {CLAIMED:g} a difference is claimed."
    )
    return f"{note}\n\n{markdown_table(headings, table)}" if table else "Nothing to compare."


def _ideas(study: Study) -> str:
    return "\n".join(
        f"- `{name}`: {ALL[name].summary} ({ALL[name].tuned} tuned)." for name in study.ideas
    )


def _tuning(trials: Rows) -> str:
    table = [
        [row["scenario"], plain_name(row["idea"]), row["size"] or NONE, f"{row['chosen']:g}"]
        for row in trials
    ]
    return markdown_table(["scenario", "idea", "size", "chosen"], table)
