"""Reads the graph of a loss.

`trace` reads the jaxpr of a loss and inlines its calls. Custom derivative rules stay whole, so that
their rules stay in force; scans that depend on the parameters are unrolled up to `MAX_UNROLL`
steps, so that each layer of a stack becomes operations of its own. Numbers come in only when a
graph is evaluated.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from sapsel_jax._graph.equations import CALLS, as_function, broadcasts_to, open_jaxpr
from sapsel_jax._graph.graph import Graph, Node, Values
from sapsel_jax._graph.joining import join_complex, join_elementwise
from sapsel_jax._graph.rules import ClosedOver, judge, loses_rules

MAX_UNROLL = 32
"""Scans over at most so many steps are unrolled; a longer one stays a single operation."""


def trace(fn: Callable[..., Any], params: Any, example: Any) -> Graph:
    """The graph of `fn(params, example)`; arrays that `fn` closes over become constants.

    A custom rule that closes over the parameters or the example can be run while `fn` runs, but
    not later. With such a rule `fn` is one operation.
    """
    builder = _Builder()
    closed = jax.make_jaxpr(fn)(params, example)
    num_leaves = len(jax.tree.leaves(params))
    variables = [builder.new(var.aval) for var in closed.jaxpr.invars]
    leaves, inputs = tuple(variables[:num_leaves]), tuple(variables[num_leaves:])
    for i, var in enumerate(leaves):
        builder.sources[var] = 1 << i
    for var in inputs:
        builder.varying[var] = True
    try:
        outputs = builder.inline(closed.jaxpr, closed.consts, variables)
    except ClosedOver:
        if len(closed.out_avals) > 1:
            raise
        outputs = [builder.new(closed.out_avals[0])]
        structure = jax.tree.structure((params, example))
        apply = lambda *values: [fn(*structure.unflatten(values))]
        builder.add(Node("loss", tuple(variables), tuple(outputs), apply, {}, ruled=True))
    graph = Graph(
        nodes=builder.nodes,
        avals=builder.avals,
        leaves=leaves,
        example=inputs,
        constants=builder.constants,
        outputs=tuple(outputs),
        sources=builder.sources,
        varying=builder.varying,
    )
    graph = dataclasses.replace(graph, nodes=graph.before(graph.outputs, graph.nodes))
    graph = dataclasses.replace(graph, nodes=join_complex(graph))
    return dataclasses.replace(graph, nodes=join_elementwise(graph))


class _Builder:
    """Collects the operations of a jaxpr and of those it calls."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.avals: list[Any] = []
        self.sources: list[int] = []
        self.varying: list[bool] = []
        self.constants: Values = {}
        self.judged: dict[tuple[int, bool], tuple[bool, bool]] = {}

    def new(self, aval: Any) -> int:
        self.avals.append(aval)
        self.sources.append(0)
        self.varying.append(False)
        return len(self.avals) - 1

    def constant(self, value: Any, aval: Any) -> int:
        if isinstance(value, np.ndarray | np.generic):
            value = jnp.asarray(value, aval.dtype)  # NumPy's arrays cannot be indexed by tracers
        var = self.new(aval)
        self.constants[var] = value
        return var

    def add(self, node: Node) -> None:
        self.nodes.append(node)
        sources = 0
        for var in node.ins:
            sources |= self.sources[var]
        for var in node.outs:
            self.varying[var] = any(self.varying[v] for v in node.ins)
            is_moved = jnp.issubdtype(self.avals[var].dtype, jnp.inexact) and self.avals[var].size
            self.sources[var] = sources if is_moved and not node.facts.flat else 0

    def inline(self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[int]) -> list[int]:
        """Adds the operations of a jaxpr applied to variables; returns those of its results."""
        of: dict[Any, int] = dict(zip(jaxpr.invars, arguments, strict=True))
        for var, value in zip(jaxpr.constvars, consts, strict=True):
            of[var] = self.constant(value, var.aval)

        def read(atom: Any) -> int:
            if isinstance(atom, core.Literal):
                return self.constant(atom.val, atom.aval)
            return of[atom]

        for eqn in jaxpr.eqns:
            ins = [read(atom) for atom in eqn.invars]
            of.update(zip(eqn.outvars, self.equation(jaxpr, eqn, ins), strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, jaxpr: Any, eqn: Any, ins: list[int]) -> list[int]:
        name = eqn.primitive.name
        body = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        if name in CALLS and body is not None:
            return self.inline(*open_jaxpr(body), ins)
        depends = any(self.sources[var] for var in ins)
        is_short = name == "scan" and eqn.params["length"] <= MAX_UNROLL
        if is_short and depends and not loses_rules(eqn):
            return self.unroll(eqn.params, ins, [var.aval for var in eqn.outvars])
        outs = [self.new(var.aval) for var in eqn.outvars]
        shapes = [self.avals[var].shape for var in ins]
        ruled, elementwise = self.judge(jaxpr, eqn, depends)
        if elementwise:
            elementwise = broadcasts_to(shapes, self.avals[outs[0]].shape)
        apply = as_function(jaxpr, eqn)
        self.add(Node(name, tuple(ins), tuple(outs), apply, dict(eqn.params), elementwise, ruled))
        return outs

    def judge(self, jaxpr: Any, eqn: Any, moves: bool) -> tuple[bool, bool]:
        """Whether an equation is ruled, and elementwise; once for all steps of a scan."""
        key = (id(eqn), moves)  # the jaxpr that is read keeps its equations alive
        if key not in self.judged:
            self.judged[key] = judge(jaxpr, eqn, moves=moves)
        return self.judged[key]

    def unroll(self, params: dict[str, Any], ins: list[int], out_avals: list[Any]) -> list[int]:
        """The steps of a scan one after the other; slices of its inputs are `scan_slice` nodes."""
        body, values = open_jaxpr(params["jaxpr"])
        # What is stacked has one axis more outside the body than inside it.
        inner_ranks = [len(var.aval.shape) for var in body.invars]
        outer_ranks = [len(self.avals[var].shape) for var in ins]
        num_stacked = sum(a != b for a, b in zip(inner_ranks, outer_ranks, strict=True))
        num_carry = sum(
            len(a.shape) == len(b.aval.shape) for a, b in zip(out_avals, body.outvars, strict=True)
        )
        consts, carry, stacked = _split(ins, len(ins) - num_carry - num_stacked, num_carry)
        length, results = params["length"], {}
        for step in range(length)[:: -1 if params["reverse"] else 1]:
            slices = [self.slice(var, step) for var in stacked]
            outs = self.inline(body, values, [*consts, *carry, *slices])
            carry, results[step] = outs[:num_carry], outs[num_carry:]
        stacks = []
        for position, aval in enumerate(out_avals[num_carry:]):
            out = self.new(aval)
            parts = tuple(results[step][position] for step in range(length))
            self.add(Node("scan_stack", parts, (out,), lambda *xs: [jnp.stack(xs)], {"axis": 0}))
            stacks.append(out)
        return [*carry, *stacks]

    def slice(self, var: int, step: int) -> int:
        aval = self.avals[var]
        out = self.new(jax.ShapeDtypeStruct(aval.shape[1:], aval.dtype))
        self.add(Node("scan_slice", (var,), (out,), lambda x: [x[step]], {"step": step, "axis": 0}))
        return out


def _split(items: list[int], *lengths: int) -> list[list[int]]:
    parts = []
    for length in lengths:
        parts.append(items[:length])
        items = items[length:]
    return [*parts, items]
