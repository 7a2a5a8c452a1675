"""The comparison of procedures, cell by cell: tuned on some seeds, frozen, measured on others."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.learning.checkpoints import Trained, train_once
from benchmarks.learning.data import Split
from benchmarks.learning.scenarios import notice, poison
from benchmarks.learning.settings import Settings
from benchmarks.learning.training import num_steps
from benchmarks.measures.metrics import accuracy
from benchmarks.methods.curvature import timed
from benchmarks.paper.evidence import (
    Subject,
    changes,
    figures,
    membership,
    relearning,
    relearning_areas,
    relearning_counts,
    towards,
)
from benchmarks.paper.problems import Problem
from benchmarks.paper.procedures import PROCEDURES, Trial
from benchmarks.tools.records import Record
from benchmarks.unlearn.comparison import TUNING_SEED, tuning_objective

TRIAL_KEY = ("scenario", "method", "fraction", "budget")
CELL_KEY = ("scenario", "known", "method", "fraction", "budget", "seed")
REFERENCES = ("poisoned", "retrained")
MORE_TUNING = 10_000
"""The tuning seeds after the first; reported ones lie far below."""
BATCHES_IN_ONE = 4
"""How many batches of an update have the size of one of training: its budget is small, and more
and smaller steps use it better."""


class Arm(NamedTuple):
    """A procedure at one size."""

    method: str
    fraction: float
    """The share of the entries that a mask selects."""
    budget: float
    """Example gradients for selection and update, as a share of retraining's."""


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
        return (TUNING_SEED, *range(MORE_TUNING, MORE_TUNING + self.num_tuning_seeds - 1))

    def entrants(self, scenario: str, known: float) -> list[Arm]:
        """What is compared there."""
        wide = known == 1 and scenario in self.frontier_scenarios
        return [*self.arms, *(self.frontier if wide else ())]

    def seeds(self, scenario: str) -> range:
        """The reported seeds."""
        return range(1, self.settings[scenario].seeds + 1)

    def work(self, trials: Record, cells: Record) -> Iterator[tuple[str, int, float, Arm]]:
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
    contest: Contest, trials: Record, cells: Record, advance: Callable[[str], None]
) -> None:
    """Tunes and measures whatever is not recorded yet.

    Args:
      contest: what to compare.
      trials: a row per scenario and arm: all its trials and the one that was chosen.
      cells: a row per scenario, known share, arm and seed: all its figures.
      advance: called with a few words before each piece of work.
    """
    memory = functools.lru_cache(maxsize=contest.num_tuning_seeds)
    bench_of = memory(functools.partial(Bench.make, contest))
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
        chosen = next(r["chosen"] for r in trials.rows if _key(r, TRIAL_KEY) == (scenario, *arm))
        cells.append(bench.measure(arm, known, chosen))


