"""Which operations lie between two places of a graph, and which of them bend."""

from collections.abc import Sequence

from sapsel_jax._graph.affine import is_affine
from sapsel_jax._graph.graph import Graph, Node


def leads_to(graph: Graph, site: int, cut: int) -> bool:
    """Whether a site acts through a cut, or is it."""
    return site == cut or bool(graph.before([cut], graph.after([site])))


def bending(graph: Graph, site: int, nodes: Sequence[Node]) -> list[Node]:
    """Those of the operations after a site that are not affine in what depends on it."""
    reached, bends = {site}, []
    for node in nodes:
        positions = [i for i, var in enumerate(node.ins) if var in reached]
        if positions:
            reached.update(var for var in node.outs if graph.sources[var])
            if not is_affine(graph, node, positions):
                bends.append(node)
    return bends


def leading_to(
    graph: Graph, bends: Sequence[Node], nodes: Sequence[Node]
) -> tuple[list[Node], set[Node]]:
    """Those of `nodes` that bend or lead to one that does; and those that lead no further."""
    inside = [node for node in nodes if node in bends]
    before = set(graph.before([var for node in inside for var in node.ins], nodes))
    ends = {node for node in inside if node not in before}
    return [node for node in nodes if node in before or node in ends], ends


def varies(graph: Graph, site: int) -> bool:
    """Whether curvature at a site can differ between examples."""
    return graph.varying[site] or any(
        not node.facts.passes and any(graph.varying[var] for var in node.ins)
        for node in graph.after([site])
    )
