"""Blocks whose inner variables are read outside: by comparisons, fixed maxima, later factors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.scipy.special import digamma, logsumexp

import sapsel_jax as sap

X = np.random.default_rng(1).normal(size=(3, 3))
W = np.array([0.3, -0.7, 1.1])


def check(fn, num_probes=200):
    with jax.enable_x64(True):
        w, batch = jnp.asarray(W), jnp.asarray(X)
        mean = lambda p: jnp.mean(jax.vmap(fn, (None, 0))(p, batch))
        truth = jnp.diag(jax.hessian(mean)(w))
        exact = jax.jit(sap.exact_diagonal(fn))(w, batch)
        np.testing.assert_allclose(exact, truth, atol=1e-9, rtol=1e-9)
        estimate = sap.propagated_diagonal(fn, num_probes=num_probes, return_error=True)
        found, error = jax.jit(estimate)(w, batch, jax.random.key(0))
        scale = 1e-9 * (1 + jnp.abs(truth))
        assert (jnp.abs(found - truth) <= 5 * error + scale).all()
        sap.explain(fn, w, batch[0])


def max_inside(w, x):
    logits = jnp.tanh(w * x)
    return logsumexp(jnp.stack([logits, -logits])) * jnp.sum(logits)


def factor_after_log(w, x):
    total = jnp.sum(jnp.exp(jnp.tanh(w * x)))
    return jnp.log(total) * total


def comparison_inside(w, x):
    hidden = jnp.tanh(w * x)
    norm = hidden - hidden.mean()
    norm = norm * jax.lax.rsqrt(jnp.mean(norm**2) + 0.1)
    return jnp.sum(jnp.where(hidden.mean() > 0, norm**3, norm**2)) * jnp.sum(hidden)


def focal(w, x):
    return optax.sigmoid_focal_loss(w * x, jnp.ones(3), alpha=0.25, gamma=2.0).sum()


def digammas(w, x):
    return jnp.sum(digamma(2 + (w * x) ** 2)) * jnp.sum(w * x)


def softmax_and_its_max(w, x):
    weights = jax.nn.softmax(w * x)
    return jnp.sum(weights**2) + jax.lax.stop_gradient(weights.max()) * jnp.sum(weights * x)


@pytest.mark.parametrize("fn", [pytest.param(max_inside, marks=pytest.mark.slow), factor_after_log])
def test_values_inside_a_block_may_be_read_outside(fn):
    check(fn)


@pytest.mark.slow
@pytest.mark.parametrize("fn", [comparison_inside, focal, digammas, softmax_and_its_max])
def test_values_inside_longer_blocks_may_be_read_outside(fn):
    check(fn)


VECTORS = {
    "tanh": jnp.tanh,
    "sin": jnp.sin,
    "bump": lambda v: jnp.exp(-(v**2)),
    "softmax": jax.nn.softmax,
    "log_softmax": jax.nn.log_softmax,
    "centred": lambda v: v - v.mean(),
    "normed": lambda v: (v - v.mean()) * jax.lax.rsqrt(jnp.var(v) + 0.1),
}
SCALARS = {
    "sum": jnp.sum,
    "logsumexp": logsumexp,
    "both signs": lambda v: logsumexp(jnp.stack([v, -v])),
    "squares": lambda v: jnp.sum(v**2),
    "max": lambda v: jax.lax.stop_gradient(v.max()),
    "positive": lambda v: jnp.where(v[0] > v[1], 1.0, 0.5),
}


@st.composite
def programs(draw):
    """Steps of a program on the vectors that it has so far, and the pairs of scalars it returns."""
    steps, count = [], 1
    for _ in range(draw(st.integers(1, 3))):
        scaled = draw(st.none() | st.sampled_from(sorted(SCALARS)))
        steps.append(
            (
                draw(st.sampled_from(sorted(VECTORS))),
                draw(st.integers(0, count - 1)),
                scaled,
                draw(st.integers(0, count - 1)),
            )
        )
        count += 1
    scalar = st.tuples(st.sampled_from(sorted(SCALARS)), st.integers(0, count - 1))
    return steps, draw(st.lists(st.tuples(scalar, scalar), min_size=1, max_size=2))


def as_function(program):
    steps, products = program

    def fn(w, x):
        vectors = [w * x]
        for name, source, scale, other in steps:
            vector = VECTORS[name](vectors[source])
            vectors.append(vector if scale is None else vector * SCALARS[scale](vectors[other]))
        factor = lambda one: SCALARS[one[0]](vectors[one[1]])
        return sum((factor(a) * factor(b) for a, b in products), 0.0 * jnp.sum(w))

    return fn


@pytest.mark.slow
@settings(max_examples=6, deadline=None, derandomize=True)
@given(programs())
def test_any_program_of_blocks(program):
    check(as_function(program))
