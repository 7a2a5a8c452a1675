"""`python -m benchmarks ablation`: which parameters to change, and by which update."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ablation.defaults import count_defaults, measure_defaults
from benchmarks.ablation.findings import find
from benchmarks.ablation.parts import FRACTIONS, study_parts
from benchmarks.ablation.plots import draw_gains, draw_recovery, draw_stability
from benchmarks.ablation.records import open_journals
from benchmarks.ablation.report import Study, study_markdown
from benchmarks.ablation.sections import mean_overlaps
from benchmarks.ablation.stability import (
    FRACTION,
    KINDS,
    count_stability,
    measure_stability,
)
from benchmarks.ablation.study import Part, count_work, measure_part
from benchmarks.learning.data import is_prepared
from benchmarks.methods.tuning import TUNING_SEED
from benchmarks.tools.command import continued
from benchmarks.tools.errors import check_at_least, check_choice, check_share
from benchmarks.tools.origin import Origin, add_origin, write_report
from benchmarks.tools.page import write_page

QUICK = {"seeds": 1, "fractions": (0.05,), "curvature_examples": 200}
QUICK_PART = "digits-label"
STEADY = ("digits-label", "digits-label-cnn", "mnist-label")
"""The parts whose masks are compared after a change."""
TRIED = ("digits-label", "digits-backdoor", "digits-label-cnn", "mnist-label")
"""The parts on which the options of the second-order update are compared."""


@dataclass(frozen=True)
class Ablation:
    """Compare every selection, at several fractions, with every update, and with its control."""

    parts: tuple[str, ...] = ()
    """Which parts to measure now, such as digits-label or mnist-label; none named is all."""
    seeds: int | None = None
    """How many seeds are reported; None is 10 for the digits and 5 for MNIST. One more tunes."""
    fractions: tuple[float, ...] = FRACTIONS
    """Shares of the parameters that masks select."""
    few_fractions: tuple[float, ...] = (0.01, 0.05)
    """The same for MNIST and the CNN, whose cells take longer."""
    mnist_examples: int | None = 20_000
    """Training examples of MNIST, drawn at random; None uses all."""
    curvature_examples: int = 2_000
    """Training examples that curvature and second-order updates see, drawn at random."""
    data_dir: str | None = None
    """Where tensorflow-datasets keeps prepared data; None is its default, or TFDS_DATA_DIR."""
    output: Path | None = None
    """Folder for the results; None is results/ablation. What stands there is not done again."""
    quick: bool = False
    """A rough run whatever seeds and sizes are named: false labels on the digits, one seed, one
    fraction, 200 curvature examples, and without the options of the second-order update."""

    def run(self) -> None:
        """Measures what is missing and writes the report."""
        options = self._sized()
        options.check()
        parts = options.chosen()
        # What is not prepared is told now, before anything is measured.
        for part in parts:
            part.settings.load(TUNING_SEED)
        steady = [part for part in parts if part.name in STEADY]
        tried = [part for part in parts if part.name in TRIED and not self.quick]
        output = options.output or Path("results", "ablation")
        with continued(output, options.settings()) as run:
            journals = open_journals(run.folder)
            add_origin(run.folder, self)
            run.expect(
                sum(count_work(part) for part in parts)
                + sum(count_stability(part) for part in steady)
                + sum(count_defaults(part) for part in tried)
            )
            for part in parts:
                measure_part(part, journals.trials, journals.cells, run.say)
            for part in steady:
                measure_stability(part, journals.overlaps, run.say)
            for part in tried:
                measure_defaults(part, journals.variants, run.say)
            run.say("Writing the report")
            write_report(self, run.folder)

    def report(self, folder: Path, origin: Origin) -> None:
        """Pictures and pages from what stands in the folder."""
        trials, cells, overlaps, variants = open_journals(folder)
        parts = self._sized().all_parts()
        found = [f for name in parts if (f := find(name, cells.rows)) is not None]
        titles = {name: part.title for name, part in parts.items()}
        pictures = []
        if found:
            share = min(found[0].fractions, key=lambda x: abs(x - FRACTION))
            draw_gains(folder / "gains.png", found, titles, share)
            pictures.append("gains.png")
        for f in found:
            pictures.append(f"recovery-{f.part}.png")
            draw_recovery(folder / pictures[-1], titles[f.part], f)
        mean = mean_overlaps(overlaps.rows)
        if mean:
            draw_stability(folder / "stability.png", mean, KINDS, FRACTION)
            pictures.append("stability.png")
        study = Study(
            parts,
            found,
            trials.rows,
            cells.rows,
            mean,
            list(dict.fromkeys(row["part"] for row in overlaps.rows)),
            variants.rows,
        )
        write_page(folder, study_markdown(study, pictures, origin))

    def _sized(self) -> "Ablation":
        return dataclasses.replace(self, **QUICK) if self.quick else self

    def check(self) -> None:
        """Raises UsageError unless every option is in its range."""
        for fraction in (*self.fractions, *self.few_fractions):
            check_share("fractions", fraction)
        if self.seeds is not None:
            check_at_least("seeds", self.seeds, 1)
        if self.mnist_examples is not None:
            check_at_least("mnist-examples", self.mnist_examples, 1_000)
        check_at_least("curvature-examples", self.curvature_examples, 1)
        for name in self.parts:
            check_choice("parts", name, self.all_parts())

    def settings(self) -> dict[str, Any]:
        """What the figures depend on."""
        left_out = ("output", "parts", "data_dir", "quick")
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in left_out}

    def all_parts(self) -> dict[str, Part]:
        """Every part by its name."""
        return study_parts(
            seeds=self.seeds,
            fractions=self.fractions,
            few_fractions=self.few_fractions,
            mnist_examples=self.mnist_examples,
            curvature_examples=self.curvature_examples,
            data_dir=self.data_dir,
        )

    def chosen(self) -> list[Part]:
        """The parts to measure: those named, or all whose data can be read."""
        parts = self.all_parts()
        if self.parts:
            return [parts[name] for name in self.parts]
        if self.quick:
            return [parts[QUICK_PART]]
        return [p for p in parts.values() if is_prepared(p.settings.dataset, self.data_dir)]
