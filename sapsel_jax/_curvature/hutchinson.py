"""Hutchinson's estimate of Hessian diagonals, with probes at the sites."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from sapsel_jax._base.examples import check_options
from sapsel_jax._base.losses import one_scalar
from sapsel_jax._base.meshes import placed_by_compiler
from sapsel_jax._base.types import Batch, LossFn, Params
from sapsel_jax._curvature.hessians import hessian_vector
from sapsel_jax._curvature.over_examples import read_loss
from sapsel_jax._curvature.probed import Probed, entries_of, find_probed, pair
from sapsel_jax._curvature.probes import check_probes
from sapsel_jax._graph.graph import Graph, tail
from sapsel_jax._passes.lifts import Record, records_of_uses


def hutchinson_diagonal(
    loss_fn: LossFn,
    *,
    num_probes: int = 1,
    microbatch: int | None = None,
    reduction: str = "mean",
    return_error: bool = False,
) -> Callable[..., Any]:
    """Estimates the Hessian diagonal of a loss over a batch, by Hutchinson's probes at the sites.

    A leaf w enters the loss of an example by z = A w + ... The estimate is the mean over examples
    of (Aᵀv) ⊙ (Aᵀ H v), with H the Hessian in z and v random signs in the shape of z, independent
    for every site, example and probe. It is unbiased. Its error comes from inside one site of one
    example, while probes of the parameters pick up noise from all other parameters. A leaf without
    a site (`explain` says which) is probed itself.

    Args:
      loss_fn: `loss_fn(params, example, *args) -> scalar`, the loss of one example.
      num_probes: how many random vectors per example, at least 1.
      microbatch: how many examples are worked on at once, at least 1. Memory grows with it in
        proportion; the default is as many as fit into about 16 MB. The draws belong to the
        examples, so the result does not depend on it but for rounding.
      reduction: "mean" or "sum" over the examples.
      return_error: also return the standard error of each entry, from the spread between probes;
        needs `num_probes >= 2`.

    Returns:
      A function `(params, batch, key, *args, weights=None)` that returns a pytree shaped like
      `params`, in float32 or wider; with `return_error` a pair `(diagonal, standard_error)`.

    Raises:
      TypeError: if `params` holds anything but real floating-point arrays, or `loss_fn` returns
        anything but one real scalar.
      ValueError: if the batch is empty or its leaves differ in length, if `weights` has another
        shape, if a count is too small or `reduction` is unknown.
      NotImplementedError: if a `while` loop depends on the parameters, or JAX cannot differentiate
        `loss_fn` twice.

    Cost: for each probe one Hessian-vector product per site, each through the part of the network
      after the site alone: about 1 to 4 gradient equivalents for a network of three layers. The
      cost grows with depth; the cost of `propagated_diagonal` does not.

    Source: M. F. Hutchinson, "A stochastic estimator of the trace of the influence matrix" (1989);
      for the diagonal C. Bekas, E. Kokiopoulou, Y. Saad, "An estimator for the diagonal of a
      matrix" (2007), equation 2. Moved from the parameters to the sites by the chain rule.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> def loss_fn(w, x):
      ...     return jnp.sum(jnp.cosh(w) * x)
      >>> estimate = sap.hutchinson_diagonal(loss_fn, num_probes=2, return_error=True)
      >>> diagonal, error = estimate(jnp.zeros(2), jnp.array([[1.0, 2.0]]), jax.random.key(0))
      >>> diagonal, error  # this Hessian is diagonal, so that every probe is exact
      (Array([1., 2.], dtype=float32), Array([0., 0.], dtype=float32))
    """
    check_probes(num_probes, return_error)
    check_options(microbatch, reduction)

    def diagonal(
        params: Params, batch: Batch, key: jax.Array, *args: Any, weights: Any = None
    ) -> Any:
        loss = read_loss(one_scalar(loss_fn), params, batch, args, weights)
        probed = find_probed(loss.graph, loss.structures)
        return loss.estimate(
            probed,
            functools.partial(probe_records, loss.graph),
            loss.at_once(microbatch, entries_of(loss.graph, probed)),
            reduction,
            key,
            num_probes,
            return_error=return_error,
        )

    return placed_by_compiler(diagonal, num_trees=1 + return_error)


def probe_records(
    graph: Graph,
    probed: Sequence[Probed],
    leaves: list[jax.Array],
    example: Any,
    key: jax.Array,
) -> list[Record]:
    """One probe of one example's Hessian at every site."""
    values, records = graph.evaluate(leaves, example), []
    for one in probed:
        value = values[one.site]
        own_key = jax.random.fold_in(key, one.number)
        signs = jax.random.rademacher(own_key, value.shape, value.dtype)
        ruled = any(node.ruled for node in graph.after([one.site]))
        output = tail(graph, one.site, values)
        product = hessian_vector(output, value, signs, has_rules=ruled)
        result = pair(graph, one, values, signs, product)
        records += records_of_uses(graph, one.uses, one.is_diagonal, values, result)
    return records
