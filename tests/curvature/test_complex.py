"""Complex numbers inside a loss of real parameters: every estimator against a dense Hessian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import dense_diagonal, mean_loss, relative_error

import sapsel_jax as sap

pytestmark = pytest.mark.usefixtures("quick_compiler")


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def fft_layer():
    """Weights in frequency space between two dense layers, as in Fourier neural operators."""
    params = {"in": normal(0, 5, 6), "re": normal(1, 4), "im": normal(2, 4), "out": normal(3, 6, 2)}

    def loss_fn(p, example):
        x, y = example
        spectrum = jnp.fft.rfft(x @ p["in"]) * (p["re"] + 1j * p["im"])
        return jnp.sum((jnp.tanh(jnp.fft.irfft(spectrum, n=6) @ p["out"]) - y) ** 2)

    return loss_fn, params, (normal(4, 3, 5), normal(5, 3, 2))


def spectral_loss():
    loss_fn = lambda w, x: jnp.mean(jnp.log1p(jnp.abs(jnp.fft.fft(jnp.tanh(x @ w))) ** 2))
    return loss_fn, normal(0, 5, 6), normal(4, 3, 5)


def state_space(length):
    """A diagonal state-space model with complex states, and a penalty beside it."""
    params = {"a": normal(0, 3) / 3, "b": normal(1, 3), "c": normal(2, 3), "d": normal(3, 3)}

    def loss_fn(p, x):
        decay = jnp.exp(-jnp.exp(p["a"]) + 1j * p["b"])
        out = p["c"] + 1j * p["d"]

        def step(state, u):
            state = decay * state + u
            return state, jnp.sum(out * state).real

        outputs = jax.lax.scan(step, jnp.zeros(3, decay.dtype), x)[1]
        return jnp.sum(jnp.tanh(outputs) ** 2) + p["a"].sum() ** 2

    return loss_fn, params, normal(4, 3, length)


def around(outer):
    """Real numbers that leave the complex ones and come back to them."""

    def loss_fn(w, x):
        z = jnp.fft.fft(x * w)
        scale = outer(jnp.abs(z).sum())
        return jnp.abs(jnp.fft.ifft(z * scale) ** 2).sum() + scale

    return loss_fn, normal(0, 4), normal(4, 3, 4)


LOSSES = {
    "fft layer": fft_layer,
    "spectral loss": spectral_loss,
    "state space": lambda: state_space(5),
    "state space in one loop": lambda: state_space(40),
    "there and back": lambda: around(jnp.tanh),
    "there and back without a derivative": lambda: around(lambda r: jax.lax.stop_gradient(r) / 9),
}


@pytest.mark.parametrize("name", LOSSES)
def test_exact_and_fisher(name):
    with jax.enable_x64(True):
        loss_fn, params, batch = LOSSES[name]()
        oracle = jax.jit(lambda p: dense_diagonal(lambda q: mean_loss(loss_fn, q, batch), p))
        got = jax.jit(sap.exact_diagonal(loss_fn))(params, batch)
        assert relative_error(got, oracle(params)) < 1e-9
        grads = jax.vmap(lambda e: jax.grad(loss_fn)(params, e))(batch)
        want = jax.tree.map(lambda g: jnp.mean(g**2, 0), grads)
        fisher = jax.jit(sap.empirical_fisher_diagonal(loss_fn))(params, batch)
        assert relative_error(fisher, want) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("make", [sap.propagated_diagonal, sap.hutchinson_diagonal])
def test_estimates_lie_within_five_standard_errors(name, make):
    with jax.enable_x64(True):
        loss_fn, params, batch = LOSSES[name]()
        want = dense_diagonal(lambda q: mean_loss(loss_fn, q, batch), params)
        estimate = jax.jit(make(loss_fn, num_probes=2_000, return_error=True))
        got, error = estimate(params, batch, jax.random.key(0))
        for g, w, e in zip(*map(jax.tree.leaves, (got, want, error)), strict=True):
            assert (abs(g - w) <= 5 * e + 1e-9).all()


def test_linear_filters_are_piecewise_affine_and_squares_are_not():
    x = jnp.ones(6)
    filtered = lambda w, x: jax.nn.relu(jnp.fft.irfft(jnp.fft.rfft(x) * w, n=6))
    assert sap.is_piecewise_affine(filtered, jnp.ones(4), x)
    assert not sap.is_piecewise_affine(
        lambda w, x: jnp.abs(jnp.fft.rfft(x) * w) ** 2, jnp.ones(4), x
    )
