"""The cells of the study: tuned on some seeds, frozen, measured on others, recorded at once."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.learning.settings import Settings
from benchmarks.methods.bench import FULL, Bench, finding_rate, plan, tune
from benchmarks.methods.case import make_case
from benchmarks.methods.tuning import TUNING_SEED, tuning_seeds
from benchmarks.tools.records import Journal


@dataclass(frozen=True)
class Study:
    """What is compared on one data set."""

    settings: dict[str, Settings]
    """By scenario."""
    known: tuple[float, ...]
    """Shares of the poisoned examples that are known."""
    ways: tuple[str, ...]
    counts: tuple[int, ...]
    """How many entries a way may change."""
    attacked: int
    """The number of entries at which models are attacked."""
    num_tuning_seeds: int
    cache: Path
    """Folder of trained parameters."""

    @property
    def tuning_seeds(self) -> tuple[int, ...]:
        """The seeds that all rates are tried on, none of them reported."""
        return tuning_seeds(self.num_tuning_seeds)

    def bench(self, scenario: str, seed: int, known: float) -> Bench:
        """Trains the poisoned model of a seed, or reads it from the cache."""
        settings = replace(self.settings[scenario], known=known)
        return Bench.of(make_case(settings, seed, self.cache), self.attacked)

    def work(self, trials: Journal, cells: Journal) -> Iterator[tuple[str, int, float, str, int]]:
        """What is not recorded yet: scenario, seed, known share, way, count; tuning first.

        A count of 0 stands for all entries, which are moved without a choice.
        """
        cases = plan(self.ways, self.counts)
        for scenario, settings in self.settings.items():
            for case in cases:
                if (scenario, case[0], max(case[1], 1)) not in trials:
                    yield scenario, TUNING_SEED, 1.0, *case
            for seed in range(1, settings.seeds + 1):
                for known in self.known:
                    for case in cases:
                        if (scenario, known, *case, seed) not in cells:
                            yield scenario, seed, known, *case


def run_study(
    study: Study, trials: Journal, cells: Journal, advance: Callable[[str], None]
) -> None:
    """Tunes and measures whatever is not recorded yet.

    Args:
      study: what to compare.
      trials: a row per scenario, way and count: all rates and the one that was chosen.
      cells: a row per scenario, known share, way, count and seed: all figures.
      advance: called with a few words before each piece of work.
    """
    bench_of = functools.lru_cache(maxsize=study.num_tuning_seeds)(study.bench)
    for scenario, seed, known, way, count in list(study.work(trials, cells)):
        tuning = seed == TUNING_SEED
        stage = "tuning" if tuning else f"seed {seed}, {100 * known:g} % known"
        entries = "all entries" if way == FULL else f"{count} entries"
        advance(f"{scenario}, {stage}: {way.replace('_', ' ')}, {entries}")
        rate_of = lambda name, n=count, s=scenario: trials[s, name, max(n, 1)]["chosen"]
        finding = finding_rate(way, rate_of)
        if tuning:
            benches = [bench_of(scenario, each, 1.0) for each in study.tuning_seeds]
            trials.append(tune(benches, way, count, finding))
            continue
        bench = bench_of(scenario, seed, known)
        if (scenario, known, "retrained", 0, seed) not in cells:
            cells.append(*bench.reference_rows())
        cells.append(bench.cell(way, count, rate_of(way), finding))
