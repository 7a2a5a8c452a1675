"""How a model is made to forget: an update, the entries that it may change, and what it costs."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import sapsel_jax as sap
from benchmarks.methods.curvature import PROPAGATED_GRADIENTS, mean_gradient
from benchmarks.methods.masks import like
from benchmarks.methods.updates import (
    MAX_PRODUCTS,
    PRODUCT_GRADIENTS,
    SOLVER,
    first_order_step,
)
from benchmarks.methods.ways import DAMPING, LIKE, WAYS, Start, move
from benchmarks.secrets.baselines import descend, with_references
from benchmarks.secrets.network import LanguageModel, losses_of
from benchmarks.secrets.problem import STEP_EXAMPLES, Problem

FULL = "full"
LEAVES = {
    FULL: ("",),
    "last_layer": ("head/",),
    "embeddings": ("characters/", "places/"),
}
"""What each of these ways may change, by the beginnings of the leaves' paths."""
RATES = (6e-4, 2e-3, 6e-3, 2e-2, 6e-2)
"""Learning rates of the iterative update and of the baselines."""
STEP_SIZES = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Of the first-order update."""
DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Of the second-order update."""


class Plan(NamedTuple):
    """One way to forget."""

    correction: str
    update: str
    way: str
    entries: int
    """How many may change; 0 where the way says it."""

    @property
    def trials(self) -> tuple[float, ...]:
        """The values of its one number that are tried."""
        return {"first_order": STEP_SIZES, "second_order": DAMPINGS}.get(self.update, RATES)

    def finding(self) -> "Plan | None":
        """The plan whose entries it controls for."""
        own = self.way.removeprefix(LIKE)
        return None if own == self.way else self._replace(way=own)


class Outcome(NamedTuple):
    """Where a plan led."""

    params: Any
    mask: Any
    selection_example_gradients: int
    update_example_gradients: int


def runner(problem: Problem, plan: Plan, found: float | None) -> Callable[[float], Outcome]:
    """The outcome for each value; entries that do not depend on it are chosen once.

    `found` is the value with which the way of a control finds its entries.
    """
    start = problem.start(plan.correction)
    selection, mask = 0, None
    if plan.way in LEAVES:
        mask = sap.select_leaves(start.params, lambda path, _: path.startswith(LEAVES[plan.way]))
    else:
        way = WAYS[plan.way.removeprefix(LIKE)]
        costs = {
            "curvature": PROPAGATED_GRADIENTS * len(start.data["label"]),
            "gradient": len(start.original["label"]),
        }
        selection = sum(costs[need] for need in way.needs)
        if found is not None:
            mask = like(way.run(start, plan.entries, found)[1], start.key)

    def run(value: float) -> Outcome:
        if mask is None and plan.update == "iterative":
            params, own = WAYS[plan.way].run(start, plan.entries, value)
            return Outcome(params, own, selection, start.num_steps * STEP_EXAMPLES)
        own = _top(start, plan) if mask is None else mask
        params, cost = MOVES.get(plan.update, _baseline)(problem, plan, own, value)
        return Outcome(params, own, selection, cost)

    return run


def _iterative(problem: Problem, plan: Plan, mask: Any, value: float) -> tuple[Any, int]:
    start = problem.start(plan.correction)
    return move(start, mask, value), start.num_steps * STEP_EXAMPLES


def _first_order(problem: Problem, plan: Plan, mask: Any, value: float) -> tuple[Any, int]:
    original, corrected = problem.trained_pair(plan.correction)
    given = (problem.model, problem.poisoned.params, mask, original, corrected)
    cost = len(original["label"]) + (0 if corrected is None else len(corrected["label"]))
    return first_order_step(*given, _num_examples(problem), value), cost


def _second_order(problem: Problem, plan: Plan, mask: Any, value: float) -> tuple[Any, int]:
    original, corrected = problem.trained_pair(plan.correction)
    pair = len(original["label"]) + (0 if corrected is None else len(corrected["label"]))
    budget = problem.update_steps * STEP_EXAMPLES
    num_data = max(1, (budget - pair) // _data_gradients(MAX_PRODUCTS))
    data = {name: values[:num_data] for name, values in problem.data.items()}
    given = (problem.model, problem.poisoned.params, mask, original, corrected, data)
    params, certificate = _newton_step(*given, _num_examples(problem), value)
    return params, pair + num_data * _data_gradients(int(certificate.iterations))


def _baseline(problem: Problem, plan: Plan, mask: Any, value: float) -> tuple[Any, int]:
    start = problem.start(plan.correction)
    batches = problem.batches(problem.original())
    batches = with_references(problem.model, start.params, batches, STEP_EXAMPLES // 2)
    moved = descend(plan.update, problem.model, start.params, batches, value)
    return moved, start.num_steps * STEP_EXAMPLES


def _top(start: Start, plan: Plan) -> Any:
    """The entries of a way that chooses before it moves."""
    if plan.way == "sharpest":
        return sap.select_top_count(sap.score_sharpest(start.diagonal), plan.entries)
    gradient = mean_gradient(start.model, start.params, start.original)
    return sap.select_top_count(
        sap.score_decrease(gradient, start.diagonal, damping=DAMPING), plan.entries
    )


MOVES = {"iterative": _iterative, "first_order": _first_order, "second_order": _second_order}


def _num_examples(problem: Problem) -> int:
    return len(problem.ids(without_forget=True))


def _data_gradients(num_products: int) -> int:
    """Of one Newton step on each example of its data, as in `benchmarks.methods.updates`."""
    return 3 + PRODUCT_GRADIENTS * (num_products + 2)


@functools.partial(jax.jit, static_argnums=(0, 6))
def _newton_step(
    model: LanguageModel,
    params: Any,
    mask: Any,
    original: Any,
    corrected: Any,
    data: Any,
    num_examples: int,
    damping: jax.Array,
) -> tuple[Any, sap.Certificate]:
    """One step on the Gauss-Newton part of the Hessian."""
    return sap.second_order_update(
        model.loss,
        params,
        original,
        corrected,
        data,
        damping=damping,
        mask=mask,
        num_examples=num_examples,
        solver=SOLVER,
        model_fn=lambda p, example: model.apply(p, example["image"][None])[0],
        output_loss_fn=lambda logits, example: jnp.mean(
            example["weight"] * losses_of(logits, example["label"])
        ),
    )
