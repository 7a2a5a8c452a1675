"""Custom derivative rules: every diagonal is that of `jax.jvp` of `jax.grad`, as they stand."""

import zlib

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
import rules
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.ode import odeint

import sapsel_jax as sap

pytestmark = pytest.mark.usefixtures("quick_compiler")
FUNCTIONS = rules.ruled_functions()
QUICK = (
    "jvp mixes",
    "jvp mixes in its value alone, by its value",
    "jvp turns round",
    "jvp rounds",
    "jvp rounds, by its value",
    "vjp rounds",
    "vjp clips",
    "jvp in jvp",
)
NAMES = [x if x in QUICK else pytest.param(x, marks=pytest.mark.slow) for x in FUNCTIONS]


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def loss_with(fn):
    """Leaves before, between and after two calls of a function."""

    def loss_fn(params, x):
        hidden = fn(params["first"] @ x + params["bias"])
        out = fn(jnp.tanh(params["last"] * hidden)) * x[:2]
        return jnp.sum(out**2) + jnp.sin(out).sum()

    return loss_fn


def model_with(fn):
    return lambda params, x: fn(params["first"] @ x + params["bias"]) * params["last"]


def inputs():
    keys = jax.random.split(jax.random.key(5), 4)
    shapes = {"first": (2, 3), "bias": (2,), "last": (2,)}
    params = {
        name: networks.normal(key, *shape)
        for (name, shape), key in zip(shapes.items(), keys, strict=False)
    }
    return networks.as_float64((params, networks.normal(keys[3], 2, 3)))


def mean_over_examples(of_one, params, batch):
    """A rule may depend on the size of a cotangent, so that the mean is taken last."""
    each = jax.jit(jax.vmap(of_one, (None, 0)))(params, batch)
    return jax.tree.map(lambda x: x.mean(0), each)


def oracle(loss_fn, params, batch):
    of_one = lambda p, x: sap.basis_diagonal(lambda q: loss_fn(q, x))(p)
    return mean_over_examples(of_one, params, batch)


def check(got, want):
    chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-10)


def check_exact(fn, plain=None):
    params, batch = inputs()
    loss_fn = loss_with(fn)
    want = oracle(loss_with(plain or fn), params, batch)
    check(jax.jit(sap.exact_diagonal(loss_fn))(params, batch), want)
    assert len(str(sap.explain(loss_fn, params, batch[0])).splitlines()) >= 6


def check_estimates(fn, plain=None, estimators=(sap.hutchinson_diagonal, sap.propagated_diagonal)):
    params, batch = inputs()
    want = oracle(loss_with(plain or fn), params, batch)
    for estimator in estimators:
        diagonal = estimator(loss_with(fn), num_probes=300, return_error=True)
        got, error = jax.jit(diagonal)(params, batch, jax.random.key(1))
        for g, e, w in zip(*map(jax.tree.leaves, (got, error, want)), strict=True):
            np.testing.assert_array_less(abs(g - w), 5 * e + 1e-9)


def wrapped(name):
    """A function in one of the places that it may stand in, each in another."""
    wrappers = list(rules.WRAPPERS.values())
    return wrappers[zlib.crc32(name.encode()) % len(wrappers)](FUNCTIONS[name])


