"""Which way to a diagonal is the cheapest: counting work before anything is computed.

Work is counted in floating-point operations per example, an entry of an elementwise operation as
`ELEMENTWISE_WORK` of them. Only the structure of tangents is followed here, never their values.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence, Set
from typing import Literal, NamedTuple

from sapsel_jax._curvature.forms import Followed, follow
from sapsel_jax._curvature.wide_cuts import WideCut, find_wide_cut
from sapsel_jax._graph.affine import has_forward_rule
from sapsel_jax._graph.graph import Graph, Node
from sapsel_jax._graph.reach import bending, leading_to, leads_to, varies
from sapsel_jax._graph.sites import Use
from sapsel_jax._passes.lifts import Structure, by_site
from sapsel_jax._primitives.tangents import Tangent, labels_of, unit_tangents

ELEMENTWISE_WORK = 8
"""What one entry of an elementwise operation counts, against one multiply or add of a product."""
PRODUCT_WORK = 4
"""What a Hessian-vector product counts, against the operations it runs through."""
MAX_CUT = 256
"""A cut of more entries is not considered."""
MAX_CUTS = 8
"""So many cuts of a site are compared, the smallest, and of those the last."""
FEW_CUTS = 2
"""So many of them are compared behind a wide cut."""
MOST = 2**24
"""Entries that those of a single example may hold; more directions than that run in chunks."""

Way = Literal["forward", "rows", "products"]


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """How the curvature of one site, or along the directions of one use, is computed.

    Attributes:
      site: the variable that it is computed at.
      uses: the uses that it serves: all of a site, or one that needs directions of its own.
      shared: the directions are the unit vectors of the site, not those of the use.
      varying: whether the curvature differs between examples.
      num_entries: how many directions there are.
      cut: the variable whose small Hessian stands for all that follows it, if there is one.
      wide: the wide cut before it that tangents are pushed to, if there is one.
      way: tangents pushed `forward` to the cut or the end; `rows` pulled back from the cut;
        Hessian-vector `products`.
      work: floating-point operations per example, but for what tasks with the same cut share.
      memory: entries of temporaries per example.
      chunk: how many directions run at once; None for all.
      nodes: the operations that tangents are pushed through.
      ends: those of them that tangents go no further than.
    """

    site: int
    uses: tuple[Use, ...]
    shared: bool
    varying: bool
    num_entries: int
    cut: int | None
    wide: WideCut | None
    way: Way
    work: float
    memory: float
    chunk: int | None
    nodes: Sequence[Node]
    ends: Set[Node]


@dataclasses.dataclass(frozen=True, eq=False)
class Routes:
    """All tasks of a graph, and the work of one gradient to compare with.

    Attributes:
      tasks: one for each site or use.
      structures: of all uses.
      shared_work: floating-point operations that no single task has to itself: values, adjoints,
        Hessians in the cuts, rows pulled back from them, sums over examples.
      gradient_work: floating-point operations of one gradient of one example.
      memory: entries of temporaries per example.
    """

    tasks: tuple[Task, ...]
    structures: dict[Use, Structure]
    shared_work: float
    gradient_work: float
    memory: float


class Option(NamedTuple):
    """One way to the curvature of a site.

    Attributes:
      total: its work, with what it needs of what tasks with the same cut share.
      work: without that.
      memory: entries of temporaries per example.
      way: as of a `Task`, like all that follows.
      cut: see `Task`.
      nodes: see `Task`.
      ends: see `Task`.
      wide: see `Task`.
    """

    total: float
    work: float
    memory: float
    way: Way
    cut: int | None
    nodes: Sequence[Node] = ()
    ends: Set[Node] = frozenset()
    wide: WideCut | None = None


def rows_of_cuts(tasks: Iterable[Task]) -> dict[int, list[int]]:
    """The cuts of some tasks, each with the sites that rows are pulled back to."""
    sites: dict[int, list[int]] = {}
    for task in tasks:
        if task.cut is not None:
            pulled = sites.setdefault(task.cut, [])
            if task.wide is not None:
                pulled.append(task.wide.var)
            elif task.way == "rows":
                pulled.append(task.site)
    return sites


def choose(graph: Graph, structures: dict[Use, Structure]) -> Routes:
    """The cheapest task for each use of each leaf."""
    finder = _Finder(graph)
    groups = by_site(structures)
    tasks = [finder.cheapest(uses, structures) for uses in groups]
    finder.pay_for(tasks)  # what one task has to compute is free for the others
    tasks = [finder.cheapest(uses, structures) for uses in groups]
    finder.paid.clear()
    shared_work = finder.pay_for(tasks) + finder.gradient
    return Routes(tuple(tasks), structures, shared_work, finder.gradient, finder.memory(tasks))


def choose_through(graph: Graph, cut: int, structures: dict[Use, Structure]) -> Routes:
    """The cheapest tasks through a given cut alone, curvature before it left out."""
    finder = _Finder(graph)
    tasks = [
        finder.through(uses, structures, cut)
        for uses in by_site(structures)
        if leads_to(graph, uses[0].site, cut)
    ]
    shared_work = finder.pay_for(tasks) + finder.gradient
    return Routes(tuple(tasks), structures, shared_work, finder.gradient, finder.memory(tasks))


class _Finder:
    """Compares the ways to the curvature of a site."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.work = functools.cache(self._work)
        self.hessian = functools.cache(self._hessian)
        self.wide_cut = functools.cache(self._wide_cut)
        self.paid: dict[int, set[int]] = {}
        """For each cut that is used, the variables that rows are pulled back to anyway."""
        self.followed: dict[tuple[Use, ...], Followed] = {}
        self.blocks: set[WideCut] = set()
        """The wide cuts that are used."""
        moving = lambda node: sum(bool(graph.sources[var]) for var in node.ins)
        operations = sum(self.work(node) + moving(node) * self.back(node) for node in graph.nodes)
        self.gradient = max(operations, 1.0)  # a loss without operations has a gradient, too

    def memory(self, tasks: Iterable[Task]) -> float:
        """Entries of temporaries per example: values and their adjoints, and the largest task."""
        values = sum(self.graph.size(var) for node in self.graph.nodes for var in node.outs)
        return 4.0 * values + max((task.memory for task in tasks), default=0.0)

    def pay_for(self, tasks: Iterable[Task]) -> float:
        """Notes what the cuts of these tasks need, and returns its work."""
        graph = self.graph
        self.blocks = {task.wide for task in tasks if task.wide is not None}
        total = sum(wide.work for wide in self.blocks)
        for cut, sites in rows_of_cuts(tasks).items():
            between = graph.before([cut], graph.after(sites)) if sites else []
            self.paid[cut] = {*sites, *(var for node in between for var in node.outs)}
            total += self.hessian(cut) + graph.size(cut) * sum(map(self.back, between))
        return total

    def _hessian(self, cut: int) -> float:
        """The work of the Hessian in a cut."""
        return PRODUCT_WORK * self.graph.size(cut) * sum(map(self.work, self.graph.after([cut])))

    def cheapest(self, uses: tuple[Use, ...], structures: dict[Use, Structure]) -> Task:
        """The way that takes the least work, with what is paid for left out."""
        graph, site = self.graph, uses[0].site
        start, shared = self._start(uses, structures)
        after = graph.after([site])
        # Without a cut, tangents need to go no further than to the last operation that bends.
        bends = bending(graph, site, after)
        options: list[Option] = []
        if uses not in self.followed:
            self.followed[uses] = follow(graph, site, start, after, self.work)
        followed = self.followed[uses]
        if all(has_forward_rule(graph, node) for node in after):
            options.append(self._forward(followed, start, *leading_to(graph, bends, after), None))
        else:
            work = PRODUCT_WORK * _count(start) * sum(map(self.work, after))
            memory = _count(start) * _largest(graph, after)
            options.append(Option(work, work, memory, "products", None))
        for cut in self._cuts(site, bends):
            between = graph.before([cut], after)
            if all(has_forward_rule(graph, node) for node in between):
                options.append(self._forward(followed, start, between, frozenset(), cut))
            near, ends = leading_to(graph, bends, between)
            if all(has_forward_rule(graph, node) for node in near):
                rows = self._rows(followed, site, start, shared, between, cut, near, ends)
                options.append(rows)
        for var in self._wide_vars(site):
            wide, between = self.wide_cut(var), graph.before([var], after)
            if wide and all(has_forward_rule(graph, node) for node in between):
                options.append(self._to_blocks(followed, start, between, wide))
        return self._task(uses, start, shared, min(options, key=lambda option: option.total))

    def _wide_vars(self, site: int) -> list[int]:
        """The variables that everything a site does passes through, as far as they are compared."""
        graph = self.graph
        wide = [var for var in graph.cuts(site) if len(graph.shape(var)) > 1]
        return sorted(wide, key=graph.size)[:MAX_CUTS]

    def _wide_cut(self, var: int) -> WideCut | None:
        """The wide cut of a variable that takes the least work, if it is one."""
        bends = bending(self.graph, var, self.graph.after([var]))
        found = [
            (wide.work + self._behind(wide), wide)
            for cut in (*self._cuts(var, bends)[:FEW_CUTS], None)
            if (wide := find_wide_cut(self.graph, var, cut, self.work))
        ]
        return min(found, key=lambda pair: pair[0], default=(0.0, None))[1]

    def _behind(self, wide: WideCut) -> float:
        """The work of the Hessian in the small cut of a wide one, and of the rows between."""
        if wide.cut is None or wide.var in self.paid.get(wide.cut, ()):
            return 0.0
        between = self.graph.before([wide.cut], self.graph.after([wide.var]))
        rows = self.graph.size(wide.cut) * sum(map(self.back, between))
        return rows + (0.0 if wide.cut in self.paid else self.hessian(wide.cut))

    def _to_blocks(
        self, followed: Followed, start: Tangent, between: Sequence[Node], wide: WideCut
    ) -> Option:
        graph = self.graph
        own, memory = followed.through(between)
        kept = [a for a, apart in enumerate(wide.kept) if apart]
        entries = float(followed.forms[wide.var].num_apart(kept) * graph.size(wide.var))
        own += 2.0 * entries * wide.block
        if wide.cut is not None:
            size = graph.size(wide.cut)
            own += 2.0 * size * (entries + size * _count(start))
        total = own + self._behind(wide) + (0.0 if wide in self.blocks else wide.work)
        memory = max(memory, wide.memory)
        return Option(total, own, memory, "forward", wide.cut, between, frozenset(), wide)

    def _cuts(self, site: int, bends: Sequence[Node]) -> list[int]:
        """The cuts of a site that are worth comparing: small, with something bent behind."""
        graph = self.graph
        small = [cut for cut in graph.cuts(site)[::-1] if graph.size(cut) <= MAX_CUT]
        # The last of equally small cuts: less follows it, so its Hessian is cheaper.
        best = sorted(small, key=graph.size)[:MAX_CUTS]
        return [cut for cut in best if not set(bends).isdisjoint(graph.after([cut]))]

    def through(self, uses: tuple[Use, ...], structures: dict[Use, Structure], cut: int) -> Task:
        """The cheaper of both ways through a cut, for a function that is linear before it."""
        graph, site = self.graph, uses[0].site
        start, shared = self._start(uses, structures)
        between = graph.before([cut], graph.after([site]))
        followed = follow(graph, site, start, between, self.work)
        options = [self._rows(followed, site, start, shared, between, cut, (), frozenset())]
        if all(has_forward_rule(graph, node) for node in between):
            options.append(self._forward(followed, start, between, frozenset(), cut))
        return self._task(uses, start, shared, min(options, key=lambda option: option.total))

    def _start(
        self, uses: tuple[Use, ...], structures: dict[Use, Structure]
    ) -> tuple[Tangent, bool]:
        if structures[uses[0]].is_diagonal:
            site = uses[0].site
            return unit_tangents(self.graph.shape(site), self.graph.avals[site].dtype), True
        return structures[uses[0]].tangent, False

    def _forward(
        self,
        followed: Followed,
        start: Tangent,
        nodes: Sequence[Node],
        ends: Set[Node],
        cut: int | None,
    ) -> Option:
        own, memory = followed.through(nodes)
        shared_work = 0.0
        if cut is not None:
            size = self.graph.size(cut)
            own += 2.0 * _count(start) * size * size
            memory = max(memory, _count(start) * size)
            shared_work = 0.0 if cut in self.paid else self.hessian(cut)
        return Option(own + shared_work, own, memory, "forward", cut, nodes, ends)

    def _rows(
        self,
        followed: Followed,
        site: int,
        start: Tangent,
        shared: bool,
        between: Sequence[Node],
        cut: int,
        near: Sequence[Node],
        ends: Set[Node],
    ) -> Option:
        graph, size = self.graph, self.graph.size(cut)
        own, memory = followed.through(near)
        own += 2.0 * size * size * _count(start)
        if not shared:
            own += 2.0 * size * math.prod(start.value.shape) * _untouched(graph, site, start)
        shared_work = 0.0 if cut in self.paid else self.hessian(cut)
        if site not in self.paid.get(cut, ()):
            shared_work += size * sum(map(self.back, between))
        memory = max(memory, size * max(_largest(graph, between), _count(start)))
        return Option(own + shared_work, own, memory, "rows", cut, near, ends)

    def _task(self, uses: tuple[Use, ...], start: Tangent, shared: bool, option: Option) -> Task:
        site, count, memory, chunk = uses[0].site, _count(start), option.memory, None
        if memory > MOST and option.way == "forward":
            chunk = max(1, int(count * MOST / memory))
            memory = memory * chunk / count
        # The sums over examples: each entry of a leaf once.
        sums = sum(2.0 * self.graph.size(self.graph.leaves[use.leaf]) for use in uses)
        return Task(
            site=site,
            uses=uses,
            shared=shared,
            varying=varies(self.graph, site),
            num_entries=count,
            cut=option.cut,
            wide=option.wide,
            way=option.way,
            work=option.work + sums,
            memory=memory,
            chunk=chunk,
            nodes=option.nodes,
            ends=option.ends,
        )

    def back(self, node: Node) -> float:
        """The work of pulling one cotangent back to one input of an operation."""
        return self.work(node) * node.facts.back_work

    def _work(self, node: Node) -> float:
        if node.facts.work:
            return node.facts.work(self.graph.signature(node))
        size = sum(self.graph.size(var) for var in node.outs)
        if node.elementwise:
            return float(ELEMENTWISE_WORK * size)
        return float(size + sum(self.graph.size(var) for var in node.ins))


def _count(start: Tangent) -> int:
    return math.prod(label.size for label in labels_of(start))


def _untouched(graph: Graph, site: int, start: Tangent) -> int:
    """How many entries of a site one stored entry of its tangents stands for."""
    stored = start.value.shape[len(start.directions) :]
    return math.prod(n for n, s in zip(graph.shape(site), stored, strict=True) if s == 1)


def _largest(graph: Graph, nodes: Iterable[Node]) -> int:
    return max((graph.size(var) for node in nodes for var in node.outs), default=1)
