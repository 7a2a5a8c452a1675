"""One poisoned model with everything that the ways to a few entries begin with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from benchmarks.learning.data import Split
from benchmarks.learning.settings import Settings
from benchmarks.measures.metrics import count_entries
from benchmarks.methods.case import Case
from benchmarks.methods.curvature import counted_gradients, curvature
from benchmarks.methods.evidence import Evidence
from benchmarks.methods.masks import like
from benchmarks.methods.tuning import TUNING_SEED, Judgement, best, try_all
from benchmarks.methods.updates import BATCHES_IN_ONE, as_batch, mix_batches
from benchmarks.methods.ways import LIKE, PROPOSED, WAYS, Start, move

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""Learning rates that are tried for every way and number: few entries have to go further."""
FULL = "full"
REFERENCES = ("poisoned", "retrained")
ATTACKED = (PROPOSED, "sharpest", "saliency", FULL)
"""What is attacked, at the number of entries that the command names."""


def up_to_half(counts: Sequence[int], settings: Settings) -> tuple[int, ...]:
    """The numbers of at most half of the network's entries: what few can mean."""
    size = count_entries(settings.build(settings.load(TUNING_SEED)).init(TUNING_SEED))
    return tuple(count for count in counts if count <= size // 2)


def plan(ways: Sequence[str], counts: Sequence[int]) -> list[tuple[str, int]]:
    """Every way at every number of entries, after all entries, whose number stands as 0."""
    return [(FULL, 0), *((way, count) for count in counts for way in ways)]


def finding_rate(way: str, rate_of: Callable[[str], float]) -> float | None:
    """The rate with which a control's way finds the entries; None for what is no control."""
    return rate_of(way.removeprefix(LIKE)) if way.startswith(LIKE) else None


def tune(benches: Sequence["Bench"], way: str, count: int, finding: float | None) -> dict[str, Any]:
    """The rates that were tried and the one whose objective was best over these seeds."""
    found = [
        try_all(bench.evidence.case, bench.runner(way, count, finding), RATES) for bench in benches
    ]
    means = [Judgement(*np.mean(each, axis=0).tolist()) for each in zip(*found, strict=True)]
    return {
        "scenario": benches[0].evidence.case.settings.scenario,
        "way": way,
        "count": max(count, 1),
        "rates": list(RATES),
        "objectives": [round(each.objective, 5) for each in means],
        "chosen": RATES[best(means)],
    }


@dataclass(frozen=True)
class Bench:
    """One seed of a scenario, ready for every way."""

    start: Start
    evidence: Evidence
    attacked: int | None
    """The number of entries at which models are attacked; None attacks none."""
    curvature_gradients: int

    @classmethod
    def of(cls, case: Case, attacked: int | None = None) -> "Bench":
        """Adds what the ways need to a poisoned model."""
        start = make_start(case)
        counted = counted_gradients(case.model, case.params, start.data)
        gradients = round(counted * len(start.data["label"]))
        return cls(start, Evidence(case), attacked, gradients)

    def run(self, way: str, count: int, rate: float, finding: float | None) -> tuple[Any, Any]:
        """The parameters and the mask that a way, a control or all entries lead to."""
        mask = self._mask(way, count, finding)
        if mask is None:
            return WAYS[way].run(self.start, count, rate)
        return move(self.start, mask, rate), mask

    def runner(self, way: str, count: int, finding: float | None) -> Callable[[float], Any]:
        """The parameters for each rate; what does not depend on it is computed once."""
        mask = self._mask(way, count, finding)
        if mask is None:
            return lambda rate: WAYS[way].run(self.start, count, rate)[0]
        return lambda rate: move(self.start, mask, rate)

    def _mask(self, way: str, count: int, finding: float | None) -> Any | None:
        """All entries, or those of a control; None where the way finds them as it moves."""
        if way == FULL:
            return jax.tree.map(lambda x: np.ones(x.shape, bool), self.start.params)
        if finding is None:
            return None
        _, mask = WAYS[way.removeprefix(LIKE)].run(self.start, count, finding)
        return like(mask, self.start.key)

    def cell(self, way: str, count: int, rate: float, finding: float | None) -> dict[str, Any]:
        """All figures of it."""
        params, mask = self.run(way, count, rate, finding)
        needs = WAYS[way.removeprefix(LIKE)].needs if way != FULL else ()
        costs = {
            "curvature": self.curvature_gradients,
            "gradient": len(self.start.original["label"]),
        }
        attacked = way in ATTACKED and (way == FULL or count == self.attacked)
        steps = self.start.batches["label"].size
        return self._row(way, count, params, mask, attacked=attacked) | {
            "selection_example_gradients": sum(costs[name] for name in needs),
            "update_example_gradients": steps,
        }

    def reference_rows(self) -> list[dict[str, Any]]:
        """The poisoned and the retrained model."""
        case, rows = self.evidence.case, []
        costs = (0, case.retrain_example_gradients)
        models = (case.params, case.retrained.params)
        for name, params, cost in zip(REFERENCES, models, costs, strict=True):
            own = {"selection_example_gradients": 0, "update_example_gradients": cost}
            rows.append(self._row(name, 0, params, None, attacked=True) | own)
        return rows

    def _row(
        self, way: str, count: int, params: Any, mask: Any, *, attacked: bool
    ) -> dict[str, Any]:
        case = self.evidence.case
        attacked &= self.attacked is not None and case.settings.known == 1
        shares = {} if mask is None else leaf_counts(mask)
        return {
            **case.names,
            "known": case.settings.known,
            "way": way,
            "count": count,
            "seed": case.seed,
            **self.evidence.of(params, attacked=attacked),
            "leaves": shares,
            "retrain_example_gradients": case.retrain_example_gradients,
        }


def leaf_counts(mask: Any) -> dict[str, int]:
    """How many entries of each leaf a mask selects, where there are any."""
    paths, _ = jax.tree_util.tree_flatten_with_path(mask)
    counts = {
        jax.tree_util.keystr(path, simple=True, separator="/"): int(np.sum(leaf))
        for path, leaf in paths
    }
    return {path: count for path, count in counts.items() if count}


def taught(original: Split, corrected: Split) -> Split:
    """Corrected examples, and inputs that had a wrong answer with the right one.

    The correction of a backdoor's example has no trigger: steps on it alone need not meet what was
    learned of the trigger. Where the answer was right, as with a feature, it is not repeated.
    """
    wrong = original.labels != corrected.labels
    return Split(
        np.concatenate([corrected.images, original.images[wrong]]),
        np.concatenate([corrected.labels, corrected.labels[wrong]]),
    )


def make_start(case: Case) -> Start:
    """What the ways begin with, on one poisoned model."""
    poisoned, settings = case.poisoned, case.settings
    half = settings.recipe.batch_size // BATCHES_IN_ONE // 2
    about, weight = case.about
    if poisoned.corrected is not None:
        about = taught(poisoned.original, poisoned.corrected)
    parts = [(about, weight, half), (poisoned.train.take(poisoned.retained), 1.0, half)]
    steps = max(8, round(BATCHES_IN_ONE * settings.budget * case.steps))
    batches = mix_batches(parts, steps=steps, seed=case.seed)
    data = case.corrections.data
    return Start(
        model=case.model,
        params=case.params,
        batches=batches,
        data=data,
        original=as_batch(poisoned.original),
        diagonal=curvature(case.model, case.params, data),
        key=jax.random.fold_in(jax.random.key(case.seed), 1),
    )
