"""The comparison: poison, train, select, update, measure, the same for every method and seed."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import sapsel_jax as sap
from benchmarks.learning.settings import Settings
from benchmarks.measures.metrics import (
    count_changed,
    count_entries,
    layer_shares,
    towards_retraining,
)
from benchmarks.methods.bench import Bench
from benchmarks.methods.case import Case, make_case
from benchmarks.methods.curvature import counted_gradients, measured_gradients
from benchmarks.methods.masks import METHODS
from benchmarks.methods.tuning import TUNING_SEED, best, judge
from benchmarks.methods.updates import UPDATES, within_budget
from benchmarks.tools.arrays import write_params
from benchmarks.tools.folders import write_jsonl
from benchmarks.tools.pieces import Pieces, Rows, Work, read_rows
from benchmarks.tools.timing import timed
from benchmarks.unlearn.sparsity import Ways, shipped


class Trial(NamedTuple):
    """One value of an update's tuned number, tried on the tuning seed."""

    method: str
    update: str
    tuned: str
    value: float
    validation_accuracy: float
    forget_accuracy: float
    objective: float
    chosen: bool
    at_edge: bool
    """Whether it is the first or last value of those tried."""


@dataclass(frozen=True)
class Comparison:
    """All that a report is made of."""

    settings: Settings
    facts: dict[str, Any]
    """What `find_facts` found."""
    trials: list[Trial]
    rows: Rows
    """The lines of `results.jsonl`."""
    sparsity_trials: Rows
    sparsity_rows: Rows
    """The lines of `sparsity.jsonl`."""
    patch: sap.Patch
    """What unlearning by few entries changed in the first reported seed's poisoned model."""

    @classmethod
    def read(cls, folder: Path, settings: Settings, facts: dict[str, Any]) -> "Comparison":
        """What `Comparing` left in a folder."""
        return cls(
            settings=settings,
            facts=facts,
            trials=[Trial(**row) for row in read_rows(folder, "tuning.jsonl")],
            rows=read_rows(folder),
            sparsity_trials=read_rows(folder, "sparsity-tuning.jsonl"),
            sparsity_rows=read_rows(folder, "sparsity.jsonl"),
            patch=sap.load_patch(folder / "unlearned.patch"),
        )


