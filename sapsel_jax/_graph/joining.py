"""Several operations of a graph as one.

Neighbouring elementwise operations become one, and so does what complex numbers pass through.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from sapsel_jax._graph.graph import Graph, Node, run


def join_elementwise(graph: Graph) -> list[Node]:
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


def join_complex(graph: Graph) -> list[Node]:
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
