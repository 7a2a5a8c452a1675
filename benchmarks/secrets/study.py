"""The cells of the study: tuned on a seed that is not reported, frozen, measured on the others."""

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.methods.bench import leaf_counts
from benchmarks.methods.tuning import TUNING_SEED
from benchmarks.methods.ways import LIKE, PROPOSED
from benchmarks.secrets.baselines import BASELINES
from benchmarks.secrets.evidence import attacks, figures
from benchmarks.secrets.extraction import character_losses, exact_memorisation, right_guesses
from benchmarks.secrets.problem import REMOVAL, Problem, Settings
from benchmarks.secrets.updates import FULL, LEAVES, Outcome, Plan, runner
from benchmarks.tools.records import Journal

REFERENCES = ("poisoned", "retrained")
OTHER_WAYS = ("saliency", "sharpest", "random")
CLOSED_FORM_WAYS = (FULL, "decrease", "sharpest")
ATTACKED = (*REFERENCES, FULL, PROPOSED, LIKE + PROPOSED, "sharpest")
"""Exposure, a search and relearning are measured of these alone: they take longer."""
AT_ONCE = 2
"""Seeds that are worked on side by side: one model keeps a single core busy."""


@dataclass(frozen=True)
class Study:
    """What is compared."""

    settings: Settings
    seeds: int
    counts: tuple[int, ...]
    """How many entries may change."""
    middle: int
    """The number of entries at which other updates and corrections are compared, and attacks run.
    """
    leaves: tuple[str, ...]
    """Ways that change whole leaves."""
    updates: tuple[str, ...]
    """Beside the iterative one: first_order, second_order, grad_diff, npo."""
    corrections: tuple[str, ...]
    """The first of them with every plan, the others with all entries and with a few; removal with
    every number of entries, because it needs no correction and forgets little else."""

    @functools.cached_property
    def plans(self) -> list[Plan]:
        """Everything that is measured, a control after what it controls for."""
        first, *others = self.corrections
        plans = [Plan(first, "iterative", way, 0) for way in self.leaves]
        for count in self.counts:
            own = (PROPOSED, LIKE + PROPOSED)
            inner = self.counts[0] < count < self.counts[-1]
            ways = (*own, *OTHER_WAYS) if inner else own
            plans += [Plan(first, "iterative", way, count) for way in ways]
        for update in self.updates:
            if update in BASELINES:
                plans.append(Plan(REMOVAL, update, FULL, 0))
                continue
            for way in CLOSED_FORM_WAYS:
                plans.append(Plan(first, update, way, 0 if way in LEAVES else self.middle))
        for correction in others:
            plans.append(Plan(correction, "iterative", FULL, 0))
            for count in self.counts if correction == REMOVAL else (self.middle,):
                ways = (PROPOSED, LIKE + PROPOSED)
                plans += [Plan(correction, "iterative", way, count) for way in ways]
        return plans

    def is_attacked(self, plan: Plan) -> bool:
        """Whether exposure, a search and relearning are measured."""
        own = plan.way in ATTACKED and plan.entries in (0, self.middle)
        return own and plan.update not in ("first_order", "second_order")

    def problem(self, seed: int) -> Problem:
        """What one seed is about."""
        return Problem(self.settings, seed)

    def work(self, trials: Journal, cells: Journal) -> Iterator[tuple[Plan, bool]]:
        """What is not recorded yet, and whether it is tuning."""
        for plan in self.plans:
            if plan not in trials:
                yield plan, True
        for plan in (*references(self.corrections[0]), *self.plans):
            if any((*plan, seed) not in cells for seed in range(1, self.seeds + 1)):
                yield plan, False


def references(correction: str) -> list[Plan]:
    """The model before and the retrained one."""
    return [Plan(correction, "none", name, 0) for name in REFERENCES]


