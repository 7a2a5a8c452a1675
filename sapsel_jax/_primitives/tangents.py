"""Tangents in many directions at once, stored without most of their zeros.

The directions are usually unit vectors, and most of their tangents are zero in a known pattern: a
weight of output channel o moves channel o alone, until channels are mixed. A `Tangent` stores only
the rest.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sapsel_jax._base.precision import wide_dtype, widen


@dataclasses.dataclass(frozen=True, eq=False)
class Label:
    """One index of the directions."""

    size: int


@dataclasses.dataclass(frozen=True, eq=False)
class Tangent:
    """The tangents of one variable along all directions.

    A direction is one index for each label. The labels in `directions` are leading axes of `value`.
    The labels in `tied[a]` go with axis a of the variable: the tangent is zero but where their
    index is the place on that axis. The other axes of `value` are those of the variable, of length
    1 where nothing changes along them.
    """

    value: jax.Array
    directions: tuple[Label, ...]
    tied: tuple[tuple[Label, ...], ...]


Tangents = dict[int, Tangent]


def unit_tangents(shape: tuple[int, ...], dtype: Any) -> Tangent:
    """All unit vectors of a variable as directions: a label for each axis, tied to it."""
    ones = jnp.ones((1,) * len(shape), wide_dtype(dtype))
    return Tangent(ones, (), tuple((Label(size),) for size in shape))


def labels_of(tangent: Tangent) -> tuple[Label, ...]:
    """All labels of a tangent, those of the axes last."""
    return tangent.directions + tuple(label for labels in tangent.tied for label in labels)


def contract(
    factors: Sequence[Tangent], weights: Any, order: Sequence[Label], num_rows: int = 0
) -> jax.Array:
    """Σ weights · Π factors over the axes that no label is tied to.

    `factors` are tangents of one variable with the same labels in the same places; `weights` has
    `num_rows` leading axes and then those of the variable. The result has the leading axes and then
    an axis for each label in `order`.
    """
    first = factors[0]
    num_directions, rank = len(first.directions), len(first.tied)
    letters = [chr(97 + i) for i in range(26)] + [chr(65 + i) for i in range(26)]
    rows, directions = letters[:num_rows], letters[num_rows : num_rows + num_directions]
    axes = letters[num_rows + num_directions :][:rank]
    operands, terms = [], []
    for factor in factors:
        keep = [size != 1 for size in factor.value.shape[num_directions:]]
        drop = [num_directions + a for a in range(rank) if not keep[a]]
        operands.append(jnp.squeeze(widen(factor.value), drop))
        names = [axis for axis, kept in zip(axes, keep, strict=True) if kept]
        terms.append("".join(directions + names))
    operands.append(widen(weights))
    terms.append("".join(rows + axes))
    tied = [axis for axis, labels in zip(axes, first.tied, strict=True) if labels]
    result = "".join(rows + directions + tied)
    total = jnp.einsum(f"{','.join(terms)}->{result}", *operands)
    return arrange(total, labels_of(first), order, num_rows)


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
        tangent = Tangent(value, tangent.directions + labels, tied)
    return tangent


def untie_lost(tangent: Tangent, shape: Sequence[int], kept: Sequence[int | None]) -> Tangent:
    """Makes the labels that are tied to axes which an operation does not keep apart directions."""
    return untie(tangent, shape, [a for a, target in enumerate(kept) if target is None])


def dense(tangent: Tangent, shape: tuple[int, ...], order: Sequence[Label]) -> jax.Array:
    """The tangents as one array with an axis for each label in `order` and then the variable's."""
    tangent = reorder(untie(tangent, shape, range(len(shape))), order)
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
