"""What is known of single operations, against brute force on random parameters."""

import math
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from operations import OPERATIONS

from sapsel_jax._graph.affine import is_affine
from sapsel_jax._graph.axes import axes_kept
from sapsel_jax._graph.graph import restrict, trace
from sapsel_jax._passes.backward import pull
from sapsel_jax._passes.forward import spread
from sapsel_jax._primitives.tangents import Label, Tangent, dense, labels_of

SLOW_DRAWS: Any = (HealthCheck.too_slow, HealthCheck.filter_too_much)


def repeat(max_examples, check, strategy):
    """Runs a check on random operations in float64, the same ones every time."""

    @settings(
        max_examples=max_examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(SLOW_DRAWS),
    )
    @given(st.data())
    def repeated(data):
        check(data, data.draw(strategy))

    with jax.enable_x64(True):
        repeated()


def traced(operation):
    inputs = [jnp.asarray(x) for x in operation.inputs]
    graph = trace(lambda xs, _: operation.fn(*xs), inputs, None)
    return graph, graph.evaluate(inputs, None)


def moving_nodes(graph):
    """The operations that inputs reach differentiably, with the positions of those inputs."""
    for node in graph.nodes:
        positions = [i for i, var in enumerate(node.ins) if graph.sources[var]]
        if positions and any(graph.sources[var] for var in node.outs):
            yield node, positions


def check_axes(data, operation):
    """Each place of a kept axis moves one place of its axis of the output alone."""
    graph, values = traced(operation)
    for node, positions in moving_nodes(graph):
        inputs = [values[var] for var in node.ins]
        for i in positions:
            shape = graph.shape(node.ins[i])
            marked = [data.draw(st.booleans()) for _ in shape]
            kept = axes_kept(graph, node, i, marked)
            moved = moved_entries(restrict(node, [i], inputs), inputs[i])
            for target in {b for b in kept if b is not None}:
                group = [a for a, b in enumerate(kept) if b == target]
                assert len(group) == 1 or all(marked[a] for a in group)
                sizes = [shape[a] for a in group]
                for sources, targets, out_shape in moved:
                    assert out_shape[target] == math.prod(sizes)
                    places = np.ravel_multi_index(tuple(sources[group]), sizes)
                    np.testing.assert_array_equal(targets[target], places)


def moved_entries(fn, x):
    """Which entries of the results each entry of an array moves: indices of both, in pairs."""
    x = np.asarray(x)
    before = [np.asarray(y) for y in fn(x)]
    found = [np.zeros((0, x.ndim + y.ndim), int) for y in before]
    for place in np.ndindex(x.shape):
        changed = x.copy()
        changed[place] += 1e-3
        for k, y in enumerate(fn(changed)):
            targets = np.argwhere(np.asarray(y) != before[k])
            pairs = np.hstack([np.tile(np.array(place, int), (len(targets), 1)), targets])
            found[k] = np.vstack([found[k], pairs])
    return [(p.T[: x.ndim], p.T[x.ndim :], y.shape) for p, y in zip(found, before, strict=True)]


def check_affine(data, operation):
    """Where an operation is called affine second differences are zero."""
    graph, values = traced(operation)
    for node, positions in moving_nodes(graph):
        some = [i for i in positions if data.draw(st.booleans())] or positions[:1]
        if is_affine(graph, node, some):
            fn = restrict(node, some, [values[var] for var in node.ins])
            points = [np.asarray(values[node.ins[i]]) for i in some]
            steps = [1e-3 * np.random.default_rng(0).normal(size=x.shape) for x in points]
            before, at, after = (
                fn(*(x + t * step for x, step in zip(points, steps, strict=True)))
                for t in (-1, 0, 1)
            )
            for a, b, c in zip(before, at, after, strict=True):
                np.testing.assert_allclose(a - b, b - c, atol=1e-9)


def random_tangents(data, shapes, rng):
    """Tangents of some variables along the same labels, tied to the same axes where they can be."""
    ties = tuple((Label(n),) if data.draw(st.booleans()) else () for n in shapes[0])
    extra = tuple(Label(2) for _ in range(data.draw(st.integers(0, 1))))
    found = []
    for shape in shapes:
        alike = shape == shapes[0] and data.draw(st.integers(0, 3)) > 0
        tied = ties if alike else ((),) * len(shape)
        free = extra if alike else (*(x for labels in ties for x in labels), *extra)
        stored = [n if data.draw(st.booleans()) else 1 for n in shape]
        value = rng.normal(size=(*(x.size for x in free), *stored))
        found.append(Tangent(jnp.asarray(value), free, tied))
    return found


