"""The comparison of procedures, cell by cell: tuned on some seeds, frozen, measured on others."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.learning.checkpoints import Trained
from benchmarks.learning.scenarios import notice
from benchmarks.learning.settings import Settings
from benchmarks.methods.case import Case, make_case
from benchmarks.methods.evidence import Evidence
from benchmarks.methods.tuning import TUNING_SEED, Judgement, best, try_all, tuning_seeds
from benchmarks.methods.updates import BATCHES_IN_ONE
from benchmarks.paper.problems import Problem
from benchmarks.paper.procedures import PROCEDURES, Trial
from benchmarks.tools.records import Journal
from benchmarks.tools.timing import timed

REFERENCES = ("poisoned", "retrained")


class Arm(NamedTuple):
    """A procedure at one size."""

    method: str
    fraction: float
    """The share of the entries that a mask selects."""
    budget: float
    """Example gradients for selection and update, as a share of retraining's."""


Shape = tuple[str, Arm, float]
"""Scenario, arm and known share: what decides the shapes that a procedure is compiled for."""


@dataclass(frozen=True)
class Contest:
    """What is compared on one data set."""

    settings: dict[str, Settings]
    """By scenario."""
    known: tuple[float, ...]
    """Shares of the poisoned examples that are known."""
    arms: tuple[Arm, ...]
    """Compared on all of these shares."""
    frontier: tuple[Arm, ...]
    """Compared where all poisoned examples are known."""
    frontier_scenarios: tuple[str, ...]
    cache: Path
    """Folder of trained parameters."""
    num_tuning_seeds: int = 1

    @property
    def tuning_seeds(self) -> tuple[int, ...]:
        """The seeds that all trials run on, none of them reported."""
        return tuning_seeds(self.num_tuning_seeds)

    def entrants(self, scenario: str, known: float) -> list[Arm]:
        """What is compared there."""
        wide = known == 1 and scenario in self.frontier_scenarios
        return list(dict.fromkeys([*self.arms, *(self.frontier if wide else ())]))

    def seeds(self, scenario: str) -> range:
        """The reported seeds."""
        return range(1, self.settings[scenario].seeds + 1)

    def work(self, trials: Journal, cells: Journal) -> Iterator[tuple[str, int, float, Arm]]:
        """What is not recorded yet: scenario, seed, known share, arm; tuning first."""
        for scenario in self.settings:
            for arm in self.entrants(scenario, 1.0):
                if (scenario, *arm) not in trials:
                    yield scenario, TUNING_SEED, 1.0, arm
            for seed in self.seeds(scenario):
                for known in self.known:
                    for arm in self.entrants(scenario, known):
                        if (scenario, known, *arm, seed) not in cells:
                            yield scenario, seed, known, arm


def run_contest(
    contest: Contest, trials: Journal, cells: Journal, advance: Callable[[str], None]
) -> None:
    """Tunes and measures whatever is not recorded yet.

    Args:
      contest: what to compare.
      trials: a row per scenario and arm: all its trials and the one that was chosen.
      cells: a row per scenario, known share, arm and seed: all its figures.
      advance: called with a few words before each piece of work.
    """
    memory = functools.lru_cache(maxsize=contest.num_tuning_seeds)
    compiled: set[Shape] = set()
    bench_of = memory(functools.partial(Bench.make, contest, compiled))
    for scenario, seed, known, arm in list(contest.work(trials, cells)):
        tuning = seed == TUNING_SEED
        stage = "tuning" if tuning else f"seed {seed}, {100 * known:g} % known"
        advance(f"{scenario}, {stage}: {arm.method.replace('_', ' ')}")
        if tuning:
            benches = [bench_of(scenario, each) for each in contest.tuning_seeds]
            trials.append(tune(benches, scenario, arm))
            continue
        bench = bench_of(scenario, seed)
        if (scenario, 1.0, *Arm("retrained", 1.0, 1.0), seed) not in cells:
            cells.append(*bench.reference_rows())
        cells.append(bench.measure(arm, known, trials[scenario, *arm]["chosen"]))


