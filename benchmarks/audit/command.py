"""`python -m benchmarks audit`: U-LiRA and KLOM, with ensembles in place of single models."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich import box
from rich.table import Table

from benchmarks.audit.ensembles import evidence, margins, train_models, tune, unlearn_models
from benchmarks.learning.settings import Settings
from benchmarks.methods.case import Case, make_case
from benchmarks.methods.masks import METHODS
from benchmarks.methods.tuning import TUNING_SEED
from benchmarks.reporting.tables import markdown_table, plain_name
from benchmarks.tools.command import command_line, measured
from benchmarks.tools.drawing import FAINT, INK, MUTED, figure
from benchmarks.tools.errors import check_at_least, check_choice
from benchmarks.tools.folders import write_jsonl
from benchmarks.tools.page import write_page
from benchmarks.tools.timing import timed

UPDATE = "iterative"
FIGURES = ("klom_median", "klom_95", "lira_accuracy", "lira_95")


@dataclass(frozen=True)
class Audit(Settings):
    """Compare ensembles of unlearned models with retrained ones, example by example."""

    seeds: int = 1
    """How many seeds are reported; one more is used for tuning."""
    models: int = 32
    """Models of each ensemble. Three are trained: poisoned, retrained, and retrained once more."""
    methods: tuple[str, ...] = ("full", "sharpest")
    """Which methods unlearn the poisoned models, by the iterative update."""
    output: Path | None = None
    """Folder for the results; None is results/audit-DATASET-SCENARIO-MODEL."""
    quick: bool = False
    """A rough run: 8 models, a quarter of the epochs."""

    def run(self) -> None:
        """Trains, unlearns and compares; prints a table and leaves a folder."""
        self.check()
        check_at_least("models", self.models, 3)
        for method in self.methods:
            check_choice("methods", method, METHODS)
        name = f"audit-{self.dataset}-{self.scenario}-{self.model}"
        with measured(self.output or Path("results", name)) as run:
            self.load(TUNING_SEED)
            rows = list(self.measure(run.say))
            write_jsonl(run.folder / "results.jsonl", rows)
            _draw(run.folder / "audit.png", rows)
            write_page(run.folder, _report(rows))
            run.tables.append(_table(rows))

    def measure(self, report: Callable[[str], None]) -> Iterator[dict[str, Any]]:
        """A row for each seed, method and set of examples; `report` is told what is going on."""
        report("Tuning")
        case = make_case(self._sized(), TUNING_SEED)
        values = {method: tune(case, method, UPDATE) for method in self.methods}
        for seed in range(1, self.seeds + 1):
            report(f"Seed {seed}: training single models")
            case = make_case(self._sized(), seed)
            yield from self._compare(case, values, report)

    def _compare(
        self, case: Case, values: dict[str, float], report: Callable[[str], None]
    ) -> Iterator[dict[str, Any]]:
        poisoned, recipe = case.poisoned, self._sized().recipe
        count = min(8, self.models) if self.quick else self.models
        everything = np.arange(len(poisoned.train.labels))
        right = poisoned.retained if poisoned.corrected is None else everything

        def train(storage: Any, ids: np.ndarray, first: int) -> tuple[Any, float]:
            seeds = range(first, first + count)
            work = lambda: train_models(case.model, recipe, storage, ids, case.steps, seeds)
            return timed(work)

        # Starts and orders of their own, none of them those of the single models.
        report(f"Seed {case.seed}: training {count} poisoned models")
        start = 1000 * case.seed
        spoiled, seconds = train(poisoned.train, everything, start)
        report(f"Seed {case.seed}: retraining twice {count} models")
        retrained, retrain_seconds = train(case.dataset.train, right, start + count)
        again, _ = train(case.dataset.train, right, start + 2 * count)
        sets = {"forget": poisoned.original, "test": case.dataset.test}
        aims = {name: margins(case.model, retrained, split) for name, split in sets.items()}

        def rows(method: str, models: Any, spent: float, value: Any) -> Iterator[dict[str, Any]]:
            for name, split in sets.items():
                yield {
                    **case.names,
                    "seed": case.seed,
                    "method": method,
                    "update": "none" if value is None else UPDATE,
                    "tuned_value": value,
                    "set": name,
                    "examples": len(split.labels),
                    "models": count,
                    "seconds": spent,
                    **evidence(margins(case.model, models, split), aims[name])._asdict(),
                }

        yield from rows("poisoned", spoiled, seconds, None)
        for method, value in values.items():
            report(f"Seed {case.seed}: {method}")
            models, spent = timed(
                lambda m=method, v=value: unlearn_models(case, spoiled, m, UPDATE, v)
            )
            yield from rows(method, models, spent, value)
        yield from rows("retrained", again, retrain_seconds, None)

    def _sized(self) -> Settings:
        """The settings of a comparison, without what belongs to this command."""
        epochs = max(1, self.recipe.epochs // 4) if self.quick else self.epochs
        return Settings(
            dataset=self.dataset,
            scenario=self.scenario,
            model=self.model,
            share=self.share,
            fraction=self.fraction,
            budget=self.budget,
            curvature_examples=self.curvature_examples,
            train_examples=self.train_examples,
            epochs=epochs,
            data_dir=self.data_dir,
        )


HEADINGS = ("method", "set", "KLOM, median", "KLOM, 95 %", "U-LiRA %", "U-LiRA %, 95 %", "seconds")


def _cells(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """One line for each method and set, the means over seeds."""
    lines = []
    for method, name in dict.fromkeys((row["method"], row["set"]) for row in rows):
        some = [row for row in rows if (row["method"], row["set"]) == (method, name)]
        mean = {key: np.mean([row[key] for row in some]) for key in (*FIGURES, "seconds")}
        lines.append(
            (
                plain_name(method),
                name,
                f"{mean['klom_median']:.2f}",
                f"{mean['klom_95']:.2f}",
                f"{100 * mean['lira_accuracy']:.1f}",
                f"{100 * mean['lira_95']:.1f}",
                f"{mean['seconds']:.1f}",
            )
        )
    return lines


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title=_title(rows), box=box.SIMPLE, title_justify="left")
    for i, name in enumerate(HEADINGS):
        table.add_column(name, justify="right" if i > 1 else "left")
    for cells in _cells(rows):
        table.add_row(*cells)
    return table


def _title(rows: list[dict[str, Any]]) -> str:
    row = rows[0]
    return f"{row['dataset']}, {row['scenario']}, {row['model']}: ensembles of {row['models']}"


def _report(rows: list[dict[str, Any]]) -> str:
    parts = [
        f"# {_title(rows)}",
        "How far an ensemble of unlearned models is from one of models that were retrained on the "
        "data as it should have been, example by example. KLOM is a divergence in nats, 0 at best; "
        "U-LiRA is the share of models that an attacker tells from retrained ones, 50 % at best. "
        "The row `retrained` compares two ensembles of retrained models: no method can be better, "
        "and what it shows is the noise of so few models. `forget` are the poisoned examples with "
        "the labels they were trained on; `95 %` is the 95th percentile over examples.",
        "![audit](audit.png)",
        markdown_table(HEADINGS, _cells(rows)),
        "`seconds` are those of training the ensemble or of selecting and updating all its models, "
        "compilation included.",
        f"Command: `{command_line()}`, jax {jax.__version__}, on {jax.devices()[0].device_kind}.",
    ]
    return "\n\n".join(parts) + "\n"


def _draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """The median KLOM of every method, a panel for each set."""
    names = list(dict.fromkeys(row["method"] for row in rows))[::-1]
    sets = list(dict.fromkeys(row["set"] for row in rows))
    size = (9, 1.6 + 0.45 * len(names))
    with figure(path, size, _title(rows), "Median KLOM to retrained models, in nats") as canvas:
        panels = canvas.subplots(1, len(sets), squeeze=False, sharey=True)
        for ax, name in zip(panels[0], sets, strict=True):
            values = [
                float(
                    np.mean(
                        [
                            row["klom_median"]
                            for row in rows
                            if (row["method"], row["set"]) == (method, name)
                        ]
                    )
                )
                for method in names
            ]
            colours = [
                "#7F8C99" if method in ("poisoned", "retrained") else "#D55E00" for method in names
            ]
            ax.barh([plain_name(method) for method in names], values, color=colours, height=0.6)
            for y, value in enumerate(values):
                ax.text(value, y, f" {value:.2f}", va="center", color=INK)
            ax.set(title=name)
            ax.set_xlabel("nats", color=MUTED)
            ax.margins(x=0.15)
            ax.tick_params(axis="y", labelcolor=INK, length=0)
            ax.grid(axis="x", color=FAINT)
            ax.set_axisbelow(True)
