"""The curvature that selections rank by: its estimator is chosen in this place alone."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sapsel_jax as sap
from benchmarks.learning.models import Model
from benchmarks.tools.timing import timed

REPEATS = 5
MICROBATCH = 16
EXACT = ("mlp", "cnn")
"""Networks whose exact diagonal costs a few gradients; with normalisation it costs hundreds."""


def estimator(name: str) -> str:
    """What the reports call the curvature of the network of that name."""
    exact = "exact diagonal of the Hessian"
    return exact if name in EXACT else "diagonal of the Hessian by one propagated probe"


@functools.partial(jax.jit, static_argnums=0)
def curvature(model: Model, params: Any, batch: Any) -> Any:
    """The diagonal of the Hessian of the mean loss over a batch."""
    if model.name in EXACT:
        return sap.exact_diagonal(model.loss)(params, batch)
    diagonal = sap.propagated_diagonal(model.loss, microbatch=MICROBATCH)
    return diagonal(params, batch, jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0)
def mean_gradient(model: Model, params: Any, batch: Any) -> Any:
    """The gradient of the mean loss over a batch."""
    return jax.grad(lambda p: jnp.mean(jax.vmap(lambda e: model.loss(p, e))(batch)))(params)


def gradient_equivalents(model: Model, params: Any, batch: Any) -> float:
    """What the curvature costs: its time over that of the gradient of the same mean loss.

    Both are compiled first, then timed in turn; the medians are compared.
    """
    works = (
        lambda: curvature(model, params, batch),
        lambda: mean_gradient(model, params, batch),
    )
    for work in works:
        jax.block_until_ready(work())
    seconds = [[timed(work)[1] for work in works] for _ in range(REPEATS)]
    of_curvature, of_gradient = np.median(seconds, axis=0)
    return float(of_curvature / of_gradient)
