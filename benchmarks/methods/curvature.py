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
PROPAGATED_GRADIENTS = 2
"""What a propagated probe is counted as, in gradient equivalents. A gradient takes three
passes: values, the adjoint of every activation, the gradient of every leaf. The probe takes six:
values, the adjoint and two signals at every activation, and the two signals at every leaf."""


def estimator(name: str) -> str:
    """What the reports call the curvature of the network of that name."""
    exact = "exact diagonal of the Hessian"
    return exact if name in EXACT else "diagonal of the Hessian by one propagated probe"


def counted_by(name: str) -> str:
    """What the reports say of `counted_gradients` for the network of that name."""
    exact = "which `sap.explain` predicts from the operations of the loss"
    return exact if name in EXACT else "two for the six passes of a probe, a gradient taking three"


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


def counted_gradients(model: Model, params: Any, batch: Any) -> float:
    """What the curvature costs by count, in gradient equivalents: the same in every run.

    For the exact diagonal, what `sap.explain` predicts from the operations of one example's loss;
    else `PROPAGATED_GRADIENTS`.
    """
    if model.name not in EXACT:
        return PROPAGATED_GRADIENTS
    example = jax.tree.map(lambda x: x[0], batch)
    return sap.explain(model.loss, params, example).cost


def measured_gradients(model: Model, params: Any, batch: Any) -> float:
    """What the curvature costs by the clock: its time over that of the gradient on the same batch.

    It differs from run to run. Both are compiled first, then timed in turn; medians are compared.
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
