import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from networks import mlp

import sapsel_jax as sap


def squared_error(w, example):
    x, y = example
    return 0.5 * (jnp.vdot(w, x) - y) ** 2


def gradient_sum(w, x, y):
    """Σ (w·x − y) x, in float64."""
    return ((x @ w - y)[:, None] * x).sum(0)


RNG = np.random.default_rng(0)
float32 = functools.partial(jnp.asarray, dtype=jnp.float32)
W = RNG.normal(size=4)
X, Y, X2, Y2 = RNG.normal(size=(7, 4)), RNG.normal(size=7), RNG.normal(size=(7, 4)), np.arange(7.0)
MASK = np.array([True, False, True, False])


def as_float32(*arrays):
    return tuple(map(float32, arrays))


def half_mask(params):
    """Every other entry of each leaf."""
    return jax.tree.map(lambda p: (jnp.arange(p.size) % 2 == 0).reshape(p.shape), params)


@pytest.mark.parametrize("num_examples", [None, 20])
@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("removal", [False, True])
def test_first_order_update_is_the_papers_step(num_examples, mask, removal):
    change = -gradient_sum(W, X, Y) + (0 if removal else gradient_sum(W, X2, Y2))
    step = 0.3 * change / (num_examples or 7)
    want = W - (step if mask is None else mask * step)
    got = sap.first_order_update(
        squared_error,
        float32(W),
        as_float32(X, Y),
        None if removal else as_float32(X2, Y2),
        step_size=0.3,
        mask=None if mask is None else jnp.asarray(mask),
        num_examples=num_examples,
    )
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def first_order(params, mask, original, corrected, loss_fn, **options):
    options = {"step_size": 0.7, "mask": mask} | options
    return sap.first_order_update(loss_fn, params, original, corrected, **options)


def corrections():
    loss_fn, params, original = mlp()
    corrected = (original[0] * 0.5, (original[1] + 1) % 3)
    return loss_fn, params, original, corrected


@pytest.mark.parametrize("microbatch", [1, 3, 100])
def test_first_order_update_does_not_depend_on_the_microbatch(microbatch):
    loss_fn, params, original, corrected = corrections()
    mask = half_mask(params)
    update = jax.jit(first_order, static_argnames=("loss_fn", "microbatch"))
    whole = update(params, mask, original, corrected, loss_fn=loss_fn)
    parts = update(params, mask, original, corrected, loss_fn=loss_fn, microbatch=microbatch)
    chex.assert_trees_all_close(parts, whole, rtol=1e-5, atol=1e-6)


def test_first_order_update_under_jit_with_a_traced_step_size():
    loss_fn, params, original, corrected = corrections()
    mask = half_mask(params)
    eager = first_order(params, mask, original, corrected, loss_fn)
    jitted = jax.jit(lambda s: first_order(params, mask, original, corrected, loss_fn, step_size=s))
    chex.assert_trees_all_close(jitted(0.7), eager, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal_shapes_and_dtypes(eager, params)


def test_first_order_update_on_a_sharded_batch():
    loss_fn, params, _, _ = corrections()
    batch = (jax.random.normal(jax.random.key(1), (16, 5)), jnp.arange(16) % 3)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    update = jax.jit(lambda b: first_order(params, half_mask(params), b, None, loss_fn))
    chex.assert_trees_all_close(update(sharded), update(batch), rtol=1e-5, atol=1e-6)


def test_updates_keep_low_precision_and_pass_arguments():
    def loss_fn(w, x, scale):
        return scale * jnp.sum((w * x).astype(jnp.float32))

    params, batch = jnp.ones(3, jnp.bfloat16), jnp.ones((2, 3), jnp.bfloat16)
    moved = sap.first_order_update(loss_fn, params, batch, None, step_size=0.5, args=(2.0,))
    assert moved.dtype == jnp.bfloat16
    np.testing.assert_array_equal(moved.astype(jnp.float32), [2.0, 2.0, 2.0])
    moved, losses = sap.iterative_update(
        loss_fn, params, batch[None], optimizer=optax.sgd(0.25), args=(2.0,)
    )
    assert moved.dtype == jnp.bfloat16
    np.testing.assert_array_equal(moved.astype(jnp.float32), [0.5, 0.5, 0.5])
    np.testing.assert_array_equal(losses, [6.0])


def odd_params():
    """Numbers whose bits are easily changed: both zeros, denormal, huge, infinite, NaN."""
    values = np.array([-0.0, 0.0, 1e-40, -1e-40, 3e38, np.inf, np.nan, 1.5], np.float32)
    return {"a": jnp.asarray(np.tile(values, 2)), "b": jnp.asarray(values[:, None])}


OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.1),
    "adamw": optax.adamw(0.1, weight_decay=0.3),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.3)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("jit", [False, True])
def test_unselected_entries_keep_their_bits(name, jit):
    params = odd_params()
    # The selected entries are ordinary numbers; the others include every odd one.
    mask = {"a": jnp.arange(16) % 8 == 7, "b": (jnp.arange(8) % 8 == 7)[:, None]}
    loss_fn = lambda p, x: jnp.sum(jnp.where(mask["a"], p["a"], 0.0) ** 2) * x + jnp.sum(p["b"]) * x

    def update(p):
        batches = jnp.ones((3, 2))
        moved, _ = sap.iterative_update(loss_fn, p, batches, optimizer=OPTIMIZERS[name], mask=mask)
        stepped = sap.first_order_update(loss_fn, p, batches[0], None, step_size=0.1, mask=mask)
        return moved, stepped

    for after in (jax.jit(update) if jit else update)(params):
        for key in params:
            before_bits = np.asarray(params[key]).view(np.uint32)
            after_bits = np.asarray(after[key]).view(np.uint32)
            selected = np.asarray(mask[key])
            np.testing.assert_array_equal(after_bits[~selected], before_bits[~selected])
            assert np.all(after_bits[selected] != before_bits[selected])


def test_gradients_that_are_no_numbers_stay_outside_the_mask():
    loss_fn = lambda w, x: x * (jnp.sqrt(w[0]) + w[1])  # the slope of sqrt at 0 is infinite
    mask = jnp.array([False, True])
    batches = jnp.zeros((2, 1)).at[1].set(1.0)  # 0 * inf, then inf
    moved, _ = sap.iterative_update(
        loss_fn, jnp.zeros(2), batches, optimizer=optax.sgd(0.5, momentum=0.9), mask=mask
    )
    np.testing.assert_array_equal(moved, [0.0, -0.5])
