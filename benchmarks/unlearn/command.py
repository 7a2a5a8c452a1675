"""`python -m benchmarks unlearn`: the main job, from poisoned data to evidence."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import sapsel_jax as sap
from benchmarks.learning.settings import Settings, command_line
from benchmarks.measures.summary import summarise
from benchmarks.methods.tuning import TUNING_SEED
from benchmarks.reporting.tables import rich_table
from benchmarks.tools.folders import result_folder, write_jsonl, write_params
from benchmarks.tools.progress import progress_bar, wide_console
from benchmarks.unlearn.comparison import compare, count_work
from benchmarks.unlearn.plots import draw_all
from benchmarks.unlearn.report import write_report


@dataclass(frozen=True)
class Unlearn(Settings):
    """Compare unlearning methods on one poisoned data set and write a report."""

    output: Path | None = None
    """Folder for the results, which must not hold any yet; None is
    results/unlearn-DATASET-SCENARIO-MODEL."""
    quick: bool = False
    """A rough run within a minute: one seed, a quarter of the epochs, 500 curvature examples."""

    def run(self) -> None:
        """Runs the comparison; prints a table and leaves a folder."""
        self.check()
        settings = self._settings()
        console = wide_console()
        output = self.output or Path(
            "results", f"unlearn-{self.dataset}-{self.scenario}-{self.model}"
        )
        with result_folder(output) as folder:
            # tensorflow-datasets changes how modules are imported while it is imported itself,
            # which the thread that draws the progress would trip over.
            settings.load(TUNING_SEED)
            with progress_bar(console) as progress:
                task = progress.add_task("Loading the data", total=count_work(settings))
                started = False

                def advance(words: str) -> None:
                    nonlocal started
                    progress.update(task, description=words, advance=int(started))
                    started = True

                comparison = compare(settings, advance)
                progress.update(task, description="Done", completed=count_work(settings))
            lines = summarise(comparison.rows)
            write_jsonl(folder / "results.jsonl", comparison.rows)
            write_jsonl(folder / "tuning.jsonl", [t._asdict() for t in comparison.trials])
            before, after = comparison.shipped
            write_params(folder / "poisoned.npz", before)
            sap.save_patch(folder / "unlearned.patch", sap.make_patch(before, after))
            pictures = draw_all(folder, lines, comparison.masks, comparison.case)
            write_report(folder, comparison, pictures, command_line())
        title = f"{self.dataset}, {self.scenario}, {comparison.case.model.description}"
        console.print(rich_table(title, lines))
        console.print(f"Report: {output / 'report.html'}", highlight=False, soft_wrap=True)

    def _settings(self) -> Settings:
        names = {field.name for field in dataclasses.fields(Settings)}
        settings = Settings(**{name: getattr(self, name) for name in names})
        if not self.quick:
            return settings
        return dataclasses.replace(
            settings,
            seeds=1,
            epochs=settings.epochs or max(1, settings.recipe.epochs // 4),
            curvature_examples=min(settings.curvature_examples, 500),
        )