def run_study(
    study: Study, trials: Journal, cells: Journal, advance: Callable[[str], None]
) -> None:
    """Tunes and measures whatever is not recorded yet.

    Args:
      study: what to compare.
      trials: a row per plan: all values and the one that was chosen.
      cells: a row per plan and seed: all figures.
      advance: called with a few words before each piece of work.
    """
    problem_of = functools.cache(study.problem)
    value_of = lambda plan: trials[plan]["chosen"]
    for plan, tuning in list(study.work(trials, cells)):
        number = f", {plan.entries} entries" if plan.entries else ""
        stage = "tuning" if tuning else "measuring"
        words = f"{plan.update}, {plan.way}".replace("_", " ")
        advance(f"{plan.correction}, {stage}: {words}{number}")
        finding = plan.finding()
        found = None if finding is None else value_of(finding)
        if tuning:
            trials.append(_trial(problem_of(TUNING_SEED), plan, found))
            continue
        missing = [seed for seed in range(1, study.seeds + 1) if (*plan, seed) not in cells]

        def measure(seed: int, plan: Plan = plan, found: float | None = found) -> dict[str, Any]:
            value = None if plan.update == "none" else value_of(plan)
            return cell(study, problem_of(seed), plan, value, found)

        cells.append(*_side_by_side(measure, missing))


def _side_by_side(fn: Callable[[Any], Any], values: Sequence[Any]) -> list[Any]:
    """The first alone, so that what it compiles is compiled once."""
    first = [fn(value) for value in values[:1]]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [*first, *pool.map(fn, values[1:])]


def _trial(problem: Problem, plan: Plan, found: float | None) -> dict[str, Any]:
    run = runner(problem, plan, found)
    judge_one = lambda value: round(objective(problem, run(value).params), 5)
    objectives = _side_by_side(judge_one, plan.trials)
    best = int(np.argmax(objectives))
    values = list(plan.trials)
    return plan._asdict() | {"values": values, "objectives": objectives, "chosen": values[best]}


def objective(problem: Problem, params: Any) -> float:
    """What tuning raises: neighbours stay, forgotten secrets look unseen, text is read as before.

    It is the exact memorisation of the neighbours, less what the forgotten secrets have more of it
    than unseen ones had before, less what validation text costs more than before, in nats.
    """
    model, told = problem.model, problem.told
    memorisation = lambda p, chosen: float(
        np.mean([exact_memorisation(right) for right in right_guesses(model, p, chosen)])
    )
    cost = lambda p: float(np.mean(character_losses(model, p, *problem.validation)))
    before = problem.poisoned.params
    left = memorisation(params, told.take(problem.forget)) - memorisation(before, problem.unseen)
    lost = cost(params) - cost(before)
    if not np.isfinite(lost):
        return -1e6
    return memorisation(params, told.take(problem.neighbours)) - max(0, left) - max(0, lost)


def cell(
    study: Study, problem: Problem, plan: Plan, value: float | None, found: float | None
) -> dict[str, Any]:
    """All figures of one model."""
    if value is None:
        retrained = plan.way == "retrained"
        trained = problem.retrained if retrained else problem.poisoned
        cost = problem.retrain_example_gradients if retrained else 0
        outcome = Outcome(trained.params, None, 0, cost)
    else:
        outcome = runner(problem, plan, found)(value)
    # Of each kind and number of repeats, where it is about repeats.
    ids = np.arange(0, len(problem.canaries), 4) if value is None else problem.forget[::2]
    attacked = attacks(problem, outcome.params, ids) if study.is_attacked(plan) else {}
    return {
        **plan._asdict(),
        "seed": problem.seed,
        "text": problem.settings.text,
        "model": problem.model.description,
        **figures(problem, outcome.params),
        **attacked,
        "leaves": {} if outcome.mask is None else leaf_counts(outcome.mask),
        "selection_example_gradients": outcome.selection_example_gradients,
        "update_example_gradients": outcome.update_example_gradients,
        "retrain_example_gradients": problem.retrain_example_gradients,
    }
