"""Weights projected on what trusted examples make of their inputs, without a gradient.

Source: Kodge et al., "SAP: Corrective Machine Unlearning with Scaled Activation Projection for
Label Noise Robustness" (arXiv 2403.08618): W ← P W, P = U Λ Uᵀ, where U holds the eigenvectors of
the second moment of a layer's inputs on trusted examples, and of its eigenvalues s, as shares of
their sum, Λ makes a s / ((a − 1) s + 1).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import ortho_group

from benchmarks.beyond.ideas import Idea
from benchmarks.learning.models import Model
from benchmarks.methods.bench import Bench
from benchmarks.methods.updates import as_batch

NUM_TRUSTED = 1_000
"""Retained examples with the lowest loss, as many as the source takes."""
AT_ONCE = 50
"""Images whose inputs are held at once."""
Directions = dict[str, tuple[Any, Any]]
"""Of each layer's inputs: second moments, and the directions they lie along as columns."""
SCALES = (1e1, 1e2, 1e3, 1e4, 1e5, 1e6)


def trusted(bench: Bench) -> np.ndarray:
    """Images of the retained examples whose loss is lowest."""
    case = bench.evidence.case
    retained = case.poisoned.train.take(case.poisoned.retained)
    losses = _losses(case.model, case.params, as_batch(retained))
    return retained.images[np.argsort(losses)[:NUM_TRUSTED]]


@functools.partial(jax.jit, static_argnums=0)
def _losses(model: Model, params: Any, batch: Any) -> jax.Array:
    return jax.lax.map(lambda example: model.loss(params, example), batch, batch_size=50)


def second_moments(model: Model, params: Any, images: np.ndarray) -> dict[str, jax.Array]:
    """Of the inputs of each layer, summed over images and places."""
    parts = np.array_split(images, -(-len(images) // AT_ONCE))
    return functools.reduce(
        lambda total, part: jax.tree.map(jnp.add, total, _moments(model, params, part)),
        parts[1:],
        _moments(model, params, parts[0]),
    )


@functools.partial(jax.jit, static_argnums=0)
def _moments(model: Model, params: Any, images: jax.Array) -> dict[str, jax.Array]:
    inputs = model.layer_inputs(params, images)
    rows = {name: x.reshape(-1, x.shape[-1]) for name, x in inputs.items()}
    return {name: x.T @ x for name, x in rows.items()}


def directions(moments: dict[str, jax.Array], seed: int | None = None) -> Directions:
    """The eigenvectors of second moments, or as many random directions, with the eigenvalues."""
    found = {name: tuple(jnp.linalg.eigh(moment)) for name, moment in moments.items()}
    if seed is None:
        return found
    turn = lambda size: ortho_group.rvs(size, random_state=seed).astype(np.float32)
    return {name: (values, turn(len(values))) for name, (values, _) in found.items()}


def projected(params: Any, along: Directions, scale: float) -> Any:
    """The parameters with every layer's kernel projected; biases stay.

    Args:
      params: of layers side by side.
      along: the directions of the inputs of each of them.
      scale: how much is kept: at 1 each direction's share, without bound everything.
    """
    return {
        name: layer | {"kernel": _project(layer["kernel"], *along[name], scale)}
        for name, layer in params.items()
    }


def _project(kernel: jax.Array, values: Any, vectors: Any, scale: float) -> jax.Array:
    share = jnp.maximum(values, 0) / values.sum()
    importance = scale * share / ((scale - 1) * share + 1)
    matrix = kernel.reshape(-1, kernel.shape[-1])
    return ((vectors * importance) @ (vectors.T @ matrix)).reshape(kernel.shape)


def _begin(bench: Bench, *, at_random: bool) -> Callable[[int, float], Any]:
    start, seed = bench.start, bench.evidence.case.seed if at_random else None
    along = directions(second_moments(start.model, start.params, trusted(bench)), seed)
    return lambda size, scale: projected(start.params, along, scale)


def _idea(summary: str, *, at_random: bool, controls: tuple[str, ...] = ()) -> Idea:
    begin = functools.partial(_begin, at_random=at_random)
    return Idea(summary, ("label",), 1.0, (0,), "the scale a", SCALES, begin, controls)


IDEAS = {
    "projection": _idea(
        f"weights projected on the inputs of {NUM_TRUSTED:,} trusted examples, no gradient",
        at_random=False,
        controls=("random_projection",),
    ),
    "random_projection": _idea("as much of random directions", at_random=True),
}
