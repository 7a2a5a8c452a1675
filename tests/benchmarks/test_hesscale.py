"""HesScale: its formulas worked out by hand, and where it is exact."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from benchmarks.learning.plain import random_params
from benchmarks.speed.cases import Case, mlp
from benchmarks.speed.hesscale import hesscale_diagonal


def true_diagonal(case):
    flat, unravel = ravel_pytree(case.params)
    hessian = jax.hessian(lambda x, batch: case.mean_loss(unravel(x), batch))
    return unravel(jnp.diag(jax.jit(hessian)(flat, case.batch)))


def diagonal(case):
    return jax.jit(hesscale_diagonal(case))(case.params, case.batch)


def test_one_hidden_unit_by_hand():
    params = [
        {"kernel": jnp.array([[0.5]]), "bias": jnp.zeros(1)},
        {"kernel": jnp.array([[1.0, -1.0]]), "bias": jnp.zeros(2)},
    ]
    batch = (jnp.array([[2.0]]), jnp.array([0]))
    case = Case("by hand", ("dense", "tanh", "dense"), params, batch)
    a = math.tanh(1.0)
    p = 1 / (1 + math.exp(-2 * a))
    of_logit = p * (1 - p)
    g = (p - 1) - (1 - p)  # the gradient at the hidden unit: (p − 1)·1 + (1 − p)·(−1)
    of_unit = 2 * of_logit  # 1² h + (−1)² h
    slope, bend = 1 - a**2, -2 * a * (1 - a**2)
    of_sum = of_unit * slope**2 + g * bend
    first, second = diagonal(case)
    np.testing.assert_allclose(first["kernel"], [[4 * of_sum]], rtol=1e-5)
    np.testing.assert_allclose(first["bias"], [of_sum], rtol=1e-5)
    np.testing.assert_allclose(second["kernel"], [[a**2 * of_logit] * 2], rtol=1e-5)
    np.testing.assert_allclose(second["bias"], [of_logit] * 2, rtol=1e-5)


def test_the_last_layer_is_exact_and_the_first_is_not():
    case = mlp((5, 4, 3), "tanh", 6)
    found, want = diagonal(case), true_diagonal(case)
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(found[1][name], want[1][name], rtol=1e-4, atol=1e-7)
    assert np.abs(found[0]["kernel"] - want[0]["kernel"]).max() > 1e-3


def test_a_convolution_at_one_position_is_exact():
    params = random_params([(3, 3, 2, 4)])
    images = jax.random.normal(jax.random.key(2), (5, 3, 3, 2))
    batch = (images, jnp.array([0, 1, 2, 3, 0]))
    case = Case("one position", ("conv VALID", "flatten"), params, batch)
    found, want = diagonal(case), true_diagonal(case)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-7), found, want)
