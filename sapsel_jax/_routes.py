"""Which way to a diagonal is the cheapest: counting work before anything is computed.

Work is counted in floating-point operations per example, an entry of an elementwise operation as
`ELEMENTWISE_WORK` of them. Only the structure of tangents is followed here, never their values.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Literal

from sapsel_jax._affine import has_forward_rule, is_affine
from sapsel_jax._axes import axes_kept
from sapsel_jax._graph import PASSING, Graph, Node
from sapsel_jax._lifts import Structure, structure
from sapsel_jax._sites import Use, find_uses
from sapsel_jax._tangents import Label, Tangent, labels_of, unit_tangents

ELEMENTWISE_WORK = 8
"""What one entry of an elementwise operation counts, against one multiply or add of a product."""
PRODUCT_WORK = 4
"""What a Hessian-vector product counts, against the operations it runs through."""
MAX_CUT = 256
"""A cut of more entries is not considered."""
BUDGET = 2**22
"""Entries that the temporaries of one chunk of examples may hold: 16 MB in float32."""

Way = Literal["forward", "rows", "products"]


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """How the curvature of one site, or along the directions of one use, is computed.

    Attributes:
      site: the variable that it is computed at.
      uses: the uses that it serves: all of a site, or one that needs directions of its own.
      shared: the directions are the unit vectors of the site, not those of the use.
      cut: the variable whose small Hessian stands for all that follows it, if there is one.
      way: tangents pushed `forward` to the cut or the end; `rows` pulled back from the cut;
        Hessian-vector `products`.
      num_directions: directions pushed, rows pulled or products taken.
      work: floating-point operations per example.
      memory: entries of temporaries per example.
      varying: whether the curvature differs between examples.
    """

    site: int
    uses: tuple[Use, ...]
    shared: bool
    cut: int | None
    way: Way
    num_directions: int
    work: float
    memory: float
    varying: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """All tasks of a graph, and the work of one gradient to compare with."""

    tasks: tuple[Task, ...]
    structures: dict[Use, Structure]
    gradient_work: float
    base_memory: float


def choose(graph: Graph) -> Plan:
    """Finds the uses of all leaves and the cheapest task for each."""
    work = _Work(graph)
    at_site: dict[int, list[Use]] = {}
    tasks = []
    structures = {use: structure(graph, use) for use in find_uses(graph)}
    for use, found in structures.items():
        if found.is_diagonal:
            at_site.setdefault(use.site, []).append(use)
        else:
            tasks.append(_cheapest(graph, work, (use,), found.tangent, False))
    for site, uses in at_site.items():
        start = unit_tangents(graph.shape(site), graph.avals[site].dtype)
        tasks.append(_cheapest(graph, work, tuple(uses), start, True))
    memory = sum(graph.size(var) for node in graph.nodes for var in node.outs)
    return Plan(tuple(tasks), structures, work.gradient, 4.0 * memory)


def _cheapest(
    graph: Graph, work: "_Work", uses: tuple[Use, ...], start: Tangent, shared: bool
) -> Task:
    site = uses[0].site
    after = graph.after([site])
    tail_work = sum(work.of(node) for node in after)
    num_entries = math.prod(label.size for label in labels_of(start))
    options: list[tuple[float, float, int, int | None, Way]] = []
    if all(has_forward_rule(graph, node) for node in after):
        pushed, memory = _follow(graph, work, site, start, after)
        options.append((pushed, memory, num_entries, None, "forward"))
    else:
        products = PRODUCT_WORK * num_entries * tail_work
        options.append(
            (products, num_entries * _largest(graph, after), num_entries, None, "products")
        )
    for cut in graph.cuts(site):
        size = graph.size(cut)
        beyond = graph.after([cut])
        bends = [node for node in beyond if not _affine_in_all(graph, node, beyond, cut)]
        if size > MAX_CUT or not bends:
            continue
        hessian = PRODUCT_WORK * size * sum(work.of(node) for node in beyond)
        between = graph.before([cut], after)
        if not all(has_forward_rule(graph, node) for node in between):
            continue
        pushed, memory = _follow(graph, work, site, start, between)
        ending = 2.0 * num_entries * size * size
        total = pushed + hessian + ending
        options.append((total, max(memory, num_entries * size), num_entries, cut, "forward"))
        near = needed_before(graph, site, between)
        pushed, memory = _follow(graph, work, site, start, near)
        pulled = size * sum(work.of(node) for node in between)
        stored = math.prod(start.value.shape)
        folded = 0.0 if shared else 2.0 * size * stored * _untouched(graph, site, start)
        total = pushed + hessian + pulled + folded + 2.0 * size * size * num_entries
        held = size * max(_largest(graph, between), num_entries)
        options.append((total, max(memory, held), size, cut, "rows"))
    total, memory, num_directions, cut, way = min(options, key=lambda option: option[0])
    varying = _varies(graph, site, after)
    return Task(site, uses, shared, cut, way, num_directions, total, memory, varying)


def _untouched(graph: Graph, site: int, start: Tangent) -> int:
    """How many entries of a site one stored entry of its tangents stands for."""
    stored = start.value.shape[len(start.directions) :]
    return math.prod(n for n, s in zip(graph.shape(site), stored, strict=True) if s == 1)


def _largest(graph: Graph, nodes: Iterable[Node]) -> int:
    return max((graph.size(var) for node in nodes for var in node.outs), default=1)


def needed_before(graph: Graph, site: int, nodes: Sequence[Node]) -> list[Node]:
    """Those operations that a site's curvature within `nodes` is met at or reached through."""
    bends = [node for node in nodes if not _affine_in_all(graph, node, nodes, site)]
    inputs = [var for node in bends for var in node.ins]
    before = graph.before(inputs, nodes)
    return [node for node in nodes if node in bends or node in before]


