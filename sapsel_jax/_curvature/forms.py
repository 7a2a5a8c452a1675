"""The form of tangents: what of them is stored, and what it costs to push them on.

The rules are those of `_passes.forward`, without values.
"""

import math
from collections.abc import Callable, Container, Iterable, Sequence
from typing import NamedTuple

from sapsel_jax._graph.axes import axes_kept
from sapsel_jax._graph.graph import Graph, Node
from sapsel_jax._primitives.signature import Kept
from sapsel_jax._primitives.tangents import Label, Labels, Tangent, atoms_of, placed

FactorForm = tuple[Labels, tuple[int, ...]]
"""The labels of a factor, and its axes."""


ENTRY_WORK = 24
"""What an entry of a tangent counts that is written, against one multiply or add of a product."""


class Form(NamedTuple):
    """A `Tangent` without numbers.

    Attributes:
      directions: as of the tangent.
      tied: as of the tangent.
      stored: for every axis of the variable, whether anything changes along it.
      factors: the labels and the axes of each.
    """

    directions: Labels
    tied: tuple[Labels, ...]
    stored: tuple[bool, ...]
    factors: tuple[FactorForm, ...] = ()

    def factored(self) -> "Form":
        """With all that is stored along directions as a factor."""
        if not self.directions:
            return self
        places = list(enumerate(zip(self.stored, self.tied, strict=True)))
        axes = tuple(a for a, (stored, labels) in places if stored and not labels)
        tied = tuple(x for _, (stored, labels) in places if stored for x in labels)
        factors = (*self.factors, ((*self.directions, *tied), axes))
        return Form((), self.tied, (False,) * len(self.stored), factors)

    def loose(self, rank: int) -> "Form":
        """With every label a direction, for a variable of another rank."""
        of_factors = (label for labels, _ in self.factors for label in labels)
        labels = dict.fromkeys((*_all_labels(self), *of_factors))
        return Form(tuple(labels), ((),) * rank, (True,) * rank)

    @property
    def bound(self) -> frozenset[Label]:
        """The labels that are tied to an axis."""
        return frozenset(_flat(self.tied))

    def num_apart(self, axes: Container[int]) -> int:
        """How many directions there are, but for those of factors along these axes alone."""
        labels = {*self.directions}
        for mine, places in self.factors:
            if not all(a in axes for a in places):
                labels.update(mine)
        return _count(tuple(labels - self.bound))


class Push(NamedTuple):
    """What comes out of an operation.

    Attributes:
      form: of the output's tangents.
      runs: how many times the operation is run, in all.
      entries: how many numbers come out.
    """

    form: Form
    runs: float
    entries: float


class Followed(NamedTuple):
    """What it costs to push tangents of one variable through the operations after it.

    Attributes:
      start: how many entries they have to begin with.
      pushes: for each operation that they go through, its work and the entries that come out.
      forms: of the tangents of every variable on the way.
    """

    start: float
    pushes: dict[Node, tuple[float, float]]
    forms: dict[int, Form]

    def through(self, nodes: Iterable[Node]) -> tuple[float, float]:
        """The work of some of the operations, and the entries of the largest temporary."""
        some = [self.pushes[node] for node in nodes if node in self.pushes]
        return sum(work for work, _ in some), max([self.start, *(size for _, size in some)])


def follow(
    graph: Graph, source: int, start: Tangent, nodes: Sequence[Node], work: Callable[[Node], float]
) -> Followed:
    """Follows tangents of a variable through operations, each of which takes `work` to run."""
    forms, pushes = {source: form_of(start).factored()}, {}
    for node in nodes:
        positions = [i for i, var in enumerate(node.ins) if var in forms]
        if not positions:
            continue
        mine = [forms[node.ins[i]] for i in positions]
        form, runs, entries = push_form(graph, node, positions, mine)
        pushes[node] = runs * work(node) + ENTRY_WORK * entries, entries
        for var in node.outs:
            if graph.sources[var]:
                rank = len(graph.shape(var))
                forms[var] = form if len(form.tied) == rank else form.loose(rank)
    return Followed(float(math.prod(start.value.shape)), pushes, forms)


def form_of(tangent: Tangent) -> Form:
    """The form of some tangents, which may hold a shape for a value."""
    sizes = tangent.value.shape[len(tangent.directions) :]
    return Form(tangent.directions, tangent.tied, tuple(size != 1 for size in sizes))


