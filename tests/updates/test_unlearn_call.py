"""The one call: what it composes, that it compiles once and whole, and what stops it."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import as_float64, dense_diagonal, mean_loss, to_unlearn
from trees import changed_bits

import sapsel_jax as sap
from sapsel_jax import Reason

pytestmark = pytest.mark.usefixtures("quick_compiler")
KEY = jax.random.key(0)


def run(loss_fn, batches, **options):
    """Under `jit`, which is many times faster than one operation after the other."""
    return jax.jit(lambda *b: sap.unlearn(loss_fn, *b, key=KEY, **options))(*batches)


UPDATES = {
    "default": None,
    "second_order": functools.partial(
        sap.second_order_update, damping=2.0, solver=sap.conjugate_gradient()
    ),
    "first_order": sap.with_first_order(step_size=0.1),
    "iteration": sap.with_iteration(
        optimizer=optax.adam(0.01), num_steps=3, batch_size=4, key=jax.random.key(1)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("removal", [False, True])
def test_the_curvature_is_that_of_the_loss_that_was_trained(removal):
    with jax.enable_x64(True):
        loss_fn, batches = to_unlearn(removal)
        params, original, corrected, data = as_float64(batches)
        rest = data if removal else jax.tree.map(lambda x: x[3:], data)
        trained = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), original, rest)
        want = dense_diagonal(lambda p: mean_loss(loss_fn, p, trained), params)
        curvature = sap.exact_diagonal(loss_fn)
        options = {"fraction": 0.2, "curvature": curvature, "score": sap.score_sharpest}
        got = run(loss_fn, (params, original, corrected, data), **options)
        chex.assert_trees_all_close(got.diagonal, want, rtol=1e-8, atol=1e-10)
        chex.assert_trees_all_equal(got.mask, sap.select_top_fraction(want, 0.2))


@pytest.mark.slow
@pytest.mark.parametrize("removal", [False, True])
@pytest.mark.parametrize("name", UPDATES)
def test_every_update_lowers_the_loss_and_keeps_the_rest(name, removal):
    loss_fn, batches = to_unlearn(removal)
    got = jax.jit(lambda *b: sap.unlearn(loss_fn, *b, key=KEY, fraction=0.2, update=UPDATES[name]))(
        *batches
    )
    assert got.certificate.converged
    assert got.certificate.actual_change < 0
    assert int(sap.mask_count(got.mask)) == 8
    params = batches[0]
    chex.assert_trees_all_equal_shapes_and_dtypes(got.params, params)
    changed = changed_bits(params, got.params)
    selected = np.concatenate([np.ravel(m) for m in jax.tree.leaves(got.mask)])
    assert changed.any()
    assert not changed[~selected].any()
    if name == "iteration":  # its certificate is about the loss on the data itself
        change = mean_loss(loss_fn, got.params, batches[3]) - mean_loss(loss_fn, params, batches[3])
        np.testing.assert_allclose(got.certificate.actual_change, change, rtol=1e-3)


@pytest.mark.parametrize("name", UPDATES)
def test_the_call_is_traced_whole_and_lowers_for_tpu_and_cuda(name):
    loss_fn, batches = to_unlearn()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (*batches, KEY))
    call = lambda *b: sap.unlearn(loss_fn, *b[:-1], key=b[-1], update=UPDATES[name])
    for platform in ("tpu", "cuda"):
        exported = jax.export.export(jax.jit(call), platforms=[platform])(*shapes)
        assert exported.platforms == (platform,)  # a callback to the host would not lower


def test_the_call_needs_one_trace_and_no_transfer():
    loss_fn, _ = to_unlearn()
    call = jax.jit(chex.assert_max_traces(lambda *b, key: sap.unlearn(loss_fn, *b, key=key), n=1))
    inputs, others = jax.device_put((to_unlearn()[1], to_unlearn(scale=0.3)[1]))
    with jax.transfer_guard("disallow"):
        first = jax.block_until_ready(call(*inputs, key=KEY))
        second = jax.block_until_ready(call(*others, key=KEY))
    assert first.certificate.converged
    assert second.certificate.converged
    assert changed_bits(first.params, second.params).any()


@pytest.mark.slow
def test_the_parts_can_be_swapped():
    loss_fn, batches = to_unlearn()
    params = batches[0]
    exact = run(loss_fn, batches, update=UPDATES["first_order"])
    probed = run(
        loss_fn,
        batches,
        curvature=sap.hutchinson_diagonal(loss_fn, num_probes=2),
        update=UPDATES["first_order"],
    )
    assert changed_bits(exact.diagonal, probed.diagonal).any()
    ranked = run(
        loss_fn,
        batches,
        fraction=0.5,
        score=lambda diagonal: sap.score_brain_damage(params, diagonal),
        select=sap.select_top_fraction_per_leaf,
        update=UPDATES["first_order"],
    )
    want = sap.select_top_fraction_per_leaf(sap.score_brain_damage(params, exact.diagonal), 0.5)
    chex.assert_trees_all_equal(ranked.mask, want)


@pytest.mark.slow
def test_arguments_of_the_loss_and_microbatches_pass_through():
    loss_fn, batches = to_unlearn()
    scaled = lambda p, example, scale: scale * loss_fn(p, example)
    options = {"fraction": 0.2, "score": sap.score_sharpest}
    plain = run(loss_fn, batches, update=UPDATES["second_order"], **options)
    update = functools.partial(
        sap.second_order_update, damping=4.0, solver=sap.conjugate_gradient()
    )
    passed = run(scaled, batches, update=update, microbatch=2, args=(2.0,), **options)
    assert plain.certificate.converged
    chex.assert_trees_all_close(plain.params, passed.params, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", UPDATES)
def test_a_fraction_that_selects_nothing_changes_nothing(name):
    loss_fn, batches = to_unlearn()
    got = run(loss_fn, batches, fraction=0.0, update=UPDATES[name])
    assert not changed_bits(batches[0], got.params).any()
    assert got.certificate.converged
    assert abs(got.certificate.actual_change) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", UPDATES)
def test_numbers_that_are_none_leave_the_parameters_as_they_were(name):
    loss_fn, (params, original, corrected, data) = to_unlearn()
    broken = lambda p, example: loss_fn(p, example) * jnp.where(example[0][0] > 90, jnp.nan, 1.0)
    data = (data[0].at[0, 0].set(99.0), data[1])
    corrected = (corrected[0].at[0, 0].set(99.0), corrected[1])
    got = run(
        broken,
        (params, original, corrected, data),
        curvature=lambda p, batch: sap.exact_diagonal(loss_fn)(p, original),
        update=UPDATES[name],
    )
    assert not changed_bits(params, got.params).any()
    assert got.certificate.reason == Reason.NOT_FINITE
    assert not got.certificate.converged


@pytest.mark.slow
@pytest.mark.parametrize("name", ["first_order", "iteration"])
def test_steps_that_raise_the_loss_are_not_taken(name):
    loss_fn, batches = to_unlearn()
    update = {
        # The loss rises from 1 to between 50 and 1,200, whatever examples are drawn.
        "first_order": sap.with_first_order(step_size=30.0),
        "iteration": sap.with_iteration(
            optimizer=optax.sgd(30.0), num_steps=1, batch_size=2, key=jax.random.key(1)
        ),
    }[name]
    got = run(loss_fn, batches, fraction=0.5, update=update)
    assert not changed_bits(batches[0], got.params).any()
    assert got.certificate.reason == Reason.NO_DECREASE
    assert got.certificate.num_steps == 0
