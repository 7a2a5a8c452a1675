"""`python -m benchmarks unlearn`: the main job, from poisoned data to evidence."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.learning.settings import Settings
from benchmarks.measures.summary import summarise
from benchmarks.methods.bench import up_to_half
from benchmarks.reporting.tables import rich_table
from benchmarks.tools.command import continued, wide_console
from benchmarks.tools.origin import Origin, add_origin, read_origin, write_report
from benchmarks.tools.pieces import Pieces
from benchmarks.unlearn.comparison import Comparing, Comparison
from benchmarks.unlearn.plots import draw_all
from benchmarks.unlearn.report import write_unlearn
from benchmarks.unlearn.sections import headline, patch_text
from benchmarks.unlearn.sparsity import COUNTS, QUICK_COUNTS


@dataclass(frozen=True)
class Unlearn(Settings):
    """Compare unlearning methods on one poisoned data set and write a report."""

    curvature_examples: int = 500
    """Training examples that curvature is measured on, drawn at random; as many as keep the cost of
    a selection near that of an update."""
    cache: Path = Path("results", "cache")
    """Folder where trained parameters are kept, by a hash of data, configuration and seed."""
    output: Path | None = None
    """Folder for the results; None is results/unlearn-DATASET-SCENARIO-MODEL. What stands there is
    not done again."""
    quick: bool = False
    """A rough run within a minute: one seed, a quarter of the epochs and of the examples that
    curvature is measured on, three numbers of entries."""

    def run(self) -> None:
        """Measures what is missing; prints a table and leaves a report."""
        self.check()
        settings = self._settings()
        counts = up_to_half(QUICK_COUNTS if self.quick else COUNTS, settings)
        name = f"unlearn-{self.dataset}-{self.scenario}-{self.model}"
        with continued(self.output or Path("results", name), self._identity()) as run:
            comparing = Comparing(settings, counts, self.cache, run.tell)
            pieces = Pieces(run)
            run.expect(pieces.missing(comparing.work()) + 2)
            run.say("Training the first networks")
            add_origin(run.folder, self, comparing.find_facts)
            comparing.run(run.folder, pieces, read_origin(run.folder).facts["counted_gradients"])
            run.say("Writing the report")
            write_report(self, run.folder)
            run.tables += self._told(run.folder)

    def report(self, folder: Path, origin: Origin) -> None:
        """Pictures and pages from what stands in the folder."""
        comparison = Comparison.read(folder, self._settings(), origin.facts)
        pictures = draw_all(folder, comparison, summarise(comparison.rows))
        write_unlearn(folder, comparison, pictures, origin)

    def _told(self, folder: Path) -> list[Any]:
        """What is printed at the end."""
        facts = read_origin(folder).facts
        comparison = Comparison.read(folder, self._settings(), facts)
        title = f"{self.dataset}, {self.scenario}, {facts['description']}"
        table = rich_table(title, summarise(comparison.rows), wide_console().width)
        # The result last, where a person looks first; the report lists the patch's entries.
        return [table, *(f"{each}\n" for each in (patch_text(comparison)[0], headline(comparison)))]

    def _identity(self) -> dict[str, Any]:
        """What rows depend on; more seeds only add."""
        left_out = ("seeds", "data_dir", "cache", "output")
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in left_out}

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
