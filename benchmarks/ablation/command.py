"""`python -m benchmarks ablation`: which parameters to change, and by which update."""

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ablation.defaults import DEFAULTS_KEY, count_defaults, measure_defaults
from benchmarks.ablation.findings import find
from benchmarks.ablation.parts import FRACTIONS, study_parts
from benchmarks.ablation.plots import draw_gains, draw_recovery, draw_stability
from benchmarks.ablation.report import Study, study_markdown
from benchmarks.ablation.sections import mean_overlaps
from benchmarks.ablation.stability import (
    FRACTION,
    KINDS,
    STABILITY_KEY,
    count_stability,
    measure_stability,
)
from benchmarks.ablation.study import CELL_KEY, TRIAL_KEY, Part, count_work, measure_part
from benchmarks.learning.data import is_prepared
from benchmarks.learning.settings import command_line
from benchmarks.methods.tuning import TUNING_SEED
from benchmarks.tools.errors import check_at_least, check_choice, check_share
from benchmarks.tools.page import write_page
from benchmarks.tools.progress import progress_bar, wide_console
from benchmarks.tools.records import Record, open_folder

QUICK = {"seeds": 1, "fractions": (0.05,), "curvature_examples": 200}
QUICK_PART = "digits-label"
STEADY = ("digits-label", "digits-label-cnn", "mnist-label")
"""The parts whose masks are compared after a change."""
TRIED = ("digits-label", "digits-backdoor", "digits-label-cnn", "mnist-label")
"""The parts on which the options of `unlearn` are compared."""


@dataclass(frozen=True)
class Ablation:
    """Compare every selection, at several fractions, with every update, and with its control.

    What is finished stands in the output folder; the same command goes on from there.
    """

    output: Path | None = None
    """Folder for the results, new or begun with the same options; None is results/ablation."""
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
    quick: bool = False
    """A rough run whatever seeds and sizes are named: false labels on the digits, one seed, one
    fraction, 200 curvature examples, and without the options of `unlearn`."""

    def run(self) -> None:
        """Measures what is missing and writes the report."""
        options = dataclasses.replace(self, **QUICK) if self.quick else self
        options.check()
        parts = options.chosen()
        # What is not prepared is told now; and tensorflow-datasets is imported before the thread
        # that draws the progress runs, which its import would trip.
        for part in parts:
            part.settings.load(TUNING_SEED)
        console = wide_console()
        folder = open_folder(options.output or Path("results", "ablation"), options.settings())
        trials = Record(folder / "tuning.jsonl", TRIAL_KEY)
        cells = Record(folder / "results.jsonl", CELL_KEY)
        overlaps = Record(folder / "stability.jsonl", STABILITY_KEY)
        variants = Record(folder / "defaults.jsonl", DEFAULTS_KEY)
        steady = [part for part in parts if part.name in STEADY]
        tried = [part for part in parts if part.name in TRIED and not self.quick]
        works = [
            *((count_work(p), functools.partial(measure_part, p, trials, cells)) for p in parts),
            *(
                (count_stability(p), functools.partial(measure_stability, p, overlaps))
                for p in steady
            ),
            *((count_defaults(p), functools.partial(measure_defaults, p, variants)) for p in tried),
        ]
        with progress_bar(console) as progress:
            task = progress.add_task("Loading", total=sum(count for count, _ in works))

            def advance(words: str) -> None:
                progress.update(task, description=words, advance=1)

            try:
                for _, work in works:
                    work(advance)
            except KeyboardInterrupt as stop:
                raise KeyboardInterrupt(
                    f"what is finished stands in {folder}, and the same command goes on from there"
                ) from stop
        options._report(folder, trials, cells, overlaps, variants)
        console.print(f"Report: {folder / 'report.html'}", highlight=False, soft_wrap=True)

    def _report(
        self, folder: Path, trials: Record, cells: Record, overlaps: Record, variants: Record
    ) -> None:
        """Pictures and pages from what stands in the records."""
        parts = self.all_parts()
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
        write_page(folder, study_markdown(study, pictures, command_line()))

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
