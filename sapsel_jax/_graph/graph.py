"""A per-example loss as a flat list of operations: what depends on what.

`trace` reads the jaxpr of a loss and inlines its calls. Custom derivative rules stay whole, so that
their rules stay in force; scans that depend on the parameters are unrolled up to `MAX_UNROLL`
steps, so that each layer of a stack becomes operations of its own. Neighbouring elementwise
operations are joined into one. Numbers come in only when a graph is evaluated.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from sapsel_jax._graph.equations import CALLS, as_function, broadcasts_to, open_jaxpr
from sapsel_jax._graph.rules import ClosedOver, judge, loses_rules
from sapsel_jax._primitives.signature import Signature
from sapsel_jax._primitives.table import TABLE, UNKNOWN, Primitive

MAX_UNROLL = 32
"""Scans over at most so many steps are unrolled; a longer one stays a single operation."""

Values = dict[int, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One operation: variables in, variables out, and the function between them."""

    name: str
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    apply: Callable[..., Sequence[Any]]
    params: dict[str, Any]
    elementwise: bool = False
    """Every entry of the output depends on the same entry of each input alone, or on a scalar."""
    ruled: bool = False
    """A custom rule inside may contradict itself, so that nothing is known of its derivatives."""

    @property
    def facts(self) -> Primitive:
        """What is known of the primitive."""
        return TABLE.get(self.name, UNKNOWN)


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A scalar function of leaves and one example, in an order that can be evaluated."""

    nodes: Sequence[Node]
    avals: Sequence[Any]
    """Shape and dtype of every variable."""
    leaves: tuple[int, ...]
    example: tuple[int, ...]
    constants: Values
    outputs: tuple[int, ...]
    sources: Sequence[int]
    """For every variable, the leaves it depends on differentiably, as bits."""
    varying: Sequence[bool]
    """For every variable, whether it depends on the example."""

    def evaluate(self, leaves: Sequence[Any], example: Any) -> Values:
        """The values of all variables."""
        values = dict(self.constants)
        values.update(zip(self.leaves, leaves, strict=True))
        values.update(zip(self.example, jax.tree.leaves(example), strict=True))
        return run(self.nodes, values)

    @functools.cached_property
    def consumers(self) -> list[list[Node]]:
        """For every variable, the operations that read it, in order."""
        readers: list[list[Node]] = [[] for _ in self.avals]
        for node in self.nodes:
            for var in dict.fromkeys(node.ins):
                readers[var].append(node)
        return readers

    def shape(self, var: int) -> tuple[int, ...]:
        """The shape of a variable."""
        return self.avals[var].shape

    def signature(self, node: Node) -> Signature:
        """The parameters and shapes of an operation."""
        shapes = tuple(self.shape(var) for var in node.ins)
        return Signature(node.params, shapes, self.shape(node.outs[0]))

    def size(self, var: int) -> int:
        """The number of entries of a variable."""
        return self.avals[var].size

    def is_float(self, var: int) -> bool:
        """Whether a variable holds real floating-point numbers."""
        return jnp.issubdtype(self.avals[var].dtype, jnp.floating)

    def after(self, sources: Iterable[int]) -> list[Node]:
        """The operations that variables reach differentiably, in order."""
        reached = set(sources)
        nodes = []
        for node in self.nodes:
            if any(var in reached for var in node.ins):
                outs = [var for var in node.outs if self.sources[var]]
                if outs:
                    reached.update(outs)
                    nodes.append(node)
        return nodes

    def before(self, targets: Iterable[int], nodes: Sequence[Node]) -> list[Node]:
        """Those of `nodes` that variables depend on, in order."""
        wanted = set(targets)
        kept = []
        for node in reversed(nodes):
            if wanted.intersection(node.outs):
                wanted.update(node.ins)
                kept.append(node)
        return kept[::-1]

    def cuts(self, source: int) -> list[int]:
        """The variables that everything `source` does to the output passes through, in order."""
        nodes = self.after([source])
        last_use = {var: i for i, node in enumerate(nodes) for var in node.ins}
        for var in self.outputs:
            last_use[var] = len(nodes)
        alive, found = {source}, []
        for i, node in enumerate(nodes):
            alive.update(var for var in node.outs if self.sources[var] and var in last_use)
            alive = {var for var in alive if last_use.get(var, -1) > i}
            if len(alive) == 1:
                found.extend(alive)
        return list(dict.fromkeys(var for var in found if var not in self.outputs))


def run(nodes: Iterable[Node], values: Values) -> Values:
    """Adds the values of the operations' outputs to `values`."""
    for node in nodes:
        outs = node.apply(*(values[var] for var in node.ins))
        values.update(zip(node.outs, outs, strict=True))
    return values


def restrict(
    node: Node, positions: Sequence[int], inputs: Sequence[Any]
) -> Callable[..., list[Any]]:
    """An operation as a function of its inputs at some positions, without integer results."""

    def fn(*moving: Any) -> list[Any]:
        full = list(inputs)
        for i, value in zip(positions, moving, strict=True):
            full[i] = value
        return [y for y in node.apply(*full) if jnp.issubdtype(y.dtype, jnp.floating)]

    return fn


