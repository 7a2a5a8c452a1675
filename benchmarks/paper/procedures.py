"""Every way of unlearning that is compared, all of them under one budget of example gradients.

A procedure first looks for evidence (a mask, Fisher diagonals), then changes parameters with what
the budget leaves it. All iterative ones run through one compiled loop of adam, its learning rate
falling to zero on a half cosine as in training; they differ in their masks, their examples and the
weights of these.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import sapsel_jax as sap
from benchmarks.learning.data import Split
from benchmarks.learning.models import Model
from benchmarks.methods.updates import (
    PRODUCT_GRADIENTS,
    as_batch,
    first_order_step,
    mix_batches,
    newton_steps,
)
from benchmarks.paper.baselines import (
    dampen,
    fisher_noise,
    neggrad_weights,
    random_labels,
    scrub_batches,
    scrub_loss,
    sharpness_aware,
)
from benchmarks.paper.problems import SELECTIONS, Problem

FISHER_GRADIENTS = 2
"""What an empirical Fisher diagonal is counted as, in gradient equivalents."""
FORWARD_GRADIENTS = 1 / 3
"""And of a forward pass alone."""
RATES = (1e-4, 3e-4, 6e-4, 1e-3, 2e-3, 4e-3, 1e-2, 3e-2)
MASKED_RATES = (1e-3, 3e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1, 2e-1)
FINE_TUNING_RATES = (1e-4, 1e-3, 3e-3, 1e-2, 2e-2, 3e-2, 5e-2, 1e-1)
HARMFUL_RATES = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
"""Learning rates that are tried. Few entries have to go further than many; what draws a model away
from the data that it should keep has to stop soon."""
STEP_SIZES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0, 100.0)
NUM_NEWTON_STEPS, NUM_PRODUCTS = 2, 8
SOLVER = sap.conjugate_gradient(tolerance=0.1, max_iterations=NUM_PRODUCTS)
MICROBATCH = 250

Trial = dict[str, float]


class Procedure(NamedTuple):
    """A way of unlearning."""

    summary: str
    corrective: bool
    """Whether it uses the corrected examples."""
    trials: Sequence[Trial]
    """What tuning tries: eight for every procedure."""
    select: Callable[[Problem], Any]
    """Evidence, before anything is changed."""
    selection_gradients: Callable[[Problem], int]
    run: Callable[[Problem, Any, int, Trial], tuple[Any, int]]
    """`run(problem, evidence, budget, trial)` returns parameters and example gradients."""


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _descend(
    loss_fn: Callable[..., jax.Array],
    optimizer: Callable[..., optax.GradientTransformation],
    steps: int,
    params: Any,
    mask: Any,
    batches: Any,
    rate: Any,
    *numbers: Any,
) -> Any:
    chain = optimizer(optax.cosine_decay_schedule(rate, steps), *numbers)
    moved, _ = sap.iterative_update(loss_fn, params, batches, optimizer=chain, mask=mask)
    return moved


Parts = Callable[[Problem, Trial], list[tuple[Split, float, float]]]
"""What batches are made of: examples, the weight of each, their share of a batch."""


def _corrective(problem: Problem, trial: Trial) -> list[tuple[Split, float, float]]:
    return [(*problem.about(), 0.5), (problem.retained, 1.0, 0.5)]


def _relabelled(problem: Problem, trial: Trial) -> list[tuple[Split, float, float]]:
    wrong = random_labels(problem.original, problem.num_classes, problem.seed)
    return [(wrong, 1.0, 0.5), (problem.retained, 1.0, 0.5)]


def _negated(problem: Problem, trial: Trial) -> list[tuple[Split, float, float]]:
    forget, retain = neggrad_weights(trial["alpha"])
    return [(problem.original, forget, 0.5), (problem.retained, retain, 0.5)]


def _batches(problem: Problem, parts: Parts, steps: int, trial: Trial) -> Any:
    counted = [
        (split, weight, round(share * problem.batch_size))
        for split, weight, share in parts(problem, trial)
    ]
    return mix_batches(counted, steps=steps, seed=problem.seed)


def _steps(
    parts: Parts,
    *,
    summary: str,
    selection: str = "full",
    corrective: bool = False,
    trials: Sequence[Trial],
) -> Procedure:
    """Adam on batches of these parts, on the entries of a selection."""

    def run(problem: Problem, mask: Any, budget: int, trial: Trial) -> tuple[Any, int]:
        steps = max(1, budget // problem.batch_size)
        batches = _batches(problem, parts, steps, trial)
        work = (problem.model.loss, optax.adam, steps, problem.params, mask, batches)
        return _descend(*work, trial["rate"]), batches["label"].size

    chosen = SELECTIONS[selection]
    return Procedure(summary, corrective, trials, chosen.select, chosen.gradients, run)


def _perturbed_steps(*, summary: str, selection: str, rates: Sequence[float]) -> Procedure:
    """The same on corrective batches by `sharpness_aware`, perturbed by what is to be corrected."""

    def run(problem: Problem, mask: Any, budget: int, trial: Trial) -> tuple[Any, int]:
        # Half a batch for the perturbation and a whole one for the step.
        half = problem.batch_size // 2
        steps = max(1, budget // (3 * half))
        batches = _batches(problem, _corrective, steps, trial)
        pairs = {name: np.repeat(array, 2, axis=0) for name, array in batches.items()}
        pairs["weight"][::2, half:] = 0
        work = (problem.model.loss, sharpness_aware, steps, problem.params, mask, pairs)
        return _descend(*work, trial["rate"], trial["radius"]), 3 * half * steps

    chosen = SELECTIONS[selection]
    trials = _grid("rate", rates, "radius", (0.05, 0.5))
    return Procedure(summary, True, trials, chosen.select, chosen.gradients, run)


def _each(name: str, values: Sequence[float]) -> list[Trial]:
    return [{name: value} for value in values]


def _grid(name: str, values: Sequence[float], other: str, others: Sequence[float]) -> list[Trial]:
    return [{name: value, other: second} for value in values for second in others]


def _first(*, summary: str, selection: str) -> Procedure:
    """One closed-form step on a sample of the corrections."""

    def run(problem: Problem, mask: Any, budget: int, trial: Trial) -> tuple[Any, int]:
        size = len(problem.data.labels)
        args = (problem.model, problem.params, mask, *problem.changes(), size, trial["step_size"])
        return first_order_step(*args, microbatch=MICROBATCH), problem.num_changed

    chosen = SELECTIONS[selection]
    trials = _each("step_size", STEP_SIZES)
    return Procedure(summary, True, trials, chosen.select, chosen.gradients, run)


def _second(*, summary: str, selection: str) -> Procedure:
    """Re-linearised Newton steps by conjugate gradients, on a sample of the corrected data."""
    # For each step a gradient, the loss before and after, the check of the solution and that of
    # the decrease; the sample is as large as the budget allows if every product is used.
    fixed = NUM_NEWTON_STEPS * (2 + 2 * PRODUCT_GRADIENTS) + 1
    most = fixed + NUM_NEWTON_STEPS * NUM_PRODUCTS * PRODUCT_GRADIENTS

    def run(problem: Problem, mask: Any, budget: int, trial: Trial) -> tuple[Any, int]:
        count = max(1, (budget - problem.num_changed) // most)
        data = as_batch(problem.sample(problem.data, count, 3))
        params, certificate = newton_steps(
            problem.model,
            problem.params,
            mask,
            *problem.changes(),
            data,
            len(problem.data.labels),
            trial["damping"],
            gauss_newton=True,
            solver=SOLVER,
            num_steps=NUM_NEWTON_STEPS,
            microbatch=MICROBATCH,
        )
        products = int(certificate.iterations) * PRODUCT_GRADIENTS
        return params, problem.num_changed + count * (fixed + products)

    chosen = SELECTIONS[selection]
    trials = _each("damping", (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0))
    return Procedure(summary, True, trials, chosen.select, chosen.gradients, run)


@functools.partial(jax.jit, static_argnums=0)
def _fisher(model: Model, params: Any, batch: Any) -> Any:
    return sap.empirical_fisher_diagonal(model.loss, microbatch=MICROBATCH)(params, batch)


def _fishers(problem: Problem, *names: str) -> list[Any]:
    """Fisher diagonals on samples of these splits, the budget divided between them."""
    count = _num_fisher(problem, len(names))
    samples = [problem.sample(getattr(problem, name), count, 4 + i) for i, name in enumerate(names)]
    return [_fisher(problem.model, problem.params, as_batch(sample)) for sample in samples]


def _num_fisher(problem: Problem, num_splits: int) -> int:
    return max(1, problem.budget // (num_splits * FISHER_GRADIENTS))


def _dampening() -> Procedure:
    def run(problem: Problem, fishers: Any, budget: int, trial: Trial) -> tuple[Any, int]:
        return dampen(problem.params, *fishers, trial["alpha"], 1.0), 0

    return Procedure(
        "selective synaptic dampening: shrinks entries whose Fisher information is higher on the "
        "poisoned examples than on the data",
        False,
        _each("alpha", (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)),
        lambda p: _fishers(p, "original", "train"),
        lambda p: 2 * FISHER_GRADIENTS * _num_fisher(p, 2),
        run,
    )


def _noising() -> Procedure:
    def run(problem: Problem, fishers: Any, budget: int, trial: Trial) -> tuple[Any, int]:
        key = jax.random.key(problem.seed)
        return fisher_noise(problem.params, fishers[0], trial["scale"], key), 0

    return Procedure(
        "Fisher forgetting: noise where the retained examples hold little information",
        False,
        _each("scale", (1e-5, 1e-4, 3e-4, 1e-3, 2e-3, 4e-3, 8e-3, 2e-2)),
        lambda p: _fishers(p, "retained"),
        lambda p: FISHER_GRADIENTS * _num_fisher(p, 1),
        run,
    )


def _teaching() -> Procedure:
    def run(problem: Problem, mask: Any, budget: int, trial: Trial) -> tuple[Any, int]:
        half = problem.batch_size // 2
        pair_gradients = 2 * half * (1 + FORWARD_GRADIENTS)
        steps = max(1, int(budget // pair_gradients))
        forget, retained = (
            mix_batches([(split, 1.0, half)], steps=steps, seed=problem.seed)
            for split in (problem.original, problem.retained)
        )
        model, params = problem.model, problem.params
        batches = scrub_batches(model, params, forget, retained, 1.0, trial["alpha"])
        work = (scrub_loss(model), optax.adam, steps, params, mask, batches)
        return _descend(*work, trial["rate"]), round(steps * pair_gradients)

    full = SELECTIONS["full"]
    return Procedure(
        "SCRUB: away from the poisoned model on the poisoned examples, close to it on the others",
        False,
        _grid("rate", (3e-5, 3e-4, 3e-3, 1e-2), "alpha", (0.1, 1.0)),
        full.select,
        full.gradients,
        run,
    )


def _masked(name: str) -> Procedure:
    trials = _each("rate", RATES if name == "full" else MASKED_RATES)
    summary = SELECTIONS[name].summary
    return _steps(_corrective, summary=summary, selection=name, corrective=True, trials=trials)


def _salun_selection(problem: Problem) -> Any:
    return SELECTIONS["saliency"].select(problem._replace(fraction=0.5))


PROCEDURES: dict[str, Procedure] = {
    "decrease_per_unit": _masked("decrease_per_unit"),
    "decrease_per_unit_perturbed": _perturbed_steps(
        summary="the same entries by sharpness-aware steps",
        selection="decrease_per_unit",
        rates=(1e-3, 5e-3, 2e-2, 1e-1),
    ),
    **{
        name: _masked(name) for name in ("decrease", "newton_step", "sharpest_per_unit", "sharpest")
    },
    "sharpest_first_order": _first(
        summary="the entries of largest curvature by one first-order step", selection="sharpest"
    ),
    "sharpest_second_order": _second(
        summary="the entries of largest curvature by two Newton steps", selection="sharpest"
    ),
    **{
        name: _masked(name)
        for name in (
            "random_like_sharpest",
            "random_per_unit",
            "random",
            "flattest",
            "saliency_per_unit",
            "saliency",
            "magnitude",
            "last_layer",
            "full",
        )
    },
    "full_perturbed": _perturbed_steps(
        summary="every parameter by sharpness-aware steps",
        selection="full",
        rates=(3e-4, 1e-3, 3e-3, 1e-2),
    ),
    "full_first_order": _first(summary="every parameter by one first-order step", selection="full"),
    "full_second_order": _second(summary="every parameter by two Newton steps", selection="full"),
    "fine_tune": _steps(
        lambda problem, trial: [(problem.retained, 1.0, 1.0)],
        summary="fine-tuning on the retained examples alone",
        trials=_each("rate", FINE_TUNING_RATES),
    ),
    "gradient_ascent": _steps(
        lambda problem, trial: [(problem.original, -1.0, 1.0)],
        summary="ascent on the loss of the poisoned examples",
        trials=_each("rate", HARMFUL_RATES),
    ),
    "neggrad_plus": _steps(
        _negated,
        summary="NegGrad+: ascent on the poisoned examples, descent on the retained ones",
        trials=_grid("rate", (1e-4, 1e-3, 3e-3, 1e-2), "alpha", (0.9, 0.99)),
    ),
    "random_labels": _steps(
        _relabelled,
        summary="random labels on the poisoned examples, retained ones beside them",
        trials=_each("rate", HARMFUL_RATES),
    ),
    "salun": _steps(
        _relabelled,
        summary="SalUn: the same on the half of the entries with the largest gradient there",
        selection="saliency",
        trials=_each("rate", HARMFUL_RATES),
    )._replace(select=_salun_selection),
    "ssd": _dampening(),
    "fisher_forgetting": _noising(),
    "scrub": _teaching(),
}
"""By name; those without a suffix take corrective steps of adam on their mask."""

PROPOSED = "decrease_per_unit"
"""The procedure that the goal is stated for."""