def _affine_in_all(graph: Graph, node: Node, nodes: Sequence[Node], source: int) -> bool:
    """Whether an operation is affine in all that depends on `source`."""
    reached = {source}
    for step in nodes:
        if step is node:
            break
        if reached.intersection(step.ins):
            reached.update(var for var in step.outs if graph.sources[var])
    positions = [i for i, var in enumerate(node.ins) if var in reached]
    return not positions or is_affine(graph, node, positions)


def _varies(graph: Graph, site: int, after: Sequence[Node]) -> bool:
    """Whether curvature at a site can differ between examples."""
    return graph.varying[site] or any(
        node.name not in PASSING and any(graph.varying[var] for var in node.ins) for node in after
    )


def examples_at_once(plan: Plan) -> int:
    """How many examples may run at once so that temporaries stay within the budget."""
    per_example = plan.base_memory + max((task.memory for task in plan.tasks), default=0.0)
    return max(1, int(BUDGET / max(per_example, 1.0)))


class _Work:
    """The work of each operation of a graph, and of one gradient."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.of = functools.cache(self._of)

    @property
    def gradient(self) -> float:
        """Forward, and back to every input that depends on the parameters."""
        moving = lambda node: sum(bool(self.graph.sources[var]) for var in node.ins)
        return sum(self.of(node) * (1 + moving(node)) for node in self.graph.nodes)

    def _of(self, node: Node) -> float:
        size = sum(self.graph.size(var) for var in node.outs)
        if node.name == "dot_general":
            contracted, _ = node.params["dimension_numbers"]
            shape = self.graph.shape(node.ins[0])
            return 2.0 * size * math.prod(shape[a] for a in contracted[0])
        if node.name == "conv_general_dilated":
            kernel = self.graph.shape(node.ins[1])
            out = kernel[node.params["dimension_numbers"].rhs_spec[0]]
            return 2.0 * size * math.prod(kernel) / max(out, 1)
        if node.elementwise:
            return float(ELEMENTWISE_WORK * size)
        return float(size + sum(self.graph.size(var) for var in node.ins))


def _follow(
    graph: Graph, work: _Work, site: int, start: Tangent, nodes: Sequence[Node]
) -> tuple[float, float]:
    """The work and the largest temporary of pushing tangents through operations."""
    tied: dict[int, tuple[tuple[Label, ...], ...]] = {site: start.tied}
    labels = labels_of(start)
    everything = math.prod(label.size for label in labels)
    total, largest = 0.0, float(math.prod(start.value.shape))
    for node in nodes:
        positions = [i for i, var in enumerate(node.ins) if var in tied]
        if not positions:
            continue
        results = []
        for i in positions:
            mine = tied[node.ins[i]]
            kept = axes_kept(graph, node, i, [bool(x) for x in mine])
            placed: list[tuple[Label, ...]] = [()] * len(graph.shape(node.outs[0]))
            for axis, target in enumerate(kept):
                if target is not None and mine[axis]:
                    placed[target] = placed[target] + mine[axis]
            results.append(tuple(placed))
        same = all(result == results[0] for result in results)
        out = results[0] if same else ((),) * len(results[0])
        bound = math.prod(label.size for axis in out for label in axis)
        entries = everything / max(bound, 1)
        if node.name == "dot_general" and len(positions) == 1:
            before = math.prod(x.size for axis in tied[node.ins[positions[0]]] for x in axis)
            pushes = everything / max(before, 1)
        else:
            pushes = entries
        total += pushes * work.of(node)
        largest = max(largest, entries * graph.size(node.outs[0]))
        for var in node.outs:
            if graph.sources[var]:
                rank = len(graph.shape(var))
                tied[var] = out if len(out) == rank else ((),) * rank
    return total, largest
