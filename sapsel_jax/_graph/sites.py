"""Where each parameter enters the loss.

A leaf's *site* is the output of the operation through which it first meets the example or another
leaf, if that operation is affine in the leaf. A leaf may have several *uses*, each with a site of
its own; where they meet in additive operations only, the curvature of the leaf is the sum over its
uses. A leaf whose uses meet otherwise is its own site.
"""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Sequence

from sapsel_jax._graph.affine import is_affine
from sapsel_jax._graph.graph import Graph, Loop, Node


@dataclasses.dataclass(frozen=True, eq=False)
class Use:
    """One way by which a leaf enters the loss.

    Attributes:
      leaf: position of the leaf.
      prefix: operations that only move entries of the leaf.
      root: the variable at the end of them; directions are its unit vectors.
      path: operations from the root to the site.
      site: the variable through which the use acts.
      gather: the operation that looks rows up in the leaf, if that is how it is used.
      entry: the operation of the path at which the leaf meets something else, or its copy.
      reason: why the leaf is its own site; empty where a site was found.
      inner: where the root is what the steps of a loop get slices of: the use of such a slice in
        the graph of a step. The site is then the first result of the loop, which is the entry.
    """

    leaf: int
    prefix: tuple[Node, ...]
    root: int
    path: tuple[Node, ...]
    site: int
    gather: Node | None
    entry: Node | None
    reason: str
    inner: "Use | None" = None

    @property
    def loop(self) -> Loop:
        """The loop that the use is in."""
        assert self.entry is not None
        assert self.entry.loop is not None
        return self.entry.loop

    @property
    def sites(self) -> tuple[int, ...]:
        """The site, or all results of the loop that the use is in."""
        return (self.site,) if self.inner is None or self.entry is None else self.entry.outs


def find_uses(graph: Graph, *, additive: bool = True) -> tuple[Graph, list[Use]]:
    """The graph and the uses of all leaves in it; a leaf that does not reach the output has none.

    With `additive` a leaf may have several uses that meet in additive operations only, as they may
    for second derivatives; without, a leaf with several uses is its own site. The graph that is
    returned has `copy` operations where a use begins with an operation that is not affine.
    """
    uses: list[Use] = []
    looped = {leaf: way for leaf, var in enumerate(graph.leaves) if (way := _into_loop(graph, var))}
    for leaf, var in enumerate(graph.leaves):
        if leaf in looped:
            continue
        graph, entries = _entries(graph, var)
        found = [_use(graph, leaf, var, node, chain) for node, chain in entries]
        reason = _conflict(graph, found)
        if not additive and len(found) > 1 and not _apart([_slice_of(graph, use) for use in found]):
            reason = f"{len(found)} uses"
        if reason:
            found = [Use(leaf, (), var, (), var, None, None, reason)]
        uses.extend(found)
    graph, inside = _uses_in_loops(graph, looped, additive)
    return graph, [*uses, *inside]


def _into_loop(graph: Graph, var: int) -> "tuple[list[Node], int, int] | None":
    """The operations that move a leaf to where a loop takes slices of it, if it is used so alone.

    Returns them, the variable at the end of them, and the first result of the loop.
    """
    chain: list[Node] = []
    while var not in graph.outputs:
        readers = [n for n in graph.consumers[var] if any(graph.sources[out] for out in n.outs)]
        if len(readers) != 1 or readers[0].ins.count(var) != 1:
            return None
        (node,) = readers
        if node.loop is not None:
            place = node.ins.index(var)
            kept = node.loop.inputs[place] in node.loop.body.outputs
            return None if place not in node.loop.stacked or kept else (chain, var, node.outs[0])
        if not node.facts.moves:
            return None
        chain.append(node)
        var = node.outs[0]
    return None


