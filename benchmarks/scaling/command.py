"""`python -m benchmarks scaling`: what time and memory grow with, and how fast."""

from dataclasses import dataclass
from pathlib import Path

import jax

from benchmarks.scaling.records import open_journals
from benchmarks.scaling.report import write_scaling
from benchmarks.scaling.study import Study, run_study, sweeps
from benchmarks.tools.command import continued
from benchmarks.tools.errors import check_at_least
from benchmarks.tools.origin import Origin, add_origin, write_report


@dataclass(frozen=True)
class Scaling:
    """Measure how time and memory grow, and unlearning of a large transformer on paper; can be
    resumed."""

    repeats: int = 15
    """Timed runs of each operation at each size, in turn; fewer of what takes long."""
    output: Path | None = None
    """Folder for the results; None is results/scaling. What stands there is not done again."""
    quick: bool = False
    """A rough run: three sizes of each quantity, a small transformer on paper."""

    def run(self) -> None:
        """Measures what is missing; leaves a report."""
        check_at_least("repeats", self.repeats, 1)
        study = self.study()
        device = jax.devices()[0].device_kind
        settings = {"repeats": self.repeats, "quick": self.quick, "device": device}
        with continued(self.output or Path("results", "scaling"), settings) as run:
            journals = open_journals(run.folder)
            add_origin(run.folder, self)
            run.expect(len(list(study.missing(journals))))
            run_study(study, journals, run.say)
            run.say("Writing the report")
            write_report(self, run.folder)

    def report(self, folder: Path, origin: Origin) -> None:
        """Pages from what stands in the folder."""
        write_scaling(folder, self.study(), open_journals(folder), origin)

    def study(self) -> Study:
        """What is measured."""
        return Study(sweeps(self.quick), self.repeats, large=not self.quick)