def tail(graph: Graph, var: int, values: Values) -> Callable[[Any], Any]:
    """The output as a function of one variable, everything that it does not reach held fixed."""
    nodes = graph.after([var])

    def output(value: Any) -> Any:
        return run(nodes, {**values, var: value})[graph.outputs[0]]

    return output


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
    graph = dataclasses.replace(graph, nodes=_join_complex(graph))
    return dataclasses.replace(graph, nodes=_join_elementwise(graph))


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


def _join_elementwise(graph: Graph) -> list[Node]:
    """Joins elementwise operations between one variable and another into one operation."""
    base = list(range(len(graph.avals)))
    regions: dict[int, list[Node]] = {}
    for node in graph.nodes:
        active = {var for var in node.ins if graph.sources[var]}
        roots = {base[var] for var in active}
        if node.elementwise and len(roots) == 1:
            (root,) = roots
            if graph.shape(root) == graph.shape(node.outs[0]):
                base[node.outs[0]] = root
                regions.setdefault(root, []).append(node)
    joined: dict[Node, Node | None] = {}
    for nodes in regions.values():
        inside = {node.outs[0] for node in nodes}
        ends = [
            var
            for var in inside
            if var in graph.outputs or any(n not in nodes for n in graph.consumers[var])
        ]
        if len(nodes) > 1 and len(ends) == 1 and graph.sources[ends[0]]:
            joined.update(dict.fromkeys(nodes))
            joined[nodes[-1]] = join(nodes, ends, "elementwise", elementwise=True)
    merged = [joined.get(node, node) for node in graph.nodes]
    return [node for node in merged if node is not None]


def _join_complex(graph: Graph) -> list[Node]:
    """Joins what lies between real numbers where complex numbers depend on the leaves.

    JAX differentiates each such region as a whole, so that all that follows sees real numbers.
    """
    is_complex = lambda var: jnp.issubdtype(graph.avals[var].dtype, jnp.complexfloating)
    moved = {var for var in range(len(graph.avals)) if graph.sources[var] and is_complex(var)}
    regions: list[list[Node]] = []
    for node in graph.nodes:
        if moved.intersection((*node.ins, *node.outs)):
            regions = _merged(graph, regions, [node], moved)
    left = [node for node in graph.nodes if all(node not in region for region in regions)]
    for region in regions:
        read = {var for node in graph.nodes if node not in region for var in node.ins}
        read.update(graph.outputs)
        ends = [var for node in region for var in node.outs if var in read]
        left.append(join(region, ends, "complex numbers"))
    return _in_order(left)


def _merged(
    graph: Graph, regions: list[list[Node]], region: list[Node], moved: set[int]
) -> list[list[Node]]:
    """The regions with another one, which takes in those that it shares complex numbers with.

    Operations that it acts on and that act on it come in, too, or else it could not run at once.
    """
    touched = lambda nodes: moved.intersection(v for n in nodes for v in (*n.ins, *n.outs))
    while True:
        mine = touched(region)
        near = [other for other in regions if mine & touched(other) or set(region) & set(other)]
        members = {*region, *(node for other in near for node in other)}
        after = _acting([*graph.nodes], members, lambda node: (node.ins, node.outs))
        before = _acting([*graph.nodes][::-1], members, lambda node: (node.outs, node.ins))
        grown = [node for node in graph.nodes if node in members or node in after & before]
        regions = [other for other in regions if other not in near]
        if len(grown) == len(region):
            return [*regions, grown]
        region = grown


def _acting(
    nodes: list[Node], start: set[Node], ends: Callable[[Node], tuple[Any, Any]]
) -> set[Node]:
    """Those of the operations, in order, that others lead to, by one of two ends of each."""
    reached = {var for node in start for var in ends(node)[1]}
    found = set()
    for node in nodes:
        if not reached.isdisjoint(ends(node)[0]):
            reached.update(ends(node)[1])
            found.add(node)
    return found


def _in_order(nodes: list[Node]) -> list[Node]:
    """Operations in an order in which they can run."""
    made = {var for node in nodes for var in node.outs}
    order: list[Node] = []
    while nodes:
        ready = [node for node in nodes if made.isdisjoint(node.ins)]
        made.difference_update(var for node in ready for var in node.outs)
        nodes = [node for node in nodes if node not in ready]
        order += ready
    return order


def join(
    nodes: Sequence[Node], ends: Sequence[int], name: str, *, elementwise: bool = False
) -> Node:
    """Operations in order as one, with some of their results; `params["parts"]` holds them."""
    inside = {var for node in nodes for var in node.outs}
    ins = tuple(dict.fromkeys(v for node in nodes for v in node.ins if v not in inside))

    def apply(*values: Any) -> Sequence[Any]:
        known = run(nodes, dict(zip(ins, values, strict=True)))
        return [known[end] for end in ends]

    ruled = any(node.ruled for node in nodes)
    return Node(name, ins, tuple(ends), apply, {"parts": tuple(nodes)}, elementwise, ruled)
