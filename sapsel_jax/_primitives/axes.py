"""Which axes an operation keeps apart, for operations that mix or cut some axes of an input.

An axis of an input is kept apart where each place along it acts on one place of an axis of the
output alone. Channels through a pooling are an example, or the rows of a matrix through a product
from the right. Several axes that a reshape merges may be kept on one.
"""

from collections.abc import Callable, Iterable, Sequence

from sapsel_jax._primitives.signature import AxesRule, Kept, Signature


def elementwise(signature: Signature, position: int, marked: Sequence[bool]) -> Kept:
    """Every axis but those that are repeated."""
    pairs = zip(signature.shapes[position], signature.out, strict=False)
    return [a if n == m else None for a, (n, m) in enumerate(pairs)]


def but(name: str) -> AxesRule:
    """Every axis but those that a parameter names; they may be missing from the output."""

    def mixed(signature: Signature) -> Iterable[int]:
        axes = signature.params[name]
        return axes if isinstance(axes, Sequence) else (axes,)

    return _but(mixed)


def _but(mixed: Callable[[Signature], Iterable[int]]) -> AxesRule:
    """Every axis of the first input but some, and of others the same where they have its rank."""

    def rule(signature: Signature, position: int, marked: Sequence[bool]) -> Kept:
        rank, lost = len(signature.shapes[position]), set(mixed(signature))
        if rank != len(signature.shapes[0]):  # such as the number that is padded with
            return [None] * rank
        dropped = lost if len(signature.out) < rank else ()
        return [None if a in lost else a - sum(d < a for d in dropped) for a in range(rank)]

    return rule


def _not_whole(signature: Signature) -> Iterable[int]:
    starts, limits = signature.params["start_indices"], signature.params["limit_indices"]
    strides = signature.params["strides"] or (1,) * len(starts)
    taken = zip(starts, limits, strides, signature.shapes[0], strict=True)
    return [a for a, (*some, n) in enumerate(taken) if some != [0, n, 1]]


def _cut(signature: Signature) -> Iterable[int]:
    # A block of full length is moved to the start of the axis, wherever it was to begin.
    sizes = signature.params["slice_sizes"]
    return [a for a, n in enumerate(signature.shapes[0]) if sizes[a] != n]


def _padded(signature: Signature) -> Iterable[int]:
    return [a for a, edges in enumerate(signature.params["padding_config"]) if any(edges)]


def _covered(signature: Signature) -> Iterable[int]:
    """Axes along which a window is more than one entry, or entries are not in their places."""
    names = ("window_dimensions", "window_strides", "base_dilation", "padding")
    windows = zip(*(signature.params[name] for name in names), strict=True)
    return [a for a, (*ones, pad) in enumerate(windows) if (*ones, *pad) != (1, 1, 1, 0, 0)]


def _repeated(signature: Signature) -> Iterable[int]:
    return [a for a, times in enumerate(signature.params["reps"]) if times != 1]


def stacked(signature: Signature, position: int, marked: Sequence[bool]) -> Kept:
    """Every axis, those after the new one moved by one."""
    new = signature.params["axis"]
    return [a + (a >= new) for a in range(len(signature.shapes[position]))]


slices = _but(_not_whole)
blocks = _but(_cut)
padding = _but(_padded)
windows = _but(_covered)
tiles = _but(_repeated)
