"""Batches of many sizes, padded to one: a diagonal is traced once, whatever comes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sapsel_jax as sap

ROOM = 8
PARAMS = {"in": jnp.linspace(-1, 1, 12).reshape(3, 4), "out": jnp.linspace(1, 2, 4)}


def model_fn(params, x):
    return jnp.tanh(x @ params["in"]) @ params["out"]


def output_loss_fn(output, x):
    return output**2


def loss_fn(params, x):
    return output_loss_fn(model_fn(params, x), x)


def keyless(diagonal):
    return lambda p, batch, key, weights=None: diagonal(p, batch, weights=weights)


DIAGONALS = {
    "exact": keyless(sap.exact_diagonal(loss_fn)),
    "fisher": keyless(sap.empirical_fisher_diagonal(loss_fn)),
    "gauss_newton": keyless(sap.gauss_newton_diagonal(model_fn, output_loss_fn)),
    "hutchinson": sap.hutchinson_diagonal(loss_fn),
    "propagated": sap.propagated_diagonal(loss_fn),
    "sampled": sap.sampled_gauss_newton_diagonal(model_fn, output_loss_fn),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DIAGONALS)
def test_examples_of_weight_nought_fill_a_batch_up_and_change_nothing(name):
    diagonal = DIAGONALS[name]
    chex.clear_trace_counter()
    padded = jax.jit(chex.assert_max_traces(diagonal, n=1))
    for count in (3, ROOM):
        batch = np.random.default_rng(count).normal(size=(count, 3)).astype(np.float32)
        key = jax.random.key(count)
        filled = np.concatenate([batch, np.ones((ROOM - count, 3), np.float32)])
        weights = (np.arange(ROOM) < count).astype(np.float32)
        got, want = (
            padded(PARAMS, filled, key, weights=weights),
            jax.jit(diagonal)(PARAMS, batch, key),
        )
        chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)
