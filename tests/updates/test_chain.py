"""From parameters to new parameters in one compiled call, with nothing in between on the host."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import cnn, mlp

import sapsel_jax as sap

NETWORKS = {"mlp": mlp, "cnn": cnn}
NAMES = ["mlp", pytest.param("cnn", marks=pytest.mark.slow)]


def make_chain(loss_fn):
    def chain(params, data, original, corrected, batches):
        diagonal = sap.exact_diagonal(loss_fn)(params, data)
        mask = sap.select_top_fraction(sap.score_sharpest(diagonal), 0.1)
        moved = sap.first_order_update(
            loss_fn, params, original, corrected, step_size=0.5, mask=mask, num_examples=10
        )
        moved, _ = sap.iterative_update(
            loss_fn, moved, batches, optimizer=optax.adam(0.01), mask=mask
        )
        return moved, mask, sap.count_nonfinite(diagonal)

    return chain


def chain_and_inputs(network, scale=1.0):
    loss_fn, params, (x, label) = NETWORKS[network]()
    data = (x * scale, label)
    original, corrected = (data[0][:4], label[:4]), (data[0][:4], (label[:4] + 1) % 3)
    batches = jax.tree.map(lambda a: a[:4].reshape(2, 2, *a.shape[1:]), data)
    return make_chain(loss_fn), (params, data, original, corrected, batches)


@pytest.mark.parametrize("network", NAMES)
def test_the_chain_is_traced_whole_and_lowers_for_tpu_and_cuda(network):
    chain, inputs = chain_and_inputs(network)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
    jax.make_jaxpr(chain)(*shapes)  # a host read of a traced value would raise
    for platform in ("tpu", "cuda"):
        exported = jax.export.export(jax.jit(chain), platforms=[platform])(*shapes)
        assert exported.platforms == (platform,)  # a callback to the host would not lower


def test_the_chain_needs_one_trace_and_no_transfer_for_two_batches_and_masks():
    chain, inputs = chain_and_inputs("mlp")
    _, others = chain_and_inputs("mlp", scale=0.1)
    compiled = jax.jit(chex.assert_max_traces(chain, n=1))
    inputs, others = jax.device_put((inputs, others))
    with jax.transfer_guard("disallow"):
        moved, mask, _ = jax.block_until_ready(compiled(*inputs))
        _, other_mask, _ = jax.block_until_ready(compiled(*others))
    assert float(sap.mask_overlap(mask, other_mask)) < 1
    params = inputs[0]
    chex.assert_trees_all_equal_shapes_and_dtypes(moved, params)
    for before, after, m in zip(*map(jax.tree.leaves, (params, moved, mask)), strict=True):
        before, after, m = np.asarray(before), np.asarray(after), np.asarray(m)
        np.testing.assert_array_equal(before.view(np.uint32)[~m], after.view(np.uint32)[~m])
        assert np.any(before[m] != after[m]) or not m.any()


def test_a_mask_is_data_so_that_a_second_one_needs_no_trace():
    loss_fn, params, batch = mlp()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def update(mask, batch):
        moved = sap.first_order_update(loss_fn, params, batch, None, step_size=0.5, mask=mask)
        batches = jax.tree.map(lambda x: x[None], batch)
        return sap.iterative_update(
            loss_fn, moved, batches, optimizer=optax.adamw(0.01), mask=mask
        )[0]

    scores = sap.score_magnitude(params)
    first = update(sap.select_top_count(scores, 5), batch)
    second = update(sap.select_top_count(scores, 20), (batch[0] + 1, batch[1]))
    changed = [
        sum(
            int(np.sum(a != b)) for a, b in zip(*map(jax.tree.leaves, (params, after)), strict=True)
        )
        for after in (first, second)
    ]
    assert 0 < changed[0] <= 5 < changed[1] <= 20


@pytest.mark.slow
def test_the_chain_compiled_equals_the_chain_eager():
    def loss_fn(params, example):
        x, y = example
        return (jnp.tanh(x @ params["w"]) * params["scale"] - y) ** 2

    params = {"scale": jnp.asarray(1.5), "w": jnp.linspace(-1, 1, 19)}
    x = jax.random.normal(jax.random.key(0), (6, 19))
    original, corrected = (x[:2], jnp.ones(2)), (x[:2], jnp.zeros(2))
    batches = (x.reshape(3, 2, 19), jnp.ones((3, 2)))
    inputs = (params, (x, jnp.ones(6)), original, corrected, batches)
    chain = make_chain(loss_fn)
    eager, compiled = chain(*inputs), jax.jit(chain)(*inputs)
    chex.assert_trees_all_equal(compiled[1:], eager[1:])
    chex.assert_trees_all_close(compiled[0], eager[0], rtol=1e-4, atol=1e-5)
    assert int(sap.mask_count(eager[1])) == 2
    assert all(int(count) == 0 for count in jax.tree.leaves(eager[2]))
