"""Reverse passes over a graph: adjoints of its variables, one or many rows at a time."""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp

from sapsel_jax._graph.graph import Graph, Node, Values, restrict


def pull(
    graph: Graph,
    nodes: Sequence[Node],
    values: Values,
    cotangents: Values,
    sources: Iterable[int],
    *,
    rows: bool = False,
) -> Values:
    """Carries cotangents back through operations to the variables that `sources` reach.

    Args:
      graph: where the operations belong.
      nodes: the operations between, in order.
      values: the values of their inputs.
      cotangents: of variables at the end; with `rows` each has a leading axis over rows.
      sources: variables to reach; nothing is computed for what does not depend on them.
      rows: whether the cotangents are many at a time.

    Returns:
      The cotangents of every variable on the way, the given ones included.
    """
    moving = set(sources)
    for node in nodes:
        if any(var in moving for var in node.ins):
            moving.update(var for var in node.outs if graph.sources[var])
    found = dict(cotangents)
    for node in reversed(nodes):
        positions = [i for i, var in enumerate(node.ins) if var in moving]
        outs = [v for v in node.outs if jnp.issubdtype(graph.avals[v].dtype, jnp.floating)]
        if not positions or not any(var in found for var in outs):
            continue
        if node.facts.pulls_all:
            positions = [i for i, var in enumerate(node.ins) if graph.is_float(var)]
        inputs = [values[var] for var in node.ins]
        back = None
        if node.facts.pull and positions == [0]:
            back = node.facts.pull(graph.signature(node), inputs)
        if back is None:
            fn = restrict(node, positions, inputs)
            back = jax.vjp(fn, *(inputs[i] for i in positions))[1]
        lead = next(found[var].shape[:1] for var in outs if var in found) if rows else ()
        given = [
            found[v].astype(graph.avals[v].dtype)
            if v in found
            else jnp.zeros((*lead, *graph.shape(v)), graph.avals[v].dtype)
            for v in outs
        ]
        results = (jax.vmap(back) if rows else back)(given)
        for i, result in zip(positions, results, strict=True):
            var = node.ins[i]
            found[var] = found[var] + result if var in found else result
    return found
