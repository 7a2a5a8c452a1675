"""Exact diagonals of attention, layer by layer against dense Hessians in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import as_float64, cross_entropy, dense_diagonal, mean_loss, normal, relative_error

import sapsel_jax as sap
from sapsel_jax._primitives.tangents import Factor, Label, Tangent, dense, factored, multiplied

TOKENS, WIDTH, CLASSES = 4, 6, 3


def norm(x, scale):
    centred = x - x.mean(-1, keepdims=True)
    return scale * centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-3)


def block(*, heads=2, pooled=True, split=True, causal=False):
    """One attention block on given inputs, as (loss_fn, params, batch)."""
    keys = iter(jax.random.split(jax.random.key(3), 12))
    square = lambda: normal(next(keys), WIDTH, WIDTH) * 2
    inner = (WIDTH, heads, WIDTH // heads)
    shape = lambda w: w if split else w.reshape(inner)
    params = {name: shape(square()) for name in ("query", "key", "value")}
    params |= {"out": square(), "norm1": jnp.ones(WIDTH), "norm2": jnp.ones(WIDTH)}
    params |= {"up": normal(next(keys), WIDTH, 8), "down": normal(next(keys), 8, WIDTH)}
    params |= {"head": normal(next(keys), WIDTH, CLASSES)}

    def loss_fn(p, example):
        x, labels = example
        y = norm(x, p["norm1"])
        into = lambda w: (y @ w).reshape(TOKENS, *inner[1:]) if split else jnp.tensordot(y, w, 1)
        q, k, v = into(p["query"]), into(p["key"]), into(p["value"])
        scores = jnp.einsum("thd,shd->hts", q, k) / np.sqrt(WIDTH // heads)
        if causal:
            scores = jnp.where(jnp.tri(TOKENS, dtype=bool), scores, -1e9)
        attended = jnp.einsum("hts,shd->thd", jax.nn.softmax(scores), v)
        x = x + attended.reshape(x.shape) @ p["out"]
        x = x + jax.nn.gelu(norm(x, p["norm2"]) @ p["up"]) @ p["down"]
        if pooled:
            return cross_entropy(x.mean(0) @ p["head"], labels[0])
        return cross_entropy(x @ p["head"], labels).mean()

    batch = (normal(next(keys), 3, TOKENS, WIDTH) * 3, jnp.arange(3 * TOKENS).reshape(3, -1) % 3)
    return loss_fn, params, batch


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"pooled": False, "split": False, "causal": True}])
def test_every_weight_of_attention_is_exact(options):
    with jax.enable_x64(True):
        loss_fn, params, batch = block(**options)
        params, batch = as_float64((params, batch))
        want = jax.jit(lambda p: dense_diagonal(lambda q: mean_loss(loss_fn, q, batch), p))(params)
        assert relative_error(jax.jit(sap.exact_diagonal(loss_fn))(params, batch), want) < 1e-9
        plan = sap.explain(loss_fn, params, jax.tree.map(lambda x: x[0], batch))
    # Behind attention each place is a block of its own.
    assert any(" " in use.cut for use in plan.uses)


def test_a_block_costs_tens_of_gradients_not_hundreds():
    """By counted work: queries and keys move a place by a product of two factors."""
    width, tokens = 32, 32
    shapes = dict.fromkeys(("query", "key", "value", "out"), (width, width)) | {"head": (width, 10)}

    def loss_fn(p, x):
        split = lambda name: (x @ p[name]).reshape(tokens, 2, width // 2)
        scores = jnp.einsum("thd,shd->hts", split("query"), split("key"))
        attended = jnp.einsum("hts,shd->thd", jax.nn.softmax(scores), split("value"))
        return cross_entropy(attended.reshape(x.shape).mean(0) @ p["out"] @ p["head"], 0)

    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    plan = sap.explain(loss_fn, params, jax.ShapeDtypeStruct((tokens, width), jnp.float32))
    assert plan.cost < 40


def test_factors_are_multiplied_out_as_numpy_does():
    i, j, k = Label(2), Label(3), Label(4)
    rng = np.random.default_rng(0)
    f, g = rng.normal(size=(3, 2, 5)), rng.normal(size=(4, 2))  # (j, i; places), (k, i)
    value = rng.normal(size=(2, 1, 5))
    factors = (Factor(jnp.asarray(f), (j, i), (1,)), Factor(jnp.asarray(g), (k, i), ()))
    tangent = Tangent(jnp.asarray(value), (i,), ((), ()), factors)
    want = np.einsum("jip,ki,iap->ijkap", f, g, value)
    np.testing.assert_allclose(dense(tangent, (1, 5), (i, j, k)), want, 1e-6)
    np.testing.assert_allclose(dense(factored(tangent), (1, 5), (i, j, k)), want, 1e-6)
    some = multiplied(tangent, factors[:1])
    assert some.factors == factors[1:]
    np.testing.assert_allclose(dense(some, (1, 5), (i, j, k)), want, 1e-6)


def test_an_axis_with_several_labels_keeps_them_with_its_factor():
    i, j, k = Label(2), Label(3), Label(4)
    value = np.random.default_rng(1).normal(size=(4, 6, 5))  # i and j are tied to the axis of 6
    tangent = Tangent(jnp.asarray(value), (k,), ((i, j), ()))
    apart = factored(tangent)
    assert apart.factors[0].labels == (k, i, j)
    want = np.zeros((4, 2, 3, 6, 5))
    for a in range(2):
        for b in range(3):
            want[:, a, b, 3 * a + b] = value[:, 3 * a + b]
    np.testing.assert_allclose(dense(apart, (6, 5), (k, i, j)), want, 1e-6)


def test_a_label_is_split_in_one_way():
    label = Label(6)
    parts = label.split([2, 3])
    assert label.split([2, 3]) == parts
    assert label.split([3, 2]) == ()
    assert label.atoms() == parts