class Comparing:
    """Tunes on one seed, then measures every method on the others; in pieces."""

    def __init__(
        self,
        settings: Settings,
        counts: Sequence[int],
        cache: Path,
        tell: Callable[[str], None],
    ):
        """Nothing is done yet.

        Args:
          settings: what to compare.
          counts: how many entries change, beside the share that masks select.
          cache: folder of trained parameters.
          tell: called with a few words on what is done.
        """
        self._settings, self._tell = settings, tell
        self._case = functools.cache(lambda seed: make_case(settings, seed, cache))
        bench = functools.cache(lambda seed: Bench.of(self._case(seed)))
        self._ways = Ways(bench, counts)
        self._bench = bench
        self._masks = functools.cache(self._select)
        self._compiled: set[tuple[str, str]] = set()
        self._chosen: dict[tuple[str, str], float] = {}

    def find_facts(self) -> dict[str, Any]:
        """What the report tells of the network and of the data, beside the rows."""
        case = self._case(TUNING_SEED)
        about = (case.model, case.material.params, case.material.sample)
        steps, batch_size = case.corrections.batches["label"].shape
        return {
            "description": case.model.description,
            "examples": len(case.poisoned.train.labels),
            "poisoned_examples": len(case.poisoned.indices),
            "curvature_examples": len(case.material.sample["label"]),
            "counted_gradients": counted_gradients(*about),
            "measured_gradients": measured_gradients(*about),
            "newton_examples": len(within_budget(case.corrections).data["label"]),
            "steps": steps,
            "batch_size": batch_size,
            "layer_shares": {
                method: layer_shares(spec.select(self._case(1).material))
                for method, spec in METHODS.items()
            },
        }

    def work(self) -> list[str]:
        """The names of all pieces."""
        seeds = range(1, self._settings.seeds + 1)
        return [
            *self._tuning(),
            *self._ways.tuning(),
            *(name for seed in seeds for plan in self._plans(seed, 0) for name in plan),
        ]

    def run(self, folder: Path, pieces: Pieces, counted: float) -> None:
        """Does what is missing, and leaves rows, a model and its patch in the folder.

        Args:
          folder: where to.
          pieces: what is done already.
          counted: what the curvature is counted as, in gradient equivalents.
        """
        trials = _all(pieces, self._tuning())
        self._chosen = {(t["method"], t["update"]): t["value"] for t in trials if t["chosen"]}
        sparsity_trials = self._ways.tune(pieces)
        rows, sparsity_rows = [], []
        for seed in range(1, self._settings.seeds + 1):
            updates, ways = self._plans(seed, counted)
            rows += _all(pieces, updates)
            sparsity_rows += _all(pieces, ways)
        write_jsonl(folder / "tuning.jsonl", trials)
        write_jsonl(folder / "results.jsonl", rows)
        write_jsonl(folder / "sparsity-tuning.jsonl", sparsity_trials)
        write_jsonl(folder / "sparsity.jsonl", sparsity_rows)
        if not (folder / "unlearned.patch").exists():
            before = self._case(1).params
            write_params(folder / "poisoned.npz", before)
            patch = sap.make_patch(before, shipped(self._bench(1), self._ways.rates))
            sap.save_patch(folder / "unlearned.patch", patch)

    def _plans(self, seed: int, counted: float) -> tuple[dict[str, Work], dict[str, Work]]:
        """What is measured on a seed: every method under every update, and few entries."""
        updates: dict[str, Work] = {
            f"Seed {seed}: the poisoned and the retrained model": lambda: self._references(seed)
        }
        for method in METHODS:
            for name in UPDATES:
                work = functools.partial(self._measure, seed, method, name, counted)
                updates[f"Seed {seed}: {method}, {name}"] = work
        return updates, self._ways.plan(seed)

    def _select(self, seed: int, method: str) -> tuple[Any, float]:
        """A mask, and the seconds that it took."""
        return timed(lambda: METHODS[method].select(self._case(seed).material))

    def _tuning(self) -> dict[str, Work]:
        return {
            f"Tuning {method}, {name}": functools.partial(self._tune, method, name)
            for method in METHODS
            for name in UPDATES
        }

    def _tune(self, method: str, name: str) -> Iterator[dict[str, Any]]:
        case, update = self._case(TUNING_SEED), UPDATES[name]
        mask, _ = self._masks(TUNING_SEED, method)
        self._compiled.add((method, name))
        judgements = []
        for i, value in enumerate(update.trials):
            self._tell(f"Tuning {method}, {name}, {i + 1} of {len(update.trials)}")
            params, _ = update.run(case.model, case.params, mask, case.corrections, value)
            judgements.append(judge(case, params))
        chosen = best(judgements)
        for i, (value, judgement) in enumerate(zip(update.trials, judgements, strict=True)):
            yield Trial(
                method,
                name,
                update.tuned,
                value,
                *judgement,
                chosen=i == chosen,
                at_edge=i in (0, len(update.trials) - 1),
            )._asdict()

    def _references(self, seed: int) -> Iterator[dict[str, Any]]:
        case = self._case(seed)
        yield _row(case, "poisoned", "none", case.params)
        retrained, seconds = case.retrained
        gradients = case.retrain_example_gradients
        costs = {"update_seconds": seconds, "update_example_gradients": gradients}
        yield _row(case, "retrained", "none", retrained) | costs

    def _measure(
        self, seed: int, method: str, name: str, counted: float
    ) -> Iterator[dict[str, Any]]:
        """The row of a method and an update."""
        case, update, value = self._case(seed), UPDATES[name], self._chosen[method, name]
        if (method, name) not in self._compiled:  # so that what is timed need not compile
            other, (mask, _) = self._case(TUNING_SEED), self._masks(TUNING_SEED, method)
            update.run(other.model, other.params, mask, other.corrections, value)
            self._compiled.add((method, name))
        mask, selection_seconds = self._masks(seed, method)
        work = lambda: update.run(case.model, case.params, mask, case.corrections, value)
        (params, update_gradients), update_seconds = timed(work)
        selection_gradients = {
            "nothing": 0,
            "gradient": len(case.poisoned.original.labels),
            "curvature": round(counted * len(case.material.sample["label"])),
        }
        yield _row(case, method, name, params) | {
            "selection_seconds": selection_seconds,
            "update_seconds": update_seconds,
            "selection_example_gradients": selection_gradients[METHODS[method].needs],
            "update_example_gradients": update_gradients,
            "tuned": update.tuned,
            "tuned_value": value,
        }


def _all(pieces: Pieces, plan: dict[str, Work]) -> Rows:
    return [row for name, work in plan.items() for row in pieces.do(name, work)]


def _row(case: Case, method: str, update: str, params: Any) -> dict[str, Any]:
    """The figures of some parameters, as if they had cost nothing."""
    figures = case.references.get(method) or case.evaluate(params)
    return {
        **case.names,
        "method": method,
        "update": update,
        "seed": case.seed,
        **figures,
        **towards_retraining(case.sets, figures, **case.references),
        "changed_entries": count_changed(case.params, params),
        "total_entries": count_entries(params),
        "selection_seconds": 0.0,
        "update_seconds": 0.0,
        "selection_example_gradients": 0,
        "update_example_gradients": 0,
        "retrain_example_gradients": case.retrain_example_gradients,
        "tuned": None,
        "tuned_value": None,
    }
