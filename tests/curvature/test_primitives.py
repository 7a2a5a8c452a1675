"""What is known of single operations, against brute force on random parameters."""

import dataclasses
import itertools
import math
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from jax import lax
from operations import OPERATIONS, STEP

from sapsel_jax._graph.affine import is_affine
from sapsel_jax._graph.axes import axes_kept
from sapsel_jax._graph.graph import restrict
from sapsel_jax._graph.tracing import trace
from sapsel_jax._passes.backward import pull
from sapsel_jax._passes.forward import spread
from sapsel_jax._primitives.tangents import Factor, Label, Tangent, dense, factored, labels_of

SLOW_DRAWS: Any = (HealthCheck.too_slow, HealthCheck.filter_too_much)


AT_ONCE = 10
"""So many operations are drawn together: one program for all is compiled in half the time."""
# Code that runs once need not be fast; and XLA's simplifier aborts on some convolutions.
COMPILER: Any = {"xla_backend_optimization_level": 0, "xla_disable_hlo_passes": "algsimp"}


def repeat(num_draws, check, strategy):
    """Runs a check on random operations in float64, the same ones every time."""

    @settings(
        max_examples=1 + -(-num_draws // AT_ONCE),  # the first is one operation of the simplest
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(SLOW_DRAWS),
    )
    @given(st.data())
    def repeated(data):
        count = data.draw(st.sampled_from((1, *[min(num_draws, AT_ONCE)] * 20)))
        operations = [data.draw(strategy) for _ in range(count)]
        asks, judges = zip(*(check(data, operation) for operation in operations), strict=True)
        together = lambda inputs: [ask(xs) for ask, xs in zip(asks, inputs, strict=True)]
        inputs = [operation.inputs for operation in operations]
        answers = jax.jit(together, compiler_options=COMPILER)(inputs)
        for judge, answer in zip(judges, jax.tree.map(np.asarray, answers), strict=True):
            judge(answer)

    with jax.enable_x64(True):
        repeated()


def traced(operation):
    return trace(lambda xs, _: operation.fn(*xs), list(operation.inputs), None)


def assert_close(a, b):
    digits = 1e-9 if a.dtype == b.dtype == np.float64 else 1e-6  # some operations cast
    np.testing.assert_allclose(a, b, rtol=digits, atol=digits)


def moving_nodes(graph):
    """The operations that inputs reach differentiably, with the positions of those inputs."""
    for node in graph.nodes:
        positions = [i for i, var in enumerate(node.ins) if graph.sources[var]]
        if positions and any(graph.sources[var] for var in node.outs):
            yield node, positions


def check_axes(data, operation):
    """Each place of a kept axis moves one place of its axis of the output alone."""
    graph, kept = traced(operation), []
    for node, positions in moving_nodes(graph):
        for i in positions:
            marked = [data.draw(st.booleans()) for _ in graph.shape(node.ins[i])]
            kept.append((node, i, marked, axes_kept(graph, node, i, marked)))

    def ask(inputs):
        values = graph.evaluate(inputs, None)
        return [
            moved_entries(
                restrict(node, [i], [values[var] for var in node.ins]), values[node.ins[i]]
            )
            for node, i, _, _ in kept
        ]

    def judge(answers):
        for (node, i, marked, targets), moved in zip(kept, answers, strict=True):
            shape = graph.shape(node.ins[i])
            for target in {b for b in targets if b is not None}:
                group = [a for a, b in enumerate(targets) if b == target]
                assert len(group) == 1 or all(marked[a] for a in group)
                for table in moved:
                    assert table.shape[len(shape) + target] == math.prod(shape[a] for a in group)
                    pairs = np.argwhere(table).T
                    places = np.ravel_multi_index(tuple(pairs[group]), [shape[a] for a in group])
                    np.testing.assert_array_equal(pairs[len(shape) + target], places)

    return ask, judge


def moved_entries(fn, x):
    """Which entries of the results each entry of an array moves, as tables of yes and no."""
    steps = STEP * jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)
    before, after = fn(x), lax.map(lambda step: fn(x + step), steps)
    # The same numbers may be rounded in two ways.
    moved = [jnp.abs(b - a) > 1e-7 for a, b in zip(before, after, strict=True)]
    return [table.reshape(*x.shape, *table.shape[1:]) for table in moved]


def check_affine(data, operation):
    """Where an operation is called affine second differences are zero."""
    graph, affine = traced(operation), []
    for node, positions in moving_nodes(graph):
        some = [i for i in positions if data.draw(st.booleans())] or positions[:1]
        if is_affine(graph, node, some):
            affine.append((node, some))

    def ask(inputs):
        values = graph.evaluate(inputs, None)
        return [differences(node, some, values) for node, some in affine]

    def judge(answers):
        for first, second in itertools.chain.from_iterable(answers):
            assert_close(first, second)

    return ask, judge


