"""`python -m benchmarks ablation`: which parameters to change, and by which update."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from benchmarks.data import is_prepared
from benchmarks.errors import check_at_least, check_choice, check_share
from benchmarks.parts import FRACTIONS, study_parts
from benchmarks.records import Record, open_folder
from benchmarks.study import CELL_KEY, TRIAL_KEY, Part, count_work, measure_part
from benchmarks.tables import wide_console

QUICK = {"seeds": 1, "fractions": (0.05,), "curvature_examples": 200}
QUICK_PART = "digits-label"


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
    mnist_fractions: tuple[float, ...] = (0.01, 0.05)
    """The same for MNIST, whose cells take longer."""
    mnist_examples: int | None = 20_000
    """Training examples of MNIST, drawn at random; None uses all."""
    curvature_examples: int = 2_000
    """Training examples that curvature and second-order updates see, drawn at random."""
    data_dir: str | None = None
    """Where tensorflow-datasets keeps prepared data; None is its default, or TFDS_DATA_DIR."""
    quick: bool = False
    """A rough run: false labels on the digits, one seed, one fraction, 200 curvature examples."""

    def run(self) -> None:
        """Measures what is missing, prints the findings and writes the report."""
        options = dataclasses.replace(self, **QUICK) if self.quick else self
        options.check()
        parts = options.chosen()
        console = wide_console()
        folder = open_folder(options.output or Path("results", "ablation"), options.settings())
        trials = Record(folder / "tuning.jsonl", TRIAL_KEY)
        cells = Record(folder / "results.jsonl", CELL_KEY)
        with _progress(console) as progress:
            task = progress.add_task("Loading", total=sum(count_work(part) for part in parts))
            for part in parts:
                measure_part(
                    part,
                    trials,
                    cells,
                    lambda words: (
                        progress.update(task, description=words) or progress.advance(task)
                    ),
                )

    def check(self) -> None:
        """Raises UsageError unless every option is in its range."""
        for fraction in (*self.fractions, *self.mnist_fractions):
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
            mnist_fractions=self.mnist_fractions,
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


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
