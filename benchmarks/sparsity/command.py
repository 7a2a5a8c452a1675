"""`python -m benchmarks sparsity`: recovery against the number of entries that change."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from benchmarks.learning.data import DATASETS
from benchmarks.learning.models import MODELS
from benchmarks.learning.scenarios import SCENARIOS
from benchmarks.learning.settings import Settings
from benchmarks.methods.bench import up_to_half
from benchmarks.methods.tuning import TUNING_SEED
from benchmarks.methods.ways import LIKE, PROPOSED, WAYS
from benchmarks.sparsity.records import open_journals
from benchmarks.sparsity.report import write_sparsity
from benchmarks.sparsity.study import Study, run_study
from benchmarks.tools.command import continued
from benchmarks.tools.errors import UsageError, check_at_least, check_choice, check_share
from benchmarks.tools.origin import Origin, add_origin, write_report

COUNTS = (1, 3, 6, 12, 24, 48, 192, 768, 3072, 12288, 49152)
QUICK_COUNTS = (3, 24, 192)


@dataclass(frozen=True)
class Sparsity:
    """Find how few entries do what all entries do, with every selection."""

    dataset: str = "digits"
    """digits (embedded), mnist or cifar10 (prepared once by tensorflow-datasets)."""
    model: str = "mlp"
    """The network: mlp, cnn, convnet or resnet."""
    scenarios: tuple[str, ...] = tuple(SCENARIOS)
    """Any of label, backdoor, feature and sample."""
    seeds: int | None = None
    """How many seeds are reported; None is 10 for digits and else 5."""
    tuning_seeds: int | None = None
    """How many further seeds the rates are tried on; None is 5 for digits and else 1."""
    known: tuple[float, ...] = (0.1, 1.0)
    """Shares of the poisoned examples that are known, the last one all of them."""
    ways: tuple[str, ...] = tuple(WAYS)
    """How entries are chosen; each but `random` brings its control with it."""
    counts: tuple[int, ...] = COUNTS
    """How many entries change; numbers above half of the network's entries are left out."""
    attacked: int = 24
    """The number of entries at which membership and relearning are measured."""
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
    """Folder for the results; None is results/sparsity-DATASET-MODEL. What stands there is not
    done again."""
    quick: bool = False
    """A rough run: false labels, one seed, a quarter of the epochs, three numbers of entries, three
    ways, all poisoned examples known."""

    def run(self) -> None:
        """Measures what is missing; leaves a report."""
        study = self.study()
        output = self.output or Path("results", f"sparsity-{self.dataset}-{self.model}")
        for settings in study.settings.values():
            settings.load(TUNING_SEED)
        few = up_to_half(study.counts, next(iter(study.settings.values())))
        study = dataclasses.replace(study, counts=few)
        with continued(output, self._identity()) as run:
            trials, cells = open_journals(run.folder)
            add_origin(run.folder, self)
            run.expect(len(list(study.work(trials, cells))))
            run_study(study, trials, cells, run.say)
            run.say("Writing the report")
            write_report(self, run.folder)

    def report(self, folder: Path, origin: Origin) -> None:
        """Pictures and pages from what stands in the folder."""
        trials, cells = open_journals(folder)
        write_sparsity(folder, self.study(), trials.rows, cells.rows, origin)

    def study(self) -> Study:
        """What is compared, after a check of every option."""
        check_choice("dataset", self.dataset, DATASETS)
        check_choice("model", self.model, MODELS)
        known = (1.0,) if self.quick else self.known
        if not known or known[-1] != 1 or any(not 0 < share <= 1 for share in known):
            raise UsageError("`known` must hold shares above 0 and end with 1.")
        names = ("label",) if self.quick else self.scenarios
        for name in names:
            check_choice("scenarios", name, SCENARIOS)
        ways = (PROPOSED, "sharpest", "random") if self.quick else self.ways
        for name in ways:
            check_choice("ways", name, WAYS)
        counts = QUICK_COUNTS if self.quick else tuple(sorted(set(self.counts)))
        check_at_least("counts", min(counts, default=0), 1)
        check_share("budget", self.budget)
        digits = self.dataset == "digits"
        seeds = 1 if self.quick else self.seeds or (10 if digits else 5)
        tuning_seeds = 1 if self.quick else self.tuning_seeds or (5 if digits else 1)
        settings = {name: self._settings(name, seeds) for name in names}
        return Study(
            settings=settings,
            known=known,
            ways=tuple(
                each for way in ways for each in ((way,) if way == "random" else (way, LIKE + way))
            ),
            counts=counts,
            attacked=self.attacked,
            num_tuning_seeds=tuning_seeds,
            cache=self.cache,
        )

    def _settings(self, scenario: str, seeds: int) -> Settings:
        settings = Settings(
            dataset=self.dataset,
            scenario=scenario,
            model=self.model,
            seeds=seeds,
            budget=self.budget,
            curvature_examples=500 if self.quick else self.curvature_examples,
            train_examples=self.train_examples,
            epochs=self.epochs,
            data_dir=self.data_dir,
        )
        if not self.quick:
            settings.check()
            return settings
        epochs = max(1, settings.recipe.epochs // 4)
        return dataclasses.replace(settings, epochs=epochs)

    def _identity(self) -> dict[str, object]:
        """What rows depend on; more seeds, scenarios, ways, counts or known shares only add."""
        names = ("dataset", "model", "train_examples", "epochs", "budget", "curvature_examples")
        return {name: getattr(self, name) for name in (*names, "attacked", "quick")}
