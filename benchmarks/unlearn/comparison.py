"""The comparison: poison, train, select, update, measure, the same for every method and seed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.learning.data import Dataset, Split
from benchmarks.learning.models import Model
from benchmarks.learning.scenarios import Poisoned, notice, poison
from benchmarks.learning.settings import Settings
from benchmarks.learning.training import num_steps, train
from benchmarks.measures.metrics import (
    accuracies,
    accuracy,
    count_changed,
    count_entries,
    judged_sets,
    towards_retraining,
)
from benchmarks.methods.curvature import gradient_equivalents, timed
from benchmarks.methods.masks import METHODS, Material
from benchmarks.methods.updates import (
    REMOVAL_WEIGHT,
    UPDATES,
    Corrections,
    as_batch,
    make_batches,
)

TUNING_SEED = 0
"""Hyperparameters are tuned on this seed; the reported seeds are 1, 2, ..."""
SHIPPED = ("sharpest", "iterative")
"""The method and update whose changes are kept as a patch."""


class Case(NamedTuple):
    """One seed: a poisoned model, what it was trained on, and what to correct it with."""

    seed: int
    model: Model
    dataset: Dataset
    poisoned: Poisoned
    params: Any
    """The poisoned model's parameters."""
    steps: int
    """Training steps of the poisoned and of the retrained model alike."""
    material: Material
    corrections: Corrections


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
    masks: dict[str, Any]
    """The masks of the first reported seed, by method."""
    shipped: tuple[Any, Any]
    """The first reported seed's parameters before and after `SHIPPED`."""
    curvature_cost: float
    """Gradient equivalents of the curvature."""


def count_work(settings: Settings) -> int:
    """How many times `compare` calls `advance`."""
    num_updates = sum(len(update.trials) for update in UPDATES.values())
    tuning = 1 + len(METHODS) * num_updates
    return tuning + settings.seeds * (2 + len(METHODS) * len(UPDATES))


def compare(settings: Settings, advance: Callable[[str], None]) -> Comparison:
    """Tunes on one seed, then measures every method on the others.

    Args:
      settings: what to compare.
      advance: called with a few words before each piece of work.
    """
    settings.check()
    dataset = settings.load(TUNING_SEED)
    model = settings.build(dataset)
    advance("Training the model to tune on")
    tuning_case = make_case(settings, model, dataset, TUNING_SEED)
    cost = gradient_equivalents(model, tuning_case.params, tuning_case.material.sample)
    trials = list(_tune(tuning_case, advance))
    chosen = {(trial.method, trial.update): trial.value for trial in trials if trial.chosen}
    rows, masks, shipped = [], {}, (None, None)
    for seed in range(1, settings.seeds + 1):
        advance(f"Seed {seed}: training the poisoned model")
        case = make_case(settings, model, settings.load(seed), seed)
        seed_rows, seed_masks, after = _measure(settings, case, chosen, cost, advance)
        rows += seed_rows
        if seed == 1:
            masks, shipped = seed_masks, (case.params, after)
    return Comparison(settings, tuning_case, trials, rows, masks, shipped, cost)


def make_case(settings: Settings, model: Model, dataset: Dataset, seed: int) -> Case:
    """Poisons the data, trains on it and lays out what the methods may use."""
    poisoned = poison(dataset, settings.scenario, settings.poison_share, seed)
    if settings.known < 1:
        poisoned = notice(poisoned, settings.known, seed)
    num_train = len(poisoned.train.labels)
    recipe = settings.recipe
    steps = num_steps(recipe, num_train)
    params = train(model, recipe, poisoned.train, np.arange(num_train), steps, seed)
    original = as_batch(poisoned.original)
    about, weight = (
        (poisoned.original, -REMOVAL_WEIGHT)
        if poisoned.corrected is None
        else (poisoned.corrected, 1.0)
    )
    retained = poisoned.train.take(poisoned.retained)
    batches, own_batches = (
        make_batches(
            about,
            weight,
            mixed_in,
            steps=max(1, round(settings.budget * steps)),
            batch_size=recipe.batch_size,
            seed=seed,
        )
        for mixed_in in (retained, None)
    )
    corrections = Corrections(
        original=original,
        corrected=None if poisoned.corrected is None else as_batch(poisoned.corrected),
        data=as_batch(_sample(poisoned.data, settings.curvature_examples, [seed, 5])),
        num_examples=len(poisoned.data.labels),
        batches=batches,
        own_batches=own_batches,
    )
    material = Material(
        model=model,
        params=params,
        sample=as_batch(_sample(poisoned.train, settings.curvature_examples, [seed, 3])),
        original=original,
        fraction=settings.fraction,
        key=jax.random.key(seed),
    )
    return Case(seed, model, dataset, poisoned, params, steps, material, corrections)


