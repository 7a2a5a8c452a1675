"""The cells of the study: tuned on some seeds, frozen, measured on others, recorded at once."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.beyond import eigenbasis, projection, relearning, units
from benchmarks.beyond.ideas import Idea, by_way
from benchmarks.learning.settings import Settings
from benchmarks.methods.bench import FULL, RATES, REFERENCES, Bench
from benchmarks.methods.case import Case, make_case
from benchmarks.methods.tuning import TUNING_SEED, try_all, tuning_seeds
from benchmarks.tools.records import Journal

TOLERATED = 0.02
"""What of the objective an idea against relearning may lose for its strength."""


ALL: dict[str, Idea] = (
    {
        FULL: Idea(
            "all entries", ("label", "backdoor"), 1.0, (0,), "learning rate", RATES, by_way(FULL)
        )
    }
    | eigenbasis.IDEAS
    | projection.IDEAS
    | units.IDEAS
    | relearning.IDEAS
)


@dataclass(frozen=True)
class Study:
    """What is tried on one data set."""

    settings: Settings
    """Of any scenario."""
    ideas: tuple[str, ...]
    num_tuning_seeds: int
    cache: Path

    @property
    def problems(self) -> list[tuple[str, float]]:
        """The scenarios, with the share of the poison that is known."""
        found = [(name, ALL[idea].known) for idea in self.ideas for name in ALL[idea].scenarios]
        return list(dict.fromkeys(found))

    def cases(self, scenario: str, known: float) -> list[tuple[str, int]]:
        """The ideas and sizes of a problem."""
        own = [
            name
            for name in self.ideas
            if scenario in ALL[name].scenarios and ALL[name].known == known
        ]
        return [(name, size) for name in own for size in ALL[name].sizes]

    def bench(self, scenario: str, known: float, seed: int) -> Bench:
        """Trains the poisoned model of a seed, or reads it from the cache."""
        settings = replace(self.settings, scenario=scenario, known=known)
        return Bench.of(make_case(settings, seed, self.cache))

    def work(self, trials: Journal, cells: Journal) -> Iterator[tuple[str, float, int, str, int]]:
        """What is not recorded yet: scenario, known share, seed, idea, size; tuning first."""
        for problem in self.problems:
            for case in self.cases(*problem):
                if (problem[0], *case) not in trials:
                    yield *problem, TUNING_SEED, *case
            for seed in range(1, self.settings.seeds + 1):
                for idea, size in self.cases(*problem):
                    if (problem[0], idea, problem[1], size, seed) not in cells:
                        yield *problem, seed, idea, size


def run_study(
    study: Study, trials: Journal, cells: Journal, advance: Callable[[str], None]
) -> None:
    """Tunes and measures whatever is not recorded yet.

    Args:
      study: what to try.
      trials: a row per scenario, idea and size: all values and the one that was chosen.
      cells: a row per scenario, idea, size and seed: all figures.
      advance: called with a few words before each piece of work.
    """
    bench_of = functools.lru_cache(maxsize=study.num_tuning_seeds)(study.bench)
    begun = functools.lru_cache(maxsize=2 * study.num_tuning_seeds)(
        lambda idea, *about: ALL[idea].begin(bench_of(*about))
    )
    for scenario, known, seed, name, size in list(study.work(trials, cells)):
        stage = "tuning" if seed == TUNING_SEED else f"seed {seed}"
        advance(f"{scenario}, {stage}: {name.replace('_', ' ')}, {size}")
        if seed == TUNING_SEED:
            seeds = tuning_seeds(study.num_tuning_seeds)
            runs = [
                (bench_of(scenario, known, each).evidence.case, begun(name, scenario, known, each))
                for each in seeds
            ]
            trials.append(_tuned(scenario, name, size, runs))
            continue
        bench = bench_of(scenario, known, seed)
        if (scenario, "retrained", known, 0, seed) not in cells:
            case = bench.evidence.case
            models = (case.params, case.retrained.params)
            for reference, params in zip(REFERENCES, models, strict=True):
                cells.append(_cell(bench, reference, 0, params))
        value = trials[scenario, name, size]["chosen"]
        cells.append(_cell(bench, name, size, begun(name, scenario, known, seed)(size, value)))


def _tuned(
    scenario: str, name: str, size: int, runs: Sequence[tuple[Case, Callable[[int, float], Any]]]
) -> dict[str, Any]:
    """The values that were tried and the one that is kept."""
    idea = ALL[name]
    judged = [try_all(case, functools.partial(run, size), idea.trials) for case, run in runs]
    objectives = np.mean([[each.objective for each in own] for own in judged], axis=0).tolist()
    return {
        "scenario": scenario,
        "idea": name,
        "size": size,
        "trials": list(idea.trials),
        "objectives": [round(each, 5) for each in objectives],
        "chosen": idea.trials[choose(idea, objectives)],
    }


def _cell(bench: Bench, name: str, size: int, params: Any) -> dict[str, Any]:
    """All figures of it."""
    case = bench.evidence.case
    figures = bench.evidence.of(params, attacked=case.settings.known == 1)
    about = {"known": case.settings.known, "idea": name, "size": size, "seed": case.seed}
    return {**case.names, **about, **figures}


def choose(idea: Idea, objectives: Sequence[float]) -> int:
    """The trial that is kept: the best one, or of an idea against relearning the strongest.

    What tuning sees does not tell how slow a model is to relearn, so such an idea takes the
    largest value whose objective is hardly below the best one.
    """
    best = max(objectives)
    if idea.judged_by == "recovery":
        return list(objectives).index(best)
    return max(i for i, each in enumerate(objectives) if each >= best - TOLERATED)
