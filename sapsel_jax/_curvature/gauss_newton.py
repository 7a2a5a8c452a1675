"""Gauss-Newton and Fisher diagonals, and when Gauss-Newton is the Hessian."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from sapsel_jax._base.checks import check_count, check_float_leaves
from sapsel_jax._base.examples import check_options
from sapsel_jax._base.types import Batch, Diagonal, LossFn, Params
from sapsel_jax._curvature.hutchinson import Probed, examples_at_once, find_probed, pair
from sapsel_jax._curvature.over_examples import over_batch, read_loss, sum_records
from sapsel_jax._curvature.probes import mean_of_probes
from sapsel_jax._curvature.routes import bending, choose_through, leads_to
from sapsel_jax._curvature.routes import examples_at_once as examples_of_routes
from sapsel_jax._curvature.tasks import curvature, open_cuts
from sapsel_jax._graph.graph import Graph, tail, trace
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
      TypeError: if `params` holds anything but real floating-point arrays.
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
      TypeError: if `params` holds anything but real floating-point arrays.
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


def empirical_fisher_diagonal(
    loss_fn: LossFn, *, microbatch: int | None = None, reduction: str = "mean"
) -> Callable[..., Diagonal]:
    """The diagonal of the empirical Fisher matrix: the mean over examples of squared gradients.

    It is not the Fisher matrix, whose labels are drawn from the model, and neither the Hessian.

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
      TypeError: if `params` holds anything but real floating-point arrays.
      ValueError: if the batch is empty or its leaves differ in length, if `weights` has another
        shape, if `microbatch` is below 1 or `reduction` is unknown.
      NotImplementedError: if complex numbers depend on the parameters.

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
        graph, leaves, num_examples = read_loss(loss_fn, params, batch, args, weights)
        structures = {use: structure(graph, use) for use in find_uses(graph, additive=False)}
        probed = find_probed(graph, structures)

        def records_of(some: Sequence[Probed], leaves: Any, example: Any) -> list[Record]:
            values = graph.evaluate(leaves, example)
            output, sites = graph.outputs[0], [one.site for one in some]
            one_more = jnp.ones_like(values[output])
            adjoints = pull(graph, graph.after(sites), values, {output: one_more}, sites)
            records = []
            for one in some:
                adjoint = adjoints[one.site]
                result = pair(graph, one, values, adjoint, adjoint)
                records += records_of_uses(graph, one.uses, one.is_diagonal, values, result)
            return records

        def chunk_sum(examples: Any, w: Any) -> list[jax.Array]:
            return sum_records(graph, structures, probed, records_of, leaves, examples, w)

        at_once = microbatch or examples_at_once(graph, probed)
        return over_batch(chunk_sum, batch, weights, params, num_examples, at_once, reduction)

    return diagonal


def is_piecewise_affine(
    model_fn: Callable[..., Any], params: Params, example: Any, *args: Any
) -> Any:
    """Proves for which leaves the Gauss-Newton diagonal is the Hessian diagonal.

    A leaf is accepted if every operation between it and the outputs is piecewise affine in all
    that depends on the leaf: ReLU, max pooling, products with anything else. It is refused where
    an activation, a product with itself or anything unknown lies between. Each layer of a stack in
    an unrolled `lax.scan` counts by itself.

    Args:
      model_fn: `model_fn(params, example, *args) -> outputs`, a pytree of float arrays.
      params: pytree of floating-point arrays, or of `jax.ShapeDtypeStruct`.
      example: one example, or its shapes.
      *args: further arguments of `model_fn`.

    Returns:
      A pytree of Python bools shaped like `params`.

    Raises:
      TypeError: if `params` holds anything but real floating-point arrays.
      NotImplementedError: if complex numbers depend on the parameters.

    Cost: no numbers are computed.

    Source: the directional derivative of every operation, read as a jaxpr: an operation is
      piecewise affine where its derivative does not depend on its input.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> model_fn = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"] + jnp.tanh(p["c"])
      >>> params = {"a": jnp.ones((2, 3)), "b": jnp.ones(3), "c": jnp.ones(())}
      >>> sap.is_piecewise_affine(model_fn, params, jnp.ones(2))
      {'a': True, 'b': True, 'c': False}
    """
    check_float_leaves("params", params)
    outputs = lambda p, e: ravel_pytree(model_fn(p, e, *args))[0]
    graph = trace(outputs, params, example)
    accepted = [_affine_from(graph, var) for var in graph.leaves]
    return jax.tree.unflatten(jax.tree.structure(params), accepted)


def _affine_from(graph: Graph, leaf: int) -> bool:
    readers = graph.consumers[leaf]
    if readers and all(node.name == "scan_slice" for node in readers):
        return all(_affine_from(graph, node.outs[0]) for node in readers)
    return not bending(graph, leaf, graph.after([leaf]))


def _with_outputs(
    model_fn: Callable[..., Any], output_loss_fn: Callable[[Any, Any], jax.Array]
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The loss of one example, and the outputs that it goes through as one vector."""

    def fn(params: Params, example: Any, *args: Any) -> tuple[jax.Array, jax.Array]:
        flat, unravel = ravel_pytree(model_fn(params, example, *args))
        return output_loss_fn(unravel(flat), example), flat

    return fn
