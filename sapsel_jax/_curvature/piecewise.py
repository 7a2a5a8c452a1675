"""Where the Gauss-Newton diagonal is the Hessian diagonal."""

from collections.abc import Callable
from typing import Any

import jax
from jax.flatten_util import ravel_pytree

from sapsel_jax._base.checks import check_arrays, check_float_leaves
from sapsel_jax._base.types import Params
from sapsel_jax._graph.graph import Graph
from sapsel_jax._graph.reach import bending
from sapsel_jax._graph.tracing import trace


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
      example: ONE example, without the leading axis of a batch, or its shapes.
      *args: further arguments of `model_fn`, passed through as they are.

    Returns:
      A pytree of Python bools shaped like `params`.

    Raises:
      TypeError: if `params` holds anything but real floating-point arrays.

    Cost: no gradient, no numbers are computed.

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
    check_arrays("example", example, keys=True)
    outputs = lambda p, e: ravel_pytree(model_fn(p, e, *args))[0]
    graph = trace(outputs, params, example)
    accepted = [_affine_from(graph, var) for var in graph.leaves]
    return jax.tree.unflatten(jax.tree.structure(params), accepted)


def _affine_from(graph: Graph, leaf: int) -> bool:
    readers = graph.consumers[leaf]
    if readers and all(node.name == "scan_slice" for node in readers):
        return all(_affine_from(graph, node.outs[0]) for node in readers)
    return not bending(graph, leaf, graph.after([leaf]))
