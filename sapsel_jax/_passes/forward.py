"""First-order tangents through the operations of a loss, and the curvature that they meet.

For a direction v the second derivative of a loss is the sum over its operations of ⟨g, D²f[ẋ, ẋ]⟩:
g the adjoint of the operation's output, ẋ the tangents of its inputs. One first-order tangent per
direction is enough, for any loss.
"""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Container, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from sapsel_jax._base.precision import wide_dtype, widen
from sapsel_jax._graph.affine import is_affine
from sapsel_jax._graph.axes import axes_kept
from sapsel_jax._graph.graph import Graph, Node, Values, restrict
from sapsel_jax._primitives.contraction import contract
from sapsel_jax._primitives.tangents import (
    Factor,
    Label,
    Tangent,
    Tangents,
    align,
    everywhere,
    factored,
    multiplied,
    placed,
    relabelled,
    squared,
    untie_lost,
)

Twins = Mapping[Label, Label]
"""For some labels another one of the same size."""


def spread(
    graph: Graph,
    nodes: Iterable[Node],
    values: Values,
    tangents: Tangents,
    adjoints: Values | None = None,
    order: Sequence[Label] = (),
    ends: Container[Node] = (),
    twins: Twins = MappingProxyType({}),
) -> Any:
    """Carries tangents through operations, adding them to `tangents`.

    Returns the curvature that they met, with an axis for each label in `order`: the sum of
    ⟨g, D²f[ẋ, ẋ]⟩ over the operations that are not affine, or 0 without `adjoints`. Tangents go no
    further than the operations in `ends`. With `twins` it is ⟨g, D²f[ẋ, ẏ]⟩, or something else with
    the same quadratic form, where the labels of ẏ are those of ẋ, or their twins.
    """
    curvature: Any = 0.0
    for node in nodes:
        positions = [i for i, var in enumerate(node.ins) if var in tangents]
        if not positions:
            continue
        if adjoints is not None and not is_affine(graph, node, positions):
            curvature += _second(graph, node, positions, values, tangents, adjoints, order, twins)
        if node not in ends:
            outs = _push(graph, node, positions, values, tangents)
            tangents.update((v, t) for v, t in zip(node.outs, outs, strict=True) if t is not None)
    return curvature


def _push(
    graph: Graph, node: Node, positions: list[int], values: Values, tangents: Tangents
) -> list[Tangent | None]:
    inputs = [values[var] for var in node.ins]
    moving, shared = _set_apart(graph, node, positions, tangents)
    outs = _push_values(graph, node, positions, inputs, moving)
    return [
        out and factored(dataclasses.replace(out, factors=(*out.factors, *shared))) for out in outs
    ]


def _set_apart(
    graph: Graph, node: Node, positions: list[int], tangents: Tangents
) -> tuple[list[Tangent], tuple[Factor, ...]]:
    """The tangents of the inputs without factors, and the factors that the output has in common.

    A factor goes through an operation as it is if the operation keeps its axes apart, and if all
    inputs that move have it on the same axis of the output. Others are multiplied out.
    """
    moving = [tangents[node.ins[i]] for i in positions]
    found: list[dict[tuple[int, tuple[int, ...]], tuple[Factor, Factor]]] = []
    for i, tangent in zip(positions, moving, strict=True):
        kept = axes_kept(graph, node, i, [bool(labels) for labels in tangent.tied])
        mine = {}
        for factor in tangent.factors:
            axes = [kept[a] for a in factor.axes]
            if all(a is not None and kept.count(a) == 1 for a in axes):
                moved = dataclasses.replace(factor, axes=tuple(a for a in axes if a is not None))
                mine[id(factor.array), moved.axes] = factor, moved
        found.append(mine)
    common = [key for key in found[0] if all(key in others for others in found)]
    plain = []
    for tangent, mine in zip(moving, found, strict=True):
        apart = [mine[key][0] for key in common]
        rest = multiplied(tangent, [factor for factor in tangent.factors if factor not in apart])
        plain.append(dataclasses.replace(rest, factors=()))
    return plain, tuple(found[0][key][1] for key in common)


