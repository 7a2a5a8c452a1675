"""First-order tangents in many directions at once, and the curvature that they meet.

For a direction v the second derivative of a loss is the sum over its operations of ⟨g, D²f[ẋ, ẋ]⟩:
g the adjoint of the operation's output, ẋ the tangents of its inputs. One first-order tangent per
direction is enough, for any loss.

The directions are usually unit vectors, and most of their tangents are zero in a known pattern: a
weight of output channel o moves channel o alone, until channels are mixed. A `Tangent` stores only
the rest.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sapsel_jax._accumulate import wide_dtype
from sapsel_jax._affine import is_affine
from sapsel_jax._axes import axes_kept
from sapsel_jax._graph import PASSING, Graph, Node, Values, restrict

MAX_SHIFTS = 64
"""A convolution kernel of at most so many places is read by shifted copies of its input."""


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


def spread(
    graph: Graph,
    nodes: Iterable[Node],
    values: Values,
    tangents: Tangents,
    adjoints: Values | None = None,
    order: Sequence[Label] = (),
) -> Any:
    """Carries tangents through operations, adding them to `tangents`.

    Returns the curvature that they met, with an axis for each label in `order`: the sum of
    ⟨g, D²f[ẋ, ẋ]⟩ over the operations that are not affine, or 0 without `adjoints`.
    """
    curvature: Any = 0.0
    for node in nodes:
        positions = [i for i, var in enumerate(node.ins) if var in tangents]
        if not positions:
            continue
        if adjoints is not None and not is_affine(graph, node, positions):
            curvature += _second(graph, node, positions, values, tangents, adjoints, order)
        outs = _push(graph, node, positions, values, tangents)
        tangents.update((v, t) for v, t in zip(node.outs, outs, strict=True) if t is not None)
    return curvature


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
        operands.append(jnp.squeeze(factor.value, drop))
        names = [axis for axis, kept in zip(axes, keep, strict=True) if kept]
        terms.append("".join(directions + names))
    operands.append(weights)
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
        eye = jnp.eye(size, dtype=value.dtype)
        wide = [1] * value.ndim
        wide[place] = wide[place + 1 + axis] = size
        value = value * eye.reshape(wide)
        sizes = [label.size for label in labels]
        value = value.reshape(*value.shape[:place], *sizes, *value.shape[place + 1 :])
        tied = (*tangent.tied[:axis], (), *tangent.tied[axis + 1 :])
        tangent = Tangent(value, tangent.directions + labels, tied)
    return tangent


def dense(tangent: Tangent, shape: tuple[int, ...], order: Sequence[Label]) -> jax.Array:
    """The tangents as one array with an axis for each label in `order` and then the variable's."""
    tangent = _reorder(untie(tangent, shape, range(len(shape))), order)
    return jnp.broadcast_to(tangent.value, (*(label.size for label in order), *shape))


def _reorder(tangent: Tangent, directions: Sequence[Label]) -> Tangent:
    places = [tangent.directions.index(label) for label in directions]
    rest = range(len(places), tangent.value.ndim)
    return Tangent(tangent.value.transpose(*places, *rest), tuple(directions), tangent.tied)


