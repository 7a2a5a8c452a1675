"""Reads the graph of a loss.

`trace` reads the jaxpr of a loss and inlines its calls. Custom derivative rules stay whole, so that
their rules stay in force. Scans that depend on the parameters are unrolled up to `MAX_UNROLL`
steps, so that each layer of a stack becomes operations of its own, or are taken as loops. Numbers
come in only when a graph is evaluated.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from sapsel_jax._graph.equations import CALLS, as_function, broadcasts_to, open_jaxpr
from sapsel_jax._graph.graph import Graph, Loop, Node, Values
from sapsel_jax._graph.joining import join_complex, join_elementwise
from sapsel_jax._graph.rules import ClosedOver, judge, loses_rules

MAX_UNROLL = 32
"""Scans over at most so many steps are unrolled; a longer one stays a single operation."""

MIN_LOOP = 4
"""Shorter scans are unrolled even where loops are taken as loops."""


def trace(fn: Callable[..., Any], params: Any, example: Any, *, loops: bool = False) -> Graph:
    """The graph of `fn(params, example)`; arrays that `fn` closes over become constants.

    A custom rule that closes over the parameters or the example can be run while `fn` runs, but
    not later. With such a rule `fn` is one operation. With `loops` a scan over at least `MIN_LOOP`
    steps is one operation that holds the graph of a step, if there is no ruled operation at all.
    """
    builder = _Builder(loops)
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
    graph = builder.graph(leaves, inputs, outputs)
    if loops and any(node.ruled for node in graph.nodes):
        return trace(fn, params, example)
    return graph


class _Builder:
    """Collects the operations of a jaxpr and of those it calls."""

    def __init__(self, loops: bool) -> None:
        self.loops = loops
        self.nodes: list[Node] = []
        self.avals: list[Any] = []
        self.sources: list[int] = []
        self.varying: list[bool] = []
        self.constants: Values = {}
        self.judged: dict[tuple[int, bool], tuple[bool, bool]] = {}

    def graph(
        self, leaves: Sequence[int], example: Sequence[int], outputs: Sequence[int], **more: Any
    ) -> Graph:
        """What was collected, with operations joined."""
        graph = Graph(
            nodes=self.nodes,
            avals=self.avals,
            leaves=tuple(leaves),
            example=tuple(example),
            constants=self.constants,
            outputs=tuple(outputs),
            sources=self.sources,
            varying=self.varying,
            **more,
        )
        graph = dataclasses.replace(graph, nodes=graph.before(graph.outputs, graph.nodes))
        graph = dataclasses.replace(graph, nodes=join_complex(graph))
        return dataclasses.replace(graph, nodes=join_elementwise(graph))

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
        if name == "scan" and depends:
            out_avals, length = [var.aval for var in eqn.outvars], eqn.params["length"]
            if self.loops and length >= MIN_LOOP and not self.judge(jaxpr, eqn, depends)[0]:
                return self.loop(eqn.params, ins, out_avals)
            if length <= MAX_UNROLL and not loses_rules(eqn):
                return self.unroll(eqn.params, ins, out_avals)
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
        num_consts, num_carry = self.parts(body, ins, out_avals)
        consts, carry, stacked = _split(ins, num_consts, num_carry)
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

    def loop(self, params: dict[str, Any], ins: list[int], out_avals: list[Any]) -> list[int]:
        """A scan as one operation that holds the graph of a step; returns its results."""
        body, values = open_jaxpr(params["jaxpr"])
        num_consts, num_carry = self.parts(body, ins, out_avals)
        length, varying = params["length"], any(self.varying[var] for var in ins)
        moved = [bool(self.sources[var]) for var in ins]
        while True:  # until what moves in one step is known to move in the next
            inner = _Builder(self.loops)
            inputs = [inner.new(var.aval) for var in body.invars]
            for i, var in enumerate(inputs):
                inner.sources[var] = moved[i] << i
                inner.varying[var] = varying
            results = inner.inline(body, values, inputs)
            known, carried = list(moved), results[:num_carry]
            for i, var in enumerate(carried, num_consts):
                moved[i] = moved[i] or bool(inner.sources[var])
            if moved == known:
                break
        graph = inner.graph((), inputs, results, goes_on=True)
        loop = Loop(graph, tuple(inputs), num_consts, num_carry, length, params["reverse"])
        carries = [body.invars[i].aval for i in loop.carry]
        given = [jax.ShapeDtypeStruct((length, *aval.shape), aval.dtype) for aval in carries]
        outs = [self.new(aval) for aval in (*out_avals, *given)]
        self.add(Node("loop", tuple(ins), tuple(outs), loop.run, {}, loop=loop))
        for i, var in enumerate(outs):
            if i >= len(results) or not graph.sources[results[i]]:
                self.sources[var] = 0
        return outs[: len(out_avals)]

    def parts(self, body: Any, ins: list[int], out_avals: list[Any]) -> tuple[int, int]:
        """How many inputs of a scan are the same in every step, and how many are carried."""
        # What is stacked has one axis more outside the body than inside it.
        inner_ranks = [len(var.aval.shape) for var in body.invars]
        outer_ranks = [len(self.avals[var].shape) for var in ins]
        num_stacked = sum(a != b for a, b in zip(inner_ranks, outer_ranks, strict=True))
        num_carry = sum(
            len(a.shape) == len(b.aval.shape) for a, b in zip(out_avals, body.outvars, strict=True)
        )
        return len(ins) - num_carry - num_stacked, num_carry

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
