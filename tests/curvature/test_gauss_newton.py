import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from networks import as_float64, conv, cross_entropy, dense_diagonal, relative_error

import sapsel_jax as sap


def random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape) / 2


def layers(*names):
    shapes = {"a": (3, 4), "b": (4,), "v": (4, 3), "scale": (), "tied": (3, 3)}
    return {name: random(i, *shapes[name]) for i, name in enumerate(names)}


def attention(p, x):
    tokens = x.reshape(3, 1) * jnp.array([[1.0, 0.5, -1.0]])
    weights = jax.nn.softmax((tokens @ p["query"]) @ (tokens @ p["key"]).T)
    return (weights @ (tokens @ p["value"]) @ p["out"]).sum(0)


def stack(p, x):
    return jax.lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), x, p["w"])[0]


# name: (model, parameters, leaves that are accepted)
MODELS = {
    "relu": (
        lambda p, x: jax.nn.relu(x @ p["a"] + p["b"]) @ p["v"],
        lambda: layers("a", "b", "v"),
        {"a", "b", "v"},
    ),
    "tanh": (
        lambda p, x: jnp.tanh(x @ p["a"] + p["b"]) @ p["v"],
        lambda: layers("a", "b", "v"),
        {"v"},
    ),
    "scaled": (
        lambda p, x: p["scale"] * (jnp.abs(x @ p["a"]) @ p["v"]),
        lambda: layers("a", "v", "scale"),
        {"a", "v", "scale"},
    ),
    "tied": (lambda p, x: jax.nn.relu(x @ p["tied"]) @ p["tied"], lambda: layers("tied"), set()),
    "squared weight": (
        lambda p, x: x @ (p["tied"] * p["tied"]),
        lambda: layers("tied"),
        set(),
    ),
    "max": (
        lambda p, x: jnp.sort(jnp.maximum(x @ p["a"], p["b"]))[:3] * jnp.max(p["v"], 0),
        lambda: layers("a", "b", "v"),
        {"a", "b", "v"},
    ),
    "attention": (
        attention,
        lambda: {n: random(i, 3, 3) for i, n in enumerate(("query", "key", "value", "out"))},
        {"value", "out"},
    ),
    "layer norm": (
        lambda p, x: jax.nn.standardize(x @ p["a"]) * p["b"] @ p["v"],
        lambda: layers("a", "b", "v"),
        {"b", "v"},
    ),
    "convolution": (
        lambda p, x: conv(
            jax.nn.relu(conv(x.reshape(3, 1, 1), p["k"], padding="SAME")), p["l"]
        ).reshape(-1),
        lambda: {"k": random(1, 2, 1, 1, 2), "l": random(2, 1, 1, 2, 1)},
        {"k", "l"},
    ),
    "stack": (stack, lambda: {"w": random(1, 3, 3, 3)}, {"w"}),
}


def batch():
    return random(8, 6, 3), jnp.arange(6) % 3


def output_loss(outputs, example):
    return cross_entropy(outputs, example[1])


@pytest.mark.parametrize("name", MODELS)
def test_gauss_newton_is_exact_and_is_the_hessian_where_proven(name):
    model, make, accepted = MODELS[name]
    model_fn = lambda p, example: model(p, example[0])
    with jax.enable_x64(True):
        params, examples = as_float64(make()), as_float64(batch())
        flat, unravel = ravel_pytree(params)

        def oracle_of(example):
            outputs = lambda w: model_fn(unravel(w), example)
            jacobian = jax.jacrev(outputs)(flat)
            hessian = jax.hessian(lambda y: output_loss(y, example))(outputs(flat))
            return jnp.einsum("ci,cd,di->i", jacobian, hessian, jacobian)

        want = unravel(jax.jit(lambda e: jax.vmap(oracle_of)(e).mean(0))(examples))
        got = jax.jit(sap.gauss_newton_diagonal(model_fn, output_loss))(params, examples)
        assert relative_error(got, want) < 1e-12

        def mean(p):
            losses = jax.vmap(lambda e: output_loss(model_fn(p, e), e))(examples)
            return losses.mean()

        hessian = jax.jit(lambda p: dense_diagonal(mean, p))(params)
        example = jax.tree.map(lambda x: x[0], examples)
        proven = sap.is_piecewise_affine(model_fn, params, example)
        assert {leaf for leaf, proof in proven.items() if proof} == accepted
        for leaf, proof in proven.items():
            # Not only proven but so; and where refused, not so.
            assert (relative_error(want[leaf], hessian[leaf]) < 1e-10) == proof, leaf


def test_outputs_may_be_a_tree_and_what_they_miss_is_zero():
    model_fn = lambda p, x: {"y": jnp.tanh(p["a"]) * x, "z": (p["b"] ** 2,)}
    loss_fn = lambda out, x: jnp.sum(out["y"] ** 2) + jnp.sum(out["z"][0] ** 2)
    params = {"a": jnp.ones(2), "b": jnp.ones(2), "c": jnp.ones(3)}
    got = sap.gauss_newton_diagonal(model_fn, loss_fn)(params, jnp.ones((4, 2)))
    np.testing.assert_allclose(got["a"], 2 * (1 - np.tanh(1.0) ** 2) ** 2 * np.ones(2), rtol=1e-5)
    np.testing.assert_allclose(got["b"], 8 * np.ones(2), rtol=1e-6)
    np.testing.assert_array_equal(got["c"], 0)


@pytest.mark.parametrize("name", ["tanh", "tied", "attention"])
def test_the_sampled_diagonal_is_unbiased_within_its_standard_error(name):
    # 6 standard errors over at most 36 entries: a false alarm in under 1 of 10 million draws.
    model, make, _ = MODELS[name]
    model_fn = lambda p, example: model(p, example[0])
    params, examples = make(), batch()
    want = jax.jit(sap.gauss_newton_diagonal(model_fn, output_loss))(params, examples)
    estimate = sap.sampled_gauss_newton_diagonal(model_fn, output_loss, num_samples=2)
    draws = jax.jit(jax.vmap(lambda k: estimate(params, examples, k)))(
        jax.random.split(jax.random.key(0), 400)
    )
    for leaf, draw in draws.items():
        error = draw.std(0, ddof=1) / 20
        assert float(error.max()) > 0
        np.testing.assert_array_less(abs(draw.mean(0) - want[leaf]), 6 * error + 1e-6)


@pytest.mark.parametrize("name", ["tanh", "tied", "layer norm", "stack"])
def test_the_empirical_fisher_is_the_mean_squared_gradient(name):
    model, make, _ = MODELS[name]
    params, examples = make(), batch()

    def loss_fn(p, example):
        penalty = 0.1 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p))
        return output_loss(model(p, example[0]), example) + penalty

    gradients = jax.jit(jax.vmap(jax.grad(loss_fn), (None, 0)))(params, examples)
    want = jax.tree.map(lambda g: (g**2).mean(0), gradients)
    got = jax.jit(sap.empirical_fisher_diagonal(loss_fn))(params, examples)
    assert relative_error(got, want) < 1e-5


def test_sampled_options_are_checked():
    with pytest.raises(ValueError, match=r"`num_samples` must be at least 1; got 0\."):
        sap.sampled_gauss_newton_diagonal(lambda p, e: p, lambda y, e: y, num_samples=0)
