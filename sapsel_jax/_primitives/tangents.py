"""Tangents in many directions at once, stored without most of their zeros.

The directions are usually unit vectors, and most of their tangents are zero in a known pattern: a
weight of output channel o moves channel o alone, until channels are mixed. A `Tangent` stores only
the rest. What is stored is a product, too: the weight from channel i moves channel o at place t by
xₜᵢ times what the unit vector of channel o does there, until places are mixed.
"""

import dataclasses
import itertools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sapsel_jax._base.precision import wide_dtype, widen


@dataclasses.dataclass(frozen=True, eq=False)
class Label:
    """One index of the directions."""

    size: int


@dataclasses.dataclass(frozen=True, eq=False)
class Factor:
    """Numbers that tangents are multiplied by.

    Attributes:
      array: an axis for each label, then one for each of `axes`.
      labels: directions that nothing else of the tangent depends on.
      axes: of the variable.
    """

    array: jax.Array
    labels: tuple[Label, ...]
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
    directions: tuple[Label, ...]
    tied: tuple[tuple[Label, ...], ...]
    factors: tuple[Factor, ...] = ()


Tangents = dict[int, Tangent]


def unit_tangents(shape: tuple[int, ...], dtype: Any) -> Tangent:
    """All unit vectors of a variable as directions: a label for each axis, tied to it."""
    ones = jnp.ones((1,) * len(shape), wide_dtype(dtype))
    return Tangent(ones, (), tuple((Label(size),) for size in shape))


def labels_of(tangent: Tangent) -> tuple[Label, ...]:
    """All labels of a tangent: those of factors, of directions, and of the axes."""
    of_factors = (label for factor in tangent.factors for label in factor.labels)
    of_axes = (label for labels in tangent.tied for label in labels)
    return (*of_factors, *tangent.directions, *of_axes)


def factored(tangent: Tangent) -> Tangent:
    """The same tangents with all that is stored as a factor, where no tied axis needs it."""
    sizes = tangent.value.shape[len(tangent.directions) :]
    varies = [size != 1 for size in sizes]
    if not tangent.directions or any(v and t for v, t in zip(varies, tangent.tied, strict=True)):
        return tangent
    axes = tuple(a for a, v in enumerate(varies) if v)
    lead = tangent.value.shape[: len(tangent.directions)]
    array = tangent.value.reshape(*lead, *(sizes[a] for a in axes))
    ones = jnp.ones((1,) * len(sizes), tangent.value.dtype)
    factor = Factor(array, tangent.directions, axes)
    return Tangent(ones, (), tangent.tied, (*tangent.factors, factor))


def multiplied(tangent: Tangent, factors: Sequence[Factor] | None = None) -> Tangent:
    """The same tangents with some factors, or all, multiplied out."""
    some = tangent.factors if factors is None else factors
    value, directions, rank = tangent.value, tangent.directions, len(tangent.tied)
    for factor in some:
        count = len(factor.labels)
        order = sorted(range(len(factor.axes)), key=factor.axes.__getitem__)
        array = factor.array.transpose(*range(count), *(count + i for i in order))
        sizes = [1] * rank
        for i in order:
            sizes[factor.axes[i]] = factor.array.shape[count + i]
        array = array.reshape(*array.shape[:count], *(1,) * len(directions), *sizes)
        value = array * value.reshape(*(1,) * count, *value.shape)
        directions = factor.labels + directions
    rest = tuple(factor for factor in tangent.factors if factor not in some)
    return Tangent(value, directions, tangent.tied, rest)


def relabelled(tangent: Tangent, names: Mapping[Label, Label]) -> Tangent:
    """The same tangents along other labels."""
    new = lambda labels: tuple(names.get(label, label) for label in labels)
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


Place = Hashable
"""A name for an axis that several arrays share."""