def _key(row: dict[str, Any], names: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(row[name] for name in names)


def make_subject(
    settings: Settings, cache: Path, seed: int, *, retrain: bool = True
) -> tuple[Subject, float]:
    """Poisons the data of a seed and trains on it, and on what it should have been.

    Args:
      settings: which data and which network.
      cache: folder of trained parameters.
      seed: of everything.
      retrain: whether there is to be a retrained model; none is needed for tuning.

    Returns:
      The subject, and the seconds that retraining took.
    """
    dataset = settings.load(seed)
    model = settings.build(dataset)
    poisoned = poison(dataset, settings.scenario, settings.poison_share, seed)
    everything = np.arange(len(poisoned.train.labels))
    steps = num_steps(settings.recipe, len(everything))

    def trained(storage: Split, ids: np.ndarray) -> Trained:
        return train_once(cache, model, settings.recipe, storage, ids, steps, seed)

    before = trained(poisoned.train, everything)
    ids = poisoned.retained if poisoned.corrected is None else everything
    after = trained(dataset.train, ids) if retrain else Trained(None, 0.0)
    pair = (before.params, after.params)
    return Subject(settings.scenario, seed, model, dataset, poisoned, *pair, steps), after.seconds


def tune(benches: Sequence["Bench"], scenario: str, arm: Arm) -> dict[str, Any]:
    """The trials of an arm and the one whose objective was best over these seeds."""
    results = np.mean([bench.try_all(arm) for bench in benches], axis=0)
    validation, forget, objective = results.T
    trials = PROCEDURES[arm.method].trials
    return {
        "scenario": scenario,
        **arm._asdict(),
        "trials": list(trials),
        "validation_accuracy": [round(float(v), 5) for v in validation],
        "forget_accuracy": [round(float(f), 5) for f in forget],
        "chosen": trials[int(np.argmax(objective))],
    }


@dataclass(frozen=True)
class Bench:
    """One seed of a scenario, ready for procedures."""

    settings: Settings
    subject: Subject
    retrain_seconds: float
    main: tuple[Arm, ...]
    """The arms that are attacked, where all poisoned examples are known."""

    @classmethod
    def make(cls, contest: Contest, scenario: str, seed: int) -> "Bench":
        """Trains the models of a seed, or reads them from the cache."""
        settings, retrain = contest.settings[scenario], seed not in contest.tuning_seeds
        made = make_subject(settings, contest.cache, seed, retrain=retrain)
        return cls(settings, *made, contest.arms)

    def problem(self, arm: Arm, known: float) -> Problem:
        """What a procedure may use."""
        subject, seed = self.subject, self.subject.seed
        poisoned = subject.poisoned
        if known < 1:
            poisoned = notice(poisoned, known, seed)
        return Problem(
            model=subject.model,
            params=subject.params,
            train=poisoned.train,
            data=poisoned.data,
            original=poisoned.original,
            corrected=poisoned.corrected,
            retained=poisoned.train.take(poisoned.retained),
            num_classes=subject.dataset.num_classes,
            batch_size=self.settings.recipe.batch_size // BATCHES_IN_ONE,
            budget=int(arm.budget * self._retrain_gradients),
            fraction=arm.fraction,
            seed=seed,
        )

    def try_all(self, arm: Arm) -> np.ndarray:
        """Validation and forget accuracy and the objective of every trial of an arm."""
        procedure, problem = PROCEDURES[arm.method], self.problem(arm, 1.0)
        subject, evidence = self.subject, procedure.select(problem)
        budget = problem.budget - procedure.selection_gradients(problem)
        results = []
        for trial in procedure.trials:
            params, _ = procedure.run(problem, evidence, budget, trial)
            validation = accuracy(subject.model, params, subject.dataset.validation)
            forget = accuracy(subject.model, params, subject.poisoned.forget)
            objective = tuning_objective(validation, forget, problem.corrected is None)
            results.append((validation, forget, objective))
        return np.array(results)

    def measure(self, arm: Arm, known: float, trial: Trial) -> dict[str, Any]:
        """All figures of an arm with its tuned numbers."""
        procedure, problem = PROCEDURES[arm.method], self.problem(arm, known)
        budget = problem.budget - procedure.selection_gradients(problem)
        select = lambda: procedure.select(problem)
        run = lambda evidence: procedure.run(problem, evidence, budget, trial)
        if (shape := (self.subject.model, self.subject.scenario, arm, known)) not in _RUN_BEFORE:
            jax.block_until_ready(run(select()))  # compiles
            _RUN_BEFORE.add(shape)
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
        rows = []
        for name, params, seconds, gradients in (
            ("poisoned", self.subject.params, 0.0, 0),
            ("retrained", self.subject.retrained, self.retrain_seconds, self._retrain_gradients),
        ):
            costs = {
                "selection_seconds": 0.0,
                "update_seconds": round(seconds, 4),
                "selection_example_gradients": 0,
                "update_example_gradients": gradients,
            }
            rows.append(self._row(Arm(name, 1.0, 1.0), 1.0, params) | costs)
        return rows

    def _row(self, arm: Arm, known: float, params: Any) -> dict[str, Any]:
        subject, measured = self.subject, figures(self.subject, params)
        before, aim = self._references
        evidence = measured | towards(subject, measured, before, aim) | changes(subject, params)
        if known == 1 and (arm in self.main or arm.method in REFERENCES):
            evidence |= self._attacks(params)
        return {
            "dataset": subject.dataset.name,
            "variant": subject.dataset.variant,
            "model": self.settings.model,
            "scenario": subject.scenario,
            "known": known,
            **arm._asdict(),
            "seed": subject.seed,
            **{k: round(v, 4) if isinstance(v, float) else v for k, v in evidence.items()},
            "retrain_example_gradients": self._retrain_gradients,
        }

    def _attacks(self, params: Any) -> dict[str, Any]:
        curve = relearning(self.subject, params)
        counts = relearning_counts(len(self.subject.poisoned.original.labels))
        return {
            **membership(self.subject, params),
            "relearning_counts": counts,
            "relearning": curve,
            **relearning_areas(curve, self._retrained_curve, counts),
        }

    @functools.cached_property
    def _references(self) -> tuple[dict[str, Any], dict[str, Any]]:
        subject = self.subject
        return figures(subject, subject.params), figures(subject, subject.retrained)

    @functools.cached_property
    def _retrained_curve(self) -> list[float]:
        return relearning(self.subject, self.subject.retrained)

    @property
    def _retrain_gradients(self) -> int:
        return self.subject.steps * self.settings.recipe.batch_size


_RUN_BEFORE: set[tuple[Any, ...]] = set()
"""What has run in this process, so that timed runs need not compile."""
