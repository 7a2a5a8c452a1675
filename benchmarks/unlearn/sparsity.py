"""Recovery against the number of entries that change, on the models of the comparison."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.methods.bench import FULL, Bench, finding_rate, plan, tune
from benchmarks.methods.tuning import TUNING_SEED
from benchmarks.methods.ways import LIKE, PROPOSED
from benchmarks.tools.pieces import Pieces, Rows, Work

COMPARED = (PROPOSED, LIKE + PROPOSED, "sharpest", LIKE + "sharpest", "random")
COUNTS = (3, 6, 12, 24, 48, 192)
QUICK_COUNTS = (3, 24, 192)
SHIPPED = 24
"""How many entries the patch may change, found by `PROPOSED`."""

Rates = dict[tuple[str, int], float]
"""The learning rate of each way and number of entries."""


class Ways:
    """The ways to a few entries, tuned on one seed and measured on the others; in pieces."""

    def __init__(self, bench: Callable[[int], Bench], counts: Sequence[int]):
        """Nothing is tuned yet; `bench` gives the models of a seed."""
        self._bench, self._plan = bench, plan(COMPARED, counts)
        self.rates: Rates = {}

    def tuning(self) -> dict[str, Work]:
        """Every way at every number of entries, those that need the rate of another behind it."""
        return {
            f"Tuning {_words(*each)}": functools.partial(self._tune, *each) for each in self._plan
        }

    def tune(self, pieces: Pieces) -> Rows:
        """All rates that were tried; the best become `rates`."""
        trials = []
        for name, work in self.tuning().items():
            (trial,) = pieces.do(name, work)
            way_and_count = next(each for each in self._plan if f"Tuning {_words(*each)}" == name)
            self.rates[way_and_count] = trial["chosen"]
            trials.append(trial)
        return trials

    def plan(self, seed: int) -> dict[str, Work]:
        """What is measured on a seed, its poisoned and its retrained model first."""
        references = f"Seed {seed}: the references of few entries"
        cells: dict[str, Work] = {references: lambda: self._bench(seed).reference_rows()}
        for each in self._plan:
            cells[f"Seed {seed}: {_words(*each)}"] = functools.partial(self._cell, seed, *each)
        return cells

    def _tune(self, way: str, count: int) -> Rows:
        return [tune([self._bench(TUNING_SEED)], way, count, _finding(self.rates, way, count))]

    def _cell(self, seed: int, way: str, count: int) -> Rows:
        rate, finding = self.rates[way, count], _finding(self.rates, way, count)
        return [self._bench(seed).cell(way, count, rate, finding)]


def shipped(bench: Bench, rates: Rates) -> Any:
    """The parameters of which the patch is made."""
    return bench.run(PROPOSED, SHIPPED, rates[PROPOSED, SHIPPED], None)[0]


def _finding(rates: Rates, way: str, count: int) -> float | None:
    return finding_rate(way, lambda name: rates[name, count])


def _words(way: str, count: int) -> str:
    return "all entries" if way == FULL else f"{way.replace('_', ' ')}, {count} entries"
