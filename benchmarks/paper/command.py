"""`python -m benchmarks paper`: the paper's claim against every baseline, on one data set."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from benchmarks.learning.data import DATASETS
from benchmarks.learning.scenarios import SCENARIOS
from benchmarks.learning.settings import Settings
from benchmarks.methods.tuning import TUNING_SEED
from benchmarks.paper.contest import Arm, Contest, run_contest
from benchmarks.paper.procedures import PROCEDURES, PROPOSED
from benchmarks.paper.records import open_journals
from benchmarks.paper.report import find_facts, write_paper
from benchmarks.tools.command import continued
from benchmarks.tools.errors import UsageError, check_at_least, check_choice, check_share
from benchmarks.tools.origin import Origin, add_origin, write_report

FRONTIER_METHODS = (PROPOSED, "sharpest")
REMOVAL_EXAMPLES = 5_000
"""Removal is studied where a network remembers its examples; on more it is near trivial."""
CIFAR10_EXAMPLES = 10_000


@dataclass(frozen=True)
class Paper:
    """Compare selection by sharpness with every baseline, scenario by scenario."""

    dataset: str = "digits"
    """digits (embedded), mnist or cifar10 (prepared once by tensorflow-datasets)."""
    model: str | None = None
    """The network: mlp, cnn or resnet; None is mlp, and cnn for cifar10."""
    scenarios: tuple[str, ...] | None = None
    """Any of label, backdoor, feature and sample; None is all, and the first two for cifar10."""
    seeds: int = 5
    """How many seeds are reported."""
    tuning_seeds: int | None = None
    """How many further seeds all trials run on; None is 5 for digits, whose validation and forget
    sets are small, and else 1."""
    procedures: tuple[str, ...] | None = None
    """Which procedures to compare with the proposed one; None is all that the report lists."""
    known: tuple[float, ...] = (0.1, 0.5, 1.0)
    """Shares of the poisoned examples that are known, the last one all of them."""
    fraction: float = 0.05
    """Share of the parameters that a mask selects."""
    budget: float = 0.02
    """Example gradients for selection and update, as a share of those of retraining."""
    frontier_fractions: tuple[float, ...] = (0.01, 0.2)
    """Further shares of the parameters, for the frontier."""
    frontier_budgets: tuple[float, ...] = (0.005, 0.08)
    """Further budgets, for the frontier."""
    frontier_scenarios: tuple[str, ...] = ("label", "backdoor")
    """Where the frontier is measured."""
    train_examples: int | None = None
    """Training examples to use, drawn at random; None uses all, for cifar10 10,000, and for the
    removal of records at most 5,000."""
    epochs: int | None = None
    """Passes over the training set when training; None is the recipe of data set and model."""
    data_dir: str | None = None
    """Where tensorflow-datasets keeps prepared data; None is its default, or TFDS_DATA_DIR."""
    cache: Path = Path("results", "cache")
    """Folder where trained parameters are kept, by a hash of data, configuration and seed."""
    output: Path | None = None
    """Folder for the results; None is results/paper-DATASET. What stands there is not done
    again."""
    quick: bool = False
    """A rough run: digits' size in epochs quartered, one seed, all poisoned examples known, no
    frontier."""

    def run(self) -> None:
        """Measures what is missing; leaves a report."""
        contest = self.contest()
        output = self.output or Path("results", f"paper-{self.dataset}")
        for settings in contest.settings.values():
            settings.load(TUNING_SEED)
        with continued(output, self._identity()) as run:
            trials, cells = open_journals(run.folder)
            run.expect(len(list(contest.work(trials, cells))) + 1)
            run.say("Training the first network")
            add_origin(run.folder, self, lambda: find_facts(contest))
            run_contest(contest, trials, cells, run.say)
            run.say("Writing the report")
            write_report(self, run.folder)

    def report(self, folder: Path, origin: Origin) -> None:
        """Pictures and pages from what stands in the folder."""
        trials, cells = open_journals(folder)
        write_paper(folder, self.contest(), trials.rows, cells.rows, origin)

    def contest(self) -> Contest:
        """What is compared, after a check of every option."""
        check_choice("dataset", self.dataset, DATASETS)
        scenarios = self.scenarios or tuple(SCENARIOS)[: 2 if self.dataset == "cifar10" else None]
        known = (1.0,) if self.quick else self.known
        if not known or known[-1] != 1 or any(not 0 < share <= 1 for share in known):
            raise UsageError("`known` must hold shares above 0 and end with 1.")
        seeds = 1 if self.quick else self.seeds
        check_at_least("seeds", seeds, 1)
        check_at_least("tuning-seeds", self._num_tuning_seeds, 1)
        for name in self.procedures or ():
            check_choice("procedures", name, PROCEDURES)
        wanted = {PROPOSED, *(self.procedures or PROCEDURES)}
        procedures = [name for name in PROCEDURES if name in wanted]
        settings = {}
        for scenario in scenarios:
            check_choice("scenarios", scenario, SCENARIOS)
            each = Settings(
                dataset=self.dataset,
                scenario=scenario,
                model=self.model or ("cnn" if self.dataset == "cifar10" else "mlp"),
                seeds=seeds,
                fraction=self.fraction,
                budget=self.budget,
                train_examples=self._train_examples(scenario),
                epochs=self.epochs,
                data_dir=self.data_dir,
            )
            each.check()
            if self.quick:
                epochs = self.epochs or max(1, each.recipe.epochs // 4)
                each = dataclasses.replace(each, epochs=epochs)
            settings[scenario] = each
        for name in ("frontier_fractions", "frontier_budgets"):
            for value in getattr(self, name):
                check_share(name.replace("_", "-"), value)
        return Contest(
            settings=settings,
            known=known,
            arms=tuple(Arm(name, self.fraction, self.budget) for name in procedures),
            frontier=() if self.quick else tuple(self._frontier()),
            frontier_scenarios=self.frontier_scenarios,
            cache=self.cache,
            num_tuning_seeds=self._num_tuning_seeds,
        )

    @property
    def _num_tuning_seeds(self) -> int:
        if self.tuning_seeds is None:
            return 5 if self.dataset == "digits" and not self.quick else 1
        return self.tuning_seeds

    def _frontier(self) -> list[Arm]:
        """Other shares of the parameters and other budgets, each beside the main one."""
        fractions = [(fraction, self.budget) for fraction in self.frontier_fractions]
        budgets = [(self.fraction, budget) for budget in self.frontier_budgets]
        arms = [Arm(name, *pair) for name in FRONTIER_METHODS for pair in fractions + budgets]
        return arms + [Arm("full", *pair) for pair in budgets]

    def _train_examples(self, scenario: str) -> int | None:
        whole = CIFAR10_EXAMPLES if self.dataset == "cifar10" else None
        examples = self.train_examples or whole
        if scenario == "sample" and self.dataset != "digits":
            return min(examples or REMOVAL_EXAMPLES, REMOVAL_EXAMPLES)
        return examples

    def _identity(self) -> dict[str, object]:
        """What rows depend on; more seeds, scenarios or known shares only add rows."""
        names = ("dataset", "model", "train_examples", "epochs", "quick")
        identity: dict[str, object] = {name: getattr(self, name) for name in names}
        return identity | {"tuning_seeds": self._num_tuning_seeds}