def contract(
    tangents: Sequence[Tangent],
    weights: Any,
    order: Sequence[Label],
    num_rows: int = 0,
    places: Sequence[Sequence[Place]] | None = None,
    sizes: dict[Place, int] | None = None,
) -> jax.Array:
    """Σ weights · Π tangents over the places that no label is tied to.

    Args:
      tangents: with labels of `order`; a label of several of them is one index.
      weights: of shape (*rows, *places).
      order: the labels, as the axes of the result are wanted.
      num_rows: how many leading axes of `weights` are kept.
      places: the names of the axes of each tangent's variable, and last of those of `weights`;
        without, the axes of all have the same names.
      sizes: of the places that `weights` has no axis for.

    Returns:
      An array of shape (*rows, *order).
    """
    weights = widen(weights)
    places = places or [range(weights.ndim - num_rows)] * (len(tangents) + 1)
    letter = itertools.count()
    label_letters = {label: next(letter) for label in order}
    rows = [next(letter) for _ in range(num_rows)]
    bound: dict[Place, tuple[Label, ...]] = {}
    for i, tangent in enumerate(tangents):
        shape = [math.prod(label.size for label in labels) for labels in tangent.tied]
        loose = []
        for axis, labels in enumerate(tangent.tied):
            if labels and bound.setdefault(places[i][axis], labels) != labels:
                loose.append(axis)
        tangents = [*tangents[:i], untie(tangent, shape, loose), *tangents[i + 1 :]]
    letters = {
        place: [label_letters[x] for x in bound[place]] if place in bound else [next(letter)]
        for place in dict.fromkeys(itertools.chain(*places))
    }

    def named(array: jax.Array, lead: Sequence[int], names: Sequence[Place]) -> Operand:
        """An array with a letter for each axis, without those along which nothing changes."""
        lengths, subscripts = list(array.shape[: len(lead)]), list(lead)
        for name, size in zip(names, array.shape[len(lead) :], strict=True):
            if size != 1:
                lengths += _lengths(size, bound.get(name))
                subscripts += letters[name]
        return widen(array).reshape(lengths), tuple(subscripts)

    factors: list[Operand] = []
    for tangent, names in zip(tangents, places[:-1], strict=True):
        for factor in tangent.factors:
            lead = [label_letters[label] for label in factor.labels]
            factors.append(named(factor.array, lead, [names[a] for a in factor.axes]))
        factors.append(named(tangent.value, [label_letters[x] for x in tangent.directions], names))
    lengths = list(weights.shape[:num_rows])
    for name, size in zip(places[-1], weights.shape[num_rows:], strict=True):
        lengths += _lengths(size, bound.get(name))
    subscripts = (*rows, *itertools.chain(*(letters[name] for name in places[-1])))
    operands = [*_merged(factors), (weights.reshape(lengths), subscripts)]
    for name, size in (sizes or {}).items():
        ones = jnp.ones(_lengths(size, bound.get(name)), weights.dtype)
        operands.append((ones, tuple(letters[name])))
    out = [*rows, *(label_letters[label] for label in order)]
    return jnp.einsum(*itertools.chain(*operands), out)


Operand = tuple[jax.Array, tuple[int, ...]]
"""An array, and a letter for each of its axes."""


def _merged(operands: Sequence[Operand]) -> list[Operand]:
    """Multiplies arrays entry by entry where one has all letters of the other.

    `einsum` would take such products for products of matrices with one row and one column.
    """
    merged: list[Operand] = []
    simple = lambda letters: len(set(letters)) == len(letters)
    for array, letters in sorted(operands, key=lambda operand: -len(operand[1])):
        for i, (other, others) in enumerate(merged):
            if set(letters) <= set(others) and simple(letters) and simple(others):
                order = sorted(range(len(letters)), key=lambda a, o=others: o.index(letters[a]))
                sizes = [array.shape[letters.index(x)] if x in letters else 1 for x in others]
                merged[i] = other * array.transpose(order).reshape(sizes), others
                break
        else:
            merged.append((array, letters))
    return merged


def _lengths(size: int, labels: Sequence[Label] | None) -> list[int]:
    """The lengths of an axis: one for each label where several are tied to it."""
    return [label.size for label in labels] if labels else [size]


def arrange(
    array: jax.Array, labels: Sequence[Label], order: Sequence[Label], num_rows: int = 0
) -> jax.Array:
    """Brings an array whose axes run over `labels`, merged where tied together, into `order`."""
    array = array.reshape(*array.shape[:num_rows], *(label.size for label in labels))
    axes = [num_rows + labels.index(label) for label in order]
    return array.transpose(*range(num_rows), *axes)


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
    places = [tangent.directions.index(label) for label in directions]
    rest = range(len(places), tangent.value.ndim)
    return Tangent(tangent.value.transpose(*places, *rest), tuple(directions), tangent.tied)


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
    tied: list[tuple[Label, ...]] = [()] * rank
    for axis, target in enumerate(kept):
        if target is not None and labels[axis]:
            tied[target] = tied[target] + labels[axis]
    return tuple(tied)
