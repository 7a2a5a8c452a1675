"""Which parameters an unlearning method may change: every method is a mask."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import sapsel_jax as sap
from benchmarks.learning.models import Model
from benchmarks.methods.curvature import curvature, mean_gradient

FLOOR = 1e-8
"""The curvature above which an entry counts as live for `flattest`."""


class Material(NamedTuple):
    """What a selection may look at."""

    model: Model
    params: Any
    """The poisoned parameters."""
    sample: Any
    """A batch drawn from the training set as it was trained on: curvature is measured on it."""
    original: Any
    """The batch of the poisoned examples as they were trained on."""
    fraction: float
    """The share of the entries to select."""
    key: jax.Array


class Method(NamedTuple):
    """A way to choose the parameters to change."""

    summary: str
    select: Callable[[Material], Any]
    needs: str
    """What the selection has to compute: `nothing`, `gradient` or `curvature`."""


REFERENCES = {
    "poisoned": "the model as it was trained on the poisoned data",
    "retrained": "training from scratch on the data as it should have been",
}


def _full(material: Material) -> Any:
    return jax.tree.map(lambda p: jnp.ones(p.shape, bool), material.params)


def _last_layer(material: Material) -> Any:
    prefix = f"{material.model.last_layer}/"
    return sap.select_leaves(material.params, lambda path, _: path.startswith(prefix))


def _random(material: Material) -> Any:
    return top(chance(material), material.fraction)


def _sharpest(material: Material) -> Any:
    return top(sharpness(material), material.fraction)


def _random_like_sharpest(material: Material) -> Any:
    return like(_sharpest(material), jax.random.fold_in(material.key, 1))


def _flattest(material: Material) -> Any:
    return top(sap.score_flattest(diagonal(material), floor=FLOOR), material.fraction)


def _saliency(material: Material) -> Any:
    return top(saliency(material), material.fraction)


def chance(material: Material) -> Any:
    """Random scores."""
    return sap.score_random(material.params, material.key)


def sharpness(material: Material) -> Any:
    """Scores by curvature."""
    return sap.score_sharpest(diagonal(material))


def saliency(material: Material) -> Any:
    """Scores by the gradient on the poisoned examples."""
    gradient = mean_gradient(material.model, material.params, material.original)
    return sap.score_saliency(gradient)


def diagonal(material: Material) -> Any:
    """The curvature on the sample."""
    return curvature(material.model, material.params, material.sample)


top = functools.partial(jax.jit, static_argnums=1)(sap.select_top_fraction)
like = jax.jit(sap.select_like)

METHODS = {
    "full": Method("every parameter", _full, "nothing"),
    "last_layer": Method("the last layer's kernel and bias", _last_layer, "nothing"),
    "random": Method("random entries", _random, "nothing"),
    "random_like_sharpest": Method(
        "random entries, in each leaf as many as `sharpest` has there",
        _random_like_sharpest,
        "curvature",
    ),
    "sharpest": Method("the entries of largest curvature", _sharpest, "curvature"),
    "flattest": Method("the live entries of smallest curvature", _flattest, "curvature"),
    "saliency": Method(
        "the entries with the largest gradient on the poisoned examples", _saliency, "gradient"
    ),
}
