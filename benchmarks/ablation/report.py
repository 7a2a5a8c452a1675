"""The report of the study: what holds, in numbers, and all that it rests on."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.ablation.findings import Comparison, Findings
from benchmarks.ablation.sections import defaults_section, stability_section
from benchmarks.ablation.stability import FRACTION
from benchmarks.ablation.study import Part
from benchmarks.measures.summary import ACCURACIES
from benchmarks.methods.rankings import LIKE, PER_LEAF, RANKED, summary
from benchmarks.methods.tuning import TUNING_SEED
from benchmarks.methods.updates import STUDIED_UPDATES
from benchmarks.reporting.tables import (
    SHORT_TITLES,
    markdown_table,
    percent,
    plain_name,
    short_number,
)
from benchmarks.tools.origin import Origin
from benchmarks.tools.page import opening
from benchmarks.tools.statistics import Interval


class Study(NamedTuple):
    """All that a report is made of."""

    parts: dict[str, Part]
    findings: list[Findings]
    trials: list[dict[str, Any]]
    cells: list[dict[str, Any]]
    overlaps: dict[tuple[str, str], Interval]
    """Of masks, by method and kind of change; empty where it was not measured."""
    steady: list[str]
    """The parts that the overlaps are from."""
    defaults: list[dict[str, Any]]


def study_markdown(study: Study, pictures: Sequence[str], origin: Origin) -> str:
    """The report in Markdown, with the pictures as links to files beside it."""
    shown = {picture.partition(".")[0]: f"![{picture}]({picture})" for picture in pictures}
    parts = [
        "# Which parameters to change",
        opening(
            "The training data: false labels or a backdoor, all of them known or a tenth.",
            "Models were trained on such data, some of their parameters were selected, and an "
            "update changed those alone. A ranking that is worth its curvature must do better than "
            "random parameters with the same count in each leaf: its control, which shares its "
            "choice of layers. Only what survives that comparison, corrected for the number of "
            "comparisons, is claimed here.",
            _in_short(study).partition("\n")[0].removeprefix("- "),
        ),
        "## In short",
        _in_short(study),
    ]
    if "gains" in shown:
        parts.append(shown["gains"])
    parts += ["## Where a ranking beats its control", _survivors(study)]
    parts += ["## Against the last layer and all parameters", _whole(study)]
    for found in study.findings:
        part = study.parts[found.part]
        parts += [f"## {part.title}", _ends(found, part), shown[f"recovery-{found.part}"]]
        parts += [_controlled_table(found), _figures_table(found)]
    if study.overlaps:
        parts += [
            "## How steady the masks are",
            stability_section(study.overlaps),
            shown["stability"],
        ]
    if study.defaults:
        parts += [
            "## The options of the second-order update",
            defaults_section(study.defaults, study.parts),
        ]
    parts += ["## How it was run", _how(study, origin)]
    return "\n\n".join(parts) + "\n"


def _in_short(study: Study) -> str:
    """How often each ranking beats its control, by update, and what the paper's claims come to."""
    everything = [c for f in study.findings for c in f.controlled]
    whole = [c for f in study.findings for c in f.whole if c.method == "sharpest"]
    sharpest = [c for c in everything if c.method == "sharpest"]
    rows = []
    for method in RANKED:
        own = [c for c in everything if c.method == method]
        by_update = [_tally([c for c in own if c.update == update]) for update in STUDIED_UPDATES]
        row = [plain_name(method), *by_update, _tally(own)]
        rows.append([f"**{cell}**" if method == "sharpest" else cell for cell in row])
    columns = ["better / worse / all", *(SHORT_TITLES[u] for u in STUDIED_UPDATES), "together"]
    claims = [
        f"The sharpest parameters against random ones with the same count in each leaf: "
        f"{_verdict(sharpest)}.",
        *(
            f"The sharpest parameters against {words}: "
            f"{_verdict([c for c in whole if c.other == other])}."
            for other, words in (("last_layer", "the last layer"), ("full", "all parameters"))
        ),
        f"Every ranking against its control, over {len(study.findings)} parts, all fractions and "
        f"updates: {_verdict(everything)}.",
    ]
    return "\n\n".join(["\n".join(f"- {claim}" for claim in claims), markdown_table(columns, rows)])


def _verdict(comparisons: Sequence[Comparison]) -> str:
    better, worse = _surviving(comparisons)
    mean = 100 * sum(c.difference.mean for c in comparisons) / len(comparisons)
    return (
        f"better in {better:,} of {len(comparisons):,} comparisons, worse in {worse:,}, "
        f"undecided in the others; {mean:+.1f} points on average"
    )


