"""What a way of unlearning may use, and the ways to choose the parameters it changes."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import sapsel_jax as sap
from benchmarks.learning.data import Split
from benchmarks.learning.models import Model
from benchmarks.learning.training import shuffled_batches
from benchmarks.methods.curvature import mean_gradient
from benchmarks.methods.masks import METHODS, Material, chance, diagonal, saliency, sharpness, top
from benchmarks.methods.updates import REMOVAL_WEIGHT, as_batch

CURVATURE_GRADIENTS = 6
"""What an exact diagonal is counted as, in gradient equivalents; the report shows a measurement."""
SCORE_DAMPING = 1e-3
GAIN = (
    "whose own Newton steps lower the loss of what is to be learned most, "
    f"g² / 2(H + {SCORE_DAMPING:g})"
)


class Problem(NamedTuple):
    """A poisoned model and what is known of its poison: all that a procedure may use."""

    model: Model
    params: Any
    """The poisoned parameters."""
    train: Split
    """What they were trained on."""
    data: Split
    """The training set with what is known corrected or removed."""
    original: Split
    """The examples known to be poisoned, as they were trained on."""
    corrected: Split | None
    """The same as they should have been; None where they should not have been there."""
    retained: Split
    """The other training examples, among them poisoned ones where not all are known."""
    num_classes: int
    batch_size: int
    """Examples of a step."""
    budget: int
    """Example gradients for selection and update together."""
    fraction: float
    """The share of the entries that a mask selects."""
    seed: int

    def about(self) -> tuple[Split, float]:
        """What is to be learned of the poisoned examples, and its weight.

        Corrected examples, and the inputs as they were with the corrected labels; where records are
        removed, the records, to be climbed on.
        """
        if self.corrected is None:
            return self.original, -REMOVAL_WEIGHT
        images = np.concatenate([self.corrected.images, self.original.images])
        return Split(images, np.tile(self.corrected.labels, 2)), 1.0

    def sample(self, split: Split, count: int, salt: int) -> Split:
        """So many examples in random order, some twice where there are too few."""
        rows = shuffled_batches(np.arange(len(split.labels)), 1, count, 100 * self.seed + salt)
        return split.take(rows[0])

    @property
    def num_gradient(self) -> int:
        """Examples that a gradient for selection is taken on: a 32nd of the budget."""
        return max(1, self.budget // 32)

    @property
    def num_curvature(self) -> int:
        """Examples that curvature is measured on."""
        return curvature_examples(self.budget)

    def material(self) -> Material:
        """What `methods` selects from."""
        return Material(
            model=self.model,
            params=self.params,
            sample=as_batch(self.sample(self.train, self.num_curvature, 1)),
            original=as_batch(self.sample(self.original, self.num_gradient, 2)),
            fraction=self.fraction,
            key=jax.random.key(self.seed),
        )

    def changes(self) -> tuple[Any, Any | None]:
        """A sample of the originals and of their corrections, weighted to stand for all of them."""
        weight = len(self.original.labels) / self.num_gradient
        take = lambda split: as_batch(self.sample(split, self.num_gradient, 2), weight)
        return take(self.original), None if self.corrected is None else take(self.corrected)

    @property
    def num_changed(self) -> int:
        """Their number, of both together."""
        return self.num_gradient * (1 if self.corrected is None else 2)


def curvature_examples(budget: int) -> int:
    """How many examples' curvature an eighth of a budget pays for."""
    return max(1, budget // (8 * CURVATURE_GRADIENTS))


class Selection(NamedTuple):
    """A way to choose the parameters to change."""

    summary: str
    select: Callable[[Problem], Any]
    gradients: Callable[[Problem], int]
    """Its cost in example gradients."""


def _material_gradients(name: str) -> Callable[[Problem], int]:
    costs = {
        "nothing": lambda p: 0,
        "gradient": lambda p: p.num_gradient,
        "curvature": _curvature_gradients,
    }
    return costs[METHODS[name].needs]


@functools.partial(jax.jit, static_argnums=1)
def _largest(params: Any, fraction: float) -> Any:
    return sap.select_top_fraction(sap.score_magnitude(params), fraction)


@functools.partial(jax.jit, static_argnums=2)
def _top_newton_steps(change: Any, diagonal: Any, fraction: float) -> Any:
    scores = sap.score_newton_step(change, diagonal, damping=SCORE_DAMPING)
    return sap.select_top_fraction(scores, fraction)


def _newton_step(problem: Problem) -> Any:
    original, corrected = problem.changes()
    change = mean_gradient(problem.model, problem.params, original)
    if corrected is not None:
        right = mean_gradient(problem.model, problem.params, corrected)
        change = optax.tree.sub(right, change)
    return _top_newton_steps(change, diagonal(problem.material()), problem.fraction)


@jax.jit
def _decrease_of(gradient: Any, diagonal: Any) -> Any:
    return sap.score_decrease(gradient, diagonal, damping=SCORE_DAMPING)


def _decrease(problem: Problem) -> Any:
    about = as_batch(problem.sample(problem.about()[0], problem.num_changed, 6))
    gradient = mean_gradient(problem.model, problem.params, about)
    return _decrease_of(gradient, diagonal(problem.material()))


def _layer(path: str, leaf: Any) -> str:
    return path.rpartition("/")[0]


@functools.partial(jax.jit, static_argnums=1)
def _top_per_unit(scores: Any, fraction: float) -> Any:
    return sap.select_top_fraction_per_unit(scores, fraction, groups=_layer)


def _curvature_gradients(problem: Problem) -> int:
    return CURVATURE_GRADIENTS * problem.num_curvature


def _curvature_and_change_gradients(problem: Problem) -> int:
    return _curvature_gradients(problem) + problem.num_changed


def _per_unit(
    summary: str, score: Callable[[Problem], Any], gradients: Callable[[Problem], int]
) -> Selection:
    return Selection(
        f"as many entries of every unit: {summary}",
        lambda problem: _top_per_unit(score(problem), problem.fraction),
        gradients,
    )


SELECTIONS = {
    name: Selection(
        method.summary,
        lambda problem, method=method: method.select(problem.material()),
        _material_gradients(name),
    )
    for name, method in METHODS.items()
} | {
    "newton_step": Selection(
        "the entries with the longest diagonal Newton steps |Δ| / (H + 0.001)",
        _newton_step,
        _curvature_and_change_gradients,
    ),
    "decrease": Selection(
        f"the entries {GAIN}",
        lambda p: top(_decrease(p), p.fraction),
        _curvature_and_change_gradients,
    ),
    "magnitude": Selection(
        "the entries of largest magnitude", lambda p: _largest(p.params, p.fraction), lambda p: 0
    ),
    "decrease_per_unit": _per_unit(
        f"those {GAIN}",
        _decrease,
        _curvature_and_change_gradients,
    ),
    "sharpest_per_unit": _per_unit(
        "those of largest curvature", lambda p: sharpness(p.material()), _curvature_gradients
    ),
    "saliency_per_unit": _per_unit(
        "those with the largest gradient on the poisoned examples, as GPS selects",
        lambda p: saliency(p.material()),
        lambda p: p.num_gradient,
    ),
    "random_per_unit": _per_unit("random ones", lambda p: chance(p.material()), lambda p: 0),
}
