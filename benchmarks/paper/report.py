"""The report of the comparison, for someone who has never seen the project."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning.scenarios import SCENARIOS, problems
from benchmarks.methods.case import make_case
from benchmarks.methods.curvature import estimator, measured_gradients
from benchmarks.methods.evidence import (
    HELD_SHARE,
    RELEARNING_BATCH,
    RELEARNING_STEPS,
    STEP_SIZES,
)
from benchmarks.methods.tuning import TUNING_SEED
from benchmarks.methods.updates import as_batch
from benchmarks.paper.contest import REFERENCES, Arm, Contest
from benchmarks.paper.figures import area_text, figures_table
from benchmarks.paper.plots import draw_paper
from benchmarks.paper.problems import CURVATURE_GRADIENTS, curvature_examples
from benchmarks.paper.procedures import PROCEDURES, PROPOSED
from benchmarks.paper.summary import (
    CLAIMS,
    FORGET_GOAL,
    FORGET_MEASURE,
    TEST_GOAL,
    Comparison,
    Rows,
    against_rivals,
    claims,
    of,
    reached,
    standing,
    standings,
)
from benchmarks.reporting.tables import (
    NONE,
    WORDS,
    markdown_table,
    percent,
    plain_name,
    short_number,
    towards_retraining,
)
from benchmarks.tools.folders import write_whole
from benchmarks.tools.origin import Origin
from benchmarks.tools.page import opening, write_page
from benchmarks.tools.statistics import Interval


def find_facts(contest: Contest) -> dict[str, Any]:
    """What the report tells of the network and of the data, beside the rows."""
    first = next(iter(contest.settings.values()))
    case = make_case(first, TUNING_SEED, contest.cache)
    budget = int(contest.arms[0].budget * case.retrain_example_gradients)
    num_examples = len(case.dataset.train.labels)
    num_timed = min(curvature_examples(budget), num_examples)
    sample = as_batch(case.dataset.train.take(np.arange(num_timed)))
    return {
        "description": case.model.description,
        "model": case.model.name,
        "examples": num_examples,
        "timed_examples": num_timed,
        "measured_gradients": measured_gradients(case.model, case.params, sample),
    }


def write_paper(folder: Path, contest: Contest, trials: Rows, rows: Rows, origin: Origin) -> None:
    """Writes pictures, `table.md`, `report.md` and `report.html` into `folder`."""
    pictures = draw_paper(folder, contest, rows)
    scenarios = [s for s in contest.settings if any(row["scenario"] == s for row in rows)]
    goals = _goals(rows, scenarios, contest.arms)
    write_whole(folder / "table.md", goals + "\n")
    parts = [
        *_opening(contest, scenarios, rows, origin.facts["description"]),
        "## In short",
        goals,
        _plain_findings(rows, scenarios, contest.arms),
        "## What was poisoned",
    ]
    for scenario in scenarios:
        parts += [f"![{scenario}]({pictures[f'images {scenario}']})", _poisoning(scenario)]
    parts += ["## How far each procedure is from retraining", f"![gaps]({pictures['gaps']})"]
    parts.append(
        "Orange and green: selection by curvature, with and without the gradient. Blue: the others."
    )
    for scenario in scenarios:
        parts += [f"### {scenario}", figures_table(rows, scenario, contest.arms)]
    parts += [_reading(), "## Relearning", _relearning_words()]
    parts += [f"![relearning]({pictures['relearning']})", "All attackers alike, see above."]
    if "frontier" in pictures:
        parts += ["## The frontier", f"![frontier]({pictures['frontier']})"]
        parts.append("Each point was tuned by itself, with eight trials. Bars: 95 % t intervals.")
    if len(contest.known) > 1:
        parts += ["## Only a part of the poison known", _known(contest, rows, scenarios)]
    parts += ["## The paper's claims, pair by pair", _claims(rows, scenarios, contest.arms)]
    parts += ["## Procedures and their tuning", _tuning(contest, trials, scenarios)]
    parts += ["## How it was run", _how(contest, scenarios[0], rows, origin)]
    write_page(folder, "\n\n".join(parts) + "\n")


def _opening(contest: Contest, scenarios: Sequence[str], rows: Rows, description: str) -> list[str]:
    settings, main = contest.settings[scenarios[0]], contest.arms[0]
    seeds = max(len({r["seed"] for r in rows if r["scenario"] == s}) for s in scenarios)
    return [
        f"# Unlearning on {settings.dataset}: selection by curvature against every baseline",
        opening(
            f"A part of the training data. {problems(scenarios)}",
            f"A network was trained on such data. Every procedure below then got the same "
            f"{100 * main.budget:g} % of the example gradients that training from scratch costs, "
            "the search for what to change included, to make up for it. The aim is the model that "
            "was trained from scratch on the data as it should have been.",
            _plain_findings(rows, scenarios, contest.arms).partition("\n")[0].removeprefix("- "),
        ),
        f"The goal is stated for `{PROPOSED}`, which takes {PROCEDURES[PROPOSED].summary}, and "
        "corrects those alone by steps of adam.",
        f"{description}, {rows[0]['total_entries']:,} parameters, data variant "
        f"{rows[0]['variant']}. A mask selects {100 * main.fraction:g} % of the parameters. "
        f"{seeds} {'seed' if seeds == 1 else 'seeds'}; ± is the half width of a 95 % t interval.",
    ]


def _goals(rows: Rows, scenarios: Sequence[str], arms: Sequence[Arm]) -> str:
    """The goal for the proposed procedure, and how far it is from it."""
    arm = next(arm for arm in arms if arm.method == PROPOSED)
    rivals = {(c.scenario, c.measure): c for c in against_rivals(rows, scenarios, arms)}
    columns = ["scenario", "measure", "poisoned", plain_name(PROPOSED), "retrained"]
    columns += ["recovery %", "goal", "best other", "nearer by, points"]
    table = []
    for scenario in scenarios:
        lines = {s.method: s.line for s in standings(rows, scenario, [arm])}
        if PROPOSED not in lines:
            continue
        for short, goal in ((FORGET_MEASURE[scenario], FORGET_GOAL), ("test", TEST_GOAL)):
            line = lines[PROPOSED]
            met = reached(line, short, goal)
            rival = rivals.get((scenario, short))
            table.append(
                [
                    scenario,
                    WORDS[short],
                    *(
                        percent(lines[name].accuracies[short])
                        for name in ("poisoned", PROPOSED, "retrained")
                    ),
                    towards_retraining(line, short),
                    f"{100 * goal:g} %: {'**reached**' if met else 'missed'}",
                    plain_name(rival.other) if rival else NONE,
                    _difference(rival),
                ]
            )
        rival = rivals.get((scenario, "relearning"))
        own = standing(of(rows, scenario, arm)).relearning
        table.append(
            [
                scenario,
                "relearning area",
                NONE,
                NONE if own is None else area_text(own),
                "0",
                NONE,
                NONE,
                plain_name(rival.other) if rival else NONE,
                _difference(rival),
            ]
        )
    return markdown_table(columns, table)


def _difference(comparison: Comparison | None) -> str:
    if comparison is None:
        return NONE
    mean, half_width, _ = comparison.difference
    text = percent(Interval(mean, half_width), signed=True)
    return f"**{text}**" if comparison.verdict == "nearer" else text


def _plain_findings(rows: Rows, scenarios: Sequence[str], arms: Sequence[Arm]) -> str:
    """What the tests say, in sentences made from them."""
    found = claims(rows, scenarios, arms)
    rivals = against_rivals(rows, scenarios, arms)
    count = lambda verdict, some: sum(c.verdict == verdict for c in some)
    nearest = ", ".join(
        f"`{max(others, key=lambda s: s.tug_of_war.mean).method}` ({scenario})"
        for scenario in scenarios
        if (others := standings(rows, scenario, arms)[len(REFERENCES) :])
    )
    worse = sum(
        width is not None and mean + width < 0 for mean, width, _ in (c.difference for c in rivals)
    )
    met = _num_reached(rows, scenarios, arms)
    sentences = [
        f"- The goal for `{PROPOSED}`, to restore {100 * FORGET_GOAL:g} % of the forget measure "
        f"and {100 * TEST_GOAL:g} % of the test accuracy, is reached in {met} of "
        f"{2 * len(scenarios)} cases.",
        f"- Nearest to retraining over forget, retained and test examples together: {nearest}.",
        f"- `{PROPOSED}` against the best other procedure of each cell: nearer to retraining in "
        f"{count('nearer', rivals)}, further in {count('further', rivals)} and without a shown "
        f"difference in {count('no difference shown', rivals)} of {len(rivals)} cells. By the "
        f"intervals, which are not corrected for their number, it is further in {worse}.",
    ]
    for (method, other), claim in CLAIMS.items():
        some = [c for c in found if c.method == method and c.other == other]
        if some:
            sentences.append(
                f"- That {claim}: `{method}` is nearer to retraining than `{other}` in "
                f"{count('nearer', some)}, further in {count('further', some)} and without a shown "
                f"difference in {count('no difference shown', some)} of {len(some)} cells."
            )
    sentences.append(
        "- A difference counts as shown where its p value is under 0.05 after Holm's correction "
        "over the whole table. With few seeds only large differences can be shown: no difference "
        "shown is not the same as none. Nearer by: positive where the first procedure is nearer to "
        "the retrained model."
    )
    return "\n".join(sentences)


def _num_reached(rows: Rows, scenarios: Sequence[str], arms: Sequence[Arm]) -> int:
    arm = next(arm for arm in arms if arm.method == PROPOSED)
    met = 0
    for scenario in scenarios:
        if part := of(rows, scenario, arm):
            line = standing(part).line
            met += reached(line, FORGET_MEASURE[scenario], FORGET_GOAL) is True
            met += reached(line, "test", TEST_GOAL) is True
    return met


def _poisoning(scenario: str) -> str:
    spec = SCENARIOS[scenario]
    attack = f" Attack success: {spec.attack}." if spec.attack else ""
    return (
        f"**{scenario}.** {100 * spec.share:g} % of the training examples: {spec.summary}. Forget "
        f"accuracy: {spec.forget}.{attack}"
    )


def _reading() -> str:
    return "\n".join(
        [
            "- Bold: the nearest to the retrained model among all procedures, by the mean.",
            "- recovery: (after − poisoned) / (retrained − poisoned); where a seed's gap is under "
            "1 point or 2 standard errors, the difference to the retrained model in points, Δ.",
            "- tug-of-war: the product of 1 − |gap| over forget, retained and test accuracy.",
            "- membership: area under the curve of an attack by modified entropy that tells the "
            "poisoned examples from unseen ones made alike; the retrained model's is the aim.",
            "- relearning area: between its relearning curve and the retrained model's, in points.",
            "- cost: example gradients of selection and update over those of retraining.",
            "- seconds: selection and update, after compilation, on a shared machine; those of "
            "retrained are one training.",
        ]
    )


def _relearning_words() -> str:
    return (
        f"The attacker holds some of the poisoned examples, out of {100 * HELD_SHARE:g} % of them, "
        f"and fine-tunes for {RELEARNING_STEPS} steps of adam in batches of {RELEARNING_BATCH}, "
        f"with the best of the step sizes {', '.join(f'{s:g}' for s in STEP_SIZES)} for each "
        "model. The rate is that of the original, poisoned targets on the others."
    )


def _known(contest: Contest, rows: Rows, scenarios: Sequence[str]) -> str:
    shares = sorted(contest.known)
    columns = ["procedure"]
    columns += [f"{s}, {100 * share:g} %" for s in scenarios for share in shares]
    table = []
    for arm in contest.arms:
        cells = [plain_name(arm.method)]
        for scenario in scenarios:
            for share in shares:
                part = of(rows, scenario, arm, share)
                short = FORGET_MEASURE[scenario]
                cells.append(towards_retraining(standing(part).line, short) if part else NONE)
        table.append(cells)
    return "\n\n".join(
        [
            "Recovery of the forget measure over all poisoned examples, where only a part of them "
            "was known and the others stayed among the retained ones. Tuned with all of them "
            "known.",
            markdown_table(columns, table),
        ]
    )


def _claims(rows: Rows, scenarios: Sequence[str], arms: Sequence[Arm]) -> str:
    columns = ["procedure", "against", "scenario", "measure", "nearer by, points", "p", "verdict"]
    table = [
        [
            plain_name(c.method),
            plain_name(c.other),
            c.scenario,
            WORDS[c.measure],
            _difference(c),
            f"{c.corrected:.3f}",
            c.verdict,
        ]
        for c in claims(rows, scenarios, arms)
    ]
    return "\n\n".join(
        [
            "Paired over the same poisoned models; p after Holm's rule.",
            markdown_table(columns, table),
        ]
    )


def _tuning(contest: Contest, trials: Rows, scenarios: Sequence[str]) -> str:
    chosen = {
        (row["scenario"], row["method"]): row
        for row in trials
        if Arm(row["method"], row["fraction"], row["budget"]) in contest.arms
    }
    table = []
    for name, procedure in PROCEDURES.items():
        cells = [plain_name(name), procedure.summary, "yes" if procedure.corrective else "no"]
        for scenario in scenarios:
            row = chosen.get((scenario, name))
            cells.append(NONE if row is None else _chosen(row))
        table.append(cells)
    columns = ["procedure", "what it does", "sees corrections", *scenarios]
    return "\n\n".join(
        [
            "Each procedure had eight trials per scenario, judged by validation accuracy + "
            "corrected-forget accuracy (for removal: validation accuracy less its distance to the "
            f"accuracy on the removed records), {_tuned_on(contest)}; neither test data nor a "
            "retrained model was looked at. The chosen numbers; * marks the first or last trial. "
            "All are in `tuning.jsonl`.",
            markdown_table(columns, table),
        ]
    )


def _tuned_on(contest: Contest) -> str:
    first, *more = contest.tuning_seeds
    if not more:
        return f"on seed {first}, which is not reported"
    seeds = f"{first} and {more[0]} to {more[-1]}" if more[1:] else f"{first} and {more[0]}"
    return f"over seeds {seeds}, which are not reported"


def _chosen(row: dict[str, Any]) -> str:
    place = row["trials"].index(row["chosen"])
    text = ", ".join(f"{name} {value:g}" for name, value in row["chosen"].items())
    return text + (" *" if place in (0, len(row["trials"]) - 1) else "")


def _how(contest: Contest, first: str, rows: Rows, origin: Origin) -> str:
    settings, facts = contest.settings[first], origin.facts
    sizes = ", ".join(
        f"{scenario} {len({row['seed'] for row in rows if row['scenario'] == scenario})}"
        for scenario in contest.settings
    )
    removal = ""
    if "sample" in contest.settings and contest.settings["sample"] != settings:
        count = contest.settings["sample"].train_examples
        removal = "" if count is None else f" For the removal of records: {count:,}."
    return "\n".join(
        [
            f"- Command: `{origin.command}`. It goes on where it was cut off, and adds what is "
            "new.",
            f"- Training: adam, {settings.recipe.epochs} epochs in batches of "
            f"{settings.recipe.batch_size}, {facts['examples']:,} examples, "
            f"{short_number(rows[0]['retrain_example_gradients'])} example gradients."
            f"{removal}",
            f"- Seeds reported: {sizes}.",
            f"- Curvature: {estimator(facts['model'])}, counted as {CURVATURE_GRADIENTS} "
            f"gradient equivalents; measured beside this report, on the "
            f"{facts['timed_examples']:,} examples of the main budget: "
            f"{facts['measured_gradients']:.1f}.",
            f"- Software: {origin.versions('Python', 'jax', 'flax', 'optax', 'numpy')}.",
        ]
    )
