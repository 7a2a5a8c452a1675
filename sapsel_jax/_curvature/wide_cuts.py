"""Wide cuts: what passes through a variable of any size, place by place.

Behind attention, say, every place of a sequence goes its own way up to a pooling. There the Hessian
of the loss in what all places hold is one block for each place, and what a small cut behind adds.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence, Set

import jax
import jax.numpy as jnp

from sapsel_jax._curvature.forms import follow
from sapsel_jax._graph.affine import has_forward_rule
from sapsel_jax._graph.graph import Graph, Node, Values
from sapsel_jax._graph.reach import bending, leading_to
from sapsel_jax._passes.forward import spread
from sapsel_jax._primitives.contraction import contract
from sapsel_jax._primitives.tangents import Label, Tangent, labels_of, unit_tangents


@dataclasses.dataclass(frozen=True, eq=False)
class WideCut:
    """A variable whose Hessian is known by blocks.

    Attributes:
      var: the variable.
      kept: for each of its axes, whether each place along it has a block of its own.
      cut: the small variable behind whose Hessian stands for what follows it, if there is one.
      nodes: the operations between, as far as they bend.
      ends: those of them that tangents go no further than.
      block: how many entries one place has.
      work: floating-point operations for the blocks of one example.
      memory: entries of temporaries per example.
    """

    var: int
    kept: tuple[bool, ...]
    cut: int | None
    nodes: Sequence[Node]
    ends: Set[Node]
    block: int
    work: float
    memory: float


def find_wide_cut(
    graph: Graph, var: int, cut: int | None, work: Callable[[Node], float]
) -> WideCut | None:
    """The blocks of a variable before a small cut, or the end; None if it has none."""
    after = graph.after([var])
    between = after if cut is None else graph.before([cut], after)
    bends = bending(graph, var, after)
    nodes, ends = leading_to(graph, bends, between)
    bends = [node for node in nodes if node in bends]
    can_run = all(has_forward_rule(graph, node) for node in nodes)
    if not bends or not can_run or not all(node.elementwise or node.facts.places for node in bends):
        return None
    start = unit_tangents(graph.shape(var), graph.avals[var].dtype)
    followed = follow(graph, var, start, nodes, work)
    total, largest = followed.through(nodes)
    forms = followed.forms
    moved = [forms[x] for node in bends for x in node.ins if x in forms]
    bound = functools.reduce(frozenset.intersection, (form.bound for form in moved))
    kept = tuple(labels[0] in bound for labels in start.tied)
    block = math.prod(n for n, k in zip(graph.shape(var), kept, strict=True) if not k)
    if not any(kept) or graph.size(var) == block:
        return None
    for node in bends:
        read = [x for x in node.ins if x in forms]
        total += 2.0 * block * sum(forms[x].num_apart(()) * graph.size(x) for x in read)
    memory = max(largest * 2, float(block * graph.size(var)))
    return WideCut(var, kept, cut, nodes, ends, block, total, memory)


class Blocks:
    """The Hessian in a wide cut, but for what follows its small cut.

    Attributes:
      array: an axis for each axis of the variable, and one more for each that is not kept.
    """

    def __init__(self, graph: Graph, values: Values, wide: WideCut, adjoints: Values) -> None:
        start = unit_tangents(graph.shape(wide.var), graph.avals[wide.var].dtype)
        labels = labels_of(start)
        mixed = [label for label, kept in zip(labels, wide.kept, strict=True) if not kept]
        twins = {label: Label(label.size) for label in mixed}
        order = (*labels, *twins.values())
        found = spread(
            graph, wide.nodes, values, {wide.var: start}, adjoints, order, wide.ends, twins
        )
        self.array = jnp.broadcast_to(found, [label.size for label in order])
        first = [(0, a) for a in range(len(labels))]
        second = [(0 if kept else 1, a) for a, kept in enumerate(wide.kept)]
        extra = [place for place, kept in zip(second, wide.kept, strict=True) if not kept]
        self.places = [first, second, [*first, *extra]]

    def along(self, tangent: Tangent, order: Sequence[Label]) -> jax.Array:
        """ẋᵀ H ẋ for every direction."""
        return contract([tangent, tangent], self.array, order, places=self.places)
