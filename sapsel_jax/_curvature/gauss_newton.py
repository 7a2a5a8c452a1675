"""Gauss-Newton and Fisher diagonals, and when Gauss-Newton is the Hessian."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from sapsel_jax._base.checks import check_count
from sapsel_jax._base.examples import check_options
from sapsel_jax._base.losses import one_scalar
from sapsel_jax._base.meshes import placed_by_compiler
from sapsel_jax._base.types import Batch, Diagonal, Params
from sapsel_jax._curvature.hessians import hessian_vector
from sapsel_jax._curvature.over_examples import read_loss
from sapsel_jax._curvature.probed import Probed, entries_of, find_probed, pair
from sapsel_jax._curvature.routes import Task, choose_through
from sapsel_jax._curvature.tasks import records_of_tasks
from sapsel_jax._graph.graph import Graph, tail
from sapsel_jax._graph.reach import leads_to
from sapsel_jax._passes.backward import pull
from sapsel_jax._passes.lifts import Record, records_of_uses


def gauss_newton_diagonal(
    model_fn: Callable[..., Any],
    output_loss_fn: Callable[[Any, Any], jax.Array],
    *,
    microbatch: int | None = None,
    reduction: str = "mean",
) -> Callable[..., Diagonal]:
    """Computes the exact diagonal of the Gauss-Newton matrix of a loss over a batch.

    With ℓ = c(f(θ, x)), entry i is the mean over examples of (Jᵀ H J)ᵢᵢ. J is the Jacobian of the
    outputs f in the parameters, H the Hessian of c in the outputs. The diagonal equals the diagonal
    of the Hessian for the leaves that `is_piecewise_affine` accepts.

    Args:
      model_fn: `model_fn(params, example, *args) -> outputs`, a pytree of float arrays for one
        example.
      output_loss_fn: `output_loss_fn(outputs, example) -> scalar`.
      microbatch: how many examples are worked on at once, at least 1. Memory grows with it in
        proportion; the default is as many as fit into about 16 MB. The result does not depend on
        it but for rounding.
      reduction: "mean" or "sum" over the examples.

    Returns:
      A function `(params, batch, *args, weights=None)` that returns a pytree shaped like `params`,
      in float32 or wider. `weights` has shape (examples,).

    Raises:
      TypeError: if `params` holds anything but real floating-point arrays, or `output_loss_fn`
        returns anything but one real scalar.
      ValueError: if the batch is empty or its leaves differ in length, if `weights` has another
        shape, if `microbatch` is below 1 or `reduction` is unknown.

    Cost: one backward pass per output, without gradients of weights: about half a gradient
      equivalent each for dense networks.

    Source: N. N. Schraudolph, "Fast curvature matrix-vector products for second-order gradient
      descent" (2002), for the matrix.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> model_fn = lambda w, x: w**2 * x
      >>> diagonal = sap.gauss_newton_diagonal(model_fn, lambda y, x: 0.5 * jnp.sum(y**2))
      >>> diagonal(jnp.array([1.0, 3.0]), jnp.array([[1.0, 1.0]]))  # (2w)²
      Array([ 4., 36.], dtype=float32)
    """
    check_options(microbatch, reduction)

    def diagonal(params: Params, batch: Batch, *args: Any, weights: Any = None) -> Diagonal:
        fn = _with_outputs(model_fn, output_loss_fn)
        loss = read_loss(fn, params, batch, args, weights, reverse=False)
        routes = choose_through(loss.graph, loss.graph.outputs[1], loss.structures)
        records_of = functools.partial(_records, loss.graph)
        at_once = loss.at_once(microbatch, routes.memory)
        return loss.diagonal(routes.tasks, records_of, at_once, reduction)

    return placed_by_compiler(diagonal)


def sampled_gauss_newton_diagonal(
    model_fn: Callable[..., Any],
    output_loss_fn: Callable[[Any, Any], jax.Array],
    *,
    num_samples: int = 1,
    microbatch: int | None = None,
    reduction: str = "mean",
) -> Callable[..., Diagonal]:
    """Estimates the diagonal of the Gauss-Newton matrix of a loss over a batch, without bias.

    It computes the mean over examples of (Jᵀv) ⊙ (Jᵀ H v), with J and H as in
    `gauss_newton_diagonal` and v random signs in the shape of the outputs, independent for every
    example and sample. No labels are sampled, so any output loss will do.

    Args:
      model_fn: `model_fn(params, example, *args) -> outputs`, a pytree of float arrays for one
        example.
      output_loss_fn: `output_loss_fn(outputs, example) -> scalar`.
      num_samples: how many random vectors per example, at least 1.
      microbatch: how many examples are worked on at once, at least 1. Memory grows with it in
        proportion; the default is as many as fit into about 16 MB. The draws belong to the
        examples, so the result does not depend on it but for rounding.
      reduction: "mean" or "sum" over the examples.

    Returns:
      A function `(params, batch, key, *args, weights=None)` that returns a pytree shaped like
      `params`, in float32 or wider. `weights` has shape (examples,).

    Raises:
      TypeError: if `params` holds anything but real floating-point arrays, or `output_loss_fn`
        returns anything but one real scalar.
      ValueError: if the batch is empty or its leaves differ in length, if `weights` has another
        shape, if a count is too small or `reduction` is unknown.
      NotImplementedError: if a `while` loop depends on the parameters.

    Cost: about 1.5 gradient equivalents per sample.

    Source: J. Martens, I. Sutskever, K. Swersky, "Estimating the Hessian by back-propagating
      curvature" (arXiv 1206.6464), restricted to the outputs.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> model_fn = lambda w, x: w**2 * x
      >>> loss_fn = lambda y, x: 0.5 * jnp.sum(y**2)
      >>> estimate = sap.sampled_gauss_newton_diagonal(model_fn, loss_fn)
      >>> estimate(jnp.array([1.0, 3.0]), jnp.array([[1.0, 1.0]]), jax.random.key(0))
      Array([ 4., 36.], dtype=float32)
    """
    check_count("num_samples", num_samples, minimum=1)
    check_options(microbatch, reduction)

    def diagonal(
        params: Params, batch: Batch, key: jax.Array, *args: Any, weights: Any = None
    ) -> Diagonal:
        fn = _with_outputs(model_fn, output_loss_fn)
        loss = read_loss(fn, params, batch, args, weights)
        graph, cut = loss.graph, loss.graph.outputs[1]
        probed = find_probed(graph, loss.structures)
        probed = [one for one in probed if leads_to(graph, one.site, cut)]
        return loss.estimate(
            probed,
            functools.partial(_sampled_records, graph),
            loss.at_once(microbatch, entries_of(graph, probed)),
            reduction,
            key,
            num_samples,
        )

    return placed_by_compiler(diagonal)


def _records(
    graph: Graph, tasks: Sequence[Task], leaves: list[jax.Array], example: Any
) -> list[Record]:
    """What the Hessian in the outputs alone says of one example."""
    return records_of_tasks(graph, tasks, graph.evaluate(leaves, example), None)


def _sampled_records(
    graph: Graph, probed: Sequence[Probed], leaves: list[jax.Array], example: Any, key: jax.Array
) -> list[Record]:
    """The same by one random vector of the outputs, pulled back to every site."""
    values, cut = graph.evaluate(leaves, example), graph.outputs[1]
    value = values[cut]
    signs = jax.random.rademacher(key, value.shape, value.dtype)
    product = hessian_vector(tail(graph, cut, values), value, signs)
    sites = [one.site for one in probed]
    between = graph.before([cut], graph.after(sites))
    both = {cut: jnp.stack([signs, product])}
    pulled = pull(graph, between, values, both, sites, rows=True)
    records = []
    for one in probed:
        result = pair(graph, one, values, *pulled[one.site])
        records += records_of_uses(graph, one.uses, one.is_diagonal, values, result)
    return records


def _with_outputs(
    model_fn: Callable[..., Any], output_loss_fn: Callable[[Any, Any], jax.Array]
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The loss of one example, and the outputs that it goes through as one vector."""
    output_loss = one_scalar(output_loss_fn, "output_loss_fn")

    def fn(params: Params, example: Any, *args: Any) -> tuple[jax.Array, jax.Array]:
        flat, unravel = ravel_pytree(model_fn(params, example, *args))
        return output_loss(unravel(flat), example), flat

    return fn
