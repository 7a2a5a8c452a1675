"""The comparison: poison, train, select, update, measure, the same for every method and seed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sapsel_jax as sap
from benchmarks.learning.settings import Settings
from benchmarks.measures.metrics import count_changed, count_entries, towards_retraining
from benchmarks.methods.bench import Bench, plan
from benchmarks.methods.case import Case, make_case
from benchmarks.methods.curvature import counted_gradients, measured_gradients
from benchmarks.methods.masks import METHODS
from benchmarks.methods.tuning import TUNING_SEED, best, judge
from benchmarks.methods.updates import UPDATES
from benchmarks.tools.timing import timed
from benchmarks.unlearn.sparsity import COMPARED, measure_ways, shipped, tune_ways


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
    case: Case
    """The tuning seed's, for pictures of its data and for sizes."""
    trials: list[Trial]
    rows: list[dict[str, Any]]
    """The lines of `results.jsonl`."""
    sparsity_trials: list[dict[str, Any]]
    sparsity_rows: list[dict[str, Any]]
    """The lines of `sparsity.jsonl`."""
    masks: dict[str, Any]
    """The masks of the first reported seed, by method."""
    before: Any
    """The first reported seed's poisoned parameters."""
    patch: sap.Patch
    """What unlearning by few entries changed in them."""
    counted: float
    """What the curvature is counted as, in gradient equivalents."""
    measured: float
    """What it took by the clock, in gradient equivalents."""


def count_work(settings: Settings, counts: Sequence[int]) -> int:
    """How many times `compare` calls `advance`."""
    num_updates = sum(len(update.trials) for update in UPDATES.values())
    num_ways = len(plan(COMPARED, counts))
    tuning = 1 + len(METHODS) * num_updates + num_ways
    return tuning + settings.seeds * (2 + len(METHODS) * len(UPDATES) + num_ways)


def compare(
    settings: Settings, counts: Sequence[int], advance: Callable[[str], None]
) -> Comparison:
    """Tunes on one seed, then measures every method on the others.

    Args:
      settings: what to compare.
      counts: how many entries change, beside the share that masks select.
      advance: called with a few words before each piece of work.
    """
    settings.check()
    advance("Training the model to tune on")
    tuning_case = make_case(settings, TUNING_SEED)
    material = tuning_case.material
    about = (material.model, material.params, material.sample)
    counted, measured = counted_gradients(*about), measured_gradients(*about)
    trials = list(_tune(tuning_case, advance))
    chosen = {(trial.method, trial.update): trial.value for trial in trials if trial.chosen}
    rates, sparsity_trials = tune_ways(Bench.of(tuning_case), counts, advance)
    rows, sparsity_rows, first = [], [], {}
    for seed in range(1, settings.seeds + 1):
        advance(f"Seed {seed}: training the poisoned model")
        case = make_case(settings, seed)
        seed_rows, seed_masks = _measure(case, chosen, counted, advance)
        rows += seed_rows
        bench = Bench.of(case)
        sparsity_rows += measure_ways(bench, counts, rates, advance)
        if seed == 1:
            patch = sap.make_patch(case.params, shipped(bench, rates))
            first = {"masks": seed_masks, "before": case.params, "patch": patch}
    return Comparison(
        settings=settings,
        case=tuning_case,
        trials=trials,
        rows=rows,
        sparsity_trials=sparsity_trials,
        sparsity_rows=sparsity_rows,
        counted=counted,
        measured=measured,
        **first,
    )


def _tune(case: Case, advance: Callable[[str], None]) -> Iterator[Trial]:
    for method, spec in METHODS.items():
        mask = spec.select(case.material)
        for name, update in UPDATES.items():
            judgements = []
            for i, value in enumerate(update.trials):
                advance(f"Tuning {method}, {name}, {i + 1} of {len(update.trials)}")
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
                )


def _measure(
    case: Case,
    chosen: dict[tuple[str, str], float],
    counted: float,
    advance: Callable[[str], None],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of one seed, and its masks."""
    advance(f"Seed {case.seed}: retraining from scratch")
    retrained, retrain_seconds = case.retrained
    retrain_gradients = case.retrain_example_gradients

    def row(method: str, update: str, params: Any, **fields: Any) -> dict[str, Any]:
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
            "retrain_example_gradients": retrain_gradients,
            "tuned": None,
            "tuned_value": None,
            **fields,
        }

    rows = [
        row("poisoned", "none", case.params),
        row(
            "retrained",
            "none",
            retrained,
            update_seconds=retrain_seconds,
            update_example_gradients=retrain_gradients,
        ),
    ]
    selection_gradients = {
        "nothing": 0,
        "gradient": len(case.poisoned.original.labels),
        "curvature": round(counted * len(case.material.sample["label"])),
    }
    masks = {}
    for method, spec in METHODS.items():
        masks[method], selection_seconds = timed(lambda spec=spec: spec.select(case.material))
        for name, update in UPDATES.items():
            advance(f"Seed {case.seed}: {method}, {name}")
            value = chosen[method, name]
            work = (case.model, case.params, masks[method], case.corrections, value)
            (params, update_gradients), update_seconds = timed(
                lambda update=update, work=work: update.run(*work)
            )
            rows.append(
                row(
                    method,
                    name,
                    params,
                    selection_seconds=selection_seconds,
                    update_seconds=update_seconds,
                    selection_example_gradients=selection_gradients[spec.needs],
                    update_example_gradients=update_gradients,
                    tuned=update.tuned,
                    tuned_value=value,
                )
            )
    return rows, masks
