"""`python -m benchmarks unlearn`: the main job, from poisoned data to evidence."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import sapsel_jax as sap
from benchmarks.learning.settings import Settings
from benchmarks.measures.summary import summarise
from benchmarks.methods.bench import up_to_half
from benchmarks.methods.tuning import TUNING_SEED
from benchmarks.reporting.tables import rich_table
from benchmarks.tools.arrays import write_params
from benchmarks.tools.command import command_line, measured
from benchmarks.tools.folders import write_jsonl
from benchmarks.unlearn.comparison import compare, count_work
from benchmarks.unlearn.plots import draw_all
from benchmarks.unlearn.report import write_report
from benchmarks.unlearn.sections import headline, patch_text
from benchmarks.unlearn.sparsity import COUNTS, QUICK_COUNTS


@dataclass(frozen=True)
class Unlearn(Settings):
    """Compare unlearning methods on one poisoned data set and write a report."""

    curvature_examples: int = 500
    """Training examples that curvature is measured on, drawn at random; as many as keep the cost of
    a selection near that of an update."""
    output: Path | None = None
    """Folder for the results, which must not hold any yet; None is
    results/unlearn-DATASET-SCENARIO-MODEL."""
    quick: bool = False
    """A rough run within a minute: one seed, a quarter of the epochs and of the examples that
    curvature is measured on, three numbers of entries."""

    def run(self) -> None:
        """Runs the comparison; prints a table and leaves a folder."""
        self.check()
        settings = self._settings()
        name = f"unlearn-{self.dataset}-{self.scenario}-{self.model}"
        with measured(self.output or Path("results", name)) as run:
            settings.load(TUNING_SEED)
            counts = up_to_half(QUICK_COUNTS if self.quick else COUNTS, settings)
            run.expect(count_work(settings, counts))
            comparison = compare(settings, counts, run.say)
            run.say("Writing the report")
            lines = summarise(comparison.rows)
            write_jsonl(run.folder / "results.jsonl", comparison.rows)
            write_jsonl(run.folder / "tuning.jsonl", [t._asdict() for t in comparison.trials])
            write_jsonl(run.folder / "sparsity.jsonl", comparison.sparsity_rows)
            write_jsonl(run.folder / "sparsity-tuning.jsonl", comparison.sparsity_trials)
            write_params(run.folder / "poisoned.npz", comparison.before)
            sap.save_patch(run.folder / "unlearned.patch", comparison.patch)
            pictures = draw_all(run.folder, comparison, lines)
            write_report(run.folder, comparison, pictures, command_line())
            title = f"{self.dataset}, {self.scenario}, {comparison.case.model.description}"
            words = [headline(comparison), *patch_text(comparison)]
            run.tables += [rich_table(title, lines), *(f"{each}\n" for each in words)]

    def _settings(self) -> Settings:
        names = {field.name for field in dataclasses.fields(Settings)}
        settings = Settings(**{name: getattr(self, name) for name in names})
        if not self.quick:
            return settings
        return dataclasses.replace(
            settings,
            seeds=1,
            epochs=settings.epochs or max(1, settings.recipe.epochs // 4),
            curvature_examples=max(1, settings.curvature_examples // 4),
        )