def _surviving(comparisons: Sequence[Comparison]) -> tuple[int, int]:
    """How many are better and how many are worse, after the correction."""
    gains = [c.difference.mean for c in comparisons if c.survives]
    return sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)


def _tally(comparisons: Sequence[Comparison]) -> str:
    return " / ".join(map(str, (*_surviving(comparisons), len(comparisons))))


def _survivors(study: Study) -> str:
    """The surviving gains, the largest first."""
    gains = sorted(
        (c for f in study.findings for c in f.controlled if c.survives and c.difference.mean > 0),
        key=lambda c: -c.difference.mean,
    )
    if not gains:
        return "Nowhere: no comparison survives the correction."
    found = {f.part: f for f in study.findings}
    rows = []
    for c in gains:
        cell, control = (c.method, c.fraction, c.update), (c.other, c.fraction, c.update)
        recoveries = found[c.part].recoveries
        rows.append(
            [
                f"{study.parts[c.part].title}: {SHORT_TITLES[c.update]}, "
                f"{plain_name(c.method)} {100 * c.fraction:g} %",
                percent(recoveries[cell]),
                percent(recoveries[control]),
                percent(Interval(*c.difference[:2]), signed=True),
                f"{c.corrected:.2g}",
            ]
        )
    columns = ["where", "recovery %", "its control's %", "difference in points", "corrected p"]
    return markdown_table(columns, rows)


def _whole(study: Study) -> str:
    """The paper's other claim: at least as good as the last layer and as everything."""
    rows = []
    for f in study.findings:
        fraction = min(f.fractions, key=lambda x: abs(x - FRACTION))
        for update in f.updates:
            own = {
                (c.method, c.other): c
                for c in f.whole
                if c.update == update and c.fraction == fraction
            }
            best = max(RANKED, key=lambda m: f.recoveries[m, fraction, update].mean)
            rows.append(
                [
                    f"{study.parts[f.part].title}: {SHORT_TITLES[update]}",
                    percent(f.recoveries["full", None, update]),
                    percent(f.recoveries["last_layer", None, update]),
                    percent(f.recoveries["sharpest", fraction, update]),
                    *(_difference(own["sharpest", other]) for other in ("last_layer", "full")),
                    f"{plain_name(best)} {percent(f.recoveries[best, fraction, update])}",
                ]
            )
    columns = ["where", "all %", "last layer %", f"sharpest {100 * FRACTION:g} %"]
    columns += ["less last layer", "less all", "best ranking"]
    return "\n\n".join(
        [
            f"Recoveries with {100 * FRACTION:g} % of the parameters, and paired differences in "
            "points of the judging figure; bold survives Holm's correction over the part's "
            "comparisons with the two. The best ranking is picked by the figures it is shown "
            "with, so it is no claim.",
            markdown_table(columns, rows),
            "What does better than all parameters at any share, and survives the correction:",
            "\n".join(_better_than_all(study)) or "Nothing.",
        ]
    )


def _better_than_all(study: Study) -> list[str]:
    """The gains over the full update that are to be claimed, the largest first."""
    gains = [c for f in study.findings for c in f.whole if c.other == "full" and c.survives]
    gains = sorted((c for c in gains if c.difference.mean > 0), key=lambda c: -c.difference.mean)
    return [
        f"- {study.parts[c.part].title}: {SHORT_TITLES[c.update]}, {plain_name(c.method)} "
        f"{100 * c.fraction:g} %: {percent(Interval(*c.difference[:2]), signed=True)} points, "
        f"corrected p {c.corrected:.2g}"
        for c in gains
    ]


def _difference(comparison: Comparison) -> str:
    text = percent(Interval(*comparison.difference[:2]), signed=True)
    return f"**{text}**" if comparison.survives else text


def _ends(found: Findings, part: Part) -> str:
    s = part.settings
    both = "; ".join(
        f"{words} {percent(found.poisoned[name])} poisoned, {percent(found.retrained[name])} "
        "retrained"
        for words, name in ACCURACIES.items()
        if name in found.poisoned
    )
    known = "" if s.known == 1 else f", {100 * s.known:g} % of them known and corrected"
    return (
        f"{100 * s.poison_share:g} % of the training examples are poisoned{known}. "
        f"Accuracies in per cent: {both}. {found.num_seeds} seeds."
    )