def push_form(graph: Graph, node: Node, positions: Sequence[int], forms: Sequence[Form]) -> Push:
    """Pushes the forms of the inputs at some positions through an operation."""
    shape = graph.shape(node.outs[0])
    kept = [
        axes_kept(graph, node, i, [bool(labels) for labels in form.tied])
        for i, form in zip(positions, forms, strict=True)
    ]
    moved = [_moved(form, axes) for form, axes in zip(forms, kept, strict=True)]
    common = {new for new in moved[0].values() if all(new in m.values() for m in moved)}
    plain = [
        _multiplied(form, [old for old in form.factors if moves.get(old) not in common])
        for form, moves in zip(forms, moved, strict=True)
    ]
    ties = [
        node.facts.ties(graph.signature(node), i, form.tied, axes)
        if node.facts.ties
        else placed([atoms_of(labels) for labels in form.tied], axes, len(shape))
        for i, form, axes in zip(positions, plain, kept, strict=True)
    ]
    tied = ties[0] if all(t == ties[0] for t in ties) else ((),) * len(shape)
    bound = _flat(tied)
    directions = tuple(label for label in _all_labels(plain[0]) if label not in bound)
    count = _count(directions)
    stored = tuple(size != 1 for size in shape)
    runs = float(count)
    if node.facts.contracts:
        # Tied tangents are taken as they are, and untied by the product itself.
        runs = sum(
            _count(form.directions) * _share(graph.shape(node.ins[i]), form.stored)
            for i, form in zip(positions, plain, strict=True)
        )
        names = node.facts.places(graph.signature(node))[0] if node.facts.places else ()
        if len(positions) == 1 and names:
            mine, other = names[positions[0]], names[1 - positions[0]]
            some = {*other, *(name for name, is_ in zip(mine, plain[0].stored, strict=True) if is_)}
            stored = tuple(
                name in some and size != 1 for name, size in zip(names[2], shape, strict=True)
            )
    elif node.facts.passes or (node.facts.push and not node.facts.product):
        stored = _through(plain, kept, stored, summed=node.name == "reduce_sum")
        runs *= _share(shape, stored)
    entries = count * math.prod(n for n, some in zip(shape, stored, strict=True) if some)
    return Push(Form(directions, tied, stored, tuple(common)).factored(), runs, float(entries))


def _moved(form: Form, kept: Kept) -> dict[FactorForm, FactorForm]:
    """The factors whose axes an operation keeps apart, at the axes of the output."""
    moves = {}
    for labels, axes in form.factors:
        new = [kept[a] for a in axes]
        if all(a is not None and kept.count(a) == 1 for a in new):
            moves[labels, axes] = labels, tuple(a for a in new if a is not None)
    return moves


def _multiplied(form: Form, factors: Sequence[FactorForm]) -> Form:
    """The form with some factors multiplied out and the others left out."""
    along = {a for _, axes in factors for a in axes}
    bound = {*form.directions, *form.bound}
    every = dict.fromkeys(label for labels, _ in factors for label in labels)
    stored = tuple(
        some or a in along or not every.keys().isdisjoint(labels)
        for a, (some, labels) in enumerate(zip(form.stored, form.tied, strict=True))
    )
    labels = tuple(label for label in every if label not in bound)
    return Form((*labels, *form.directions), form.tied, stored)


def _through(
    forms: Sequence[Form], kept: Sequence[Kept], everything: tuple[bool, ...], *, summed: bool
) -> tuple[bool, ...]:
    """Along which axes of the output of an operation that only moves or sums anything changes."""
    changes = [False] * len(everything)
    for form, axes in zip(forms, kept, strict=True):
        for some, target in zip(form.stored, axes, strict=True):
            if some and target is not None:
                changes[target] = True
            elif some and not summed:
                return everything
    return tuple(changes)


def _flat(tied: Sequence[Labels]) -> Labels:
    return tuple(label for labels in tied for label in labels)


def _all_labels(form: Form) -> Labels:
    return atoms_of((*form.directions, *_flat(form.tied)))


def _count(labels: Labels) -> int:
    return math.prod(label.size for label in labels)


def _share(shape: Sequence[int], stored: Sequence[bool]) -> float:
    """Which share of the entries of an array is stored."""
    return 1.0 / math.prod(n for n, some in zip(shape, stored, strict=True) if not some and n)
