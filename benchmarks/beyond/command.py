"""`python -m benchmarks beyond`: ideas beyond masks of entries, against their controls."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from benchmarks.beyond.records import open_journals
from benchmarks.beyond.report import write_beyond
from benchmarks.beyond.study import ALL, Study, run_study
from benchmarks.learning.data import DATASETS
from benchmarks.learning.settings import Settings
from benchmarks.methods.tuning import TUNING_SEED
from benchmarks.tools.command import continued
from benchmarks.tools.errors import UsageError, check_choice
from benchmarks.tools.origin import Origin, add_origin, write_report

QUICK_IDEAS = ("full", "projection")
MODELS = ("mlp", "cnn", "convnet")
"""Networks whose layers lie side by side, so that the inputs of each can be had."""


@dataclass(frozen=True)
class Beyond:
    """Try other ideas than a choice of entries, each against its control."""

    dataset: str = "digits"
    """digits (embedded), mnist or cifar10 (prepared once by tensorflow-datasets)."""
    model: str = "mlp"
    """The network: mlp, cnn or convnet."""
    ideas: tuple[str, ...] = tuple(ALL)
    """What to try, controls included."""
    seeds: int | None = None
    """How many seeds are reported; None is 10 for digits and else 5."""
    tuning_seeds: int = 2
    """How many further seeds the values are tried on."""
    budget: float = 0.05
    """Example gradients of the steps, as a share of those of retraining."""
    curvature_examples: int = 2_000
    """Examples that curvature is measured on, drawn at random."""
    train_examples: int | None = None
    """Training examples to use, drawn at random; None uses all."""
    epochs: int | None = None
    """Passes over the training set when training; None is the recipe of data set and model."""
    data_dir: str | None = None
    """Where tensorflow-datasets keeps prepared data; None is its default, or TFDS_DATA_DIR."""
    cache: Path = Path("results", "cache")
    """Folder where trained parameters are kept, by a hash of data, configuration and seed."""
    output: Path | None = None
    """Folder for the results; None is results/beyond-DATASET-MODEL. What stands there is not done
    again."""
    quick: bool = False
    """A rough run: the projection and all entries, one seed, a quarter of the epochs."""

    def run(self) -> None:
        """Measures what is missing; leaves a report."""
        study = self.study()
        output = self.output or Path("results", f"beyond-{self.dataset}-{self.model}")
        study.settings.load(TUNING_SEED)
        with continued(output, self._identity()) as run:
            trials, cells = open_journals(run.folder)
            add_origin(run.folder, self)
            run.expect(len(list(study.work(trials, cells))))
            run_study(study, trials, cells, run.say)
            run.say("Writing the report")
            write_report(self, run.folder)

    def report(self, folder: Path, origin: Origin) -> None:
        """Pages from what stands in the folder."""
        trials, cells = open_journals(folder)
        write_beyond(folder, self.study(), trials.rows, cells.rows, origin)

    def study(self) -> Study:
        """What is tried, after a check of every option."""
        check_choice("dataset", self.dataset, DATASETS)
        check_choice("model", self.model, MODELS)
        ideas = QUICK_IDEAS if self.quick else tuple(dict.fromkeys(self.ideas))
        if not ideas:
            raise UsageError("`ideas` must name at least one.")
        for name in ideas:
            check_choice("ideas", name, ALL)
        settings = Settings(
            dataset=self.dataset,
            model=self.model,
            seeds=self.seeds or (10 if self.dataset == "digits" else 5),
            budget=self.budget,
            curvature_examples=self.curvature_examples,
            train_examples=self.train_examples,
            epochs=self.epochs,
            data_dir=self.data_dir,
        )
        settings.check()
        if self.quick:
            epochs = max(1, settings.recipe.epochs // 4)
            settings = dataclasses.replace(settings, seeds=1, epochs=epochs)
        return Study(settings, ideas, 1 if self.quick else self.tuning_seeds, self.cache)

    def _identity(self) -> dict[str, object]:
        """What rows depend on; more seeds and ideas only add."""
        names = ("dataset", "model", "train_examples", "epochs", "budget", "curvature_examples")
        return {name: getattr(self, name) for name in (*names, "quick")}
