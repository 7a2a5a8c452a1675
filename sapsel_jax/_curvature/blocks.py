"""Blocks: what curvature propagation takes as one operation.

Noise is added where an operation bends. The parts of a softmax or a LayerNorm bend in opposite
directions, so that noise for each of them is larger than noise for the whole. Such regions are
found by the graph alone: from a variable that is used more than once to the first one that all of
its influence passes through.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any, Literal

from sapsel_jax._graph.affine import is_affine
from sapsel_jax._graph.axes import axes_kept
from sapsel_jax._graph.graph import Graph, Node, Values, restrict
from sapsel_jax._graph.joining import join

Rule = Literal["none", "elementwise", "logsumexp", "softmax", "product", "general"]

RULES = frozenset(
    {"regions", "exponentials", "elementwise", "logsumexp", "softmax", "product", "diagonals"}
)
"""What is known beside the general rule: which operations are joined to one block, noise of their
own for some of them, and diagonals of noise. Without any of them the estimate is still unbiased,
but its error is larger; the benchmarks measure by how much."""


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """One operation that signals pass through, and the noise that is added before it.

    Attributes:
      node: the operation.
      moving: its inputs that a site reaches.
      noisy: those of them that noise is added to; none where the operation is affine.
      rule: how the noise is drawn.
      rows: axes along which the Hessian in the noisy inputs has blocks of their own.
      carries: the operation only adds something fixed, or changes the sign, so that noise after it
        is noise before it.
    """

    node: Node
    moving: tuple[int, ...]
    noisy: tuple[int, ...] = ()
    rule: Rule = "none"
    rows: tuple[int, ...] = ()
    carries: bool = False


def in_variables(node: Node, variables: Sequence[int], values: Values) -> Callable[..., list[Any]]:
    """An operation as a function of some of its inputs, without integer results."""
    places = [i for i, var in enumerate(node.ins) if var in variables]
    fn = restrict(node, places, [values[var] for var in node.ins])
    order = [variables.index(node.ins[i]) for i in places]
    return lambda *moving: fn(*(moving[i] for i in order))


def find_blocks(
    graph: Graph,
    sites: Iterable[int],
    rules: Set[str] = RULES,
    together: Iterable[int] = (),
) -> tuple[Graph, list[Block]]:
    """The graph with each block as one operation, and the blocks from the sites to the output.

    What lies before the graph may reach those of the sites that are named `together` at once.
    """
    sites, together = list(dict.fromkeys(sites)), set(together)
    # A loop is a block of its own: it has sites inside, or noise to be added there.
    ends = {*sites, *(var for node in graph.nodes if node.loop for var in node.outs)}
    joined = _join_exponentials(graph, ends) if "exponentials" in rules else graph.nodes
    graph = dataclasses.replace(graph, nodes=joined)
    live = _live(graph, sites)
    # Inner regions come first, so that an outer one finds them joined to single operations.
    for start in _forks(graph, live) if "regions" in rules else ():
        region = _region(graph, live, start, ends)
        if region:
            node = join(region, region[-1].outs, "region")
            nodes = _replace(graph.nodes, region, node, keep=_read_outside)
            graph = dataclasses.replace(graph, nodes=nodes)
            live = _replace(live, region, node)
    reached = _reached(graph, live, sites, together)
    blocks = [_block(graph, node, reached) for node in live]
    known = {"none", "general", *rules}
    return graph, [
        block if block.rule in known else dataclasses.replace(block, rule="general")
        for block in blocks
    ]


def _live(graph: Graph, sites: Sequence[int]) -> list[Node]:
    """The operations through which sites act differentiably on the output, in order."""
    wanted, kept = set(graph.outputs), []
    after, ends = set(graph.after(sites)), set(sites)
    for node in reversed(graph.nodes):
        if node not in after and not (node.loop and ends.intersection(node.outs)):
            continue
        if any(var in wanted and graph.sources[var] for var in node.outs):
            wanted.update(node.ins)
            kept.append(node)
    return kept[::-1]


def _reached(
    graph: Graph, nodes: Iterable[Node], sites: Sequence[int], together: Set[int]
) -> dict[int, int]:
    """For every variable, the sites that reach it differentiably, as bits."""
    reached = {site: 1 << bit for bit, site in enumerate(sites, 1)}
    reached.update((site, reached[site] | 1) for site in together)
    for node in nodes:
        bits = 0
        for var in node.ins:
            bits |= reached.get(var, 0)
        if node.loop is not None:  # sites inside reach all that the loop gives
            for var in node.outs:
                bits |= reached.get(var, 0)
        for var in node.outs:
            if graph.sources[var]:
                reached[var] = reached.get(var, 0) | bits
    return reached


def _block(graph: Graph, node: Node, reached: dict[int, int]) -> Block:
    """Noise is for inputs that one site reaches together, where the operation bends in them."""
    moving = tuple(dict.fromkeys(var for var in node.ins if var in reached))
    if node.loop is not None:
        return Block(node, moving)
    # Inputs that no site reaches together meet in no entry of a diagonal, so that their product
    # needs no noise: a layer's input and its weight, for example.
    bits = functools.reduce(operator.or_, (reached[var] for var in moving))
    groups = set()
    while bits:
        bit = bits & -bits
        groups.add(tuple(var for var in moving if reached[var] & bit))
        bits ^= bit
    bent = {var for group in groups if not _affine(graph, node, group) for var in group}
    noisy = tuple(var for var in moving if var in bent)
    if not noisy:
        first, alike = moving[0], lambda var: (graph.shape(var), graph.avals[var].dtype)
        carries = node.facts.passes and len(moving) == 1 and node.ins.count(first) == 1
        return Block(node, moving, carries=carries and alike(first) == alike(node.outs[0]))
    same = {graph.shape(var) for var in (*noisy, *node.outs)} == {graph.shape(noisy[0])}
    if node.name in ("logsumexp", "softmax"):
        return Block(node, moving, noisy, node.name)
    if node.elementwise and same and len(noisy) == 1:
        return Block(node, moving, noisy, "elementwise")
    if node.facts.product and len(noisy) == 2:
        return Block(node, moving, noisy, "product")
    rows = ()
    if node.elementwise and same:
        rows = tuple(range(len(graph.shape(noisy[0]))))
    elif len(noisy) == 1:
        rows = _rows(graph, node, noisy[0])
    return Block(node, moving, noisy, "general", rows)


def _affine(graph: Graph, node: Node, variables: Sequence[int]) -> bool:
    return is_affine(graph, node, [i for i, var in enumerate(node.ins) if var in variables])


def _rows(graph: Graph, node: Node, start: int) -> tuple[int, ...]:
    """The axes of an input that an operation keeps apart from beginning to end."""
    kept: dict[int, list[int | None]] = {start: list(range(len(graph.shape(start))))}
    for part in node.params.get("parts", (node,)):
        found = []
        for i in (i for i, var in enumerate(part.ins) if var in kept):
            mine = kept[part.ins[i]]
            through = axes_kept(graph, part, i, [a in mine for a in range(_rank(graph, part, i))])
            found.append([None if a is None else through[a] for a in mine])
        if found:
            agreed = [a[0] if len(set(a)) == 1 else None for a in zip(*found, strict=True)]
            kept.update(dict.fromkeys(part.outs, agreed))
    return tuple(a for a, end in enumerate(kept[node.outs[0]]) if end is not None)


def _rank(graph: Graph, node: Node, position: int) -> int:
    return len(graph.shape(node.ins[position]))


def _replace(
    nodes: Sequence[Node],
    region: Sequence[Node],
    node: Node,
    keep: Callable[[Sequence[Node], Sequence[Node]], set[Node]] = lambda nodes, region: set(),
) -> list[Node]:
    """Puts an operation at the place of the last one of a region."""
    gone = set(region) - keep(nodes, region)
    last = region[-1]
    return [
        node if other is last else other for other in nodes if other is last or other not in gone
    ]


def _read_outside(nodes: Sequence[Node], region: Sequence[Node]) -> set[Node]:
    """The operations of a region, but for its last one, that others outside depend on.

    Only operations without a derivative read what lies inside a block: comparisons, integers,
    maxima under `stop_gradient`. They need values, which are computed beside the block once more.
    """
    inside = set(region)
    wanted = {var for other in nodes if other not in inside for var in other.ins}
    kept = set()
    for node in reversed(region[:-1]):
        if wanted.intersection(node.outs):
            wanted.update(node.ins)
            kept.add(node)
    return kept


def _forks(graph: Graph, live: Sequence[Node]) -> list[int]:
    """Variables that several operations read, the last ones first: inner regions before outer."""
    readers: dict[int, int] = {}
    for node in live:
        for var in set(node.ins):
            readers[var] = readers.get(var, 0) + 1
    made = dict.fromkeys(var for node in live for var in node.outs)
    return [var for var in reversed(made) if readers.get(var, 0) > 1]


def _region(graph: Graph, live: Sequence[Node], start: int, sites: set[int]) -> list[Node]:
    """The operations between a variable and where all of its influence meets, if they are a block.

    They are one if nothing else enters, no site lies inside, and paths meet where it bends.
    """
    uses = {var: i for i, node in enumerate(live) for var in node.ins}
    moving = {var for node in live for var in node.outs if graph.sources[var]} | sites
    inside, region, joined = {start}, [], False
    alive = {start}
    for i, node in enumerate(live):
        held = [p for p, var in enumerate(node.ins) if var in inside]
        if not held:
            continue
        if node.loop is not None:
            return []
        # Something else enters: the region would have two inputs, and mixed curvature in them.
        if any(var in moving and var not in inside for var in node.ins):
            return []
        region.append(node)
        # Where paths meet in additions only, each path may as well draw its own noise.
        joined |= len(held) > 1 and not is_affine(graph, node, held)
        outs = [var for var in node.outs if graph.sources[var] and var in uses]
        inside.update(outs)
        alive = {var for var in (*alive, *outs) if uses.get(var, -1) > i}
        if len(alive) == 1 and start not in alive:
            return region if joined and len(node.outs) == 1 else []
        if any(var in sites for var in outs):
            return []
    return region if joined and len(region[-1].outs) == 1 else []


def _join_exponentials(graph: Graph, sites: set[int]) -> list[Node]:
    """Joins exp, sum and log to `logsumexp`, and exp, sum and division to `softmax`."""
    nodes = list(graph.nodes)
    for node in graph.nodes:
        *before, exp = _parts(node)
        e = node.outs[0]
        if node not in nodes or exp.name != "exp" or not graph.sources[e] or e in sites:
            continue
        sums = [reader for reader in graph.consumers[e] if reader.name == "reduce_sum"]
        others = [reader for reader in graph.consumers[e] if reader.name != "reduce_sum"]
        if len(sums) != 1:
            continue
        chain = _follow(graph, sums[0], sites)
        *middle, end = chain
        after = _parts(end)
        while after and after[0].name in _PASSING:
            middle.append(after.pop(0))
        if not after:
            continue
        name = ""
        if after[0].name == "log" and not others:
            name = "logsumexp"
        if after[0].name == "div" and others == [end] and after[0].ins == (e, middle[-1].outs[0]):
            name = "softmax"
        inner = {var for part in (exp, *middle) for var in part.outs}
        if name and not any(inner.intersection(part.ins) for part in after[1:]):
            whole = join([exp, *middle, after[0]], after[0].outs, name)
            whole.params["axes"] = sums[0].params["axes"]
            place = nodes.index(end)
            nodes[place : place + 1] = [
                *_join_again(before, exp.ins[:1]),
                whole,
                *_join_again(after[1:], end.outs),
            ]
            nodes = [other for other in nodes if other is not node and other not in chain]
    return nodes


def _follow(graph: Graph, node: Node, sites: set[int]) -> list[Node]:
    """An operation and those that follow it alone, to the first that does more than pass on."""
    chain = [node]
    while all(part.name in _PASSING for part in _parts(node)):
        (var,) = node.outs
        if var in sites or len(graph.consumers[var]) != 1:
            break
        (node,) = graph.consumers[var]
        chain.append(node)
    return chain


_PASSING = {"reduce_sum", "broadcast_in_dim", "reshape", "squeeze", "expand_dims", "abs", "copy"}


def _parts(node: Node) -> list[Node]:
    return list(node.params.get("parts", (node,)))


def _join_again(parts: list[Node], ends: Sequence[int]) -> list[Node]:
    return parts if len(parts) < 2 else [join(parts, ends, "elementwise", elementwise=True)]
