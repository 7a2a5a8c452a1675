"""Second-order updates: what they leave alone to the bit, low precision, arrays over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from trees import changed_bits

import sapsel_jax as sap

RNG = np.random.default_rng(0)
SOLVERS = {
    "cg": sap.conjugate_gradient(tolerance=1e-5),
    "dense": sap.dense_solver(),
    "lissa": sap.lissa(tolerance=1e-3),
    "diagonal": sap.diagonal_solver(),
}
CG = SOLVERS["cg"]


def test_entries_outside_the_mask_keep_odd_bits_with_every_solver():
    odd = np.array([-0.0, 0.0, 1e-40, -1e-40, 3e38, np.inf, np.nan, 1.5], np.float32)
    params = {"a": jnp.asarray(np.tile(odd, 2)), "b": jnp.asarray(odd[:, None]), "c": jnp.ones(())}
    mask = {
        "a": jnp.arange(16) % 8 == 7,
        "b": (jnp.arange(8) == 7)[:, None],
        "c": jnp.array(False),
    }

    def loss_fn(p, x):
        seen = jax.tree.map(lambda m, leaf: jnp.where(m, leaf, 0.5), mask, p)
        total = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(seen))
        return (total - x) ** 2 + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(seen))

    def every(p):
        x = jnp.ones(2)
        return [
            sap.second_order_update(loss_fn, p, x, -x, -x, damping=9.0, mask=mask, solver=solver)
            for solver in SOLVERS.values()
        ]

    selected = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(mask)])
    for moved, certificate in jax.jit(every)(params):
        assert certificate.converged
        np.testing.assert_array_equal(changed_bits(params, moved), selected)


def test_no_solver_sees_or_writes_anything_outside_the_mask():
    mask = jnp.array([False, True, False])
    params = jnp.array([-0.0, 1.0, 2.0])
    loss_fn = lambda w, x: 0.5 * (w[0] + 2 * w[1] - w[2] - x) ** 2
    x = jnp.zeros(4)

    def careless(system):
        """Puts numbers that are none into the products, and into the answer."""
        odd, plain = jnp.array([jnp.nan, 1.0, jnp.inf]), jnp.array([0.0, 1.0, 0.0])
        sampled = system.sample(jax.random.key(0), 2)
        products = [system.curvature(odd), system.curvature(plain), sampled(odd)]
        right = [jnp.array_equal(product, 4 * plain) for product in products]
        right.append(jnp.array_equal(jnp.where(mask, 0, system.rhs), 0 * plain))
        reason = jnp.where(
            jnp.all(jnp.asarray(right)), sap.Reason.CONVERGED, sap.Reason.NO_CONVERGENCE
        )
        answer = jnp.where(mask, system.rhs / (4 + system.damping), jnp.nan)
        return sap.Solution(answer, reason, jnp.int32(1), jnp.float32(0))

    moved, certificate = jax.jit(
        lambda p: sap.second_order_update(
            loss_fn, p, x - 1, x, x, damping=1.0, mask=mask, solver=careless
        )
    )(params)
    assert certificate.converged  # the slope is −2, the curvature 4
    np.testing.assert_allclose(moved, [0.0, 1.0 + 2 / 5, 2.0], rtol=1e-6)
    np.testing.assert_allclose(certificate.predicted_change, -0.8 + 0.5 * 4 * 0.16, rtol=1e-5)
    np.testing.assert_array_equal(changed_bits(params, moved), mask)


@pytest.mark.parametrize(("num_selected", "iterations"), [(16, 1), (17, 2)])
def test_the_dense_solver_serves_up_to_16_entries_and_agrees(num_selected, iterations):
    # Two eigenvalues, so that conjugate gradients need two iterations and the dense solver one.
    scales = jnp.where(jnp.arange(20) % 2 == 0, 1.0, 3.0)
    mask = jnp.arange(20) < num_selected
    zeros, ones = jnp.zeros((1, 20)), jnp.ones((1, 20))
    moved, certificate = jax.jit(
        lambda m: sap.second_order_update(
            lambda w, x: 0.5 * jnp.vdot(scales, (w - x) ** 2),
            zeros[0], zeros, ones, ones, damping=1.0, mask=m, num_selected=num_selected,
        )
    )(mask)  # fmt: skip
    assert certificate.converged
    assert certificate.iterations == iterations
    np.testing.assert_allclose(moved, mask * scales / (scales + 1), rtol=1e-5)


def tanh_loss(params, example):
    x, y = example
    error = jnp.tanh(x @ params["w"] + params["b"]) - y
    return jnp.vdot(error, error).astype(jnp.float32)


def tanh_case():
    x, y = (jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in ((16, 8), (16, 4)))
    params = {
        "w": jnp.asarray(0.3 * RNG.normal(size=(8, 4)), jnp.float32),
        "b": jnp.asarray(0.3 * RNG.normal(size=4), jnp.float32),
    }
    mask = {"w": jnp.asarray(RNG.random((8, 4)) < 0.6), "b": jnp.asarray([True, False, True, True])}
    return params, mask, (x[:8], -y[:8]), (x[:8], y[:8]), (x, y)


def tanh_update(params, mask, *batches):
    return sap.second_order_update(
        tanh_loss, params, *batches, damping=3.0, mask=mask, solver=CG, num_steps=2
    )


@pytest.mark.slow
def test_arrays_that_are_spread_over_devices_give_the_same_step():
    case = tanh_case()
    want, one = jax.jit(tanh_update)(*case)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    on = lambda tree, spec: jax.device_put(tree, NamedSharding(mesh, spec))
    params, mask, *batches = case
    by_column = {"w": P(None, "model"), "b": P("model")}
    spread = [{name: on(tree[name], by_column[name]) for name in tree} for tree in (params, mask)]
    got, many = jax.jit(tanh_update)(*spread, *(on(batch, P("data")) for batch in batches))
    assert one.converged
    assert many.converged
    assert many.num_steps == 2
    assert len(got["w"].devices()) == 8
    for name in got:
        np.testing.assert_allclose(got[name], want[name], atol=1e-5)
        moved = np.abs(np.asarray(want[name]) - np.asarray(params[name]))
        assert moved.max() > 0.01
    np.testing.assert_allclose(many.actual_change, one.actual_change, rtol=1e-3)


def test_low_precision_is_widened_for_the_step_and_rounded_once():
    params, mask, *batches = tanh_case()
    low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), low)
    update = jax.jit(tanh_update)
    got, certificate = update(low, mask, *batches)
    want, _ = update(wide, mask, *batches)
    assert certificate.converged
    selected = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(mask)])
    assert not changed_bits(low, got)[~selected].any()
    for name in got:
        assert got[name].dtype == jnp.bfloat16
        # Half a unit in the last of 8 digits, and the rounding of the float32 step.
        exact = np.asarray(want[name])
        error = np.abs(np.asarray(got[name], np.float32) - exact)
        assert np.all(error <= 2.0**-8 * np.abs(exact) + 1e-5)
