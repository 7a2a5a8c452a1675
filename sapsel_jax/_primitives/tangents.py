"""Tangents in many directions at once, stored without most of their zeros.

The directions are usually unit vectors, and most of their tangents are zero in a known pattern: a
weight of output channel o moves channel o alone, until channels are mixed. A `Tangent` stores only
the rest. What is stored is a product, too: the weight from channel i moves channel o at place t by
xₜᵢ times what the unit vector of channel o does there, until places are mixed.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sapsel_jax._base.precision import wide_dtype


@dataclasses.dataclass(frozen=True, eq=False)
class Label:
    """One index of the directions, which may be split into parts that stand for it."""

    size: int
    parts: "list[Label]" = dataclasses.field(default_factory=list)

    def split(self, sizes: Sequence[int]) -> "tuple[Label, ...]":
        """The parts of these sizes, the same ones every time; none if it has other parts."""
        if not self.parts:
            self.parts.extend(Label(size) for size in sizes)
        fits = [part.size for part in self.parts] == list(sizes)
        return tuple(self.parts) if fits else ()

    def atoms(self) -> "tuple[Label, ...]":
        """Itself, or its parts where it was split, and theirs."""
        return tuple(x for part in self.parts for x in part.atoms()) or (self,)


def atoms_of(labels: Iterable[Label]) -> tuple[Label, ...]:
    """The labels, each with its parts in its place."""
    return tuple(atom for label in labels for atom in label.atoms())


Labels = tuple[Label, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Factor:
    """Numbers that tangents are multiplied by.

    Attributes:
      array: an axis for each label, then one for each of `axes`.
      labels: others may share them.
      axes: of the variable; no label is tied to them.
    """

    array: jax.Array
    labels: Labels
    axes: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Tangent:
    """The tangents of one variable along all directions: `value`, times every factor.

    A direction is one index for each label. The labels in `directions` are leading axes of `value`.
    The labels in `tied[a]` go with axis a of the variable: the tangent is zero but where their
    index is the place on that axis. The other axes of `value` are those of the variable, of length
    1 where nothing changes along them.
    """

    value: jax.Array
    directions: Labels
    tied: tuple[Labels, ...]
    factors: tuple[Factor, ...] = ()


Tangents = dict[int, Tangent]


def unit_tangents(shape: tuple[int, ...], dtype: Any) -> Tangent:
    """All unit vectors of a variable as directions: a label for each axis, tied to it."""
    ones = jnp.ones((1,) * len(shape), wide_dtype(dtype))
    return Tangent(ones, (), tuple((Label(size),) for size in shape))


def labels_of(tangent: Tangent) -> Labels:
    """All labels of a tangent: those of factors, of directions, and of the axes."""
    of_factors = (label for factor in tangent.factors for label in factor.labels)
    of_axes = (label for labels in tangent.tied for label in labels)
    return tuple(dict.fromkeys((*of_factors, *tangent.directions, *of_axes)))


def refined(tangent: Tangent) -> Tangent:
    """The same tangents along the parts of labels that were split."""
    if all(label.atoms() == (label,) for label in labels_of(tangent)):
        return tangent
    count = len(tangent.directions)
    directions = atoms_of(tangent.directions)
    lead = [label.size for label in directions]
    factors = []
    for factor in tangent.factors:
        labels = atoms_of(factor.labels)
        sizes = [label.size for label in labels]
        array = factor.array.reshape(*sizes, *factor.array.shape[len(factor.labels) :])
        factors.append(Factor(array, labels, factor.axes))
    return Tangent(
        tangent.value.reshape(*lead, *tangent.value.shape[count:]),
        directions,
        tuple(map(atoms_of, tangent.tied)),
        tuple(factors),
    )


def factored(tangent: Tangent) -> Tangent:
    """The same tangents with all that is stored along directions as a factor."""
    if not tangent.directions:
        return tangent
    count = len(tangent.directions)
    sizes, lengths = tangent.value.shape[count:], list(tangent.value.shape[:count])
    labels, axes = list(tangent.directions), []
    order, moved = list(range(count)), []
    for axis, (size, tied) in enumerate(zip(sizes, tangent.tied, strict=True)):
        if size != 1 and tied:
            labels += tied
            order.append(count + axis)
            lengths += [label.size for label in tied]
        elif size != 1:
            axes.append(axis)
            moved.append(count + axis)
    left = [count + a for a, size in enumerate(sizes) if size == 1]
    array = tangent.value.transpose(*order, *moved, *left)
    array = array.reshape(*lengths, *(sizes[a] for a in axes))
    ones = jnp.ones((1,) * len(sizes), tangent.value.dtype)
    factor = Factor(array, tuple(labels), tuple(axes))
    return Tangent(ones, (), tangent.tied, (*tangent.factors, factor))


def multiplied(tangent: Tangent, factors: Sequence[Factor] | None = None) -> Tangent:
    """The same tangents with some factors, or all, multiplied out."""
    some = tangent.factors if factors is None else factors
    if not some:
        return tangent
    rest = tuple(factor for factor in tangent.factors if factor not in some)
    tangent = refined(dataclasses.replace(tangent, factors=tuple(some)))
    bound = [label for labels in tangent.tied for label in labels]
    every = (label for factor in tangent.factors for label in factor.labels)
    new = [x for x in dict.fromkeys(every) if x not in bound and x not in tangent.directions]
    directions = (*new, *tangent.directions)
    # With an axis for each label the product is one entry by entry.
    keys: list[Any] = [*directions]
    groups = [labels or (axis,) for axis, labels in enumerate(tangent.tied)]
    keys += itertools.chain(*groups)

    def widened(array: jax.Array, names: Sequence[Any]) -> jax.Array:
        order = sorted(range(len(names)), key=lambda i: keys.index(names[i]))
        sizes = dict(zip(names, array.shape, strict=True))
        return array.transpose(order).reshape([sizes.get(key, 1) for key in keys])

    count = len(tangent.directions)
    names: list[Any] = [*tangent.directions]
    lengths = list(tangent.value.shape[:count])
    for size, group, labels in zip(tangent.value.shape[count:], groups, tangent.tied, strict=True):
        names += group
        lengths += [label.size if size != 1 else 1 for label in labels] or [size]
    value = widened(tangent.value.reshape(lengths), names)
    for factor in tangent.factors:
        value = value * widened(factor.array, [*factor.labels, *factor.axes])
    # The labels that are tied to one axis are one axis again.
    full, sizes = list(value.shape[: len(directions)]), list(value.shape[: len(directions)])
    place = len(directions)
    for group in groups:
        lengths = value.shape[place : place + len(group)]
        if len(group) > 1 and max(lengths) > 1:
            lengths = [label.size for label in group]
        full += lengths
        sizes.append(math.prod(lengths))
        place += len(group)
    value = jnp.broadcast_to(value, full).reshape(sizes)
    return Tangent(value, directions, tangent.tied, rest)


def relabelled(tangent: Tangent, names: Mapping[Label, Label]) -> Tangent:
    """The same tangents along other labels."""
    known = dict(names)
    for label, other in names.items():
        if label.parts:
            parts = other.split([part.size for part in label.parts])
            known.update(zip(label.parts, parts, strict=True))

    def new(labels: Labels) -> Labels:
        return tuple(known.get(label, label) for label in labels)

    factors = tuple(Factor(f.array, new(f.labels), f.axes) for f in tangent.factors)
    return Tangent(tangent.value, new(tangent.directions), tuple(map(new, tangent.tied)), factors)


def squared(tangent: Tangent) -> Tangent:
    """The squares, entry by entry."""
    factors = (Factor(f.array**2, f.labels, f.axes) for f in tangent.factors)
    return Tangent(tangent.value**2, tangent.directions, tangent.tied, tuple(factors))


def everywhere(tangent: Tangent, rank: int) -> Tangent:
    """The tangents of a number as those of an array of this rank that holds it everywhere."""
    value = tangent.value.reshape(*tangent.value.shape, *(1,) * rank)
    return dataclasses.replace(tangent, value=value, tied=((),) * rank)


def arrange(
    array: jax.Array, labels: Sequence[Label], order: Sequence[Label], num_rows: int = 0
) -> jax.Array:
    """Brings an array whose axes run over `labels`, merged where tied together, into `order`."""
    rows, atoms = array.shape[:num_rows], atoms_of(labels)
    array = array.reshape(*rows, *(label.size for label in atoms))
    axes = [num_rows + atoms.index(label) for label in atoms_of(order)]
    array = array.transpose(*range(num_rows), *axes)
    return array.reshape(*rows, *(label.size for label in order))


def untie(tangent: Tangent, shape: Sequence[int], axes: Iterable[int]) -> Tangent:
    """Makes the labels that are tied to these axes directions, storing the zeros."""
    for axis in axes:
        labels = tangent.tied[axis]
        if not labels:
            continue
        place, size = len(tangent.directions), shape[axis]
        value = jnp.expand_dims(tangent.value, place)
        # A tied axis stores one value per place; as directions the places need their zeros.
        eye = jnp.eye(size, dtype=value.dtype)
        wide = [1] * value.ndim
        wide[place] = wide[place + 1 + axis] = size
        value = value * eye.reshape(wide)
        sizes = [label.size for label in labels]
        value = value.reshape(*value.shape[:place], *sizes, *value.shape[place + 1 :])
        tied = (*tangent.tied[:axis], (), *tangent.tied[axis + 1 :])
        tangent = Tangent(value, tangent.directions + labels, tied, tangent.factors)
    return tangent


def untie_lost(tangent: Tangent, shape: Sequence[int], kept: Sequence[int | None]) -> Tangent:
    """Makes the labels that are tied to axes which an operation does not keep apart directions."""
    return untie(tangent, shape, [a for a, target in enumerate(kept) if target is None])


def dense(tangent: Tangent, shape: tuple[int, ...], order: Sequence[Label]) -> jax.Array:
    """The tangents as one array with an axis for each label in `order` and then the variable's."""
    tangent = reorder(untie(multiplied(tangent), shape, range(len(shape))), order)
    return jnp.broadcast_to(tangent.value, (*(label.size for label in order), *shape))


