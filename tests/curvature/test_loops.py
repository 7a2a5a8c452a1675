"""Scans that `propagated_diagonal` takes as loops, each against the dense diagonal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from networks import cross_entropy, dense_diagonal, mean_loss, normal

import sapsel_jax as sap
from sapsel_jax._graph.tracing import MIN_LOOP, trace

pytestmark = pytest.mark.usefixtures("quick_compiler")

KEYS = jax.random.split(jax.random.key(2), 9)
BATCH = normal(KEYS[0], 5, 4), jnp.arange(5) % 3
STEPS = MIN_LOOP


def layers(index, *shape):
    return jax.vmap(lambda key: normal(key, *shape))(jax.random.split(KEYS[index], STEPS))


def relu_layers():
    """One signal and a sign: no noise lies before the logits."""

    def loss_fn(params, example):
        layer = lambda h, w: (h + jax.nn.relu(h @ w), None)
        hidden, _ = lax.scan(layer, example[0] @ params["in"], params["w"])
        return cross_entropy(hidden @ params["out"], example[1])

    params = {"w": layers(1, 4, 4), "in": normal(KEYS[2], 4, 4), "out": normal(KEYS[3], 4, 3)}
    return loss_fn, params, BATCH


def recurrent():
    """Weights that every step reads, two carried arrays that meet, steps from the last one on."""

    def loss_fn(params, example):
        def step(state, x):
            hidden, cell = state
            z = x * params["in"] + hidden @ params["w"]
            cell = jax.nn.sigmoid(z[:3]) * cell + jnp.tanh(z[3:])
            return (jnp.tanh(cell), cell), cell

        (hidden, cell), cells = lax.scan(
            step, (jnp.zeros(3), jnp.zeros(3)), example[0], reverse=True
        )
        return jnp.sum((hidden + cell) ** 2) + jnp.sum(jnp.sin(cells[1]))

    return loss_fn, {"in": normal(KEYS[1], 6), "w": normal(KEYS[2], 3, 6)}, BATCH


def attention():
    """A block with a norm, rematerialised; a table that every layer looks rows up in."""

    def loss_fn(params, example):
        def block(x, layer):
            normed = (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 0.1)
            normed = normed * layer["scale"]
            weights = jax.nn.softmax(normed @ layer["query"] @ (normed @ layer["key"]).T)
            return x + weights @ normed * 0.2 + layer["table"][example[0]], None

        start = jnp.ones((3, 4)) + jnp.eye(3, 4)
        return jnp.sum(lax.scan(jax.checkpoint(block), start, params)[0] ** 2)

    params = {
        "scale": jnp.ones((STEPS, 4)),
        "query": layers(1, 4, 4),
        "key": layers(2, 4, 4),
        "table": layers(3, 5, 4),
    }
    return loss_fn, params, (jnp.array([[0, 1, 1], [4, 2, 0]]),)


def nested():
    """A loop inside of a step, a count, and weights that are moved before they are sliced."""

    def loss_fn(params, example):
        def step(state, stacked):
            hidden, count = state
            weights, bias = stacked
            layer = lambda h, w: (jnp.tanh(h @ w) * params["scale"], None)
            return (lax.scan(layer, hidden, weights)[0] + count * bias, count + 1), hidden

        stacked = jnp.moveaxis(params["w"], 0, 1).astype(jnp.float64), params["b"]
        (hidden, _), all_hidden = lax.scan(step, (example[0], 1), stacked)
        return jnp.sum(hidden**2) + jnp.sum(all_hidden[2] ** 3)

    w = jnp.stack([layers(i, 4, 4) for i in (1, 2, 3, 4)]) * 1.2
    return loss_fn, {"w": w, "b": 0.1 * layers(5, 4), "scale": jnp.ones(4)}, BATCH


def two_uses():
    """Both meet in later steps only."""

    def loss_fn(params, example):
        step = lambda s, w: ((s[0] @ w + jnp.sin(s[1]), 0.5 * s[1] @ w.T), None)
        first, second = lax.scan(step, (example[0], example[0]), params)[0]
        return jnp.sum(first**2) + jnp.sum(first * second)

    return loss_fn, layers(1, 4, 4), BATCH


def slices_that_are_kept():
    """A slice is carried on and stacked, so that it has no site in its step."""

    def loss_fn(params, example):
        step = lambda s, w: ((jnp.tanh(s[0] * w) + s[1], w), w)
        (hidden, last), kept = lax.scan(step, (example[0], example[0]), params)
        return jnp.sum(hidden**2) + jnp.sum(last**3) + jnp.sum(kept**2 * example[0])

    return loss_fn, layers(1, 4), BATCH


def normalised_weights():
    """What the steps slice is no leaf; the loss reads the leaf again outside."""

    def loss_fn(params, example):
        weights = params / jnp.linalg.norm(params, axis=1, keepdims=True)
        hidden, _ = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), example[0], weights)
        return jnp.sum(hidden**2) + jnp.sum(params[0] ** 3)

    return loss_fn, layers(1, 4, 4), BATCH


def only_stacked():
    """Nothing is carried; what came before the loop meets its results."""

    def loss_fn(params, example):
        before = jnp.tanh(example[0] @ params["in"])
        _, found = lax.scan(lambda _, w: (None, jnp.tanh(before @ w)), None, params["w"])
        return jnp.sum((found.sum(0) + before) ** 2)

    return loss_fn, {"in": normal(KEYS[1], 4, 4), "w": layers(2, 4, 4)}, BATCH


FAST = [relu_layers, recurrent]
SLOW = [
    attention,
    nested,
    two_uses,
    slices_that_are_kept,
    normalised_weights,
    only_stacked,
]


def check_unbiased(network, num_probes):
    with jax.enable_x64(True):
        loss_fn, *inputs = network()
        is_float = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
        params, batch = jax.tree.map(lambda x: x.astype(float) if is_float(x) else x, inputs)
        first = jax.tree.map(lambda x: x[0], batch)
        assert any(node.loop for node in trace(loss_fn, params, first, loops=True).nodes)
        want = jax.jit(lambda p: dense_diagonal(lambda q: mean_loss(loss_fn, q, batch), p))(params)
        estimate = sap.propagated_diagonal(loss_fn, num_probes=num_probes, return_error=True)
        found, error = jax.jit(estimate)(params, batch, jax.random.key(1))
        found, error, want = jax.tree.map(np.asarray, (found, error, want))
    for v, e, w in zip(*map(jax.tree.leaves, (found, error, want)), strict=True):
        np.testing.assert_array_less(abs(v - w), 6 * e + 1e-9)  # in standard errors
    norm = lambda tree: np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(tree)))
    assert norm(error) < 0.15 * norm(want)


@pytest.mark.parametrize("network", FAST)
def test_unbiased(network):
    check_unbiased(network, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("network", SLOW)
def test_other_loops_are_unbiased(network):
    check_unbiased(network, 2000)


@pytest.fixture
def stack():
    def make(num_layers):
        def loss_fn(params, x):
            return jnp.sum(lax.scan(lambda h, w: (h + jnp.tanh(h @ w), None), x, params)[0] ** 2)

        return loss_fn, jnp.stack([jnp.eye(3)] * num_layers) / num_layers, jnp.ones((2, 3))

    return make


def test_programs_do_not_grow_with_the_number_of_steps(stack):
    """Nor is there an end to what is taken as a loop."""

    def text(num_layers):
        loss_fn, *inputs = stack(num_layers)
        diagonal = sap.propagated_diagonal(loss_fn)
        return str(jax.make_jaxpr(diagonal)(*inputs, jax.random.key(0)))

    assert text(64).count(" = ") == text(MIN_LOOP).count(" = ")
    assert text(MIN_LOOP - 1).count("tanh") > text(MIN_LOOP).count("tanh")


def test_jit_equals_eager_a_microbatch_and_weights(stack):
    loss_fn, params, batch = stack(6)
    batch, key = batch.at[1].set(0.5), jax.random.key(3)
    want = sap.propagated_diagonal(loss_fn)(params, batch, key)
    found = jax.jit(sap.propagated_diagonal(loss_fn, microbatch=1))(params, batch, key)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-6)
    first = sap.propagated_diagonal(loss_fn)(params, batch[:1], key)
    found = sap.propagated_diagonal(loss_fn)(params, batch, key, weights=jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(found, first, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("num_layers", [MIN_LOOP - 1, MIN_LOOP])
def test_bfloat16_is_summed_in_float32_under_strict_promotion(stack, num_layers):
    loss_fn, params, batch = stack(num_layers)
    narrow = lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        found = sap.propagated_diagonal(loss_fn)(narrow(params), narrow(batch), jax.random.key(0))
    assert found.dtype == jnp.float32
    want = sap.propagated_diagonal(loss_fn)(params, batch, jax.random.key(0))
    np.testing.assert_allclose(found, want, rtol=0.2, atol=0.05 * float(jnp.abs(want).max()))


def test_explain_says_how_a_loop_is_estimated(stack):
    loss_fn, params, batch = stack(40)
    assert [use.propagated for use in sap.explain(loss_fn, params, batch[0]).uses] == [
        "at the site"
    ]


def test_a_while_loop_inside_of_a_step_is_refused():
    def loss_fn(params, x):
        step = lambda h, w: (lax.while_loop(lambda h: h[0] < 1, lambda h: h + w, h), None)
        return jnp.sum(lax.scan(step, x, params)[0])

    with pytest.raises(NotImplementedError, match="has a `while` loop that depends on the param"):
        sap.propagated_diagonal(loss_fn)(jnp.ones((5, 3)), jnp.ones((2, 3)), jax.random.key(0))
