"""`python -m benchmarks audit`: U-LiRA and KLOM, with ensembles in place of single models."""

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from benchmarks.audit.ensembles import UPDATE, Ensembles, tune
from benchmarks.learning.scenarios import problems
from benchmarks.learning.settings import Settings
from benchmarks.methods.case import make_case
from benchmarks.methods.masks import METHODS
from benchmarks.methods.tuning import TUNING_SEED
from benchmarks.reporting.tables import markdown_table, plain_name
from benchmarks.tools.command import Run, continued
from benchmarks.tools.drawing import FAINT, INK, MUTED, figure
from benchmarks.tools.errors import check_at_least, check_choice
from benchmarks.tools.folders import write_jsonl
from benchmarks.tools.origin import Origin, add_origin, write_report
from benchmarks.tools.page import opening, write_page
from benchmarks.tools.pieces import Pieces, Rows, Work, read_rows

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
    cache: Path = Path("results", "cache")
    """Folder where trained parameters are kept, by a hash of data, configuration and seed."""
    output: Path | None = None
    """Folder for the results; None is results/audit-DATASET-SCENARIO-MODEL. What stands there is
    not done again."""
    quick: bool = False
    """A rough run: 8 models, a quarter of the epochs."""

    def run(self) -> None:
        """Trains, unlearns and compares what is missing; prints a table and leaves a report."""
        self.check()
        check_at_least("models", self.models, 3)
        for method in self.methods:
            check_choice("methods", method, METHODS)
        name = f"audit-{self.dataset}-{self.scenario}-{self.model}"
        names = {field.name for field in dataclasses.fields(self)}
        names -= {"seeds", "methods", "data_dir", "cache", "output"}
        settings = {name: getattr(self, name) for name in sorted(names)}
        self.load(TUNING_SEED)
        with continued(self.output or Path("results", name), settings) as run:
            add_origin(run.folder, self)
            rows = self._measure(run)
            write_report(self, run.folder)
            run.tables.append(_table(rows))

    def report(self, folder: Path, origin: Origin) -> None:
        """The picture and the pages from what stands in the folder."""
        rows = read_rows(folder)
        _draw(folder / "audit.png", rows)
        write_page(folder, _report(rows, origin))

    def _measure(self, run: Run) -> Rows:
        """A row for each seed, method and set of examples."""
        pieces = Pieces(run)
        case = functools.cache(lambda seed: make_case(self._sized(), seed, self.cache))
        about = (self._count, self.cache, run.tell)
        ensembles = functools.cache(lambda seed: Ensembles(case(seed), *about))
        found: dict[str, float] = {}

        def tuned(method: str) -> Iterator[dict[str, Any]]:
            yield {"method": method, "value": tune(case(TUNING_SEED), method, UPDATE)}

        plan: dict[str, Work] = {}
        for seed in range(1, self.seeds + 1):
            for method in ("poisoned", *self.methods, "retrained"):
                plan[f"Seed {seed}: {method}"] = lambda s=seed, m=method: ensembles(s).rows(
                    m, found.get(m)
                )
        tuning = {f"Tuning {method}": method for method in self.methods}
        run.expect(pieces.missing([*tuning, *plan]))
        for name, method in tuning.items():
            (row,) = pieces.do(name, functools.partial(tuned, method))
            found[method] = row["value"]
        rows = [row for name, work in plan.items() for row in pieces.do(name, work)]
        write_jsonl(run.folder / "results.jsonl", rows)
        return rows

    @property
    def _count(self) -> int:
        """Models of an ensemble."""
        return min(8, self.models) if self.quick else self.models

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


def _report(rows: list[dict[str, Any]], origin: Origin) -> str:
    parts = [
        f"# {_title(rows)}",
        opening(
            problems([rows[0]["scenario"]]),
            f"{rows[0]['models']} networks were trained on such data and unlearned, and compared "
            "with as many that were trained from scratch on the data as it should have been.",
            f"The median KLOM on the poisoned examples, 0 at best: {_forgotten(rows)}.",
        ),
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
        f"Command: `{origin.command}`, {origin.versions('jax')}, on {origin.software['device']}.",
    ]
    return "\n\n".join(parts) + "\n"


def _forgotten(rows: list[dict[str, Any]]) -> str:
    medians: dict[str, list[float]] = {}
    for row in rows:
        if row["set"] == "forget":
            medians.setdefault(plain_name(row["method"]), []).append(row["klom_median"])
    return ", ".join(f"{name} {np.mean(found):.2f}" for name, found in medians.items())


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
