"""Diagonals of models with an axis of length 1, over as many examples as are worked on at once.

XLA's CPU backend sums wrongly in some programs in float64: see `sapsel_jax._base.fusion`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import logsumexp

import sapsel_jax as sap

NUM_EXAMPLES = 64


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def rms(x):
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6)


EMBEDDING = np.random.default_rng(0).normal(size=(8, 11)) / 2
MODELS = {
    "tied": lambda v, x: (rms(jnp.tanh(x)[None] @ v) @ EMBEDDING.astype(x.dtype))[0],
    "plain": lambda v, x: (jnp.tanh(x)[None] @ v)[0],
    "bent": lambda v, x: jnp.tanh(jnp.sin(x)[None] @ v)[0],
    "first": lambda v, x: rms(jnp.tanh(x @ v)[None])[0],
    "last": lambda v, x: rms(jnp.tanh(x @ v)[..., None] * 2)[..., 0] + x @ v,
    "softmax": lambda v, x: (jax.nn.softmax(x[None] @ v) @ EMBEDDING.astype(x.dtype))[0],
    "attention": lambda v, x: (jax.nn.softmax((x @ v)[None] @ (x @ v).T) @ x)[0],
    "stack": lambda v, x: (rms(jnp.tanh(x)[None] @ v) + rms(jnp.tanh(x)[None] @ (v + 1)))[0],
    "gated": lambda v, x: ((jnp.tanh(x)[None] @ v) * jax.nn.sigmoid(x[None] @ v))[0],
}
OUTPUT_LOSSES = {
    "entropy": lambda z, x: logsumexp(z, -1).mean() - z[..., 0].mean(),
    "squares": lambda z, x: jnp.square(z - x[0, 0]).mean(),
}


def diagonals(model, output_loss, microbatch):
    """Every diagonal by name, with fixed keys."""
    loss = lambda v, x: output_loss(model(v, x), x)
    options = {"microbatch": microbatch}
    key = jax.random.key(0)
    keyed = lambda fn: lambda v, x: fn(v, x, key)
    return {
        "exact": sap.exact_diagonal(loss, **options),
        "fisher": sap.empirical_fisher_diagonal(loss, **options),
        "gauss_newton": sap.gauss_newton_diagonal(model, output_loss, **options),
        "propagated": keyed(sap.propagated_diagonal(loss, **options)),
        "hutchinson": keyed(sap.hutchinson_diagonal(loss, **options)),
    }


def agree(model, output_loss, dtype):
    with jax.enable_x64(True):
        v = (normal(4, 16, 8) / 2).astype(dtype)
        x = normal(5, NUM_EXAMPLES, 8, 16).astype(dtype)
        arguments = MODELS[model], OUTPUT_LOSSES[output_loss]
        few = jax.jit(lambda v, x: {k: f(v, x) for k, f in diagonals(*arguments, 8).items()})(v, x)
        for name, fn in diagonals(*arguments, NUM_EXAMPLES).items():
            got, want = jax.jit(fn)(v, x), few[name]
            rtol = 1e-4 if dtype == jnp.float32 else 1e-9
            np.testing.assert_allclose(got, want, rtol, rtol * float(abs(want).max()), err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "output_loss"),
    [*((model, "entropy") for model in MODELS), ("tied", "squares"), ("attention", "squares")],
)
def test_many_examples_at_once_are_those_one_by_one(model, output_loss):
    agree(model, output_loss, jnp.float64)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tied", "stack"])
def test_many_examples_at_once_in_float32(model):
    agree(model, "entropy", jnp.float32)


def test_the_case_that_was_wrong():
    with jax.enable_x64(True):
        v, x = normal(4, 16, 8) / 2, normal(5, NUM_EXAMPLES, 8, 16)
        loss = lambda v, x: OUTPUT_LOSSES["entropy"](MODELS["tied"](v, x), x)
        got = jax.jit(sap.exact_diagonal(loss))(v, x)
        flat = lambda u, e: loss(u.reshape(v.shape), e)
        hessian = jax.jit(jax.hessian(flat))
        want = np.mean([jnp.diagonal(hessian(v.ravel(), e)) for e in x], 0).reshape(v.shape)
        np.testing.assert_allclose(got, want, 1e-9, 1e-12)
