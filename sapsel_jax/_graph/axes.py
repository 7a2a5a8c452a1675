"""Which axes the operations of a graph keep apart."""

from collections.abc import Sequence

from sapsel_jax._graph.graph import Graph, Node
from sapsel_jax._primitives.axes import elementwise
from sapsel_jax._primitives.signature import Kept


def axes_kept(graph: Graph, node: Node, position: int, marked: Sequence[bool]) -> Kept:
    """For each axis of an input the axis of the output that it is kept apart on, or None.

    Each place along such an axis acts on one place of the axis of the output alone. `marked` says
    which axes of the input it is asked for; several marked axes that a reshape merges into one are
    kept on that one.
    """
    rule = elementwise if node.elementwise else node.facts.axes
    if rule is None:
        return [None] * len(graph.shape(node.ins[position]))
    return rule(graph.signature(node), position, marked)
