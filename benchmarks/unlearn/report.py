"""The report of a comparison: Markdown to keep beside the data, one HTML page to read or send."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.learning.scenarios import SCENARIOS
from benchmarks.measures.summary import ACCURACIES, Line, paired_difference, summarise
from benchmarks.methods.curvature import counted_by, estimator
from benchmarks.methods.masks import METHODS, REFERENCES
from benchmarks.methods.tuning import TUNING_SEED
from benchmarks.methods.updates import MAX_PRODUCTS, UPDATES
from benchmarks.methods.ways import PROPOSED
from benchmarks.reporting.needed import measure_of
from benchmarks.reporting.tables import (
    TITLES,
    WORDS,
    cells,
    headings,
    markdown_table,
    percent,
    plain_name,
    sections,
    short_number,
    towards_retraining,
)
from benchmarks.tools.origin import Origin
from benchmarks.tools.page import opening, write_page
from benchmarks.unlearn.comparison import Comparison
from benchmarks.unlearn.sections import few_entries, headline, patch_text
from benchmarks.unlearn.sparsity import SHIPPED

CAPTIONS = {
    "sparsity.png": "Up and to the left is better. The control of a selection changes random "
    "entries, as many in each leaf.",
    "recovery.png": "Up and to the left is better.",
    "accuracy.png": "The closer to the solid line the better.",
    "masks.png": "What a mask's ranking means depends on which layers it picks.",
    "images.png": "From the tuning seed.",
}


def write_unlearn(
    folder: Path, comparison: Comparison, pictures: Sequence[str], origin: Origin
) -> None:
    """Writes `report.md` and `report.html`, which needs no other file, into `folder`."""
    text = report_markdown(comparison, pictures, origin)
    write_page(folder, text)


def report_markdown(comparison: Comparison, pictures: Sequence[str], origin: Origin) -> str:
    """The report in Markdown, with the pictures as links to files beside it."""
    settings, facts = comparison.settings, comparison.facts
    scenario = SCENARIOS[settings.scenario]
    lines = summarise(comparison.rows)
    total = lines[0].total
    parts = [
        f"# Unlearning on {settings.dataset}: {settings.scenario}",
        opening(
            f"{facts['poisoned_examples']:,} of {facts['examples']:,} training examples: "
            f"{scenario.summary}. {_harm(comparison, lines)}",
            f"Some entries of the trained network ({facts['description']}, {total:,} parameters) "
            f"were changed: the few that the proposed selection finds, `{PROPOSED}`, and others to "
            "compare with. The aim is the same network, trained from scratch on correct data.",
            headline(comparison),
        ),
        f"Masks select {100 * settings.fraction:g} % of the parameters. "
        f"{_seeds(settings.seeds)}, data variant: "
        f"{comparison.rows[0]['variant']}.",
    ]
    parts.append("## How few entries have to change")
    for picture in pictures:
        stem = picture.partition(".")[0]
        if stem == "recovery":
            caption, *table = patch_text(comparison)
            parts += [*few_entries(comparison), "## The patch", caption]
            parts += [f"```text\n{each}\n```" for each in table]
            share = 100 * settings.fraction
            parts += [f"## {share:g} % of the entries, three updates", _findings(comparison, lines)]
        parts += [f"![{stem}]({picture})", CAPTIONS[picture]]
    parts += ["## Figures", *_tables(lines), _reading(comparison)]
    parts += ["## Tuning", _tuning(comparison)]
    parts += ["## How it was run", _how(comparison, origin)]
    return "\n\n".join(parts) + "\n"


def _harm(comparison: Comparison, lines: Sequence[Line]) -> str:
    """What the poison did to the network, by the figure that the scenario is judged by."""
    short = measure_of(comparison.settings.scenario)
    shares = {
        line.method: f"{100 * line.accuracies[short].mean:.1f} %"
        for line in lines
        if line.method in REFERENCES
    }
    return (
        f"With the network that was trained on them {WORDS[short]} is {shares['poisoned']}, with "
        f"one trained on correct data {shares['retrained']}."
    )


def _seeds(count: int) -> str:
    return "One seed" if count == 1 else f"{count} seeds, with 95 % t intervals"


def _findings(comparison: Comparison, lines: Sequence[Line]) -> str:
    by_name = {(line.method, line.update): line for line in lines}
    poisoned, retrained = by_name["poisoned", "none"], by_name["retrained", "none"]
    controls = ("random_like_sharpest", "full")
    columns = ["sharpest", "poisoned", "unlearned", "retrained", "recovery %"]
    columns += [f"less {plain_name(control)}" for control in controls]
    lines_of_sharpest = [by_name["sharpest", update] for update in UPDATES]
    rows = [
        [
            f"{TITLES[line.update]}, {short}",
            *(percent(x.accuracies[short]) for x in (poisoned, line, retrained)),
            towards_retraining(line, short),
            *(
                percent(
                    paired_difference(comparison.rows, line.update, "sharpest", control, field),
                    signed=True,
                )
                for control in controls
            ),
        ]
        for line in lines_of_sharpest
        for short, field in ACCURACIES.items()
        if short in line.accuracies
    ]
    costs = ", ".join(
        f"{100 * line.gradients / retrained.gradients:.1f} % ({TITLES[line.update].lower()})"
        for line in lines_of_sharpest
    )
    return "\n\n".join(
        [
            f"What it does to change the sharpest {100 * comparison.settings.fraction:g} % of the "
            f"parameters, for {costs} of retraining's example gradients. Figures are per cent; the "
            "last two columns are points, paired over the same poisoned models: the first says "
            "what the ranking adds to its choice of layers, the second what is lost by leaving "
            "the other parameters alone.",
            markdown_table(columns, rows),
        ]
    )


def _tables(lines: Sequence[Line]) -> list[str]:
    parts = []
    for title, part in sections(lines):
        rows = [cells(line) for line in part]
        for row in rows:
            row[0] = f"**{row[0]}**" if row[0] == "sharpest" else row[0]
        parts += [f"### {title}", markdown_table(headings(lines), rows)]
    return parts


def _reading(comparison: Comparison) -> str:
    scenario, facts = SCENARIOS[comparison.settings.scenario], comparison.facts
    attack = [f"- attack: {scenario.attack}."] if scenario.attack else []
    return "\n".join(
        [
            f"- forget: {scenario.forget}.",
            *attack,
            "- recovery: (after − poisoned) / (retrained − poisoned). Where a seed's gap between "
            "the retrained and the poisoned model is under 1 point or 2 standard errors, the "
            "difference to the retrained model stands there instead, in points, marked Δ.",
            "- changed: entries whose bits differ from the poisoned model's, and their share.",
            "- example gradients: one forward and backward pass of one example, selection + "
            "update. They are counted, not timed. Curvature counts "
            f"{facts['counted_gradients']:.1f} gradient equivalents, "
            f"{counted_by(comparison.settings.model)}, times its "
            f"{facts['curvature_examples']:,} examples; by the clock it took "
            f"{facts['measured_gradients']:.1f} here.",
            "- seconds: selection + update as measured, without compilation.",
        ]
    )


def _tuning(comparison: Comparison) -> str:
    chosen = {(trial.method, trial.update): trial for trial in comparison.trials if trial.chosen}
    columns = ["method"]
    for name, update in UPDATES.items():
        columns.append(f"{name}: {update.tuned}")
    rows = []
    for method in METHODS:
        picked = [chosen[method, update] for update in UPDATES]
        values = [f"{trial.value:g}{' *' if trial.at_edge else ''}" for trial in picked]
        rows.append([plain_name(method), *values])
    budget = ", ".join(
        f"{len(update.trials)} of {name} ({update.trials[0]:g} to {update.trials[-1]:g})"
        for name, update in UPDATES.items()
    )
    objective = (
        "validation accuracy less its distance to the accuracy on the records to remove"
        if comparison.settings.scenario == "sample"
        else "validation accuracy + corrected-forget accuracy"
    )
    return "\n\n".join(
        [
            f"Every method had the same trials: {budget}. They were judged by {objective} on seed "
            f"{TUNING_SEED}, which is not reported, and then kept for all seeds; neither test data "
            "nor the retrained model was looked at. All trials are in `tuning.jsonl`; * marks the "
            "first or last value of those tried.",
            markdown_table(columns, rows),
        ]
    )


def _how(comparison: Comparison, origin: Origin) -> str:
    recipe = comparison.settings.recipe
    methods = "; ".join(
        f"`{name}`: {summary}"
        for name, summary in [
            *REFERENCES.items(),
            *((name, method.summary) for name, method in METHODS.items()),
        ]
    )
    retraining, facts = comparison.rows[1]["retrain_example_gradients"], comparison.facts
    return "\n".join(
        [
            f"- Command: `{origin.command}`",
            f"- Training: adam, {recipe.epochs} epochs in batches of {recipe.batch_size}, learning "
            f"rate {recipe.learning_rate:g} falling on a cosine: {short_number(retraining)} "
            "example gradients.",
            f"- Curvature: {estimator(comparison.settings.model)}, at the poisoned parameters, "
            f"of the loss that was trained, on {facts['curvature_examples']:,} "
            "random training examples.",
            f"- Second-order update: Gauss-Newton curvature on {facts['newton_examples']:,} random "
            "examples of the corrected training set; conjugate gradients to a relative residual of "
            f"10 %, at most {MAX_PRODUCTS} iterations, each counted as 2 gradients. The sample is "
            "as large as the budget of the iterative update allows. A step that does not hold is "
            "not taken.",
            f"- Iterative update: {facts['steps']} batches of {facts['batch_size']} examples.",
            f"- Methods: {methods}.",
            f"- Patch: `unlearned.patch` holds the {SHIPPED} entries that changed on seed 1, "
            "`poisoned.npz` the parameters that it belongs to.",
            f"- Software: {origin.versions('Python', 'jax', 'flax', 'optax', 'numpy')}.",
        ]
    )