@pytest.mark.parametrize("name", NAMES)
def test_exact_is_the_oracle_and_explain_says_how(name):
    check_exact(wrapped(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_estimates_are_near_the_oracle(name):
    check_estimates(wrapped(name))


@pytest.mark.slow
@settings(max_examples=6, deadline=None, derandomize=True)
@given(*map(st.sampled_from, (list(FUNCTIONS), *[list(rules.WRAPPERS)] * 2)))
def test_exact_is_the_oracle_in_any_two_places(name, inner, outer):
    check_exact(rules.WRAPPERS[outer](rules.WRAPPERS[inner](FUNCTIONS[name])))


@pytest.mark.slow
def test_sampled_gauss_newton_takes_the_slopes_of_the_rules():
    params, batch = inputs()
    output_loss = lambda out, x: jnp.sum(jnp.cosh(out) * x[:2])  # one output moves each entry
    model_fn = model_with(FUNCTIONS["jvp rounds, by its value"])
    want = sap.gauss_newton_diagonal(model_fn, output_loss)(params, batch)
    sampled = sap.sampled_gauss_newton_diagonal(model_fn, output_loss)
    check(sampled(params, batch, jax.random.key(2)), want)


def test_zero_size_arrays_on_the_way():
    loss_fn = lambda w, x: jnp.sum(jax.lax.associative_scan(jnp.multiply, jnp.sin(w * x)) ** 2)
    w, batch = jnp.array([0.5, 0.8]), jnp.ones((1, 2))
    check(sap.exact_diagonal(loss_fn)(w, batch), oracle(loss_fn, w, batch))


@pytest.mark.parametrize("name", NAMES)
def test_fisher_and_gauss_newton_take_the_slopes_of_the_rules(name):
    params, batch = inputs()
    loss_fn = loss_with(wrapped(name))
    squared = lambda p, x: jax.tree.map(jnp.square, jax.grad(loss_fn)(p, x))
    got = jax.jit(sap.empirical_fisher_diagonal(loss_fn))(params, batch)
    check(got, mean_over_examples(squared, params, batch))
    if "clips" in name:  # a pullback that is not linear has no Jacobian
        return
    model_fn, output_loss = model_with(wrapped(name)), lambda out, x: jnp.sum(jnp.cosh(out) * x[:2])

    def gauss_newton(p, x):
        jacobian = jax.jacrev(model_fn)(p, x)
        curve = jax.hessian(lambda out: output_loss(out, x))(model_fn(p, x))
        return jax.tree.map(lambda j: jnp.einsum("a...,ab,b...->...", j, curve, j), jacobian)

    got = jax.jit(sap.gauss_newton_diagonal(model_fn, output_loss))(params, batch)
    check(got, mean_over_examples(gauss_newton, params, batch))


def test_a_rule_that_mixes_entries_of_an_elementwise_value():
    loss_fn = lambda w, x: jnp.sum(FUNCTIONS["jvp mixes"](w * x) ** 2)
    w, batch = jnp.array([1.0, 2.0]), jnp.ones((1, 2))
    check(sap.exact_diagonal(loss_fn)(w, batch), jnp.ones(2))
    estimate = sap.propagated_diagonal(loss_fn, num_probes=400, return_error=True)
    got, error = estimate(w, batch, jax.random.key(0))
    np.testing.assert_array_less(abs(got - 1), 5 * error)


@pytest.mark.parametrize(
    ("name", "want"),
    [("jvp rounds", 18.0), ("jvp rounds, by its value", 0.0), ("vjp rounds", 0.0)],
)
def test_straight_through_estimators(name, want):
    """Two times the slope when it is taken first, times the slope of the value in the rule."""
    loss_fn = lambda w, x: jnp.sum(FUNCTIONS[name](w * x) ** 2)
    w, batch = jnp.array([0.4, -1.1]), jnp.full((2, 2), 3.0)
    want = jnp.full(2, want)
    check(oracle(loss_fn, w, batch), want)
    check(sap.exact_diagonal(loss_fn)(w, batch), want)
    check(sap.hutchinson_diagonal(loss_fn)(w, batch, jax.random.key(0)), want)
    check(sap.propagated_diagonal(loss_fn)(w, batch, jax.random.key(0)), want)


TWINS = [x if "rounds" in x else pytest.param(x, marks=pytest.mark.slow) for x in rules.TWINS]


@pytest.mark.parametrize("name", TWINS)
def test_rules_that_run_in_reverse_only(name):
    fn, plain = rules.TWINS[name]
    check_exact(fn, plain)
    params, batch = inputs()
    check(oracle(loss_with(fn), params, batch), oracle(loss_with(plain), params, batch))


@pytest.mark.slow
@pytest.mark.parametrize("name", rules.TWINS)
def test_estimates_of_rules_that_run_in_reverse_only(name):
    check_estimates(*rules.TWINS[name])


@jax.custom_vjp
def loops_back(x):
    return x**3


def back_by_a_loop(x, g):
    go_on, step = lambda state: state[0] < 2, lambda state: (state[0] + 1, state[1] * x)
    return (3 * jax.lax.while_loop(go_on, step, (0, g))[1],)


loops_back.defvjp(lambda x: (loops_back(x), x), back_by_a_loop)


def test_rules_without_second_derivatives_are_refused():
    loss_fn = lambda w, x: jnp.sum(loops_back(w * x))
    w, batch = jnp.array([0.5, 0.8]), jnp.ones((1, 2))
    check(sap.empirical_fisher_diagonal(loss_fn)(w, batch), 9 * w**4)
    calls = [
        lambda: sap.basis_diagonal(lambda p: loss_fn(p, batch[0]))(w),
        lambda: sap.exact_diagonal(loss_fn)(w, batch),
        lambda: sap.hutchinson_diagonal(loss_fn)(w, batch, jax.random.key(0)),
        lambda: sap.propagated_diagonal(loss_fn)(w, batch, jax.random.key(0)),
    ]
    for call in calls:
        with pytest.raises(NotImplementedError, match="no second derivatives of this function"):
            call()


@pytest.mark.slow
@pytest.mark.parametrize("gauss_newton", [False, True])
def test_second_order_updates_by_rules_that_run_in_reverse_only(gauss_newton):
    params, batch = inputs()

    def updated(fn):
        output_loss = lambda out, x: jnp.sum(jnp.cosh(out) * x[:2])
        model_fn = model_with(fn)
        loss_fn = lambda p, x: output_loss(model_fn(p, x), x)
        parts = {"model_fn": model_fn, "output_loss_fn": output_loss} if gauss_newton else {}
        run = lambda p, b: sap.second_order_update(
            loss_fn, p, b[:1], None, b[1:], damping=3.0, solver=sap.dense_solver(), **parts
        )
        return jax.jit(run)(params, batch)[0]

    fn, plain = rules.TWINS["vjp scales, calls itself"]
    got, want = updated(fn), updated(plain)
    check(got, want)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.any(a != b), got, params)))


