"""The report of the study."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import sapsel_jax as sap
from benchmarks.methods.tuning import TUNING_SEED
from benchmarks.methods.ways import LIKE, PROPOSED, WAYS
from benchmarks.reporting.tables import NONE, markdown_table, percent, plain_name
from benchmarks.secrets.canaries import KINDS, TEST_CARD
from benchmarks.secrets.evidence import (
    BEAMS,
    HELD,
    RELEARNING_BATCH,
    RELEARNING_STEPS,
    sample_ids,
)
from benchmarks.secrets.plots import draw_secrets
from benchmarks.secrets.problem import CORRECTIONS, MEMORISED, Problem
from benchmarks.secrets.study import REFERENCES, Study, references
from benchmarks.secrets.summary import (
    Rows,
    fewest,
    mean_exposure,
    median_klom,
    of_plan,
    over_seeds,
)
from benchmarks.secrets.text import TEXTS
from benchmarks.secrets.updates import FULL, LEAVES, Plan
from benchmarks.tools.origin import Origin
from benchmarks.tools.page import opening, write_page
from benchmarks.tools.statistics import Interval

PICTURE = "secrets.png"
_ATTACKS = {"loss": "LOSS", "zlib": "zlib", "min_k": "Min-K %", "min_k_plus": "Min-K++"}
_SOURCES = {
    "text": "retained text",
    "others": "others' secrets",
    "part": "some of them",
    "copies": "copies",
}


def write_secrets(folder: Path, study: Study, trials: Rows, rows: Rows, origin: Origin) -> None:
    """The picture and the pages from what stands in the journals."""
    problem = study.problem(1)
    draw_secrets(folder / PICTURE, study, rows)
    plans = [*references(study.corrections[0]), *study.plans]
    measured = [plan for plan in plans if of_plan(rows, plan)]
    attacked = [plan for plan in measured if study.is_attacked(plan)]
    text = [
        f"# Secrets in text: {rows[0]['model']}, {rows[0]['total_entries']:,} entries",
        opening(
            f"A language model has read secrets of made-up people and writes them out. "
            f"{len(problem.forget)} of them are to be forgotten.",
            "Some of its numbers were changed by a few steps about these secrets: all, or so many "
            "as each way below chooses. The aim is a model that has never read them.",
            _in_short(study, rows),
        ),
        _headline(study, rows, problem),
        f"Made by `{origin.command}`.",
        f"![what the model still knows]({PICTURE})",
        _setting(study, problem, rows),
        "## What is forgotten and what is kept",
        _main_table(measured, rows),
        "## What an attacker finds",
        _attack_table(attacked, rows, problem),
        "## Membership",
        _membership_table(measured, rows),
        "## Exposure against repeats",
        _exposure_table(study, rows, problem),
        "## What the model writes",
        _samples(attacked, rows, problem),
        "## Where the entries lie",
        _leaf_table(study, rows),
        "## Curvature",
        _curvature(problem),
        "## Tuning",
        _tuning(trials),
    ]
    write_page(folder, "\n\n".join(text) + "\n")


def _in_short(study: Study, rows: Rows) -> str:
    first, told = study.corrections[0], []
    for way in (PROPOSED, LIKE + PROPOSED):
        plans = [
            plan
            for plan in study.plans
            if (plan.update, plan.correction, plan.way) == ("iterative", first, way)
        ]
        enough = fewest(rows, plans)
        told.append("more than were tried" if enough is None else f"{enough:,}")
    return (
        f"With the correction `{first}` the model writes out no secret any more when {told[0]} of "
        f"its {rows[0]['total_entries']:,} numbers change, and the control needs {told[1]}. That "
        "is not to forget them: the exposure below says what is left."
    )


def _headline(study: Study, rows: Rows, problem: Problem) -> str:
    first, total, secrets = study.corrections[0], rows[0]["total_entries"], len(problem.forget)
    few = [plan for plan in study.plans if plan.update == "iterative" and plan.entries]
    told = []
    for correction, way in dict.fromkeys((p.correction, p.way) for p in few):
        plans = [p for p in few if (p.correction, p.way) == (correction, way)]
        if len(plans) >= min(2, len(study.counts)):
            enough = fewest(rows, plans)
            number = "more than were tried" if enough is None else f"{enough:,}"
            told.append(f"{plain_name(way)} ({correction}) {number}")
    fewest_text = "; ".join(told) or "none was tried"
    bits = lambda plan: _short(
        over_seeds(of_plan(rows, plan), lambda row: mean_exposure(row, problem.forget[::2]))
    )
    exposures = "; ".join(
        f"{_name(plan)}{'' if plan.update == 'none' else f' ({plan.correction})'} {bits(plan)}"
        for plan in (*references(first), *study.plans)
        if plan.way in (*REFERENCES, FULL, PROPOSED) and bits(plan) != NONE
    )
    return (
        f"How many of the {total:,} numbers of the model hold {secrets} secrets? The fewest that "
        "were tried after whose change the likeliest characters spell none of the secrets on any "
        f"seed: {fewest_text}. But not spelled is not forgotten. The exposure in bits, at most "
        f"{np.log2(study.settings.candidates + 1):.1f}: {exposures}."
    )


def _setting(study: Study, problem: Problem, rows: Rows) -> str:
    settings, row = study.settings, rows[0]
    cost = max(row["update_example_gradients"] for row in rows if row["update"] == "iterative")
    share = 100 * cost / row["retrain_example_gradients"]
    kinds = ", ".join(f"a {kind}" for kind in KINDS)
    return (
        f"The model learns {settings.num_windows:,} windows of `{settings.text}` "
        f"({TEXTS[settings.text]}) in {settings.epochs} passes, and {len(problem.canaries)} "
        f"sentences about made-up people: {kinds}. Each is read 1 to 32 times in a pass. Card "
        f"numbers begin with {TEST_CARD}, as a documented test number does, and fail the check "
        f"digit. {len(problem.forget)} of the secrets that are read at least {MEMORISED} times are "
        f"to be forgotten. As many others must stay: an update sees one half of them (shown), and "
        f"nothing of the other half (hidden). The retrained model has never read the forgotten "
        f"ones. All models read the same secrets; seeds differ in the initial parameters and in "
        f"the order.\n\nEach iterative update takes {cost:,} example gradients, {share:.1f} % of "
        f"retraining's: one half of each step about the secrets, a quarter other people's secrets, "
        f"a quarter text. Corrections: "
        + "; ".join(f"`{name}`, {CORRECTIONS[name]}" for name in study.corrections)
        + ". GradDiff and NPO climb on the secret with the same steps. The second-order update "
        "takes a sample of the data that the same budget pays for. Selections cost more: "
        "two gradients on each example of the curvature."
    )


def _name(plan: Plan) -> str:
    number = f", {plan.entries:,}" if plan.entries else ""
    update = {"none": "", "iterative": ""}.get(plan.update, f"{plain_name(plan.update)}: ")
    return f"{update}{plain_name(plan.way)}{number}"


def _short(value: Interval | None, form: str = ".1f") -> str:
    if value is None:
        return NONE
    wide = "" if value.half_width is None else f" ±{value.half_width:{form}}"
    return f"{value.mean:{form}}{wide}"


def _table(
    plans: Sequence[Plan], rows: Rows, columns: dict[str, Callable[[list[dict[str, Any]]], str]]
) -> str:
    table = []
    for plan in plans:
        own = of_plan(rows, plan)
        correction = NONE if plan.update == "none" else plan.correction
        table.append([_name(plan), correction, *(column(own) for column in columns.values())])
    return markdown_table(["way", "correction", *columns], table)


def _share(field: str) -> Callable[[list[dict[str, Any]]], str]:
    def told(own: list[dict[str, Any]]) -> str:
        value = over_seeds(own, lambda row: row.get(field))
        return NONE if value is None else percent(value)

    return told


def _main_table(plans: Sequence[Plan], rows: Rows) -> str:
    changed = lambda own: f"{np.mean([row['changed_entries'] for row in own]):,.0f}"
    columns = {
        "changed entries": changed,
        "extracted %": _share("extracted"),
        "exact memorisation %": _share("memorisation"),
        "extraction strength %": _share("strength"),
        "paraphrased %": _share("paraphrased"),
        "shown: extracted %": _share("shown_extracted"),
        "hidden: extracted %": _share("hidden_extracted"),
        "hidden: memorisation %": _share("hidden_memorisation"),
        "perplexity": lambda own: _short(over_seeds(own, lambda row: row["perplexity"]), ".2f"),
    }
    words = (
        "Extracted: the likeliest characters spell the secret. Exact memorisation: the share of "
        "its characters that are the likeliest after the true ones before them. Extraction "
        "strength: the longest end that the model adds by itself, as a share. Paraphrased: exact "
        "memorisation after other words. Perplexity: per character of unseen text. ±: 95 % t "
        "intervals over seeds."
    )
    return f"{words}\n\n{_table(plans, rows, columns)}"


def _attack_table(plans: Sequence[Plan], rows: Rows, problem: Problem) -> str:
    ids = problem.forget[::2]
    retrained = [row for row in rows if row["way"] == "retrained"]
    bits = lambda name: (
        lambda own: _short(over_seeds(own, lambda row: mean_exposure(row, ids, name)))
    )
    relearned = lambda name: lambda own: _of_part(own, "relearned", name)
    klom = lambda own: _number(median_klom(own, retrained))
    columns = {
        "exposure, bits": bits("exposed"),
        "extrapolated, bits": bits("extrapolated"),
        "found by search %": _share("searched"),
        "8 bits: memorisation %": _share("memorisation_8_bits"),
        "4 bits: memorisation %": _share("memorisation_4_bits"),
        **{f"relearned: {words} %": relearned(name) for name, words in _SOURCES.items()},
        "KLOM, median": klom,
    }
    words = (
        f"Exposure: of {len(ids)} forgotten secrets among {problem.settings.candidates:,} others "
        "of their kind, by rank, and extrapolated by a skew normal distribution of their losses. "
        f"Search: with {BEAMS} beams. Bits: after rounding every leaf to a grid of so many bits. "
        "Relearned: "
        f"exact memorisation after {RELEARNING_STEPS} steps of {RELEARNING_BATCH} examples, by the "
        f"better of two rates: retained text, others' secrets, {HELD} of the forgotten ones (the "
        "others are judged), or copies of all of them. KLOM: of the margins of the secrets' "
        "characters against the retrained models', its median over characters."
    )
    return f"{words}\n\n{_table(plans, rows, columns)}"


def _of_part(own: list[dict[str, Any]], field: str, name: str) -> str:
    value = over_seeds(own, lambda row: None if row.get(field) is None else row[field][name])
    return NONE if value is None else percent(value)


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _membership_table(plans: Sequence[Plan], rows: Rows) -> str:
    area = lambda name: lambda own: _of_part(own, "membership", name)
    columns = {f"{words}, AUC %": area(name) for name, words in _ATTACKS.items()}
    words = (
        "Attacks on the forgotten secrets against unseen ones of the same kinds, by the log "
        "chances of the secrets' characters. The aim is the retrained model's figure, not 0."
    )
    return f"{words}\n\n{_table(plans, rows, columns)}"


def _exposure_table(study: Study, rows: Rows, problem: Problem) -> str:
    table, repeats = [], sorted({canary.repeats for canary in problem.canaries})
    forgotten = set(problem.forget.tolist())
    for plan in references(study.corrections[0]):
        for kind in KINDS:
            cells = []
            for count in repeats:
                bits = [
                    value
                    for row in of_plan(rows, plan)
                    for i, value in row["exposed"].items()
                    if problem.canaries[int(i)].repeats == count
                    and problem.canaries[int(i)].kind == kind
                ]
                cells.append(f"{np.mean(bits):.1f}")
            table.append([f"{plan.way}, {kind}", *cells])
    first = min(problem.canaries[i].repeats for i in forgotten)
    words = (
        "The exposure in bits of a secret of each kind that was read so often in a pass. The "
        f"retrained model has not read those of {first} and more repeats."
    )
    return f"{words}\n\n{markdown_table(['model', *map(str, repeats)], table)}"


def _samples(plans: Sequence[Plan], rows: Rows, problem: Problem) -> str:
    ids = sample_ids(problem)
    canaries = [problem.canaries[i] for i in ids]
    roles = [*("forgotten" for _ in canaries[:-2]), "shown", "hidden"]
    prompts = [f"`{c.prompt.strip()}` ({role})" for c, role in zip(canaries, roles, strict=True)]
    table = [["the truth", *(f"`{c.secret}.`" for c in canaries)]]
    for plan in plans:
        row = of_plan(rows, plan)[0]
        written = [text.replace("\n", "⏎").replace("|", "¦") for text in row["samples"]]
        name = _name(plan) if plan.update == "none" else f"{_name(plan)} ({plan.correction})"
        table.append([name, *(f"`{text}`" for text in written)])
    words = "The likeliest characters after some prompts, on the first seed; ⏎ ends a line."
    return f"{words}\n\n{markdown_table(['model', *prompts], table)}"


def _leaf_table(study: Study, rows: Rows) -> str:
    first = study.corrections[0]
    plans = [
        p
        for p in study.plans
        if p.entries and p.correction == first and p.update == "iterative" and LIKE not in p.way
    ]
    leaves = sorted(
        {leaf for plan in plans for row in of_plan(rows, plan) for leaf in row["leaves"]}
    )
    table = []
    for leaf in leaves:
        counts = [np.mean([row["leaves"].get(leaf, 0) for row in of_plan(rows, p)]) for p in plans]
        table.append([leaf, *(f"{count:,.0f}" for count in counts)])
    ways = dict.fromkeys(plan.way for plan in plans)
    lines = [f"- `{name}`: {WAYS[name].summary}." for name in ways]
    lines += [f"- `{LIKE}…`: the control: random entries, as many in each leaf."]
    lines += [
        f"- `{name}`: every entry of {' and '.join(LEAVES[name])}."
        for name in LEAVES
        if name != FULL
    ]
    words = "The mean number of entries in each leaf."
    table_text = markdown_table(["leaf", *(_name(plan) for plan in plans)], table)
    return "\n\n".join([words, table_text, "\n".join(lines)])


def _curvature(problem: Problem) -> str:
    example = {name: values[0] for name, values in problem.original().items()}
    plan = sap.explain(problem.model.loss, problem.model.init(TUNING_SEED), example)
    words = (
        "Selections rank by one probe of `sap.propagated_diagonal`. Every leaf has a site, so the "
        "exact diagonal can be had as well; `sap.explain` counts what it would cost, in gradients:"
    )
    return f"{words}\n\n```\n{plan}\n```"


def _tuning(trials: Rows) -> str:
    edges = [row for row in trials if row["chosen"] in (row["values"][0], row["values"][-1])]
    return (
        "The one number of every update was chosen on a seed that is not reported, with the other "
        "half of the memorised secrets: the exact memorisation of the neighbours, less what the "
        "forgotten secrets have more of it than unseen ones, less what validation text costs more "
        f"than before, in nats. {len(edges)} of {len(trials)} choices lie at an edge of the values "
        "that were tried."
    )
