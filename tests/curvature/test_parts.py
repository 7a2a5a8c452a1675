"""Losses that take parts of what they computed: slices, reversals, padding, stacked leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from networks import dense_diagonal, mean_loss, relative_error

import sapsel_jax as sap

pytestmark = pytest.mark.usefixtures("quick_compiler")


def random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


W, X = random(0, 3, 4), random(1, 5, 3)
SQUARE = random(2, 3, 3)


def coupling(w, x):
    """Half of the entries scale and shift the other half."""
    z = x @ w
    return jnp.concatenate([z[:2], z[2:] * jnp.exp(jnp.tanh(z[:2])) + z[:2] ** 2])


def in_turn(b, x):
    for i in range(len(b)):
        x = jnp.tanh(x + b[i])
    return x


LOSSES = {
    # name: (loss, parameters)
    "from the second": (lambda w, x: jnp.tanh((x @ w)[1:]), W),
    "the last": (lambda w, x: jnp.tanh((x @ w)[-1]), W),
    "in the middle": (lambda w, x: jnp.tanh((x @ w)[1:3]), W),
    "every other": (lambda w, x: jnp.tanh((x @ w)[1::2]), W),
    "backwards": (lambda w, x: jnp.tanh((x @ w)[::-2] * jnp.array([1.0, 2])), W),
    "columns of a leaf": (lambda w, x: jnp.tanh(x @ (2 * w)[:, 1:]), W),
    "rows of a leaf": (lambda w, x: jnp.tanh(x[1:] @ (2 * w)[1:]), W),
    "of a matrix": (lambda w, x: jnp.tanh(jnp.outer(x, x) @ w)[1:, 1:3], W),
    "two heads": (lambda w, x: jnp.sum(jnp.tanh((x @ w)[:2])) * jnp.exp((x @ w)[2:]), W),
    "gated": (lambda w, x: (x @ w)[:2] * jax.nn.sigmoid((x @ w)[2:]), W),
    "coupling": (coupling, W),
    "differences": (lambda w, x: jnp.tanh((x @ w)[1:] - (x @ w)[:-1]), W),
    "rolled": (lambda w, x: jnp.tanh(x @ w) * jnp.roll(x @ w, 1), W),
    "cut by padding": (
        lambda w, x: jnp.tanh(lax.pad(x @ w, 0.0, [(-1, 1, 0)]) * jnp.arange(4.0)),
        W,
    ),
    "spread by padding": (lambda w, x: jnp.tanh(lax.pad(x @ w, 0.5, [(1, -1, 1)])), W),
    "stacked leaves": (in_turn, SQUARE),
    "layers of a stack": (lambda w, x: jnp.tanh(jnp.tanh(x @ w[0]) @ w[1]), random(3, 2, 3, 3)),
    "spread windows": (
        lambda w, x: jnp.tanh(lax.reduce_window(x @ w, 0.0, lax.add, (1,), (1,), "VALID", (2,))),
        W,
    ),
    "product of transposes": (lambda w, x: jnp.einsum("ij,ji->", w * x, jnp.tanh(w)), SQUARE),
    "a leaf and its transpose": (lambda w, x: jnp.einsum("ij,ji->", w, w) * x[0], SQUARE),
    "nothing": (lambda w, x: x @ jnp.tanh(w) + jnp.sum(jnp.outer(x, w)[:0].reshape(6, 0)), W),
}


@pytest.mark.parametrize("name", LOSSES)
def test_exact(name):
    outputs, params = LOSSES[name]
    loss_fn = lambda p, x: jnp.sum(outputs(p, x)) + jnp.sum(outputs(p, x) ** 2)
    oracle = lambda p: dense_diagonal(lambda q: mean_loss(loss_fn, q, X), p)
    both = jax.jit(lambda p: (sap.exact_diagonal(loss_fn)(p, X), oracle(p)))
    got, want = both(params)
    assert relative_error(got, want) < 1e-5


def test_parts_of_a_stack_that_do_not_overlap_have_sites_of_their_own():
    params, x = random(3, 2, 3, 3), X[0]
    loss = lambda w, x: jnp.sum(jnp.tanh(jnp.tanh(x @ w[0]) @ w[1]))
    assert [use.reason for use in sap.explain(loss, params, x).uses] == ["", ""]
    overlapping = lambda w, x: jnp.sum(jnp.tanh(jnp.tanh(x @ w[0]) @ w[:2].sum(0)))
    (use,) = sap.explain(overlapping, params, x).uses
    assert use.reason
    strided = lambda b, x: jnp.sum(jnp.tanh(jnp.tanh(x[:2] + b[::2]) + b[1::2]))
    assert [use.reason for use in sap.explain(strided, jnp.ones(4), x).uses] == ["", ""]


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_propagated_has_the_right_mean(name):
    outputs, params = LOSSES[name]
    loss_fn = lambda p, x: jnp.sum(outputs(p, x)) + jnp.sum(outputs(p, x) ** 2)
    want = dense_diagonal(lambda p: mean_loss(loss_fn, p, X), params)
    keys = jax.random.split(jax.random.key(5), 4000)
    estimate = sap.propagated_diagonal(loss_fn)
    values = jax.jit(jax.vmap(lambda key: estimate(params, X, key)))(keys)
    error = values.std(0) / len(keys) ** 0.5
    np.testing.assert_array_less(abs(values.mean(0) - want), 6 * error + 1e-4)
