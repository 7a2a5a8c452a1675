"""First-order tangents through the operations of a loss, and the curvature that they meet.

For a direction v the second derivative of a loss is the sum over its operations of ⟨g, D²f[ẋ, ẋ]⟩:
g the adjoint of the operation's output, ẋ the tangents of its inputs. One first-order tangent per
direction is enough, for any loss.
"""

from collections.abc import Container, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sapsel_jax._base.precision import wide_dtype
from sapsel_jax._graph.affine import is_affine
from sapsel_jax._graph.axes import axes_kept
from sapsel_jax._graph.equations import PASSING
from sapsel_jax._graph.graph import Graph, Node, Values, restrict
from sapsel_jax._passes.convolutions import is_kernel, push_kernel
from sapsel_jax._passes.tangents import Label, Tangent, Tangents, align, contract, placed, untie


def spread(
    graph: Graph,
    nodes: Iterable[Node],
    values: Values,
    tangents: Tangents,
    adjoints: Values | None = None,
    order: Sequence[Label] = (),
    ends: Container[Node] = (),
) -> Any:
    """Carries tangents through operations, adding them to `tangents`.

    Returns the curvature that they met, with an axis for each label in `order`: the sum of
    ⟨g, D²f[ẋ, ẋ]⟩ over the operations that are not affine, or 0 without `adjoints`. Tangents go no
    further than the operations in `ends`.
    """
    curvature: Any = 0.0
    for node in nodes:
        positions = [i for i, var in enumerate(node.ins) if var in tangents]
        if not positions:
            continue
        if adjoints is not None and not is_affine(graph, node, positions):
            curvature += _second(graph, node, positions, values, tangents, adjoints, order)
        if node not in ends:
            outs = _push(graph, node, positions, values, tangents)
            tangents.update((v, t) for v, t in zip(node.outs, outs, strict=True) if t is not None)
    return curvature


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
        if node.name == "conv_general_dilated" and i == 1 and is_kernel(node, tangent):
            return [push_kernel(graph, node, inputs, tangent)]
    return _push_each(graph, node, positions, inputs, moving)


def _scale(
    graph: Graph, node: Node, positions: list[int], inputs: list[Any], moving: list[Tangent]
) -> Tangent:
    """Elementwise: the slope at each place, summed over the inputs that move."""
    shapes = [graph.shape(node.ins[i]) for i in positions]
    kept = [axes_kept(graph, node, i, ()) for i in positions]
    blocked = [{a for a, k in enumerate(axes) if k is None} for axes in kept]
    aligned = align(moving, shapes, blocked)
    total: Any = 0.0
    for i, tangent in zip(positions, aligned, strict=True):
        if node.name in PASSING:
            minus = node.name == "neg" or (node.name == "sub" and i == 1)
            total += -tangent.value if minus else tangent.value
        else:
            fn = restrict(node, [i], inputs)
            slope = jax.jvp(fn, (inputs[i],), (jnp.ones_like(inputs[i]),))[1][0]
            total += tangent.value * slope[(None,) * len(tangent.directions)]
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
    return Tangent(value, tangent.directions, placed(tangent.tied, kept, len(shape)))


def _push_transpose(
    graph: Graph, node: Node, position: int, inputs: Any, tangent: Tangent, kept: Any
) -> Tangent:
    return _permute(tangent, node.params["permutation"])


def _permute(tangent: Tangent, order: Sequence[int]) -> Tangent:
    """The axes of the variable in another order."""
    count = len(tangent.directions)
    value = tangent.value.transpose(*range(count), *(count + a for a in order))
    return Tangent(value, tangent.directions, tuple(tangent.tied[a] for a in order))


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
    return Tangent(value, tangent.directions, placed(tangent.tied, kept, len(shape)))


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
    return Tangent(result, labels, placed(tangent.tied, kept, len(out)))


_CHEAP = {
    "reshape": _push_reshape,
    "squeeze": _push_reshape,
    "expand_dims": _push_reshape,
    "transpose": _push_transpose,
    "broadcast_in_dim": _push_broadcast,
    "reduce_sum": _push_sum,
    "dot_general": _push_dot,
}


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
    aligned = align(moving, shapes, blocked)
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
        tied = placed(aligned[0].tied, kept[0], value.ndim - len(directions))
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
    aligned = align(moving, shapes, blocked)
    if same_shape and node.name == "mul":
        return contract(aligned, 2 * adjoints[node.outs[0]], order)
    if node.name == "dot_general" and not shape and len(moving) == 2:
        # An inner product: with the axes of both in one order it is an elementwise product.
        (lhs, rhs), _ = node.params["dimension_numbers"]
        swapped = _permute(moving[1], [rhs[lhs.index(a)] for a in range(len(lhs))])
        aligned = align([moving[0], swapped], [shapes[0]] * 2, [set(), set()])
        return contract(aligned, jnp.broadcast_to(2 * adjoints[node.outs[0]], shapes[0]), order)
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