def _controlled_table(found: Findings) -> str:
    own = {(c.method, c.fraction, c.update): c for c in found.controlled}
    rows = [
        [
            f"{plain_name(method)} {100 * fraction:g} %",
            *(
                f"{percent(found.recoveries[method, fraction, update])} "
                f"({_difference(own[method, fraction, update])})"
                for update in found.updates
            ),
        ]
        for method in RANKED
        for fraction in found.fractions
    ]
    columns = ["recovery % (points above the control)"]
    columns += [SHORT_TITLES[update] for update in found.updates]
    return markdown_table(columns, rows)


def _figures_table(found: Findings) -> str:
    """The figures themselves, for the sharpest entries and what they are measured against."""
    fraction = min(found.fractions, key=lambda x: abs(x - FRACTION))
    names = [("sharpest", fraction), (f"{LIKE}sharpest", fraction), ("random", fraction)]
    names += [("last_layer", None), ("full", None)]
    shares = [name for name in ACCURACIES.values() if name in found.poisoned]
    rows = [
        [
            f"{SHORT_TITLES[update]}, {plain_name(method)}",
            *(percent(found.figures[method, share, update][name]) for name in shares),
            short_number(found.figures[method, share, update]["changed_entries"].mean),
        ]
        for update in found.updates
        for method, share in names
    ]
    columns = [f"figures at {100 * fraction:g} %"]
    columns += [f"{name.replace('_', ' ')} %" for name in shares]
    return markdown_table([*columns, "changed entries"], rows)


def _how(study: Study, origin: Origin) -> str:
    parts = [study.parts[f.part] for f in study.findings]
    first = next(iter(study.parts.values())).settings
    trials = "; ".join(
        f"{name}: {update.tuned} in {', '.join(f'{v:g}' for v in update.trials)}"
        for name, update in STUDIED_UPDATES.items()
    )
    edge = sum(row["at_edge"] for row in study.trials)
    rankings = "; ".join(f"`{name}`: {summary(name)}" for name in RANKED)
    sizes = "; ".join(
        f"{part.title}: {part.settings.train_examples or 'all'} training examples, fractions "
        f"{', '.join(f'{100 * f:g} %' for f in part.fractions)}, {found.num_seeds} seeds"
        for part, found in zip(parts, study.findings, strict=True)
    )
    names = [found.part for found in study.findings]
    missing = [part.title for name, part in study.parts.items() if name not in names]
    left_out = f" Not measured: {'; '.join(missing)}." if missing else ""
    steady = "; ".join(study.parts[name].title for name in study.steady) or "none"
    return "\n".join(
        [
            f"- Command: `{origin.command}`",
            "- Figure: the mean of test accuracy, accuracy on the corrected examples and, for "
            "backdoors, the share of attacks that fail. Recovery: (after − poisoned) / (retrained "
            "− poisoned) of that figure. One figure a cell, so that one test a cell is made: a "
            "paired t test over seeds, Holm's correction over all rankings, fractions and updates "
            "of a part. Tuned values are taken as given: the tests do not know how another tuning "
            "seed would have chosen.",
            f"- Rankings: {rankings}. Δ is the change of the mean gradient by the corrections. "
            f"`{LIKE}X`: {summary(LIKE + 'X').replace('`X`', 'X')}. "
            f"Fractions of `{PER_LEAF}` are taken in every leaf.",
            f"- Tuning: every method, control and fraction has the same trials, judged by "
            f"validation accuracy + corrected-forget accuracy on seed {TUNING_SEED}, which is not "
            f"reported, then frozen; neither test data nor the retrained model is looked at. "
            f"Trials: {trials}. {edge} of {len(study.trials)} choices lie at an edge of them.",
            f"- Curvature: exact diagonal of the Hessian on at most {first.curvature_examples:,} "
            "random training examples; second-order updates: one Newton step on as many of the "
            "training set as it should have been, damping raised where a step does not hold.",
            f"- Iterative updates: adam, {100 * first.budget:g} % of retraining's example "
            "gradients; half of each batch retained examples, or none.",
            "- Costs in `results.jsonl`: `selection_example_gradients` is counted, the curvature "
            "as what `sap.explain` predicts from the operations of the loss, other evidence by its "
            "passes; rows of earlier versions hold a ratio of times there. `selection_seconds` is "
            "measured.",
            f"- Sizes: {sizes}.{left_out} Masks compared after a change: {steady}.",
            f"- Software: {origin.versions('Python', 'jax', 'flax', 'optax', 'numpy')}.",
        ]
    )
