"""Operations that move, merge, split or repeat axes: reshapes, transposes, broadcasts."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from sapsel_jax._primitives.signature import Kept, Signature
from sapsel_jax._primitives.tangents import (
    Labels,
    Tangent,
    atoms_of,
    permute,
    placed,
    refined,
    untie,
    untie_lost,
)


def _groups(source: Sequence[int], target: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The shortest groups of axes that hold the same entries, without axes of length 1."""
    groups, i, j = [], 0, 0
    while i < len(source) or j < len(target):
        if i < len(source) and source[i] == 1:
            i += 1  # an axis of length 1 has no place to be kept on
            continue
        if j < len(target) and target[j] == 1:
            j += 1
            continue
        left, right = source[i], target[j]
        group, into, i, j = [i], [j], i + 1, j + 1
        while left != right:
            if left < right:
                left *= source[i]
                group.append(i)
                i += 1
            else:
                right *= target[j]
                into.append(j)
                j += 1
        groups.append(([a for a in group if source[a] != 1], [a for a in into if target[a] != 1]))
    return groups


def reshaped(signature: Signature, position: int, marked: Sequence[bool]) -> Kept:
    """Axes are kept where a group of source axes becomes one target axis and all are marked."""
    source, target = signature.shapes[position], signature.out
    kept: Kept = [None] * len(source)
    for group, into in _groups(source, target) if 0 not in source else ():
        if len(into) == 1 and (len(group) == 1 or all(marked[a] for a in group)):
            for a in group:
                kept[a] = into[0]
    return kept


def push_reshape(
    signature: Signature, position: int, inputs: Sequence[Any], tangent: Tangent, kept: Kept
) -> Tangent:
    """The tangent reshaped; labels of axes that are split or merged become directions."""
    source, shape = signature.shapes[position], signature.out
    tied = split_ties(signature, position, tangent.tied, kept)
    held = {label for labels in tied for label in labels}
    tangent = refined(tangent)
    lost = [a for a, labels in enumerate(tangent.tied) if not held.issuperset(labels)]
    tangent = untie(tangent, source, lost)
    count = len(tangent.directions)
    lead, stored = tangent.value.shape[:count], tangent.value.shape[count:]
    full, sizes = [1] * len(source), [1] * len(shape)
    for group, into in _groups(source, shape) if 0 not in source else ():
        if any(stored[a] != 1 for a in group):
            for a in group:
                full[a] = source[a]
            for a in into:
                sizes[a] = shape[a]
    value = jnp.broadcast_to(tangent.value, (*lead, *full)).reshape(*lead, *sizes)
    return Tangent(value, tangent.directions, tied)


def split_ties(
    signature: Signature, position: int, tied: Sequence[Labels], kept: Kept
) -> tuple[Labels, ...]:
    """The labels of the axes at their places in the output; of an axis that is split, its parts."""
    source, target = signature.shapes[position], signature.out
    after = list(placed([atoms_of(labels) for labels in tied], kept, len(target)))
    for group, into in _groups(source, target) if 0 not in source else ():
        if len(group) != 1 or len(into) < 2 or not tied[group[0]]:
            continue
        sizes, labels = [target[a] for a in into], atoms_of(tied[group[0]])
        if len(labels) == 1:
            labels = labels[0].split(sizes)
        if [label.size for label in labels] == sizes:
            for axis, label in zip(into, labels, strict=True):
                after[axis] = (label,)
    return tuple(after)


def transposed(signature: Signature, position: int, marked: Sequence[bool]) -> Kept:
    """Every axis, at its new place."""
    order = signature.params["permutation"]
    return [order.index(a) for a in range(len(order))]


def push_transpose(
    signature: Signature, position: int, inputs: Sequence[Any], tangent: Tangent, kept: Kept
) -> Tangent:
    """The axes in their new order."""
    return permute(tangent, signature.params["permutation"])


def broadcast(signature: Signature, position: int, marked: Sequence[bool]) -> Kept:
    """Every axis but those that are repeated."""
    places = signature.params["broadcast_dimensions"]
    source, target = signature.shapes[position], signature.out
    return [b if n == target[b] else None for n, b in zip(source, places, strict=True)]


def push_broadcast(
    signature: Signature, position: int, inputs: Sequence[Any], tangent: Tangent, kept: Kept
) -> Tangent:
    """The axes at their places, with new ones of length 1: nothing changes along them."""
    tangent = untie_lost(tangent, signature.shapes[position], kept)
    count = len(tangent.directions)
    sizes = [1] * len(signature.out)
    for axis, place in enumerate(signature.params["broadcast_dimensions"]):
        sizes[place] = tangent.value.shape[count + axis]
    value = tangent.value.reshape(*tangent.value.shape[:count], *sizes)
    return Tangent(value, tangent.directions, placed(tangent.tied, kept, len(signature.out)))


def push_sum(
    signature: Signature, position: int, inputs: Sequence[Any], tangent: Tangent, kept: Kept
) -> Tangent:
    """Sums plain axes; along a tied axis one place is left, so its labels become directions."""
    source, axes = signature.shapes[position], signature.params["axes"]
    count, value, directions = len(tangent.directions), tangent.value, tangent.directions
    moved = [a for a in axes if tangent.tied[a]]
    wide = list(value.shape)
    for axis in axes:
        wide[count + axis] = source[axis]
    value = jnp.broadcast_to(value, wide).sum([count + a for a in axes if a not in moved])
    rest = [a for a in range(len(source)) if a not in axes or a in moved]
    order = [rest.index(a) for a in moved] + [rest.index(a) for a in rest if a not in moved]
    value = value.transpose(*range(count), *(count + p for p in order))
    labels = tuple(label for a in moved for label in tangent.tied[a])
    lead = [label.size for label in directions + labels]
    value = value.reshape(*lead, *value.shape[count + len(moved) :])
    tied = tuple(tangent.tied[a] for a in range(len(source)) if a not in axes)
    return Tangent(value, directions + labels, tied)
