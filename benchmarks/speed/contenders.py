"""Ways to a Hessian diagonal that are timed beside each other: ours, and what they are held to."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

import sapsel_jax as sap
from benchmarks.learning.plain import cross_entropy
from benchmarks.speed.cases import Case
from benchmarks.speed.hesscale import hesscale_diagonal

Kind = Literal["exact", "unbiased", "biased"]
"""What an answer is to the Hessian's diagonal: it, an estimate of it, or something else."""
BASIS_ENTRIES = {"dense": 64, "convolutional": 8}
"""Entries that basis vectors are timed on; the time for all of them is in proportion."""
MAIN = ("exact", "propagated", "basis vectors")
"""The contenders of cases that do not run all."""

GAUSS_NEWTON_NOTE = (
    "Gauss-Newton and Fisher matrices are measured on trained networks, and where Gauss-Newton is "
    "the Hessian."
)


class Contender(NamedTuple):
    """One way to a diagonal.

    `fn(params, batch, key)` returns it as a pytree shaped like the parameters; where `places` is
    given, as a vector of those entries alone. An unbiased one takes `num_probes` random vectors
    or passes; where `averages`, more of them are means of runs with other keys.
    """

    method: str
    library: str
    kind: Kind
    fn: Callable[[Any, Any, jax.Array], Any]
    num_probes: int = 1
    averages: bool = True
    places: jax.Array | None = None
    estimated: float | None = None
    """The gradient equivalents that are predicted."""


def own_contenders(case: Case) -> list[Contender]:
    """What sapsel_jax has, basis vectors, and HesScale as its paper has it."""
    loss_fn, model_fn = case.loss_fn, case.model_fn
    first = jax.tree.map(lambda x: x[0], case.batch)
    exact = sap.exact_diagonal(loss_fn)
    site, propagated = sap.hutchinson_diagonal(loss_fn), sap.propagated_diagonal(loss_fn)
    gauss_newton = sap.gauss_newton_diagonal(model_fn, cross_entropy)
    sampled = sap.sampled_gauss_newton_diagonal(model_fn, cross_entropy)
    fisher = sap.empirical_fisher_diagonal(loss_fn)
    hesscale, basis, places = hesscale_diagonal(case), _some_entries(case), basis_places(case)
    of_hessian = gauss_newton_is_hessian(case)
    ours = "sapsel_jax"
    found = [
        Contender(
            "exact",
            ours,
            "exact",
            lambda p, b, _: exact(p, b),
            estimated=sap.explain(loss_fn, case.params, first).cost,
        ),
        Contender("propagated", ours, "unbiased", propagated),
        Contender("site probes", ours, "unbiased", site),
        Contender(
            "Gauss-Newton",
            ours,
            "exact" if of_hessian else "biased",
            lambda p, b, _: gauss_newton(p, b),
        ),
        Contender("sampled Gauss-Newton", ours, "unbiased" if of_hessian else "biased", sampled),
        Contender("empirical Fisher", ours, "biased", lambda p, b, _: fisher(p, b)),
        Contender("HesScale", "own baseline", "biased", lambda p, b, _: hesscale(p, b)),
        Contender("basis vectors", "jax", "exact", lambda p, b, _: basis(p, b), places=places),
    ]
    of_trained = ("Gauss-Newton", "sampled Gauss-Newton", "empirical Fisher")
    found = [one for one in found if one.method not in of_trained or has_gauss_newton(case)]
    return [one for one in found if case.full or one.method in MAIN]


def has_gauss_newton(case: Case) -> bool:
    """Whether Gauss-Newton and Fisher matrices say anything about the Hessian there."""
    return case.trained or gauss_newton_is_hessian(case)


def gauss_newton_is_hessian(case: Case) -> bool:
    """Whether both have the same diagonal, by proof for every leaf."""
    first = jax.tree.map(lambda x: x[0], case.batch)
    return all(jax.tree.leaves(sap.is_piecewise_affine(case.model_fn, case.params, first)))


def basis_places(case: Case) -> jax.Array:
    """The entries that basis vectors are timed on, spread evenly over all."""
    kind = "convolutional" if case.is_convolutional else "dense"
    count = min(BASIS_ENTRIES[kind], case.num_entries)
    return jnp.linspace(0, case.num_entries - 1, count).astype(jnp.int32)


def _some_entries(case: Case) -> Callable[[Any, Any], jax.Array]:
    def entries(params: Any, batch: Any) -> jax.Array:
        flat, unravel = ravel_pytree(params)
        fn = lambda x: case.mean_loss(unravel(x), batch)
        return by_basis_vectors(fn, flat, basis_places(case))

    return entries


def by_basis_vectors(
    fn: Callable[[jax.Array], jax.Array], flat: jax.Array, places: jax.Array
) -> jax.Array:
    """Some entries of the diagonal of the Hessian of `fn`, one product each, four at once."""
    gradient = jax.grad(fn)

    def entry(place: jax.Array) -> jax.Array:
        unit = jnp.zeros_like(flat).at[place].set(1)
        return jax.jvp(gradient, (flat,), (unit,))[1][place]

    return jax.lax.map(entry, places, batch_size=min(4, len(places)))
