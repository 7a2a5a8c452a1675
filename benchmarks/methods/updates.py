"""How the selected parameters are changed: one step in closed form or Newton's, or many steps."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import sapsel_jax as sap
from benchmarks.learning.data import Split
from benchmarks.learning.models import Model, cross_entropy
from benchmarks.learning.training import shuffled_batches

MICROBATCH = 1_000
MAX_PRODUCTS = 16
SOLVER = sap.conjugate_gradient(tolerance=0.1, max_iterations=MAX_PRODUCTS)
SAMPLE_SEED = 0
PRODUCT_GRADIENTS = 2
"""What a product of curvature with a vector costs, in gradients on the same examples."""
BATCHES_IN_ONE = 4
"""How many batches of an update have the size of one of training, where its budget is small: more
and smaller steps use it better."""
REMOVAL_WEIGHT = 0.2
"""How much a removed example counts against a retained one, with the opposite sign."""


class Corrections(NamedTuple):
    """What an update learns from, as batches of `image`, `label` and `weight`."""

    original: Any
    corrected: Any | None
    data: Any
    """A random sample of the training set as it should have been."""
    num_examples: int
    """The size of the training set as it should have been."""
    batches: Any
    """Steps by examples: one half about the poisoned examples, one half retained."""
    own_batches: Any
    """As many steps and examples, all about the poisoned examples."""


class Update(NamedTuple):
    """A way to change parameters, with the one number that is tuned."""

    summary: str
    tuned: str
    trials: tuple[float, ...]
    """The values that are tried, the same for every method."""
    run: Callable[[Model, Any, Any, Corrections, float], tuple[Any, Any]]
    """`run(model, params, mask, corrections, value)` returns new parameters, and what they cost in
    example gradients."""


def as_batch(split: Split, weight: float = 1.0) -> dict[str, np.ndarray]:
    """Examples in the form that `Model.loss` takes."""
    weights = np.full(len(split.labels), weight, np.float32)
    return {"image": split.images, "label": split.labels, "weight": weights}


def make_batches(
    about: Split, weight: float, retained: Split | None, *, steps: int, batch_size: int, seed: int
) -> dict[str, np.ndarray]:
    """Batches of which one half is about the poisoned examples and one half is retained.

    Args:
      about: corrected examples; where records are removed, the records.
      weight: of each of them in the loss; below 0 the update climbs their loss.
      retained: examples that were in order; None leaves both halves to the poisoned ones.
      steps: the number of batches.
      batch_size: the number of examples of each, an even number.
      seed: of the order.
    """
    parts = [(about, weight)] if retained is None else [(about, weight), (retained, 1.0)]
    counted = [(split, w, batch_size // len(parts)) for split, w in parts]
    return mix_batches(counted, steps=steps, seed=seed)


def mix_batches(
    parts: Sequence[tuple[Split, float, int]], *, steps: int, seed: int
) -> dict[str, np.ndarray]:
    """Batches made of several kinds of examples.

    Args:
      parts: examples, the weight of each of them in the loss, and how many of them go into a batch.
      steps: the number of batches.
      seed: of the order.
    """
    mixed = []
    for split, weight, count in parts:
        ids = shuffled_batches(np.arange(len(split.labels)), steps, count, seed)
        weights = np.full(ids.shape, weight, np.float32)
        mixed.append({"image": split.images[ids], "label": split.labels[ids], "weight": weights})
    return {name: np.concatenate([part[name] for part in mixed], axis=1) for name in mixed[0]}


@functools.partial(jax.jit, static_argnums=(0, 5), static_argnames="microbatch")
def first_order_step(
    model: Model,
    params: Any,
    mask: Any,
    original: Any,
    corrected: Any,
    num_examples: int,
    value: Any,
    *,
    microbatch: int = MICROBATCH,
) -> Any:
    """The closed-form step of size `value` on the mask."""
    return sap.first_order_update(
        model.loss,
        params,
        original,
        corrected,
        step_size=value,
        mask=mask,
        num_examples=num_examples,
        microbatch=microbatch,
    )


@functools.partial(
    jax.jit,
    static_argnums=(0, 6),
    static_argnames=("gauss_newton", "solver", "num_steps", "adapt_damping", "microbatch"),
)
def newton_steps(
    model: Model,
    params: Any,
    mask: Any,
    original: Any,
    corrected: Any,
    data: Any,
    num_examples: int,
    value: Any,
    *,
    gauss_newton: bool = False,
    solver: Any = None,
    num_steps: int = 1,
    adapt_damping: bool = False,
    microbatch: int | None = None,
) -> tuple[Any, sap.Certificate]:
    """Masked Newton steps of damping `value`, on the Hessian or on its Gauss-Newton part."""
    outputs: Any = {}
    if gauss_newton:
        outputs["model_fn"] = lambda p, example: model.apply(p, example["image"][None])[0]
        outputs["output_loss_fn"] = cross_entropy
    return sap.second_order_update(
        model.loss,
        params,
        original,
        corrected,
        data,
        damping=value,
        mask=mask,
        num_examples=num_examples,
        solver=solver,
        num_steps=num_steps,
        adapt_damping=adapt_damping,
        microbatch=microbatch,
        **outputs,
    )


def _step_within_budget(
    model: Model, params: Any, mask: Any, c: Corrections, value: float
) -> tuple[Any, int]:
    """A Gauss-Newton step that costs no more than `c.batches`, and its cost in example gradients.

    Half of the budget at most goes to the change of the gradient. The curvature gets as many
    examples as the rest pays for if the solver uses every product.
    """
    return _newton_step(
        model, params, mask, within_budget(c), value, gauss_newton=True, solver=SOLVER
    )


def within_budget(c: Corrections) -> Corrections:
    """Samples of the corrections and of the data that a Gauss-Newton step can pay for."""
    budget, parts = c.batches["label"].size, 1 if c.corrected is None else 2
    num_changed = min(_count(c.original), budget // (2 * parts))
    weight = _count(c.original) / num_changed
    take = lambda batch: batch and _draw(batch, num_changed, weight)
    num_data = (budget - parts * num_changed) // _data_gradients(MAX_PRODUCTS)
    return c._replace(
        original=take(c.original),
        corrected=take(c.corrected),
        data=_draw(c.data, min(max(1, num_data), _count(c.data))),
    )


def _draw(batch: Any, count: int, weight: float = 1.0) -> Any:
    """So many examples of a batch, at random and the same in every batch of its size."""
    ids = np.random.default_rng(SAMPLE_SEED).choice(_count(batch), count, replace=False)
    drawn = {name: values[np.sort(ids)] for name, values in batch.items()}
    return drawn | {"weight": drawn["weight"] * np.float32(weight)}


def _newton_step(
    model: Model, params: Any, mask: Any, c: Corrections, value: float, **options: Any
) -> tuple[Any, int]:
    """The step and its cost in example gradients."""
    batches = (c.original, c.corrected, c.data)
    work = (model, params, mask, *batches, c.num_examples, value)
    params, certificate = newton_steps(*work, **options)
    return params, _newton_cost(c, certificate)


def _newton_cost(c: Corrections, certificate: sap.Certificate) -> int:
    """Of one step, in example gradients."""
    of_data = _data_gradients(int(certificate.iterations)) * _count(c.data)
    return _count(c.original) + _count(c.corrected) + of_data


def _data_gradients(num_products: int) -> int:
    """Of one step on each example of the data, if its solver takes so many products.

    Beside these: two more, of the solver's own check and of the predicted decrease; two gradients;
    and two passes for the losses, which are a gradient together.
    """
    return 3 + PRODUCT_GRADIENTS * (num_products + 2)


@functools.partial(jax.jit, static_argnums=0)
def _iterative(model: Model, params: Any, mask: Any, batches: Any, value: jax.Array) -> Any:
    return sap.iterative_update(
        model.loss, params, batches, optimizer=optax.adam(value), mask=mask
    )[0]


def _count(batch: Any) -> int:
    return 0 if batch is None else len(batch["label"])


UPDATES = {
    "first_order": Update(
        summary="one closed-form step on the poisoned examples and their corrections",
        tuned="step_size",
        trials=(0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0),
        run=lambda model, params, mask, c, value: (
            first_order_step(model, params, mask, c.original, c.corrected, c.num_examples, value),
            _count(c.original) + _count(c.corrected),
        ),
    ),
    "second_order": Update(
        summary="one Gauss-Newton step that costs no more than the iterative update, its "
        "curvature on a random sample of the corrected data",
        tuned="damping",
        trials=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0),
        run=_step_within_budget,
    ),
    "iterative": Update(
        summary="adam on batches of corrected and retained examples",
        tuned="learning_rate",
        trials=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
        run=lambda model, params, mask, c, value: (
            _iterative(model, params, mask, c.batches, value),
            c.batches["label"].size,
        ),
    ),
}

STUDIED_UPDATES = {
    "first_order": UPDATES["first_order"],
    "second_order": Update(
        summary="one Newton step on the Hessian, its damping raised until the step holds",
        tuned="damping",
        trials=(0.001, 0.01, 0.03, 0.1, 0.3),
        run=functools.partial(_newton_step, adapt_damping=True),
    ),
    "iterative": UPDATES["iterative"],
    "corrected_only": Update(
        summary="adam on batches of corrected examples, with no retained ones",
        tuned="learning_rate",
        trials=UPDATES["iterative"].trials,
        run=lambda model, params, mask, c, value: (
            _iterative(model, params, mask, c.own_batches, value),
            c.own_batches["label"].size,
        ),
    ),
}
"""What the study of selections compares; the main job runs `UPDATES`."""
