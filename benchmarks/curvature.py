"""The curvature that selections rank by: one estimator, chosen in this place alone."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sapsel_jax as sap
from benchmarks.models import Model

REPEATS = 5
ESTIMATOR = "exact diagonal of the Hessian"
"""What the reports call it."""


@functools.partial(jax.jit, static_argnums=0)
def curvature(model: Model, params: Any, batch: Any) -> Any:
    """The diagonal of the Hessian of the mean loss over a batch."""
    return sap.exact_diagonal(model.loss)(params, batch)


@functools.partial(jax.jit, static_argnums=0)
def mean_gradient(model: Model, params: Any, batch: Any) -> Any:
    """The gradient of the mean loss over a batch."""
    return jax.grad(lambda p: jnp.mean(jax.vmap(lambda e: model.loss(p, e))(batch)))(params)


def gradient_equivalents(model: Model, params: Any, batch: Any) -> float:
    """What the curvature costs: its time over that of the gradient of the same mean loss.

    Both are compiled first; each time is the median of a few.
    """
    return median_seconds(lambda: curvature(model, params, batch)) / median_seconds(
        lambda: mean_gradient(model, params, batch)
    )


def median_seconds(work: Callable[[], Any]) -> float:
    """The median time of a compiled function, after one run that does not count."""
    jax.block_until_ready(work())
    return float(np.median([timed(work)[1] for _ in range(REPEATS)]))


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` returns once it is computed, and the seconds that took."""
    start = time.perf_counter()
    result = jax.block_until_ready(work())
    return result, time.perf_counter() - start