def _sample(split: Split, most: int, seed: list[int]) -> Split:
    """At most so many examples, drawn at random."""
    count = len(split.labels)
    ids = np.random.default_rng(seed).choice(count, min(most, count), replace=False)
    return split.take(np.sort(ids))


def retrain(settings: Settings, case: Case) -> Any:
    """Trains from scratch on the data as it should have been, for as many steps."""
    removed = case.poisoned.corrected is None
    ids = case.poisoned.retained if removed else np.arange(len(case.dataset.train.labels))
    return train(case.model, settings.recipe, case.dataset.train, ids, case.steps, case.seed)


def tuning_objective(validation: float, forget: float, removal: bool) -> float:
    """What tuning raises: right on validation data and on the corrected examples.

    A removed record should be treated like one never seen, so its accuracy is to meet that of
    validation data rather than to rise.
    """
    return validation - abs(forget - validation) if removal else validation + forget


def _tune(case: Case, advance: Callable[[str], None]) -> Iterator[Trial]:
    for method, spec in METHODS.items():
        mask = spec.select(case.material)
        for name, update in UPDATES.items():
            trials = []
            for i, value in enumerate(update.trials):
                advance(f"Tuning {method}, {name}, {i + 1} of {len(update.trials)}")
                params, _ = update.run(case.model, case.params, mask, case.corrections, value)
                validation = accuracy(case.model, params, case.dataset.validation)
                forget = accuracy(case.model, params, case.poisoned.forget)
                objective = tuning_objective(validation, forget, case.poisoned.corrected is None)
                at_edge = i in (0, len(update.trials) - 1)
                trial = (method, name, update.tuned, value, validation, forget, objective)
                trials.append(Trial(*trial, chosen=False, at_edge=at_edge))
            best = max(range(len(trials)), key=lambda i: trials[i].objective)
            trials[best] = trials[best]._replace(chosen=True)
            yield from trials


def _measure(
    settings: Settings,
    case: Case,
    chosen: dict[tuple[str, str], float],
    curvature_cost: float,
    advance: Callable[[str], None],
) -> tuple[list[dict[str, Any]], dict[str, Any], Any]:
    """The rows of one seed, its masks, and its parameters after `SHIPPED`."""
    advance(f"Seed {case.seed}: retraining from scratch")
    retrained, retrain_seconds = timed(lambda: retrain(settings, case))
    references = {"poisoned": evaluate(case, case.params), "retrained": evaluate(case, retrained)}
    retrain_gradients = case.steps * settings.recipe.batch_size
    sets = judged_sets(case.dataset, case.poisoned)

    def row(method: str, update: str, params: Any, **fields: Any) -> dict[str, Any]:
        figures = references.get(method) or evaluate(case, params)
        return {
            "dataset": case.dataset.name,
            "variant": case.dataset.variant,
            "model": settings.model,
            "scenario": settings.scenario,
            "method": method,
            "update": update,
            "seed": case.seed,
            **figures,
            **towards_retraining(sets, figures, **references),
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
        "curvature": round(curvature_cost * len(case.material.sample["label"])),
    }
    masks, shipped = {}, None
    for method, spec in METHODS.items():
        masks[method], selection_seconds = timed(lambda spec=spec: spec.select(case.material))
        for name, update in UPDATES.items():
            advance(f"Seed {case.seed}: {method}, {name}")
            value = chosen[method, name]
            work = (case.model, case.params, masks[method], case.corrections, value)
            (params, update_gradients), update_seconds = timed(
                lambda update=update, work=work: update.run(*work)
            )
            shipped = params if (method, name) == SHIPPED else shipped
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
    return rows, masks, shipped


def evaluate(case: Case, params: Any) -> dict[str, Any]:
    """The figures that are compared with the retrained model's."""
    return accuracies(case.model, params, judged_sets(case.dataset, case.poisoned))