def check_passes(data, operation):
    """Tangents, the curvature that they meet, and cotangents are those of JAX."""
    graph, values = traced(operation)
    for node, positions in moving_nodes(graph):
        rng = np.random.default_rng(data.draw(st.integers(0, 9)))
        variables = list(dict.fromkeys(node.ins[i] for i in positions))
        variables = [v for v in variables if data.draw(st.booleans())] or variables[:1]
        tangents = random_tangents(data, [graph.shape(v) for v in variables], rng)
        outs = [v for v in node.outs if graph.is_float(v)]
        adjoints = {v: jnp.asarray(rng.normal(size=graph.shape(v))) for v in outs}
        rows = {v: jnp.asarray(rng.normal(size=(2, *graph.shape(v)))) for v in outs}
        arguments = (graph, node, values, variables, outs, tangents, adjoints, rows)
        got, want = jax.jit(lambda a=arguments: (passes(*a), oracle(*a)))()
        for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def passes(graph, node, values, variables, outs, tangents, adjoints, rows):
    order = labels_of(tangents[0])
    moved = dict(zip(variables, tangents, strict=True))
    curvature = spread(graph, [node], values, moved, adjoints, order)
    pushed = [dense(moved[v], graph.shape(v), order) for v in outs if graph.sources[v]]
    back = pull(graph, [node], values, adjoints, variables)
    many = pull(graph, [node], values, rows, variables, rows=True)
    curvature = jnp.broadcast_to(curvature, [x.size for x in order])
    return curvature, pushed, [back[v] for v in variables], [many[v] for v in variables]


def oracle(graph, node, values, variables, outs, tangents, adjoints, rows):
    order = labels_of(tangents[0])
    sizes = [x.size for x in order]
    points = tuple(values[v] for v in variables)

    def fn(*xs):
        now = {**values, **dict(zip(variables, xs, strict=True))}
        found = dict(zip(node.outs, node.apply(*(now[v] for v in node.ins)), strict=True))
        return [found[v] for v in outs]

    def along(*ts):
        first = lambda *xs: jax.jvp(fn, xs, ts)[1]
        pushed, bends = jax.jvp(first, points, ts)
        return pushed, sum(jnp.vdot(bend, adjoints[v]) for v, bend in zip(outs, bends, strict=True))

    for _ in order:
        along = jax.vmap(along)
    dense_tangents = [
        dense(t, graph.shape(v), order) for v, t in zip(variables, tangents, strict=True)
    ]
    pushed, curvature = along(*dense_tangents)
    pushed = [p for v, p in zip(outs, pushed, strict=True) if graph.sources[v]]
    # Some operations have a reverse derivative in all inputs together only.
    inputs = [v for v in node.ins if graph.sources[v]]

    def whole(*xs):
        full = iter(xs)
        found = node.apply(*(next(full) if graph.sources[v] else values[v] for v in node.ins))
        return [y for y in found if jnp.issubdtype(y.dtype, jnp.floating)]

    def back(cotangents):
        parts = jax.vjp(whole, *(values[v] for v in inputs))[1](cotangents)
        of = lambda v: sum(part for w, part in zip(inputs, parts, strict=True) if w == v)
        return [of(v) for v in variables]

    once = back([adjoints[v] for v in outs])
    many = jax.vmap(back)([rows[v] for v in outs])
    return jnp.broadcast_to(curvature, sizes), pushed, once, many


@pytest.mark.parametrize("name", OPERATIONS)
def test_axes_that_are_kept_apart(name):
    repeat(5, check_axes, OPERATIONS[name])


@pytest.mark.parametrize("name", OPERATIONS)
def test_affine_operations_do_not_bend(name):
    repeat(2, check_affine, OPERATIONS[name])


def test_tangents_and_cotangents():
    repeat(12, check_passes, st.one_of(list(OPERATIONS.values())))


@pytest.mark.slow
@pytest.mark.parametrize("check", [check_axes, check_affine, check_passes])
@pytest.mark.parametrize("name", OPERATIONS)
def test_facts_on_many_operations(name, check):
    repeat(20 if check is check_passes else 100, check, OPERATIONS[name])
