"""Products of arrays: `dot_general`."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sapsel_jax._primitives.contraction import Place
from sapsel_jax._primitives.signature import Kept, Signature
from sapsel_jax._primitives.tangents import Tangent, placed


def axes(signature: Signature, position: int, marked: Sequence[bool]) -> Kept:
    """Every axis that is not summed: the output has batch axes, the left's, the right's."""
    contracted, batch = signature.params["dimension_numbers"]
    ranks = [len(shape) for shape in signature.shapes]
    free = [
        [a for a in range(ranks[side]) if a not in (*contracted[side], *batch[side])]
        for side in (0, 1)
    ]
    start = len(batch[0]) + (len(free[0]) if position else 0)
    kept: Kept = [None] * ranks[position]
    for place, axis in enumerate(batch[position]):
        kept[axis] = place
    for place, axis in enumerate(free[position]):
        kept[axis] = start + place
    return kept


def push(
    signature: Signature, position: int, inputs: Sequence[Any], tangent: Tangent, kept: Kept
) -> Tangent:
    """A product with something fixed; labels of contracted axes become directions, unsummed."""
    contracted, batch = signature.params["dimension_numbers"]
    side, other = position, 1 - position
    count = len(tangent.directions)
    letters = iter([chr(97 + i) for i in range(26)] + [chr(65 + i) for i in range(26)])
    directions = [next(letters) for _ in range(count)]
    mine = [next(letters) for _ in range(len(tangent.tied))]
    theirs = [next(letters) for _ in signature.shapes[other]]
    for pairs in (contracted, batch):
        for a, b in zip(pairs[side], pairs[other], strict=True):
            theirs[b] = mine[a]
    free = [[], []]
    for s, names in ((side, mine), (other, theirs)):
        free[s] = [x for a, x in enumerate(names) if a not in (*contracted[s], *batch[s])]
    out = [mine[a] for a in batch[side]] + free[0] + free[1]
    moved = [a for a in contracted[side] if tangent.tied[a]]
    # Axes of length 1 that stand for longer ones have no letter: nothing changes along them.
    sizes = tangent.value.shape[count:]
    keep = [size != 1 for size in sizes]
    value = jnp.squeeze(tangent.value, [count + a for a, k in enumerate(keep) if not k])
    stored = {x for x, k in zip(mine, keep, strict=True) if k}
    present = [x for x in out if x in stored or x in theirs]
    lead = directions + [mine[a] for a in moved]
    spec = f"{''.join(directions + [x for x in mine if x in stored])},{''.join(theirs)}"
    result = jnp.einsum(
        f"{spec}->{''.join(lead + present)}", value, inputs[other].astype(value.dtype)
    )
    labels = tangent.directions + tuple(label for a in moved for label in tangent.tied[a])
    lengths = dict(zip(present, result.shape[len(lead) :], strict=True))
    result = result.reshape(*(label.size for label in labels), *(lengths.get(x, 1) for x in out))
    return Tangent(result, labels, placed(tangent.tied, kept, len(out)))


def places(signature: Signature) -> tuple[list[list[tuple[int, int]]], dict[Place, int]]:
    """Names for the axes of both inputs and of the output, and the sizes of those summed over."""
    contracted, batch = signature.params["dimension_numbers"]
    names = [[(side, a) for a in range(len(shape))] for side, shape in enumerate(signature.shapes)]
    for left, right in (contracted, batch):
        for a, b in zip(left, right, strict=True):
            names[1][b] = (0, a)
    out = [(0, a) for a in batch[0]]
    for side in (0, 1):
        bound = (*contracted[side], *batch[side])
        out += [name for a, name in enumerate(names[side]) if a not in bound]
    return [*names, out], {(0, a): signature.shapes[0][a] for a in contracted[0]}


def work(signature: Signature) -> float:
    """Multiplications and additions."""
    (contracted, _), _ = signature.params["dimension_numbers"]
    left = signature.shapes[0]
    return 2.0 * math.prod(signature.out) * math.prod(left[a] for a in contracted)


def run(signature: Signature) -> Callable[..., Sequence[Any]]:
    """`lax.dot_general` without the free axes of length 1, which XLA copies arrays for."""
    params = signature.params
    contracted, batch = params["dimension_numbers"]
    kept, numbers = [], []
    for side, shape in enumerate(signature.shapes):
        bound = (*contracted[side], *batch[side])
        some = [a for a, size in enumerate(shape) if a in bound or size != 1]
        kept.append([shape[a] for a in some])
        numbers.append([tuple(some.index(a) for a in axes[side]) for axes in (contracted, batch)])
    (left_contracted, left_batch), (right_contracted, right_batch) = numbers

    def dot(left: jax.Array, right: jax.Array) -> Sequence[Any]:
        out = lax.dot_general(
            left.reshape(kept[0]),
            right.reshape(kept[1]),
            ((left_contracted, right_contracted), (left_batch, right_batch)),
            precision=params["precision"],
            preferred_element_type=params["preferred_element_type"],
        )
        return [out.reshape(signature.out)]

    return dot