def reorder(tangent: Tangent, directions: Sequence[Label]) -> Tangent:
    """The directions in another order, with labels that were split in their parts' place."""
    tangent = refined(tangent)
    atoms, rest = atoms_of(directions), tangent.value.shape[len(tangent.directions) :]
    places = [tangent.directions.index(label) for label in atoms]
    value = tangent.value.transpose(*places, *range(len(places), tangent.value.ndim))
    value = value.reshape(*(label.size for label in directions), *rest)
    return dataclasses.replace(tangent, value=value, directions=tuple(directions))


def permute(tangent: Tangent, order: Sequence[int]) -> Tangent:
    """The axes of the variable in another order."""
    count = len(tangent.directions)
    value = tangent.value.transpose(*range(count), *(count + a for a in order))
    return Tangent(value, tangent.directions, tuple(tangent.tied[a] for a in order))


def align(
    tangents: Sequence[Tangent], shapes: Sequence[tuple[int, ...]], blocked: Sequence[set[int]]
) -> list[Tangent]:
    """Tangents of several inputs with the same labels in the same places."""
    same_rank = len({len(shape) for shape in shapes}) == 1
    tangents = [refined(tangent) for tangent in tangents]
    aligned = []
    for tangent, shape in zip(tangents, shapes, strict=True):
        differs = [
            axis
            for axis, labels in enumerate(tangent.tied)
            if any(axis in b for b in blocked)
            or not same_rank
            or any(other.tied[axis] != labels for other in tangents)
        ]
        aligned.append(untie(tangent, shape, differs))
    return [reorder(tangent, aligned[0].directions) for tangent in aligned]


def placed(labels: Sequence[Any], kept: Sequence[int | None], rank: int) -> tuple[Any, ...]:
    """The labels of the axes at the places where those are kept."""
    tied: list[Labels] = [()] * rank
    for axis, target in enumerate(kept):
        if target is not None and labels[axis]:
            tied[target] = tied[target] + labels[axis]
    return tuple(tied)
