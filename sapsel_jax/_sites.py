"""Where each parameter enters the loss.

A leaf's *site* is the output of the operation through which it first meets the example or another
leaf, if that operation is affine in the leaf. A leaf may have several *uses*, each with a site of
its own; where they meet in additive operations only, the curvature of the leaf is the sum over its
uses. A leaf whose uses meet otherwise is its own site.
"""

import dataclasses
from collections.abc import Sequence

from sapsel_jax._affine import is_affine
from sapsel_jax._graph import Graph, Node

ONE_TO_ONE = {
    "reshape",
    "transpose",
    "squeeze",
    "expand_dims",
    "convert_element_type",
    "copy",
    "copy_p",
    "rev",
    "slice",
    "scan_slice",
}
"""Operations that only move entries, from a leaf to what is used of it."""


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
      entered_by: the operation at which the leaf enters, for people.
      reason: why the leaf is its own site; empty where a site was found.
    """

    leaf: int
    prefix: tuple[Node, ...]
    root: int
    path: tuple[Node, ...]
    site: int
    gather: Node | None
    entered_by: str
    reason: str


def find_uses(graph: Graph, *, additive: bool = True) -> list[Use]:
    """The uses of all leaves; a leaf that does not reach the output has none.

    With `additive` a leaf may have several uses that meet in additive operations only, as they may
    for second derivatives; without, a leaf with several uses is its own site. Adds `copy`
    operations to the graph where a use begins with an operation that is not affine.
    """
    uses: list[Use] = []
    for leaf, var in enumerate(graph.leaves):
        entries = _entries(graph, var)
        found = [_use(graph, leaf, var, node, chain) for node, chain in entries]
        reason = _conflict(graph, found)
        if not additive and len(found) > 1 and not _apart([_slice_of(use) for use in found]):
            reason = f"{len(found)} uses"
        if reason:
            found = [Use(leaf, (), var, (), var, None, "", reason)]
        uses.extend(found)
    return uses


def _entries(graph: Graph, leaf: int) -> list[tuple[Node, list[Node]]]:
    """The operations at which a leaf leaves the company of its own images and constants."""
    chain, images = [], {leaf}
    entries = []
    for node in list(graph.nodes):
        held = [i for i, var in enumerate(node.ins) if var in images]
        outs = [var for var in node.outs if graph.sources[var]]
        if not held or not outs:
            continue
        affine = is_affine(graph, node, held)
        alone = all(
            var in images or not (graph.sources[var] or graph.varying[var]) for var in node.ins
        )
        if affine and alone and node.outs[0] not in graph.outputs:
            chain.append(node)
            images.update(outs)
        elif affine and len(node.outs) == 1:
            entries.append((node, chain))
        else:
            copies = _insert_copies(graph, node, images)
            entries.extend((copy, chain) for copy in copies)
    return entries


def _insert_copies(graph: Graph, node: Node, images: set[int]) -> list[Node]:
    """Lets an operation read copies of these variables, so that each copy is a site of its own."""
    place = graph.nodes.index(node)
    copies, renamed = [], {}
    for var in dict.fromkeys(node.ins):
        if var in images:
            out = len(graph.avals)
            graph.avals.append(graph.avals[var])
            graph.sources.append(graph.sources[var])
            graph.varying.append(graph.varying[var])
            params = {"for": node.name}
            copies.append(Node("copy", (var,), (out,), lambda x: [x], params, elementwise=True))
            renamed[var] = out
    ins = tuple(renamed.get(var, var) for var in node.ins)
    graph.nodes[place : place + 1] = [*copies, dataclasses.replace(node, ins=ins)]
    graph.__dict__.pop("consumers", None)
    return copies


def _use(graph: Graph, leaf: int, var: int, entry: Node, chain: Sequence[Node]) -> Use:
    site, after = entry.outs[0], []
    while site not in graph.outputs and len(graph.consumers[site]) == 1:
        (node,) = graph.consumers[site]
        same = graph.shape(node.outs[0]) == graph.shape(site)
        if node.name not in ("add", "sub", "copy", "convert_element_type") or not same:
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
        and path[0].name in ONE_TO_ONE
        and [var in node.ins for node in (*path, entry)].count(True) == 1
    ):
        prefix.append(path.pop(0))
        var = prefix[-1].outs[0]
    gather = entry if not path and _looks_up_rows(graph, entry, var) else None
    entered_by = entry.params["for"] if entry.name == "copy" else entry.name
    return Use(leaf, tuple(prefix), var, (*path, entry, *after), site, gather, entered_by, "")


def _reaches(graph: Graph, var: int, node: Node, chain: Sequence[Node]) -> bool:
    reached = {var}
    for step in chain:
        if reached.intersection(step.ins):
            reached.update(step.outs)
    return bool(reached.intersection(node.ins))


def _looks_up_rows(graph: Graph, node: Node, var: int) -> bool:
    """Whether an operation reads whole rows of a table, `table[ids]`."""
    if node.name != "gather" or node.ins[0] != var or node.ins[1] == var:
        return False
    numbers, table = node.params["dimension_numbers"], graph.shape(var)
    rank = len(graph.shape(node.outs[0]))
    last = tuple(range(rank - len(table) + 1, rank))
    return (
        tuple(numbers.collapsed_slice_dims) == (0,)
        and tuple(numbers.start_index_map) == (0,)
        and tuple(numbers.offset_dims) == last
        and not numbers.operand_batching_dims
        and tuple(node.params["slice_sizes"]) == (1, *table[1:])
    )


def _conflict(graph: Graph, uses: Sequence[Use]) -> str:
    """Why the curvature of a leaf is not the sum over its uses, if it is not."""
    if len(uses) < 2:
        return ""
    slices = [_slice_of(use) for use in uses]
    reached: dict[int, int] = {}
    for bit, use in enumerate(uses):
        reached[use.site] = reached.get(use.site, 0) | 1 << bit
    for node in graph.nodes:
        positions = [i for i, var in enumerate(node.ins) if var in reached]
        outs = [var for var in node.outs if graph.sources[var]]
        if not positions or not outs:
            continue
        together = 0
        for i in positions:
            together |= reached[node.ins[i]]
        met = [bit for bit in range(len(uses)) if together >> bit & 1]
        mixed = len(met) > 1 and not _apart([slices[bit] for bit in met])
        if mixed and not is_affine(graph, node, positions):
            return f"{len(met)} uses meet in {node.name}"
        for var in outs:
            reached[var] = reached.get(var, 0) | together
    return ""


def _slice_of(use: Use) -> tuple[Node | int, int] | None:
    for node in use.prefix:
        if node.name == "scan_slice":
            return node.ins[0], node.params["step"]
    return None


def _apart(slices: Sequence[tuple[Node | int, int] | None]) -> bool:
    """Whether uses take different layers of one stack, so that no entry is in two of them."""
    stacks = {piece[0] if piece else None for piece in slices}
    return None not in stacks and len(stacks) == 1 and len(set(slices)) == len(slices)