def closes_over_the_example(w, x):
    @jax.custom_jvp
    def scaled(z):
        return z * x

    scaled.defjvp(lambda primals, tangents: (scaled(*primals), tangents[0] * x))
    return jnp.sum(scaled(w * x) ** 2)


def closes_over_the_example_in_reverse(w, x):
    scaled = jax.custom_gradient(lambda z: (z * x, lambda g: g * x))
    return jnp.sum(scaled(w * x) ** 2)


@pytest.mark.parametrize("loss_fn", [closes_over_the_example, closes_over_the_example_in_reverse])
def test_rules_that_close_over_the_example(loss_fn):
    w, batch = jnp.array([0.5, 0.8]), jnp.array([[0.3, 0.4], [1.0, 2.0]])
    want = 2 * (batch**4).mean(0)
    check(sap.exact_diagonal(loss_fn)(w, batch), want)
    check(sap.propagated_diagonal(loss_fn)(w, batch, jax.random.key(0)), want)
    fisher = ((2 * w * batch**4) ** 2).mean(0)
    check(sap.empirical_fisher_diagonal(loss_fn)(w, batch), fisher)
    assert sap.explain(loss_fn, w, batch[0]).uses[0].route.startswith("Hessian products")


@pytest.mark.parametrize("activation", ["relu", "relu6", "softplus", "log_sigmoid", "silu", "gelu"])
def test_functions_of_jax_keep_their_routes(activation):
    act = getattr(jax.nn, activation)
    loss_fn = lambda p, x: jnp.sum(jax.lax.scan(lambda h, w: (act(w @ h), None), x, p)[0] ** 2)
    plan = sap.explain(loss_fn, jnp.ones((3, 4, 4)), jnp.ones(4))
    affine = activation in ("relu", "relu6")
    assert {use.route for use in plan.uses[:2]} == {
        "rows from the cut" if affine else "tangents at the site"
    }


def ode(w, x):
    times = jnp.array([0.0, 0.5, 1.0])
    return jnp.sum(odeint(lambda y, t, w: -w * y * jnp.sin(t), x, times, w) ** 2)


def ode_solved(w, x):
    decay = lambda t: x * jnp.exp(w * (jnp.cos(t) - 1))
    return sum(jnp.sum(decay(t) ** 2) for t in (0.0, 0.5, 1.0))


def looped(kind):
    def loss_fn(w, x):
        step = lambda state: (state[0] + 1, jnp.tanh(state[1] * w + x))
        loop = eqx.internal.while_loop
        go_on = lambda state: state[0] < 3
        return jnp.sum(loop(go_on, step, (0, x), max_steps=4, kind=kind)[1] ** 2)

    return loss_fn


def unrolled(w, x):
    y = x
    for _ in range(3):
        y = jnp.tanh(y * w + x)
    return jnp.sum(y**2)


SOLVERS = {
    "odeint": (ode, ode_solved, 1e-5),
    "bounded loop": (looped("bounded"), unrolled, 1e-9),
    "checkpointed loop": (looped("checkpointed"), unrolled, 1e-9),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
def test_differential_equations_and_loops(name):
    loss_fn, plain, tolerance = SOLVERS[name]
    w, batch = jnp.array([0.5, 0.8]), jnp.array([[0.3, 0.4], [1.0, 2.0]])
    want = oracle(plain, w, batch)
    close = lambda got: np.testing.assert_allclose(got, want, rtol=tolerance)
    close(jax.jit(sap.exact_diagonal(loss_fn))(w, batch))
    close(jax.jit(lambda w, b: oracle(loss_fn, w, b))(w, batch))
    sap.explain(loss_fn, w, batch[0])
    run = sap.propagated_diagonal(loss_fn, num_probes=64, return_error=True)
    got, error = jax.jit(run)(w, batch, jax.random.key(0))
    np.testing.assert_array_less(abs(got - want), 5 * error + tolerance * abs(want))


@jax.custom_vjp
def times_all(x, table):
    return x * table.prod(0)


def pull_back_row_by_row(table, g):
    return jax.lax.fori_loop(0, len(table), lambda i, g: g * table[i], g), jnp.zeros_like(table)


times_all.defvjp(lambda x, table: (times_all(x, table), table), pull_back_row_by_row)


def test_rules_index_constants_by_tracers():
    """JAX keeps such a constant as an array of NumPy, which a tracer cannot index."""
    table = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    loss_fn = lambda w, x: jnp.sum(times_all(w * x, jnp.array([[1.0, 2.0], [3.0, 4.0]])) ** 2)
    w, batch = jnp.array([0.5, 0.8]), jnp.ones((1, 2))
    want = 2 * table.prod(0) ** 2
    check(sap.exact_diagonal(loss_fn)(w, batch), want)
    check(sap.propagated_diagonal(loss_fn)(w, batch, jax.random.key(0)), want)
    check(sap.empirical_fisher_diagonal(loss_fn)(w, batch), (want * w) ** 2)
