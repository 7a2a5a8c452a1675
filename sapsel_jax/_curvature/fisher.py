"""The empirical Fisher diagonal."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sapsel_jax._base.examples import check_options
from sapsel_jax._base.losses import one_scalar
from sapsel_jax._base.meshes import placed_by_compiler
from sapsel_jax._base.types import Batch, Diagonal, LossFn, Params
from sapsel_jax._curvature.over_examples import read_loss
from sapsel_jax._curvature.probed import Probed, entries_of, find_probed, pair
from sapsel_jax._graph.graph import Graph
from sapsel_jax._passes.backward import pull
from sapsel_jax._passes.lifts import Record, records_of_uses


def empirical_fisher_diagonal(
    loss_fn: LossFn, *, microbatch: int | None = None, reduction: str = "mean"
) -> Callable[..., Diagonal]:
    """Computes the diagonal of the empirical Fisher matrix of a loss over a batch.

    Entry i is the mean over examples of (∂ℓ/∂θᵢ)². The empirical Fisher matrix is not the Fisher
    matrix, whose labels are drawn from the model, and it is not the Hessian.

    Args:
      loss_fn: `loss_fn(params, example, *args) -> scalar`, the loss of one example.
      microbatch: how many examples are worked on at once, at least 1. Memory grows with it in
        proportion; the default is as many as fit into about 16 MB. The result does not depend on
        it but for rounding.
      reduction: "mean" or "sum" over the examples.

    Returns:
      A function `(params, batch, *args, weights=None)` that returns a pytree shaped like `params`,
      in float32 or wider. `weights` has shape (examples,).

    Raises:
      TypeError: if `params` holds anything but real floating-point arrays, or `loss_fn` returns
        anything but one real scalar.
      ValueError: if the batch is empty or its leaves differ in length, if `weights` has another
        shape, if `microbatch` is below 1 or `reduction` is unknown.
      NotImplementedError: if a `while` loop depends on the parameters.

    Cost: about 1 gradient equivalent for dense networks.

    Source: F. Kunstner, L. Balles, P. Hennig, "Limitations of the empirical Fisher approximation
      for natural gradient descent" (arXiv 1905.12558), equation 3.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> diagonal = sap.empirical_fisher_diagonal(lambda w, x: jnp.vdot(w, x))
      >>> diagonal(jnp.zeros(2), jnp.array([[1.0, 2.0], [3.0, 0.0]]))
      Array([5., 2.], dtype=float32)
    """
    check_options(microbatch, reduction)

    def diagonal(params: Params, batch: Batch, *args: Any, weights: Any = None) -> Diagonal:
        loss = read_loss(one_scalar(loss_fn), params, batch, args, weights, additive=False)
        probed = find_probed(loss.graph, loss.structures)
        records_of = functools.partial(_records, loss.graph)
        at_once = loss.at_once(microbatch, entries_of(loss.graph, probed))
        return loss.diagonal(probed, records_of, at_once, reduction)

    return placed_by_compiler(diagonal)


def _records(
    graph: Graph, probed: Sequence[Probed], leaves: list[jax.Array], example: Any
) -> list[Record]:
    """The squared gradient of one example's loss, from the adjoints of the sites."""
    values = graph.evaluate(leaves, example)
    output, sites = graph.outputs[0], [one.site for one in probed]
    unit = {output: jnp.ones_like(values[output])}
    adjoints = pull(graph, graph.after(sites), values, unit, sites)
    records = []
    for one in probed:
        result = pair(graph, one, values, adjoints[one.site], adjoints[one.site])
        records += records_of_uses(graph, one.uses, one.is_diagonal, values, result)
    return records