def _uses_in_loops(
    graph: Graph, looped: "dict[int, tuple[list[Node], int, int]]", additive: bool
) -> tuple[Graph, list[Use]]:
    """The uses of leaves whose slices are leaves of the steps of loops."""
    uses = []
    for node in [node for node in graph.nodes if node.loop is not None]:
        assert node.loop is not None
        mine = {leaf: way for leaf, way in looped.items() if way[2] == node.outs[0]}
        leaves = tuple(node.loop.inputs[node.ins.index(root)] for _, root, _ in mine.values())
        body = dataclasses.replace(node.loop.body, leaves=leaves, example=())
        body, inner = find_uses(body, additive=additive)
        loop = dataclasses.replace(node.loop, body=body)
        new = dataclasses.replace(node, loop=loop, apply=loop.run)
        nodes = [new if other is node else other for other in graph.nodes]
        graph = dataclasses.replace(graph, nodes=nodes)
        ways = list(mine.items())
        for use in inner:
            leaf, (chain, root, _) = ways[use.leaf]
            uses.append(Use(leaf, tuple(chain), root, (), new.outs[0], None, new, use.reason, use))
    return graph, uses


def _entries(graph: Graph, leaf: int) -> tuple[Graph, list[tuple[Node, list[Node]]]]:
    """The operations at which a leaf leaves the company of its own images and constants."""
    chain, images = [], {leaf}
    entries = []
    for node in graph.nodes:
        held = [i for i, var in enumerate(node.ins) if var in images]
        outs = [var for var in node.outs if graph.sources[var]]
        if not held or not outs:
            continue
        affine = is_affine(graph, node, held)
        alone = all(
            var in images or not (graph.sources[var] or graph.varying[var]) for var in node.ins
        )
        # Reshaped, sliced, scaled by constants: still the leaf alone, so not yet its site.
        if affine and alone and node.outs[0] not in graph.outputs:
            chain.append(node)
            images.update(outs)
        elif affine and len(node.outs) == 1:
            entries.append((node, chain))
        else:
            graph, copy = _insert_copy(graph, leaf, node, images, chain)
            entries.append((copy, chain))
    return graph, entries


def _insert_copy(
    graph: Graph, leaf: int, node: Node, images: set[int], chain: Sequence[Node]
) -> tuple[Graph, Node]:
    """Lets an operation read a copy of what it reads of a leaf: a site of its own.

    Of a single image that is a copy of the image; of several it is a copy of the leaf, which the
    operations between are repeated on.
    """
    read = [var for var in dict.fromkeys(node.ins) if var in images]
    source, between = (read[0], []) if len(read) == 1 else (leaf, graph.before(read, chain))
    params = {"for": node.name}
    avals, sources, varying = list(graph.avals), list(graph.sources), list(graph.varying)

    def new_like(var: int) -> int:
        avals.append(avals[var])
        sources.append(sources[var])
        varying.append(varying[var])
        return len(avals) - 1

    renamed = {source: new_like(source)}
    copy = Node("copy", (source,), (renamed[source],), lambda x: [x], params, elementwise=True)
    added = [copy]
    for step in between:
        renamed.update((var, new_like(var)) for var in step.outs)
        added.append(_rename(step, renamed, outs=True))
    place = graph.nodes.index(node)
    nodes = (*graph.nodes[:place], *added, _rename(node, renamed), *graph.nodes[place + 1 :])
    with_copy = dataclasses.replace(
        graph, nodes=nodes, avals=avals, sources=sources, varying=varying
    )
    return with_copy, copy


def _rename(node: Node, renamed: dict[int, int], *, outs: bool = False) -> Node:
    ins = tuple(renamed.get(var, var) for var in node.ins)
    results = tuple(renamed[var] for var in node.outs) if outs else node.outs
    return dataclasses.replace(node, ins=ins, outs=results)


