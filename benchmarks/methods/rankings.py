"""Every way to choose parameters, at several fractions, from evidence that is gathered once."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import sapsel_jax as sap
from benchmarks.learning.models import Model
from benchmarks.methods.curvature import curvature, mean_gradient
from benchmarks.methods.masks import FLOOR, like
from benchmarks.tools.timing import timed

DAMPING = 1e-3
"""Added to curvature and Fisher diagonals where a score divides by them."""
LIKE = "random_like_"
"""A control's name: this and the selection whose counts per leaf it has."""


class Evidence(NamedTuple):
    """What scores are made of."""

    params: Any
    """The poisoned parameters."""
    diagonal: Any
    """The curvature on a sample of the training data."""
    change: Any
    """How the corrections change the gradient of the mean loss."""
    gradient: Any
    """The mean gradient on the poisoned examples as they were trained on."""
    forget_fisher: Any
    """The empirical Fisher diagonal on the same examples."""
    data_fisher: Any
    """And on the sample of the training data."""
    key: jax.Array


class Score(NamedTuple):
    """A way to rank parameters."""

    summary: str
    needs: tuple[str, ...]
    """The evidence that has to be computed for it."""
    score: Callable[[Evidence], Any]


SCORES = {
    "sharpest": Score("largest curvature", ("diagonal",), lambda e: sap.score_sharpest(e.diagonal)),
    "flattest": Score(
        "smallest curvature among live entries",
        ("diagonal",),
        lambda e: sap.score_flattest(e.diagonal, floor=FLOOR),
    ),
    "predicted_decrease": Score(
        f"Δ² / 2(H + {DAMPING:g})",
        ("diagonal", "change"),
        lambda e: sap.score_decrease(e.change, e.diagonal, damping=DAMPING),
    ),
    "newton_step": Score(
        f"|Δ| / (H + {DAMPING:g})",
        ("diagonal", "change"),
        lambda e: sap.score_newton_step(e.change, e.diagonal, damping=DAMPING),
    ),
    "brain_damage": Score(
        "Optimal Brain Damage saliency, ½Hθ²",
        ("diagonal",),
        lambda e: sap.score_brain_damage(e.params, e.diagonal),
    ),
    "saliency": Score(
        "largest gradient on the poisoned examples",
        ("gradient",),
        lambda e: sap.score_saliency(e.gradient),
    ),
    "fisher_ratio": Score(
        "Fisher diagonal on the poisoned examples over that on the data",
        ("forget_fisher", "data_fisher"),
        lambda e: sap.score_fisher_ratio(e.forget_fisher, e.data_fisher, damping=DAMPING),
    ),
    "magnitude": Score("largest parameters", (), lambda e: sap.score_magnitude(e.params)),
    "random": Score("random order", (), lambda e: sap.score_random(e.params, e.key)),
}
PER_LEAF = "sharpest_per_leaf"
RANKED = ("sharpest", PER_LEAF, *(name for name in SCORES if name not in ("sharpest", "random")))
"""The selections that claim something: each is compared with a control of its own."""


class Gathered(NamedTuple):
    """Evidence, and what each part of it took."""

    evidence: Evidence
    seconds: dict[str, float]


def gather(
    model: Model,
    params: Any,
    sample: Any,
    original: Any,
    corrected: Any | None,
    num_examples: int,
    key: jax.Array,
) -> Gathered:
    """Computes all that scores are made of, at the poisoned parameters.

    Args:
      model: the network.
      params: its poisoned parameters.
      sample: a batch drawn from the training set as it was trained on.
      original: the batch of the poisoned examples as they were trained on.
      corrected: the same as they should have been; None where they are removed.
      num_examples: the size of the training set as it should have been.
      key: of the random order.
    """
    parts, seconds = {}, {}
    for name, work in {
        "diagonal": lambda: curvature(model, params, sample),
        "change": lambda: _change(model, params, original, corrected, num_examples),
        "gradient": lambda: mean_gradient(model, params, original),
        "forget_fisher": lambda: _fisher(model, params, original),
        "data_fisher": lambda: _fisher(model, params, sample),
    }.items():
        parts[name], seconds[name] = timed(work)
    return Gathered(Evidence(params=params, key=key, **parts), seconds)


def mask_names(fractions: Sequence[float]) -> list[tuple[str, float | None]]:
    """Method and fraction of every mask; the last layer and all parameters have no fraction."""
    names: list[tuple[str, float | None]] = []
    for fraction in fractions:
        for name in RANKED:
            names += [(name, fraction), (LIKE + name, fraction)]
        names.append(("random", fraction))
    return [*names, ("last_layer", None), ("full", None)]


def make_masks(
    model: Model, evidence: Evidence, fractions: Sequence[float]
) -> dict[tuple[str, float | None], Any]:
    """Every mask by its method and fraction, as `mask_names` lists them."""
    scores, masks = score_all(evidence), {}
    for i, name in enumerate((*RANKED, "random")):
        select, score = (_top_per_leaf, "sharpest") if name == PER_LEAF else (_top, name)
        chosen = select(scores[score], tuple(fractions))
        for j, (fraction, mask) in enumerate(zip(fractions, chosen, strict=True)):
            masks[name, fraction] = mask
            if name in RANKED:
                key = jax.random.fold_in(evidence.key, i * len(fractions) + j)
                masks[LIKE + name, fraction] = like(mask, key)
    prefix = f"{model.last_layer}/"
    masks["last_layer", None] = sap.select_leaves(
        evidence.params, lambda path, _: path.startswith(prefix)
    )
    masks["full", None] = jax.tree.map(lambda p: jnp.ones(p.shape, bool), evidence.params)
    return masks


def needs(method: str) -> tuple[str, ...]:
    """The evidence that a method's mask needs."""
    name = "sharpest" if method.endswith(PER_LEAF) else method.removeprefix(LIKE)
    return SCORES[name].needs if name in SCORES else ()


def summary(method: str) -> str:
    """What a method changes, in a few words."""
    if method.startswith(LIKE):
        return f"random entries, in each leaf as many as `{method.removeprefix(LIKE)}` has there"
    others = {
        PER_LEAF: "largest curvature, the same fraction of every leaf",
        "last_layer": "the last layer's kernel and bias",
        "full": "every parameter",
    }
    return others[method] if method in others else SCORES[method].summary


@functools.partial(jax.jit, static_argnums=(0, 4))
def _change(model: Model, params: Any, original: Any, corrected: Any, num_examples: int) -> Any:
    return sap.gradient_change(model.loss, params, original, corrected, num_examples=num_examples)


@functools.partial(jax.jit, static_argnums=0)
def _fisher(model: Model, params: Any, batch: Any) -> Any:
    return sap.empirical_fisher_diagonal(model.loss)(params, batch)


@jax.jit
def score_all(evidence: Evidence) -> dict[str, Any]:
    """The scores of every ranking; that within leaves ranks by the sharpest ones'."""
    return {name: score.score(evidence) for name, score in SCORES.items()}


@functools.partial(jax.jit, static_argnums=1)
def _top(scores: Any, fractions: tuple[float, ...]) -> list[Any]:
    return [sap.select_top_fraction(scores, fraction) for fraction in fractions]


@functools.partial(jax.jit, static_argnums=1)
def _top_per_leaf(scores: Any, fractions: tuple[float, ...]) -> list[Any]:
    return [sap.select_top_fraction_per_leaf(scores, fraction) for fraction in fractions]
