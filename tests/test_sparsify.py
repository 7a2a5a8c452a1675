"""Updates cut down in stages: against NumPy, bit for bit outside the mask, and what is refused."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from refusals import refuses
from trees import changed_bits

import sapsel_jax as sap

RNG = np.random.default_rng(0)
SCALES = np.exp(RNG.normal(size=12))
TARGETS = RNG.normal(size=(20, 3, 12))  # twenty steps of three examples
DATA = TARGETS.reshape(-1, 12)
START = RNG.normal(size=12)
COUNTS = (6, 3, 2)


def loss_fn(w, y):
    flat = jnp.concatenate([w["a"].ravel(), w["b"]])
    return 0.5 * jnp.sum(jnp.asarray(SCALES, flat.dtype) * (flat - y) ** 2)


def params(dtype=jnp.float32):
    flat = jnp.asarray(START, dtype)
    return {"a": flat[:8].reshape(2, 4), "b": flat[8:]}


def run(start=None, targets=TARGETS, data=DATA, **options):
    options = {"counts": COUNTS, "optimizer": optax.sgd(0.1)} | options
    as_given = lambda x: jnp.asarray(x, jnp.float32)
    return sap.sparsify_update(
        loss_fn,
        params() if start is None else start,
        as_given(targets),
        as_given(data),
        key=jax.random.key(0),
        **options,
    )


def flat(tree):
    return np.concatenate([np.asarray(tree["a"]).ravel(), np.asarray(tree["b"])])


def in_numpy(steps, counts=COUNTS):
    """The same rule with gradient descent: the diagonal of this loss is `SCALES`."""
    w, mask = START.copy(), np.ones(12, bool)
    targets = iter(TARGETS)
    for number, count in zip(steps, (*counts, None), strict=True):
        for _ in range(number):
            w = w - 0.1 * mask * SCALES * (w - next(targets).mean(0))
        if count is not None:
            scores = np.where(mask, 0.5 * SCALES * (w - START) ** 2, -np.inf)
            mask = np.zeros(12, bool)
            mask[np.argsort(-scores)[:count]] = True
            w = np.where(mask, w, START)
    return w, mask


@pytest.mark.parametrize("steps", [None, (8, 4, 4, 4), (1, 1, 1, 17)])
def test_the_stages_are_those_of_numpy(steps):
    result = run(steps=steps)
    want, mask = in_numpy(steps or (6, 5, 4, 5))
    np.testing.assert_array_equal(flat(result.mask), mask)
    np.testing.assert_allclose(flat(result.params), want, rtol=1e-5)
    assert result.losses.shape == (20,)
    assert bool(result.certificate.converged)
    assert float(result.certificate.actual_change) < 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    "optimizer", [optax.adam(0.1), optax.adamw(0.1, weight_decay=0.1), optax.sgd(0.1, 0.9)]
)
def test_what_is_put_back_has_its_old_bits(optimizer, dtype):
    start = params(dtype)
    start["b"] = start["b"].at[0].set(-0.0)
    result = run(start, optimizer=optimizer)
    chex.assert_trees_all_equal_shapes_and_dtypes(result.params, start)
    assert int(sap.mask_count(result.mask)) == COUNTS[-1]
    assert not np.any(changed_bits(start, result.params) & ~flat(result.mask))
    patch = sap.make_patch(start, result.params)
    chex.assert_trees_all_equal(sap.apply_patch(start, patch), result.params)


def test_it_compiles_whole_and_once():
    fn = chex.assert_max_traces(lambda w, targets, data: run(w, targets, data), n=1)
    compiled = jax.jit(fn)
    got = compiled(params(), TARGETS, DATA)
    compiled(params(), TARGETS[::-1], DATA)
    chex.assert_trees_all_close(got, run(), rtol=1e-5)


def test_nothing_moves_outside_of_the_mask_to_begin_with():
    mask = {"a": jnp.zeros((2, 4), bool), "b": jnp.ones(4, bool)}
    result = run(mask=mask, counts=(3, 1))
    assert not result.mask["a"].any()
    assert result.mask["b"].sum() == 1
    chex.assert_trees_all_equal(result.params["a"], params()["a"])
    too_few = run(mask=mask, counts=(6, 5))
    assert int(too_few.certificate.reason) == sap.Reason.TOO_FEW_SELECTED


def test_other_counts_need_no_new_compilation():
    fn = jax.jit(chex.assert_max_traces(lambda counts: run(counts=counts), n=1))
    for counts in ((6, 3, 2), (5, 5, 1)):
        chex.assert_trees_all_close(fn(jnp.asarray(counts)), run(counts=counts), rtol=1e-5)


def test_another_score_ranks_the_entries():
    shortest = lambda before, after, h: jax.tree.map(lambda a, b: -jnp.abs(b - a), before, after)
    result = run(counts=(1,), steps=(1, 19), score=shortest)
    moves = np.abs(SCALES * (START - TARGETS[0].mean(0)))
    assert np.argmin(moves) == np.argmax(flat(result.mask))


def test_retained_examples_are_mixed_in():
    together = np.concatenate([TARGETS, TARGETS[::-1]], 1)
    got = run(retained=jnp.asarray(TARGETS[::-1], jnp.float32))
    chex.assert_trees_all_close(got.params, run(targets=together).params, rtol=1e-5)


def test_too_few_finite_scores_change_nothing():
    nowhere = lambda w, batch: jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), w)
    result = run(curvature=nowhere)
    chex.assert_trees_all_equal(result.params, params())
    assert int(result.certificate.reason) == sap.Reason.TOO_FEW_SELECTED
    assert not bool(result.certificate.converged)


def test_an_update_that_raises_the_loss_is_not_taken():
    result = run(optimizer=optax.sgd(-0.1))
    chex.assert_trees_all_equal(result.params, params())
    assert int(result.certificate.reason) == sap.Reason.NO_DECREASE


def test_the_certificate_is_about_what_was_descended_on():
    # Steps away from the data, whose loss they raise.
    away = -10 * TARGETS
    result = run(targets=away)
    assert bool(result.certificate.converged)
    last = jnp.asarray(away.reshape(-1, 12)[-len(DATA) :], jnp.float32)
    mean = lambda w: jnp.mean(jax.vmap(lambda y: loss_fn(w, y))(last))
    change = mean(result.params) - mean(params())
    np.testing.assert_allclose(result.certificate.actual_change, change, rtol=1e-4)


def test_the_curvature_gets_the_key_and_the_data():
    seen = {}

    def curvature(w, batch, key):
        seen.update(rows=batch.shape, key=key)
        return jax.tree.map(jnp.ones_like, w)

    run(curvature=curvature)
    assert seen == {"rows": (60, 12), "key": jax.random.key(0)}


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"counts": ()},
            ValueError,
            "`counts` must name at least one number of entries; got none.",
        ),
        ({"counts": (2, 0)}, ValueError, "`counts[1]` must be at least 1; got 0."),
        (
            {"counts": (2.0,)},
            TypeError,
            "`counts[0]` must be a Python integer; got float.",
        ),
        (
            {"counts": (2, 3)},
            ValueError,
            "`counts` must fall, from at most the 12 entries of `params`; got [2, 3].",
        ),
        (
            {"counts": (13,)},
            ValueError,
            "`counts` must fall, from at most the 12 entries of `params`; got [13].",
        ),
        (
            {"steps": (10, 5, 5)},
            ValueError,
            "`steps` must be 4 numbers, one more than `counts`, whose sum is the 20 batches; "
            "got [10, 5, 5].",
        ),
        (
            {"steps": (17, 3, 0, 0)},
            ValueError,
            "`steps[2]` must be at least 1; got 0.",
        ),
        (
            {"targets": TARGETS[:3]},
            ValueError,
            "`batches` must hold a step for each of the 4 stages; got 3 steps.",
        ),
    ],
)
def test_bad_arguments(options, kind, message):
    refuses(functools.partial(run, **options), kind, message)
