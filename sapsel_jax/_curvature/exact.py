"""Exact Hessian diagonals of a loss over a batch, by the routes that `_routes` chooses."""

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
from sapsel_jax._curvature.routes import Task, choose
from sapsel_jax._curvature.tasks import records_of_tasks
from sapsel_jax._graph.graph import Graph
from sapsel_jax._passes.backward import pull
from sapsel_jax._passes.lifts import Record


def exact_diagonal(
    loss_fn: LossFn, *, microbatch: int | None = None, reduction: str = "mean"
) -> Callable[..., Diagonal]:
    """Computes the exact diagonal of the Hessian of a loss over a batch.

    Entry i is Σₙ wₙ ∂²ℓ(θ, xₙ)/∂θᵢ² / Σₙ wₙ, or without the division for `reduction="sum"`.

    A leaf w enters the loss of example n by z = A w + ..., and its diagonal is diag(Aᵀ H A), with H
    the Hessian of that loss in z. A few first-order tangents, or rows pulled back from a small
    variable, give all entries of it. Each leaf takes the cheapest route. `explain` shows which
    route, what it costs, and why it is expensive if it is. The loss may be written with any module
    library, or with none.

    Args:
      loss_fn: `loss_fn(params, example, *args) -> scalar`, the loss of one example.
      microbatch: how many examples are worked on at once, at least 1. Memory grows with it in
        proportion; the default is as many as fit into about 16 MB. The result does not depend on
        it but for rounding.
      reduction: "mean" or "sum" over the examples.

    Returns:
      A function `(params, batch, *args, weights=None)` that returns a pytree shaped like `params`,
      in float32 or wider. `batch` holds the examples along the leading axis of every leaf, `args`
      are passed through as they are, `weights` has shape (examples,).

    Raises:
      TypeError: if `params` holds anything but real floating-point arrays, or `loss_fn` returns
        anything but one real scalar.
      ValueError: if the batch is empty or its leaves differ in length, if `weights` has another
        shape, if `microbatch` is below 1 or `reduction` is unknown.
      NotImplementedError: if a `while` loop depends on the parameters, or JAX cannot differentiate
        `loss_fn` twice.

    Cost: 2 to 6 gradient equivalents for dense networks, 4 to 6 for ReLU convolutional networks
      with 10 outputs, 12 to 33 for small convolutional networks with GELU. A block of
      attention needs a few tangents for each channel, tens of gradient equivalents; what lies
      before several such blocks needs one for each entry: take `propagated_diagonal` there. A leaf
      without a site costs one tangent, a quarter to a half gradient equivalent, per entry.

    Source: parameters are selected by this diagonal in Malekmohammadi, Lee, Xiong, "Sharpness-Aware
      Parameter Selection for Machine Unlearning" (arXiv 2504.06398). The routes follow from the
      second-order chain rule; rows for piecewise affine networks as in F. Dangel, F. Kunstner,
      P. Hennig, "BackPACK" (arXiv 1912.10985).

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> def loss_fn(w, example):  # half the squared error: second derivatives are x²
      ...     x, y = example
      ...     return 0.5 * (jnp.vdot(w, x) - y) ** 2
      >>> batch = (jnp.array([[1.0, 2.0], [3.0, 0.0]]), jnp.array([1.0, 0.0]))
      >>> sap.exact_diagonal(loss_fn)(jnp.zeros(2), batch)
      Array([5., 2.], dtype=float32)
    """
    check_options(microbatch, reduction)

    def diagonal(params: Params, batch: Batch, *args: Any, weights: Any = None) -> Diagonal:
        loss = read_loss(one_scalar(loss_fn), params, batch, args, weights)
        routes = choose(loss.graph, loss.structures)
        records_of = functools.partial(_records, loss.graph)
        at_once = loss.at_once(microbatch, routes.memory)
        return loss.diagonal(routes.tasks, records_of, at_once, reduction)

    return placed_by_compiler(diagonal)


def _records(
    graph: Graph, tasks: Sequence[Task], leaves: list[jax.Array], example: Any
) -> list[Record]:
    """The curvature of one example's loss for every use of some tasks."""
    values = graph.evaluate(leaves, example)
    output, sites = graph.outputs[0], [task.site for task in tasks]
    one = jnp.ones_like(values[output])
    adjoints = pull(graph, graph.after(sites), values, {output: one}, sites)
    return records_of_tasks(graph, tasks, values, adjoints)