def _push_values(
    graph: Graph, node: Node, positions: list[int], inputs: list[Any], moving: list[Tangent]
) -> list[Tangent | None]:
    shape = graph.shape(node.outs[0])
    if node.elementwise and all(len(t.tied) == len(shape) for t in moving):
        return [_scale(graph, node, positions, inputs, moving)]
    push, parts = node.facts.push, []
    if push and (len(positions) == 1 or node.facts.product):
        for i, tangent in zip(positions, moving, strict=True):
            kept = axes_kept(graph, node, i, [bool(labels) for labels in tangent.tied])
            parts.append(push(graph.signature(node), i, inputs, tangent, kept))
        if all(parts):
            aligned = align(parts, [shape] * len(parts), [set()] * len(parts))
            total = functools.reduce(operator.add, (part.value for part in aligned))
            return [dataclasses.replace(aligned[0], value=total)]
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
        signs = node.facts.signs
        if signs:
            total += tangent.value if signs[min(i, len(signs) - 1)] > 0 else -tangent.value
        else:
            fn = restrict(node, [i], inputs)
            slope = jax.jvp(fn, (inputs[i],), (jnp.ones_like(inputs[i]),))[1][0]
            total += tangent.value * widen(slope)[(None,) * len(tangent.directions)]
    return Tangent(total, aligned[0].directions, aligned[0].tied)


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
    twins: Twins,
) -> Any:
    """⟨g, D²f[ẋ, ẋ]⟩ for every direction, or every pair of twins."""
    if not any(var in adjoints for var in node.outs):
        return 0.0
    inputs = [values[var] for var in node.ins]
    moving = [tangents[node.ins[i]] for i in positions]
    if node.elementwise:
        return _second_elementwise(graph, node, values, tangents, adjoints, order, twins)
    if node.facts.places:
        places, sizes = node.facts.places(graph.signature(node))
        moving[1] = relabelled(moving[1], twins)
        return contract(moving, 2 * adjoints[node.outs[0]], order, places=places, sizes=sizes)
    points = [inputs[i] for i in positions]
    shapes = [graph.shape(node.ins[i]) for i in positions]
    fn = restrict(node, positions, inputs)
    blocked = [set(range(len(s))) for s in shapes]
    aligned = align([multiplied(tangent) for tangent in moving], shapes, blocked)
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
            tied = ((),) * len(graph.shape(var))
            total += contract([Tangent(bend, directions, tied)], adjoints[var], order)
    return total


def _second_elementwise(
    graph: Graph,
    node: Node,
    values: Values,
    tangents: Tangents,
    adjoints: Values,
    order: Sequence[Label],
    twins: Twins,
) -> Any:
    """The same place by place, from the second derivatives in each pair of inputs."""
    adjoint = adjoints[node.outs[0]]
    moving: dict[int, Tangent] = {}
    for i, var in enumerate(node.ins):
        if var in tangents:
            shape = graph.shape(var)
            tangent = untie_lost(tangents[var], shape, axes_kept(graph, node, i, ()))
            moving[var] = tangent if shape else everywhere(tangent, adjoint.ndim)
    total: Any = 0.0
    for a, b in itertools.combinations_with_replacement(moving, 2):
        if is_affine(graph, node, [i for i, var in enumerate(node.ins) if var in (a, b)]):
            continue
        bend = _bend(node, a, b, values)
        weights = bend * adjoint if a == b else 2 * bend * adjoint
        if a == b and not twins:
            total += contract([squared(moving[a])], weights, order)
        else:
            total += contract([moving[a], relabelled(moving[b], twins)], weights, order)
    return total


def _bend(node: Node, a: int, b: int, values: Values) -> jax.Array:
    """The second derivative of an elementwise operation in two of its inputs, place by place."""
    along = lambda fn, x: jax.jvp(fn, (x,), (jnp.ones_like(x),))[1]

    def slope(other: jax.Array) -> jax.Array:
        now = {**values, b: other}
        fn = lambda x: node.apply(*({**now, a: x}[var] for var in node.ins))[0]
        return along(fn, now[a])

    return along(slope, values[b])
