"""The truth that every diagonal is held to: in float64, and how far an answer is from it."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import sapsel_jax as sap
from benchmarks.measures.diagonals import flat, rank_correlation, relative_error
from benchmarks.speed.cases import Case
from benchmarks.speed.contenders import by_basis_vectors
from benchmarks.tools.errors import UsageError

CHECKED = 6
"""Entries of each leaf that the truth itself is checked on, one Hessian-vector product each."""
EXAMPLES_AT_ONCE = 64
"""Examples of a convolutional network that are worked on at once."""
TRUTH_TOLERANCE = 1e-9
EXACT_TOLERANCE = 1e-4
"""Relative distance to the truth up to which a diagonal is exact in float32."""
MOST_DEVIATIONS = 8.0
"""Standard errors that the length of an unbiased estimate along the truth may be off."""
PROBES = (1, 4, 16)


class Truth(NamedTuple):
    """The diagonal in float64 as one vector."""

    diagonal: np.ndarray
    difference: float
    """The largest difference to Hessian-vector products, over the largest of them."""


def find_truth(case: Case) -> Truth:
    """`exact_diagonal` in float64, checked against Hessian-vector products in float64.

    The check takes random entries of every leaf, on all examples of dense networks and on the
    first of convolutional ones, on which the same compiled program is run for all.

    Raises:
      UsageError: if they differ.
    """
    count = len(case.batch[1])
    size = min(count, EXAMPLES_AT_ONCE) if case.is_convolutional else count
    with jax.enable_x64(True):
        wide = lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x
        params, batch = jax.tree.map(wide, (case.params, case.batch))
        parts = [jax.tree.map(lambda x, i=i: x[i : i + size], batch) for i in range(0, count, size)]
        sums = [flat(_diagonal_sum(case.loss_fn, params, part)) for part in parts]
        places = checked_places(case)
        want = np.asarray(_products(case.mean_loss, params, parts[0], jnp.asarray(places)))
    difference = np.abs(sums[0][places] / size - want).max() / np.abs(want).max()
    if not difference < TRUTH_TOLERANCE:
        raise UsageError(
            f"`exact_diagonal` is off by {difference:.1e} on {case.name} in float64; nothing could "
            "be held to it, so it is not measured."
        )
    return Truth(np.sum(sums, axis=0) / count, float(difference))


@functools.partial(jax.jit, static_argnums=0)
def _diagonal_sum(loss_fn: Callable[..., jax.Array], params: Any, batch: Any) -> Any:
    return sap.exact_diagonal(loss_fn, reduction="sum")(params, batch)


@functools.partial(jax.jit, static_argnums=0)
def _products(mean_loss: Callable[..., jax.Array], params: Any, batch: Any, places: Any) -> Any:
    vector, unravel = ravel_pytree(params)
    return by_basis_vectors(lambda x: mean_loss(unravel(x), batch), vector, places)


def checked_places(case: Case) -> np.ndarray:
    """Random entries of every leaf, as places among all."""
    rng = np.random.default_rng(0)
    places, start = [], 0
    for leaf in jax.tree.leaves(case.params):
        places.append(start + rng.choice(leaf.size, min(CHECKED, leaf.size), replace=False))
        start += leaf.size
    return np.sort(np.concatenate(places))


def quality(draws: np.ndarray, truth: np.ndarray, averages: bool) -> dict[str, Any]:
    """How near the draws (draws, entries) come to the truth.

    Returns:
      `error` and `rank_correlation` of one draw, averaged over draws, and `errors`: pairs of a
      number of draws and the error of their mean, of one draw alone unless it `averages`.
    """
    errors = []
    for count in PROBES if averages else (1,):
        if count <= len(draws):
            whole = len(draws) // count * count
            means = draws[:whole].reshape(-1, count, draws.shape[1]).mean(1)
            errors.append((count, float(np.mean([relative_error(m, truth) for m in means]))))
    ranks = [rank_correlation(draw, truth) for draw in draws[:4]]
    return {"error": errors[0][1], "rank_correlation": float(np.mean(ranks)), "errors": errors}


def objection(kind: str, draws: np.ndarray, truth: np.ndarray) -> str:
    """Why answers are not what they are said to be; empty if they are.

    An exact one must be the truth to float32. Of an unbiased one the length along the truth is
    looked at: ⟨draw, truth⟩ / ⟨truth, truth⟩, which is 1 in expectation.
    """
    if not np.isfinite(draws).all():
        return "holds numbers that are not finite"
    if kind == "exact":
        error = relative_error(draws[0], truth)
        return "" if error < EXACT_TOLERANCE else f"is off by {error:.1e}"
    if kind == "unbiased" and len(draws) >= 4:
        lengths = draws @ truth / (truth @ truth)
        spread = lengths.std(ddof=1) / len(lengths) ** 0.5
        if abs(lengths.mean() - 1) > MOST_DEVIATIONS * spread + EXACT_TOLERANCE:
            return f"has {lengths.mean():.3f} ± {spread:.3f} of the length it should have"
    return ""


def stacked(draws: Sequence[Any]) -> np.ndarray:
    """Trees as one array (draws, entries) in float64."""
    return np.stack([flat(draw) for draw in draws]).astype(np.float64)