def _use(graph: Graph, leaf: int, var: int, entry: Node, chain: Sequence[Node]) -> Use:
    site, after = entry.outs[0], []
    # A bias added behind the product changes no derivative: uses that meet there share a site.
    while site not in graph.outputs and len(graph.consumers[site]) == 1:
        (node,) = graph.consumers[site]
        same = graph.shape(node.outs[0]) == graph.shape(site)
        if not node.facts.passes or not same:
            break
        if node.ins.count(site) != 1 or not graph.sources[node.outs[0]]:
            break
        after.append(node)
        site = node.outs[0]
    path = graph.before(entry.ins, chain)
    path = [node for node in path if _reaches(graph, var, node, path)]
    prefix = []
    while (
        path
        and path[0].facts.moves
        and [var in node.ins for node in (*path, entry)].count(True) == 1
    ):
        prefix.append(path.pop(0))
        var = prefix[-1].outs[0]
    # Of a table only the rows that an example reads have curvature: directions are those rows.
    gather = entry if not path and _looks_up_rows(graph, entry, var) else None
    return Use(leaf, tuple(prefix), var, (*path, entry, *after), site, gather, entry, "")


def _reaches(graph: Graph, var: int, node: Node, chain: Sequence[Node]) -> bool:
    reached = {var}
    for step in chain:
        if reached.intersection(step.ins):
            reached.update(step.outs)
    return bool(reached.intersection(node.ins))


def _looks_up_rows(graph: Graph, node: Node, var: int) -> bool:
    """Whether an operation reads whole rows of a table, `table[ids]`."""
    reads = node.facts.reads_rows
    return reads is not None and node.ins[0] == var and reads(graph.signature(node))


def _conflict(graph: Graph, uses: Sequence[Use]) -> str:
    """Why the curvature of a leaf is not the sum over its uses, if it is not."""
    if len(uses) < 2:
        return ""
    slices = [_slice_of(graph, use) for use in uses]
    entered: dict[Node | None, tuple[int, set[int]]] = {}
    for bit, use in enumerate(uses):
        images = {use.root, *(var for node in use.path for var in node.outs)}
        entered[use.entry] = (1 << bit, images)
    reached: dict[int, int] = {}
    for node in graph.nodes:
        bits, images = entered.get(node, (0, set()))
        found = [bits if var in images else reached.get(var, 0) for var in node.ins]
        positions = [i for i, some in enumerate(found) if some]
        outs = [var for var in node.outs if graph.sources[var]]
        if not positions or not outs:
            continue
        together = functools.reduce(operator.or_, found)
        met = [bit for bit in range(len(uses)) if together >> bit & 1]
        mixed = len(met) > 1 and not _apart([slices[bit] for bit in met])
        if mixed and not is_affine(graph, node, positions):
            return f"{len(met)} uses meet in {node.name}"
        for var in outs:
            reached[var] = reached.get(var, 0) | together
    if graph.goes_on:
        together = functools.reduce(operator.or_, [reached.get(var, 0) for var in graph.outputs])
        met = [bit for bit in range(len(uses)) if together >> bit & 1]
        if len(met) > 1 and not _apart([slices[bit] for bit in met]):
            return f"{len(met)} uses meet in later steps"
    return ""


Piece = tuple[int, tuple[range, ...]]
"""Which places of which variable an operation takes, axis by axis."""


def _slice_of(graph: Graph, use: Use) -> Piece | None:
    """The part of a stack that a use takes, if it begins with taking one."""
    for node in use.prefix:
        (var,), params = node.ins, node.params
        shape = graph.shape(var)
        if node.name == "scan_slice":
            step = params["step"]
            return var, (range(step, step + 1), *map(range, shape[1:]))
        if node.name == "slice":
            strides = params["strides"] or (1,) * len(shape)
            limits = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
            return var, tuple(range(*limit) for limit in limits)
    return None


def _apart(pieces: Sequence[Piece | None]) -> bool:
    """Whether uses take different parts of one stack, so that no entry is in two of them."""
    known = [piece for piece in pieces if piece is not None]
    if len(known) < len(pieces) or len({var for var, _ in known}) > 1:
        return False
    return all(
        any(set(a).isdisjoint(b) for a, b in zip(one, other, strict=True))
        for (_, one), (_, other) in itertools.combinations(known, 2)
    )