def _align(
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
    return [_reorder(tangent, aligned[0].directions) for tangent in aligned]


def _push(
    graph: Graph, node: Node, positions: list[int], values: Values, tangents: Tangents
) -> list[Tangent | None]:
    inputs = [values[var] for var in node.ins]
    moving = [tangents[node.ins[i]] for i in positions]
    shape = graph.shape(node.outs[0])
    if node.elementwise and all(len(t.tied) == len(shape) for t in moving):
        return [_scale(graph, node, positions, inputs, moving)]
    if len(positions) == 1:
        (i,), (tangent,) = positions, moving
        kept = axes_kept(graph, node, i, [bool(labels) for labels in tangent.tied])
        if node.name in _CHEAP:
            return [_CHEAP[node.name](graph, node, i, inputs, tangent, kept)]
        if node.name == "conv_general_dilated" and i == 1 and _is_kernel(node, tangent):
            return [_push_kernel(graph, node, inputs, tangent)]
    return _push_each(graph, node, positions, inputs, moving)


def _place(labels: Sequence[Any], kept: Sequence[int | None], rank: int) -> tuple[Any, ...]:
    """The labels of the axes at the places where those are kept."""
    tied: list[tuple[Label, ...]] = [()] * rank
    for axis, target in enumerate(kept):
        if target is not None and labels[axis]:
            tied[target] = tied[target] + labels[axis]
    return tuple(tied)


def _scale(
    graph: Graph, node: Node, positions: list[int], inputs: list[Any], moving: list[Tangent]
) -> Tangent:
    """Elementwise: the slope at each place, summed over the inputs that move."""
    shapes = [graph.shape(node.ins[i]) for i in positions]
    kept = [axes_kept(graph, node, i, ()) for i in positions]
    blocked = [{a for a, k in enumerate(axes) if k is None} for axes in kept]
    aligned = _align(moving, shapes, blocked)
    total: Any = 0.0
    for i, tangent in zip(positions, aligned, strict=True):
        if node.name in PASSING:
            minus = node.name == "neg" or (node.name == "sub" and i == 1)
            total += -tangent.value if minus else tangent.value
        else:
            fn = restrict(node, [i], inputs)
            slope = jax.jvp(fn, (inputs[i],), (jnp.ones_like(inputs[i]),))[1][0]
            total += tangent.value * slope
    return Tangent(total, aligned[0].directions, aligned[0].tied)


def _push_reshape(
    graph: Graph, node: Node, position: int, inputs: Any, tangent: Tangent, kept: Any
) -> Tangent:
    source, shape = graph.shape(node.ins[position]), graph.shape(node.outs[0])
    tangent = untie(tangent, source, [a for a, k in enumerate(kept) if k is None])
    count = len(tangent.directions)
    lead = tangent.value.shape[:count]
    if tangent.value.shape[count:] == (1,) * len(source):
        value = tangent.value.reshape(*lead, *(1,) * len(shape))
    else:
        value = jnp.broadcast_to(tangent.value, (*lead, *source)).reshape(*lead, *shape)
    return Tangent(value, tangent.directions, _place(tangent.tied, kept, len(shape)))


def _push_transpose(
    graph: Graph, node: Node, position: int, inputs: Any, tangent: Tangent, kept: Any
) -> Tangent:
    count = len(tangent.directions)
    axes = [count + a for a in node.params["permutation"]]
    value = tangent.value.transpose(*range(count), *axes)
    return Tangent(value, tangent.directions, _place(tangent.tied, kept, len(kept)))


def _push_broadcast(
    graph: Graph, node: Node, position: int, inputs: Any, tangent: Tangent, kept: Any
) -> Tangent:
    source, shape = graph.shape(node.ins[position]), graph.shape(node.outs[0])
    tangent = untie(tangent, source, [a for a, k in enumerate(kept) if k is None])
    count = len(tangent.directions)
    sizes = [1] * len(shape)
    for axis, place in enumerate(node.params["broadcast_dimensions"]):
        sizes[place] = tangent.value.shape[count + axis]
    value = tangent.value.reshape(*tangent.value.shape[:count], *sizes)
    return Tangent(value, tangent.directions, _place(tangent.tied, kept, len(shape)))


def _push_sum(
    graph: Graph, node: Node, position: int, inputs: Any, tangent: Tangent, kept: Any
) -> Tangent:
    """Sums plain axes; along a tied axis one place is left, so its labels become directions."""
    source, axes = graph.shape(node.ins[position]), node.params["axes"]
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


def _push_dot(
    graph: Graph, node: Node, position: int, inputs: Any, tangent: Tangent, kept: Any
) -> Tangent:
    """A product with something fixed; labels of contracted axes become directions, unsummed."""
    contracted, batch = node.params["dimension_numbers"]
    side, other = position, 1 - position
    count = len(tangent.directions)
    letters = iter([chr(97 + i) for i in range(26)] + [chr(65 + i) for i in range(26)])
    directions = [next(letters) for _ in range(count)]
    mine = [next(letters) for _ in range(len(tangent.tied))]
    theirs = [next(letters) for _ in range(jnp.ndim(inputs[other]))]
    for pairs in (contracted, batch):
        for a, b in zip(pairs[side], pairs[other], strict=True):
            theirs[b] = mine[a]
    free = [[], []]
    for s, names in ((side, mine), (other, theirs)):
        free[s] = [x for a, x in enumerate(names) if a not in (*contracted[s], *batch[s])]
    out = [mine[a] for a in batch[side]] + free[0] + free[1]
    moved = [a for a in contracted[side] if tangent.tied[a]]
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
    return Tangent(result, labels, _place(tangent.tied, kept, len(out)))


_CHEAP = {
    "reshape": _push_reshape,
    "squeeze": _push_reshape,
    "expand_dims": _push_reshape,
    "transpose": _push_transpose,
    "broadcast_in_dim": _push_broadcast,
    "reduce_sum": _push_sum,
    "dot_general": _push_dot,
}


def _is_kernel(node: Node, tangent: Tangent) -> bool:
    spec = node.params["dimension_numbers"].rhs_spec
    return node.params["batch_group_count"] == 1 and all(tangent.tied[a] for a in spec)


def _push_kernel(graph: Graph, node: Node, inputs: Any, tangent: Tangent) -> Tangent:
    """A convolution whose kernel moves: what each place of the kernel sees, its patches."""
    params = node.params
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    image, spec = inputs[0], numbers.rhs_spec
    kernel = graph.shape(node.ins[1])
    window = [kernel[a] for a in spec[2:]]
    num_places, depth, num_out = math.prod(window), kernel[spec[1]], kernel[spec[0]]
    image = image.transpose(numbers.lhs_spec).astype(tangent.value.dtype)
    patches = _patches(image, window, params)  # (places, batch, channels, *out)
    patches = patches.reshape(num_places, patches.shape[1], groups, depth, *patches.shape[3:])
    patches = jnp.moveaxis(patches, 3, 1)  # (places, depth, batch, groups, *out)
    patches = patches.reshape(*window, *patches.shape[1:])
    if groups > 1:
        patches = jnp.repeat(patches, num_out // groups, axis=len(window) + 2)
    # Axes of `value`: directions, then the kernel's as (out, in, *window).
    count, spatial = len(tangent.directions), len(window)
    value = tangent.value.transpose(*range(count), *(count + a for a in spec))
    value = jnp.moveaxis(value, count + 1, -1)  # (directions, out, *window, in)
    value = jnp.moveaxis(value, count, -1)  # (directions, *window, in, out)
    value = value.reshape(*value.shape[:-1], 1, value.shape[-1], *(1,) * spatial)
    value = value * patches  # (directions, *window, in, batch, out, *positions)
    lead = count + spatial + 1
    axes = [lead + numbers.out_spec.index(a) for a in range(len(numbers.out_spec))]
    value = value.transpose(*range(lead), *axes)
    labels = tangent.directions
    for axis in (*spec[2:], spec[1]):
        labels += tangent.tied[axis]
    value = value.reshape(*(label.size for label in labels), *value.shape[lead:])
    tied: list[tuple[Label, ...]] = [()] * len(axes)
    tied[numbers.out_spec[1]] = tangent.tied[spec[0]]
    return Tangent(value, labels, tuple(tied))


def _patches(image: jax.Array, window: Sequence[int], params: Any) -> jax.Array:
    """What each place of a kernel sees: (places, batch, channels, *positions)."""
    strides, spread_by = params["window_strides"], params["rhs_dilation"]
    batch, channels = image.shape[:2]
    if math.prod(window) > MAX_SHIFTS:
        patches = lax.conv_general_dilated_patches(
            image,
            window,
            strides,
            params["padding"],
            lhs_dilation=params["lhs_dilation"],
            rhs_dilation=spread_by,
            precision=lax.Precision.HIGHEST,
        )
        patches = patches.reshape(batch, channels, math.prod(window), *patches.shape[2:])
        return jnp.moveaxis(patches, 2, 0)
    padding = [
        (lo, hi, d - 1)
        for (lo, hi), d in zip(params["padding"], params["lhs_dilation"], strict=True)
    ]
    image = lax.pad(image, jnp.zeros((), image.dtype), [(0, 0, 0), (0, 0, 0), *padding])
    lengths = [
        (size - (w - 1) * d - 1) // s + 1
        for size, w, d, s in zip(image.shape[2:], window, spread_by, strides, strict=True)
    ]
    parts = []
    for place in range(math.prod(window)):
        offsets = []
        for w in reversed(window):
            place, offset = divmod(place, w)
            offsets.append(offset)
        starts = [o * d for o, d in zip(reversed(offsets), spread_by, strict=True)]
        limits = [
            start + (n - 1) * s + 1 for start, n, s in zip(starts, lengths, strides, strict=True)
        ]
        parts.append(
            lax.slice(image, (0, 0, *starts), (batch, channels, *limits), (1, 1, *strides))
        )
    return jnp.stack(parts)


def _flatten(tangents: Sequence[Tangent], inputs: Sequence[Any]) -> list[jax.Array]:
    """Each with one leading axis over the directions, stored in full, in its input's dtype."""
    count = len(tangents[0].directions)
    return [
        jnp.broadcast_to(t.value, (*t.value.shape[:count], *jnp.shape(x)))
        .reshape(-1, *jnp.shape(x))
        .astype(x.dtype)
        for t, x in zip(tangents, inputs, strict=True)
    ]


def _push_each(
    graph: Graph, node: Node, positions: list[int], inputs: list[Any], moving: list[Tangent]
) -> list[Tangent | None]:
    """Any operation: direction by direction, with the axes that it keeps apart left tied."""
    shapes = [graph.shape(node.ins[i]) for i in positions]
    kept = [
        axes_kept(graph, node, i, [bool(labels) for labels in t.tied])
        for i, t in zip(positions, moving, strict=True)
    ]
    blocked = [{a for a, k in enumerate(axes) if k is None} for axes in kept]
    if len(positions) > 1 and len({tuple(axes) for axes in kept}) > 1:
        blocked = [set(range(len(shape))) for shape in shapes]
    aligned = _align(moving, shapes, blocked)
    points = [inputs[i] for i in positions]
    fn = restrict(node, positions, inputs)
    directions = aligned[0].directions

    def push(*ts: Any) -> list[Any]:
        return jax.jvp(fn, tuple(points), ts)[1]

    results = iter(jax.vmap(push)(*_flatten(aligned, points)))
    outs: list[Tangent | None] = []
    for var in node.outs:
        if not jnp.issubdtype(graph.avals[var].dtype, jnp.floating):
            outs.append(None)
            continue
        value = next(results)
        value = value.astype(wide_dtype(value.dtype))
        value = value.reshape(*(label.size for label in directions), *graph.shape(var))
        tied = _place(aligned[0].tied, kept[0], value.ndim - len(directions))
        outs.append(Tangent(value, directions, tied) if graph.sources[var] else None)
    return outs


def _second(
    graph: Graph,
    node: Node,
    positions: list[int],
    values: Values,
    tangents: Tangents,
    adjoints: Values,
    order: Sequence[Label],
) -> Any:
    """⟨g, D²f[ẋ, ẋ]⟩ for every direction."""
    if not any(var in adjoints for var in node.outs):
        return 0.0
    inputs = [values[var] for var in node.ins]
    moving = [tangents[node.ins[i]] for i in positions]
    points = [inputs[i] for i in positions]
    shapes = [graph.shape(node.ins[i]) for i in positions]
    shape = graph.shape(node.outs[0])
    same_shape = node.elementwise and all(s == shape for s in shapes)
    fn = restrict(node, positions, inputs)
    if same_shape and len(positions) == 1:
        ones = jnp.ones_like(points[0])
        slope = lambda x: jax.jvp(fn, (x,), (ones,))[1][0]
        bend = jax.jvp(slope, (points[0],), (ones,))[1]
        (tangent,) = moving
        square = Tangent(tangent.value**2, tangent.directions, tangent.tied)
        return contract([square], bend * adjoints[node.outs[0]], order)
    blocked = [set() if same_shape else set(range(len(s))) for s in shapes]
    aligned = _align(moving, shapes, blocked)
    if same_shape and node.name == "mul":
        return contract(aligned, 2 * adjoints[node.outs[0]], order)
    flat = _flatten(aligned, points)
    directions = aligned[0].directions

    def bend_along(*ts: Any) -> list[Any]:
        first = lambda *xs: jax.jvp(fn, xs, ts)[1]
        return jax.jvp(first, tuple(points), ts)[1]

    bends = jax.vmap(bend_along)(*flat)
    floats = [v for v in node.outs if jnp.issubdtype(graph.avals[v].dtype, jnp.floating)]
    total: Any = 0.0
    for var, bend in zip(floats, bends, strict=True):
        if var in adjoints:
            bend = bend.astype(wide_dtype(bend.dtype))
            bend = bend.reshape(*(label.size for label in directions), *graph.shape(var))
            tied = aligned[0].tied if same_shape else ((),) * len(graph.shape(var))
            total += contract([Tangent(bend, directions, tied)], adjoints[var], order)
    return total
