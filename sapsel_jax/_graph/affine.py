"""Proofs of affinity: which operations are piecewise affine in which of their inputs.

An operation is piecewise affine in some inputs where its directional derivative does not depend on
them differentiably. That is read from the jaxpr of the derivative, so that custom rules count as
they are and no list of affine operations is needed; what the table of primitives says only spares
the commonest proofs.
"""

import weakref
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from sapsel_jax._graph.equations import CALLS
from sapsel_jax._graph.graph import Graph, Node, restrict
from sapsel_jax._primitives.table import TABLE, UNKNOWN

_forward: weakref.WeakKeyDictionary[Node, bool] = weakref.WeakKeyDictionary()
_proofs: weakref.WeakKeyDictionary[Node, dict[tuple[int, ...], bool]] = weakref.WeakKeyDictionary()


def is_affine(graph: Graph, node: Node, positions: Sequence[int]) -> bool:
    """Whether an operation is piecewise affine in the inputs at these positions together."""
    if node.ruled:
        return False
    if node.facts.linear:
        return True
    if node.facts.product:
        return len(positions) == 1
    known = _proofs.setdefault(node, {})
    key = tuple(positions)
    if key not in known:
        known[key] = _prove(graph, node, key)
    return known[key]


def has_forward_rule(graph: Graph, node: Node) -> bool:
    """Whether an operation has a forward derivative that its reverse derivative agrees with."""
    if node.ruled:
        return False
    if node.elementwise or node.facts.linear or node.facts.product:
        return True
    known = _forward.get(node)
    if known is None:
        positions = [i for i, var in enumerate(node.ins) if graph.sources[var]]
        known = _forward[node] = _derivative(graph, node, positions) is not None
    return known


def _prove(graph: Graph, node: Node, positions: tuple[int, ...]) -> bool:
    jaxpr = _derivative(graph, node, positions)
    if jaxpr is None:
        return False
    active = set(jaxpr.invars[: len(positions)])
    return not any(_spread(jaxpr, active))


def _derivative(graph: Graph, node: Node, positions: Sequence[int]) -> Any:
    """The jaxpr of (inputs at positions, tangents, other inputs) -> tangents of the outputs."""
    avals = [graph.avals[var] for var in node.ins]
    inputs = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
    moving = [inputs[i] for i in positions]

    def derivative(points: Any, tangents: Any, others: Any) -> Any:
        fn = restrict(node, positions, others)
        return jax.jvp(fn, points, tangents)[1]

    try:
        closed = jax.make_jaxpr(derivative)(tuple(moving), tuple(moving), inputs)
    except TypeError:
        return None
    return closed.jaxpr


def _spread(jaxpr: Any, active: set[Any]) -> list[bool]:
    """Which results depend differentiably on the active variables."""
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        reads = [not isinstance(atom, core.Literal) and atom in active for atom in eqn.invars]
        if name == "select_and_gather_add":  # the second input only says which entry is picked
            reads[1] = False
        if not any(reads) or TABLE.get(name, UNKNOWN).flat:
            continue
        if name in CALLS:
            body = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
            body = body.jaxpr if isinstance(body, core.ClosedJaxpr) else body
            inner = {var for var, read in zip(body.invars, reads, strict=True) if read}
            results = _spread(body, inner)
        else:
            results = [True] * len(eqn.outvars)
        active.update(
            var
            for var, result in zip(eqn.outvars, results, strict=True)
            if result and jnp.issubdtype(var.aval.dtype, jnp.inexact)
        )
    return [not isinstance(atom, core.Literal) and atom in active for atom in jaxpr.outvars]
