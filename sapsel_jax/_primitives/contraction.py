"""Sums of products of tangents, along all directions at once."""

import itertools
import math
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sapsel_jax._base.fusion import unfused
from sapsel_jax._base.precision import widen
from sapsel_jax._primitives.tangents import Label, Tangent, atoms_of, refined, untie

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
    tangents = [refined(tangent) for tangent in tangents]
    places = places or [range(weights.ndim - num_rows)] * (len(tangents) + 1)
    letter = itertools.count()
    label_letters = {label: next(letter) for label in atoms_of(order)}
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
    out = [*rows, *label_letters.values()]
    total = jnp.einsum(*itertools.chain(*operands), out)
    return unfused(total.reshape(*weights.shape[:num_rows], *(label.size for label in order)))


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