def differences(node, some, values):
    """How results change along a line of some inputs, before the point and after it."""
    inputs = [values[var] for var in node.ins]
    fn = restrict(node, some, inputs)
    rng = np.random.default_rng(0)
    steps = [STEP * rng.uniform(-1, 1, inputs[i].shape) for i in some]
    along = lambda t: fn(*(inputs[i] + t * step for i, step in zip(some, steps, strict=True)))
    return [(y[1] - y[0], y[2] - y[1]) for y in lax.map(along, jnp.asarray([-1.0, 0.0, 1.0]))]


def random_tangents(data, shapes, rng):
    """Tangents of some variables along the same labels, tied to the same axes where they can be."""
    ties = tuple((Label(n),) if data.draw(st.booleans()) else () for n in shapes[0])
    extra = tuple(Label(2) for _ in range(data.draw(st.integers(0, 1))))
    if data.draw(st.booleans()):  # in parts, as a reshape leaves them
        for labels in (*ties, extra):
            for label in labels:
                label.split([1, label.size])
    shared, found = random_factors(data, shapes[0], ties, rng), []
    for shape in shapes:
        alike = shape == shapes[0] and data.draw(st.integers(0, 3)) > 0
        tied = ties if alike else ((),) * len(shape)
        free = extra if alike else (*(x for labels in ties for x in labels), *extra)
        stored = [n if data.draw(st.booleans()) else 1 for n in shape]
        value = rng.normal(size=(*(x.size for x in free), *stored))
        tangent = Tangent(jnp.asarray(value), free, tied)
        tangent = factored(tangent) if data.draw(st.booleans()) else tangent
        # What tangents have in common stays apart; of another shape the numbers are others.
        common = shared if alike else [constant(label) for f in shared for label in f.labels]
        found.append(dataclasses.replace(tangent, factors=(*tangent.factors, *common)))
    return found


def random_factors(data, shape, ties, rng):
    """One factor along some axes of a variable that no label is tied to, or none."""
    if data.draw(st.booleans()):
        return ()
    axes = tuple(a for a in range(len(shape)) if not ties[a] and data.draw(st.booleans()))
    array = jnp.asarray(rng.normal(size=(2, *(shape[a] for a in axes))))
    return (Factor(array, (Label(2),), axes),)


def constant(label):
    """A factor that changes along no axis."""
    return Factor(jnp.arange(1.0, label.size + 1), (label,), ())


def check_passes(data, operation):
    """Tangents, the curvature that they meet, and cotangents are those of JAX."""
    graph, drawn = traced(operation), []
    for node, positions in moving_nodes(graph):
        rng = np.random.default_rng(data.draw(st.integers(0, 9)))
        variables = list(dict.fromkeys(node.ins[i] for i in positions))
        variables = [v for v in variables if data.draw(st.booleans())] or variables[:1]
        tangents = random_tangents(data, [graph.shape(v) for v in variables], rng)
        outs = [v for v in node.outs if graph.is_float(v)]
        normal = lambda v, *size, rng=rng: rng.normal(size=size).astype(graph.avals[v].dtype)
        adjoints = {v: normal(v, *graph.shape(v)) for v in outs}
        rows = {v: normal(v, 2, *graph.shape(v)) for v in outs}
        drawn.append((node, variables, outs, tangents, adjoints, rows))

    def ask(inputs):
        values = graph.evaluate(inputs, None)
        found = []
        for node, variables, outs, tangents, *cotangents in drawn:
            arguments = (graph, node, values, variables, outs, tangents, *cotangents)
            found.append((passes(*arguments), oracle(*arguments)))
        return found

    def judge(answers):
        for pair in answers:
            for a, b in zip(*map(jax.tree.leaves, pair), strict=True):
                assert_close(a, b)

    return ask, judge


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


# The fast tests compile by an emitter that refuses paddings below zero.
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "pad"])
def test_axes_that_are_kept_apart(name):
    repeat(2, check_axes, OPERATIONS[name])


@pytest.mark.parametrize("name", OPERATIONS)
def test_affine_operations_do_not_bend(name):
    repeat(2, check_affine, OPERATIONS[name])


def test_tangents_and_cotangents():
    repeat(12, check_passes, st.one_of(list(OPERATIONS.values())))


@pytest.mark.slow
@pytest.mark.parametrize("check", [check_axes, check_affine, check_passes])
@pytest.mark.parametrize("name", OPERATIONS)
def test_facts_on_many_operations(name, check):
    kinds = 4 if name in ("of one", "of two") else 1  # of which there are many
    repeat(kinds * (10 if check is check_passes else 20), check, OPERATIONS[name])
