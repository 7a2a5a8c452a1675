"""Sums over examples where parameters are narrow: in float32, whatever the loss computes in."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import equations

import sapsel_jax as sap

NARROW = {"bfloat16": jnp.bfloat16, "float16": jnp.float16}
NUM_EXAMPLES = 37  # a number that is no size of anything else here


def follows(params, example):
    """Computes in the dtype of the parameters and the example."""
    x, y = example
    error = jnp.tanh(x @ params["w"] + params["b"]) - y
    return jnp.vdot(error, error)


def casts(params, example):
    """Computes in half precision, whatever it is given."""
    half = lambda a: a.astype(jnp.float16)
    return follows(jax.tree.map(half, params), jax.tree.map(half, example)).astype(jnp.float32)


def keeps_a_carry(dtype):
    """A loop whose carry has one dtype: other parameters are refused."""

    def loss_fn(params, example):
        x, y = example
        step = lambda h, one: (jnp.tanh(h + one * params["w"][0] + params["b"]), None)
        h, _ = jax.lax.scan(step, jnp.zeros(2, dtype), x)
        return jnp.vdot(h - y, h - y)

    return loss_fn


def narrow_result(params, example):
    return follows(params, example).astype(jnp.bfloat16)


LOSSES = {
    "follows": lambda dtype: follows,
    "casts": lambda dtype: casts,
    "loop": keeps_a_carry,
    "narrow-result": lambda dtype: narrow_result,
}


def case(dtype, num_examples=NUM_EXAMPLES, seed=0):
    """Parameters and examples of 3 numbers and 2 targets."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    return {"w": draw(3, 2), "b": draw(2)}, (draw(num_examples, 3), draw(num_examples, 2))


def outputs(params, example):
    return jnp.tanh(example[0] @ params["w"] + params["b"])


def squared_error(output, example):
    return jnp.vdot(output - example[1], output - example[1])


def step(loss_fn, params, batch, solver: Any = None, **options):
    solver = solver or sap.conjugate_gradient()
    batches = (batch, batch, batch)
    return sap.second_order_update(loss_fn, params, *batches, damping=1.0, solver=solver, **options)


def one_call(update, loss_fn, params, batch):
    """The one call with a curvature of its own: those of the library have tests of their own."""
    curvature = lambda p, b: jax.tree.map(lambda x: x.astype(jnp.float32), p)
    key = jax.random.key(0)
    return sap.unlearn(
        loss_fn, params, batch, batch, batch, key=key, curvature=curvature, update=update
    )


ITERATION = sap.with_iteration(
    optimizer=optax.adam(0.1), num_steps=2, batch_size=2 * NUM_EXAMPLES, key=jax.random.key(0)
)
FUNCTIONS = {
    "gradient_change": lambda loss, p, b: sap.gradient_change(loss, p, b, b),
    "first_order": lambda loss, p, b: sap.first_order_update(loss, p, b, b, step_size=0.1),
    "second_order": step,
    "diagonal_free": functools.partial(step, solver=sap.lissa(num_iterations=2)),
    "gauss_newton": functools.partial(step, model_fn=outputs, output_loss_fn=squared_error),
    "iterative": lambda loss, p, b: sap.iterative_update(
        loss, p, jax.tree.map(lambda x: x[None], b), optimizer=optax.adam(0.1)
    ),
    "with_first_order": functools.partial(one_call, sap.with_first_order(step_size=0.1)),
    "with_iteration": functools.partial(one_call, ITERATION),
    "relearn": lambda loss, p, b: sap.audit.relearn(
        loss,
        p,
        b,
        b,
        score_fn=lambda p, b: jnp.float32(0.5),
        step_sizes=jnp.array([0.1]),
        counts=(0, 5),
        num_steps=1,
        batch_size=NUM_EXAMPLES,
    ),
    "train_ensemble": lambda loss, p, b: sap.audit.train_ensemble(
        loss,
        jax.tree.map(lambda x: x[None], p),
        b,
        jnp.arange(NUM_EXAMPLES)[None, None],
        optimizer=optax.adam(0.1),
    ),
}


KEY = jax.random.key(0)
DIAGONALS = {
    "exact": lambda loss, p, b: sap.exact_diagonal(loss)(p, b),
    "fisher": lambda loss, p, b: sap.empirical_fisher_diagonal(loss)(p, b),
    "hutchinson": lambda loss, p, b: sap.hutchinson_diagonal(loss)(p, b, KEY),
    "propagated": lambda loss, p, b: sap.propagated_diagonal(loss)(p, b, KEY),
    "gauss_newton": lambda _, p, b: sap.gauss_newton_diagonal(outputs, squared_error)(p, b),
    "sampled_gauss_newton": lambda _, p, b: sap.sampled_gauss_newton_diagonal(
        outputs, squared_error
    )(p, b, KEY),
}


def is_narrow(variable):
    return getattr(variable.aval, "dtype", None) in (jnp.bfloat16, jnp.float16)


def narrow_sums(fn, *inputs, sizes=(NUM_EXAMPLES, 2 * NUM_EXAMPLES)):
    """The operations with a narrow result that lacks the axis over examples of a narrow operand."""
    takes = ("slice", "dynamic_slice", "gather", "concatenate")  # parts of an array, no sums
    found = []
    for equation in equations(jax.make_jaxpr(fn)(*inputs).jaxpr):
        axes = {n for v in equation.invars if is_narrow(v) for n in v.aval.shape if n in sizes}
        inner = any(hasattr(getattr(p, "jaxpr", p), "eqns") for p in equation.params.values())
        kept = {n for v in equation.outvars for n in v.aval.shape}
        if axes - kept and not inner and equation.primitive.name not in takes:
            found += [equation.primitive.name] if any(map(is_narrow, equation.outvars)) else []
    return found


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_operation_sums_over_examples_narrowly(function, name):
    dtype = jnp.float16 if name == "casts" else jnp.bfloat16
    params, batch = case(dtype)
    loss_fn = LOSSES[name](dtype)
    assert not narrow_sums(functools.partial(FUNCTIONS[function], loss_fn), params, batch)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("diagonal", DIAGONALS)
