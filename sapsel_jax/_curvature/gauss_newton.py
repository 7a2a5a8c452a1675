"""Gauss-Newton and Fisher diagonals, and when Gauss-Newton is the Hessian."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from sapsel_jax._base.checks import check_count
from sapsel_jax._base.examples import check_options
from sapsel_jax._base.losses import one_scalar
from sapsel_jax._base.types import Batch, Diagonal, Params
from sapsel_jax._curvature.hutchinson import Probed, examples_at_once, find_probed, pair
from sapsel_jax._curvature.over_examples import over_batch, read_loss, sum_records
from sapsel_jax._curvature.probes import mean_of_probes
from sapsel_jax._curvature.routes import choose_through
from sapsel_jax._curvature.routes import examples_at_once as examples_of_routes
from sapsel_jax._curvature.tasks import curvature, open_cuts
from sapsel_jax._graph.graph import tail
from sapsel_jax._graph.reach import leads_to
from sapsel_jax._graph.sites import find_uses
from sapsel_jax._passes.backward import pull
from sapsel_jax._passes.lifts import Record, records_of_uses, structure


def gauss_newton_diagonal(
    model_fn: Callable[..., Any],
    output_loss_fn: Callable[[Any, Any], jax.Array],
    *,
    microbatch: int | None = None,
    reduction: str = "mean",
) -> Callable[..., Diagonal]:
    """The exact diagonal of the Gauss-Newton matrix of a loss over a batch.

    With ℓ = c(f(θ, x)), entry i is the mean over examples of (Jᵀ H J)ᵢᵢ: J the Jacobian of the
    outputs f in the parameters, H the Hessian of c in the outputs. It equals the diagonal of the
    Hessian for the leaves that `is_piecewise_affine` accepts.

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
      NotImplementedError: if complex numbers depend on the parameters.

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
        graph, leaves, num_examples = read_loss(fn, params, batch, args, weights)
        cut = graph.outputs[1]
        structures = {use: structure(graph, use) for use in find_uses(graph)}
        routes = choose_through(graph, cut, structures)

        def records_of(tasks: Any, leaves: Any, example: Any) -> list[Record]:
            values = graph.evaluate(leaves, example)
            cuts = open_cuts(graph, values, tasks)
            records = []
            for task in tasks:
                result = curvature(graph, task, values, cuts, None)
                records += records_of_uses(graph, task.uses, task.shared, values, result)
            return records

        def chunk_sum(examples: Any, w: Any) -> list[jax.Array]:
            return sum_records(graph, structures, routes.tasks, records_of, leaves, examples, w)

        at_once = microbatch or examples_of_routes(routes)
        return over_batch(chunk_sum, batch, weights, params, num_examples, at_once, reduction)

    return diagonal


def sampled_gauss_newton_diagonal(
    model_fn: Callable[..., Any],
    output_loss_fn: Callable[[Any, Any], jax.Array],
    *,
    num_samples: int = 1,
    microbatch: int | None = None,
    reduction: str = "mean",
) -> Callable[..., Diagonal]:
    """An unbiased estimate of the diagonal of the Gauss-Newton matrix of a loss over a batch.

    The mean over examples of (Jᵀv) ⊙ (Jᵀ H v), v random signs of the outputs' shape, drawn anew
    for every example and sample. No labels are sampled, so that any loss will do.

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
      NotImplementedError: if complex numbers depend on the parameters.

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
        graph, leaves, num_examples = read_loss(fn, params, batch, args, weights)
        cut = graph.outputs[1]
        structures = {use: structure(graph, use) for use in find_uses(graph)}
        probed = [one for one in find_probed(graph, structures) if leads_to(graph, one.site, cut)]
        at_once = microbatch or examples_at_once(graph, probed)

        def one_sample(sample: jax.Array) -> Diagonal:
            def records_of(some: Sequence[Probed], leaves: Any, example: Any) -> list[Record]:
                values = graph.evaluate(leaves, example[0])
                own_key = jax.random.fold_in(jax.random.fold_in(key, example[1]), sample)
                value = values[cut]
                signs = jax.random.rademacher(own_key, value.shape, value.dtype)
                product = jax.jvp(jax.grad(tail(graph, cut, values)), (value,), (signs,))[1]
                sites = [one.site for one in some]
                between = graph.before([cut], graph.after(sites))
                pulled = pull(
                    graph, between, values, {cut: jnp.stack([signs, product])}, sites, rows=True
                )
                records = []
                for one in some:
                    result = pair(graph, one, values, *pulled[one.site])
                    records += records_of_uses(graph, one.uses, one.is_diagonal, values, result)
                return records

            def chunk_sum(examples: Any, w: Any) -> list[jax.Array]:
                return sum_records(graph, structures, probed, records_of, leaves, examples, w)

            examples = (batch, jnp.arange(num_examples))
            return over_batch(
                chunk_sum, examples, weights, params, num_examples, at_once, reduction
            )

        return mean_of_probes(one_sample, num_samples, return_error=False)

    return diagonal


def _with_outputs(
    model_fn: Callable[..., Any], output_loss_fn: Callable[[Any, Any], jax.Array]
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The loss of one example, and the outputs that it goes through as one vector."""
    output_loss = one_scalar(output_loss_fn, "output_loss_fn")

    def fn(params: Params, example: Any, *args: Any) -> tuple[jax.Array, jax.Array]:
        flat, unravel = ravel_pytree(model_fn(params, example, *args))
        return output_loss(unravel(flat), example), flat

    return fn
