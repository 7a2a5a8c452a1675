"""How the selected parameters are changed: one closed-form step, or steps over batches."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import sapsel_jax as sap
from benchmarks.data import Split
from benchmarks.models import Model
from benchmarks.training import shuffled_batches

MICROBATCH = 1_000
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
    num_update_examples: int
    """The examples of all `batches`."""


class Update(NamedTuple):
    """A way to change parameters, with the one number that is tuned."""

    summary: str
    tuned: str
    trials: tuple[float, ...]
    """The values that are tried, the same for every method."""
    run: Callable[[Model, Any, Any, Corrections, float], Any]
    """`run(model, params, mask, corrections, value)` returns new parameters."""
    example_gradients: Callable[[Corrections], int | None]
    """What a run costs; None where it ends by its own measure."""


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


@functools.partial(jax.jit, static_argnums=(0, 5))
def _first_order(
    model: Model, params: Any, mask: Any, original: Any, corrected: Any, num_examples: int, value
) -> Any:
    return sap.first_order_update(
        model.loss,
        params,
        original,
        corrected,
        step_size=value,
        mask=mask,
        num_examples=num_examples,
        microbatch=MICROBATCH,
    )


@functools.partial(jax.jit, static_argnums=(0, 6), static_argnames=("num_steps", "adapt_damping"))
def second_order(
    model: Model,
    params: Any,
    mask: Any,
    original: Any,
    corrected: Any,
    data: Any,
    num_examples: int,
    value: Any,
    *,
    num_steps: int = 1,
    adapt_damping: bool = True,
) -> tuple[Any, sap.Certificate]:
    """Masked Newton steps, their damping adapted from `value` on: raised until a step holds."""
    return sap.second_order_update(
        model.loss,
        params,
        original,
        corrected,
        data,
        damping=value,
        mask=mask,
        num_examples=num_examples,
        num_steps=num_steps,
        adapt_damping=adapt_damping,
    )


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
        run=lambda model, params, mask, c, value: _first_order(
            model, params, mask, c.original, c.corrected, c.num_examples, value
        ),
        example_gradients=lambda c: _count(c.original) + _count(c.corrected),
    ),
    "iterative": Update(
        summary="adam on batches of corrected and retained examples",
        tuned="learning_rate",
        trials=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
        run=lambda model, params, mask, c, value: _iterative(model, params, mask, c.batches, value),
        example_gradients=lambda c: c.num_update_examples,
    ),
}

STUDIED_UPDATES = {
    "first_order": UPDATES["first_order"],
    "second_order": Update(
        summary="one masked Newton step, on a random sample of the corrected training set",
        tuned="damping",
        trials=(0.001, 0.01, 0.03, 0.1, 0.3),
        run=lambda model, params, mask, c, value: second_order(
            model, params, mask, c.original, c.corrected, c.data, c.num_examples, value
        )[0],
        example_gradients=lambda c: None,
    ),
    "iterative": UPDATES["iterative"],
    "corrected_only": Update(
        summary="adam on batches of corrected examples, with no retained ones",
        tuned="learning_rate",
        trials=UPDATES["iterative"].trials,
        run=lambda model, params, mask, c, value: _iterative(
            model, params, mask, c.own_batches, value
        ),
        example_gradients=lambda c: c.num_update_examples,
    ),
}
"""What the study of selections compares; the main job runs `UPDATES`."""
