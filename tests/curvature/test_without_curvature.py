"""Losses that do not depend on some leaf, or on any: zeros everywhere, and a plan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sapsel_jax as sap

PARAMS = {
    "a": jnp.arange(1.0, 4.0),
    "b": jnp.ones((2, 2)),
    "e": jnp.ones((0, 3)),
    "s": jnp.ones(()),
}
BATCH = jnp.arange(6.0).reshape(2, 3)
LOSSES = {
    "a constant": lambda p, x: jnp.float32(1.0),
    "the example alone": lambda p, x: jnp.sum(x),
    "a parameter as it is": lambda p, x: p["s"],
    "linear": lambda p, x: jnp.sum(p["a"]),
    "behind stop_gradient": lambda p, x: jnp.sum(jax.lax.stop_gradient(p["a"]) * x) ** 2,
    "an empty leaf": lambda p, x: jnp.sum(p["e"]) ** 2,
}
DIAGONALS = {
    "exact": lambda f, p: sap.exact_diagonal(f)(p, BATCH),
    "propagated": lambda f, p: sap.propagated_diagonal(f)(p, BATCH, jax.random.key(0)),
    "hutchinson": lambda f, p: sap.hutchinson_diagonal(f)(p, BATCH, jax.random.key(0)),
    "basis": lambda f, p: sap.basis_diagonal(lambda q: f(q, BATCH[0]))(p),
    "probe": lambda f, p: sap.probe_diagonal(lambda q: f(q, BATCH[0]), num_probes=2)(
        p, jax.random.key(0)
    ),
}


@pytest.mark.parametrize("loss_fn", LOSSES.values(), ids=LOSSES)
def test_losses_without_curvature(loss_fn):
    plan = sap.explain(loss_fn, PARAMS, BATCH[0])
    assert np.isfinite(plan.cost)
    assert {use.path for use in plan.uses} == set(PARAMS)
    assert str(plan)
    for diagonal in DIAGONALS.values():
        found = diagonal(loss_fn, PARAMS)
        assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, PARAMS)
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(found))


def test_a_constant_loss_costs_one_gradient_and_no_leaf_anything():
    plan = sap.explain(LOSSES["a constant"], PARAMS, BATCH[0])
    assert plan.cost == 1
    assert all((use.route, use.cost) == ("zero", 0) for use in plan.uses)


def test_no_parameters():
    loss_fn = lambda p, x: jnp.sum(x) ** 2
    assert sap.explain(loss_fn, {}, BATCH[0]).uses == ()
    assert all(diagonal(loss_fn, {}) == {} for diagonal in DIAGONALS.values())