def test_no_diagonal_sums_over_examples_narrowly(diagonal, name):
    dtype = jnp.float16 if name == "casts" else jnp.bfloat16
    params, batch = case(dtype)
    loss_fn = LOSSES[name](dtype)
    assert not narrow_sums(functools.partial(DIAGONALS[diagonal], loss_fn), params, batch)


@pytest.mark.parametrize("name", LOSSES)
def test_narrow_sums_are_found_where_jax_alone_makes_them(name):
    params, batch = case(jnp.float16)
    loss_fn = LOSSES[name](jnp.float16)
    total = lambda p, b: jnp.sum(jax.vmap(lambda example: loss_fn(p, example))(b))
    assert narrow_sums(jax.grad(total), params, batch)


def exact_sum(params, x, y):
    """Σ ∇ℓ of `follows` in float64."""
    w, b, x, y = (np.asarray(a, np.float64) for a in (params["w"], params["b"], x, y))
    h = np.tanh(x @ w + b)
    slope = 2 * (h - y) * (1 - h**2)
    return {"w": x.T @ slope, "b": slope.sum(0)}


def sum_of_each(gradients, params, batch):
    """Σ ∇ℓ in float64 of gradients that are as narrow as the loss makes them."""
    each = gradients(params, batch)
    return {name: np.asarray(leaf, np.float64).sum(0) for name, leaf in each.items()}


@pytest.mark.parametrize("microbatch", [None, 30])
@pytest.mark.parametrize("name", LOSSES)
def test_the_sum_is_that_of_float64(name, microbatch):
    loss_fn = LOSSES[name](jnp.bfloat16)
    options = {"num_examples": 1, "microbatch": microbatch}
    change = jax.jit(lambda p, b: sap.gradient_change(loss_fn, p, b, None, **options))
    gradients = jax.jit(jax.vmap(jax.grad(loss_fn), (None, 0)))

    @settings(max_examples=10, deadline=None)
    @given(seed=st.integers(0, 1000))
    def holds(seed):
        params, batch = case(jnp.bfloat16, 500, seed)
        got = change(params, batch)
        # Where nothing forbids it the loss is computed in float32 from end to end.
        free = name == "follows"
        want = exact_sum(params, *batch) if free else sum_of_each(gradients, params, batch)
        for leaf, value in got.items():
            assert value.dtype == jnp.float32
            np.testing.assert_allclose(-value, want[leaf], rtol=1e-4, atol=2e-3)

    holds()


@pytest.mark.parametrize("dtype", NARROW)
def test_many_small_gradients_beside_a_large_one_are_not_lost(dtype):
    # Sums of halves: 4 + 4,000 / 1,024 in float32, and 4 where every addend is rounded away.
    loss_fn = lambda w, x: w * x
    x = jnp.full(4001, 2.0**-10, NARROW[dtype]).at[0].set(4.0)
    w, want = jnp.asarray(0.0, NARROW[dtype]), 4 + 4000 / 1024

    @jax.jit
    def every(w, x):
        change = sap.gradient_change(loss_fn, w, x, None, num_examples=1)
        moved = sap.first_order_update(loss_fn, w, x, None, step_size=1.0, num_examples=1)
        steps = sap.iterative_update(
            lambda w, x: 4001 * w * x, w, x[None], optimizer=optax.sgd(1.0)
        )
        return change, moved, *steps

    change, moved, stepped, losses = every(w, x)
    np.testing.assert_allclose(change, -want, rtol=1e-6)
    np.testing.assert_allclose(moved, want, rtol=2.0**-8)
    np.testing.assert_allclose(stepped, -want, rtol=2.0**-8)
    assert losses.dtype == jnp.float32


def test_weights_are_added_up_in_float32():
    # 4,100 weights of 1/64 beside one of 64: the mean is over 128.0625, not over 128.
    weights = jnp.full(4101, 1 / 64, jnp.bfloat16).at[0].set(64.0)
    diagonal = sap.exact_diagonal(lambda w, x: 0.5 * x * w**2)
    got = jax.jit(diagonal)(jnp.float32(1.0), jnp.ones(4101), weights=weights)
    np.testing.assert_allclose(got, 1.0, rtol=1e-5)


def test_a_loss_that_refuses_wide_parameters_still_moves_them():
    params, batch = case(jnp.bfloat16)
    loss_fn = keeps_a_carry(jnp.bfloat16)
    call = lambda p, b: sap.first_order_update(loss_fn, p, b, None, step_size=0.1)
    with pytest.raises(TypeError, match="carry"):
        jax.grad(loss_fn)(jax.tree.map(jnp.float32, params), jax.tree.map(lambda x: x[0], batch))
    moved = jax.jit(call)(params, batch)
    assert {leaf.dtype for leaf in moved.values()} == {jnp.dtype(jnp.bfloat16)}
    assert all(bool(jnp.any(moved[name] != params[name])) for name in params)


def test_strict_promotion_is_obeyed():
    params, batch = case(jnp.bfloat16)
    call = lambda p, b: sap.gradient_change(follows, p, b, None, num_examples=1)
    with jax.numpy_dtype_promotion("strict"):
        got = jax.jit(call)(params, batch)
    want = exact_sum(params, *batch)
    for leaf, value in got.items():
        np.testing.assert_allclose(-value, want[leaf], rtol=1e-5, atol=1e-4)