def tune(benches: Sequence["Bench"], scenario: str, arm: Arm) -> dict[str, Any]:
    """The trials of an arm and the one whose objective was best over these seeds."""
    trials = PROCEDURES[arm.method].trials
    results = np.mean([bench.try_all(arm) for bench in benches], axis=0)
    judgements = [Judgement(*result) for result in results.tolist()]
    return {
        "scenario": scenario,
        **arm._asdict(),
        "trials": list(trials),
        "validation_accuracy": [round(j.validation_accuracy, 5) for j in judgements],
        "forget_accuracy": [round(j.forget_accuracy, 5) for j in judgements],
        "chosen": trials[best(judgements)],
    }


@dataclass(frozen=True)
class Bench:
    """One seed of a scenario, ready for procedures."""

    case: Case
    main: tuple[Arm, ...]
    """The arms that are attacked, where all poisoned examples are known."""
    compiled: set[Shape]
    """What this run has run before, so that it need not be run once more to compile it."""

    @classmethod
    def make(cls, contest: Contest, compiled: set[Shape], scenario: str, seed: int) -> "Bench":
        """Trains the poisoned model of a seed, or reads it from the cache."""
        case = make_case(contest.settings[scenario], seed, contest.cache)
        return cls(case, contest.arms, compiled)

    def problem(self, arm: Arm, known: float) -> Problem:
        """What a procedure may use."""
        case, seed = self.case, self.case.seed
        poisoned = case.poisoned
        if known < 1:
            poisoned = notice(poisoned, known, seed)
        return Problem(
            model=case.model,
            params=case.params,
            train=poisoned.train,
            data=poisoned.data,
            original=poisoned.original,
            corrected=poisoned.corrected,
            retained=poisoned.train.take(poisoned.retained),
            num_classes=case.dataset.num_classes,
            batch_size=self.case.settings.recipe.batch_size // BATCHES_IN_ONE,
            budget=int(arm.budget * self.case.retrain_example_gradients),
            fraction=arm.fraction,
            seed=seed,
        )

    def try_all(self, arm: Arm) -> list[Judgement]:
        """What every trial of an arm leads to."""
        procedure, problem = PROCEDURES[arm.method], self.problem(arm, 1.0)
        evidence = procedure.select(problem)
        budget = problem.budget - procedure.selection_gradients(problem)
        run = lambda trial: procedure.run(problem, evidence, budget, trial)[0]
        return try_all(self.case, run, procedure.trials)

    def measure(self, arm: Arm, known: float, trial: Trial) -> dict[str, Any]:
        """All figures of an arm with its tuned numbers."""
        procedure, problem = PROCEDURES[arm.method], self.problem(arm, known)
        budget = problem.budget - procedure.selection_gradients(problem)
        select = lambda: procedure.select(problem)
        run = lambda evidence: procedure.run(problem, evidence, budget, trial)
        if (shape := (self.case.settings.scenario, arm, known)) not in self.compiled:
            jax.block_until_ready(run(select()))  # so that what is timed need not compile
            self.compiled.add(shape)
        evidence, selection_seconds = timed(select)
        (params, gradients), update_seconds = timed(lambda: run(evidence))
        return {
            **self._row(arm, known, params),
            "selection_seconds": round(selection_seconds, 4),
            "update_seconds": round(update_seconds, 4),
            "selection_example_gradients": procedure.selection_gradients(problem),
            "update_example_gradients": gradients,
        }

    def reference_rows(self) -> list[dict[str, Any]]:
        """The poisoned and the retrained model."""
        case, rows = self.case, []
        for name, trained, gradients in (
            ("poisoned", Trained(case.params, 0.0), 0),
            ("retrained", case.retrained, case.retrain_example_gradients),
        ):
            costs = {
                "selection_seconds": 0.0,
                "update_seconds": round(trained.seconds, 4),
                "selection_example_gradients": 0,
                "update_example_gradients": gradients,
            }
            rows.append(self._row(Arm(name, 1.0, 1.0), 1.0, trained.params) | costs)
        return rows

    def _row(self, arm: Arm, known: float, params: Any) -> dict[str, Any]:
        case = self.case
        attacked = known == 1 and (arm in self.main or arm.method in REFERENCES)
        return {
            **case.names,
            "known": known,
            **arm._asdict(),
            "seed": case.seed,
            **self._evidence.of(params, attacked=attacked),
            "retrain_example_gradients": case.retrain_example_gradients,
        }

    @functools.cached_property
    def _evidence(self) -> Evidence:
        return Evidence(self.case)
