"""Streaming means: exact restarts, and no dependence on where a stream was cut."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import mlp
from refusals import refuses
from trees import changed_bits

import sapsel_jax as sap

UPDATE = jax.jit(sap.mean_update)


def like():
    return {"a": jnp.zeros((2, 3)), "b": jnp.zeros(()), "c": jnp.zeros((0, 2), jnp.bfloat16)}


def values(seed, spread=1.0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape) * np.exp(spread * rng.normal(size=shape))
    return {
        "a": jnp.asarray(draw(2, 3), jnp.float32),
        "b": jnp.asarray(draw(), jnp.float32),
        "c": jnp.zeros((0, 2), jnp.bfloat16),
    }


def stream(batches, update: Callable[..., Any] = UPDATE):
    state = sap.mean_init(like())
    for value, count in batches:
        state = update(state, value, count)
    return state


BATCHES = [(values(i, 4.0), count) for i, count in enumerate((3, 1, 8, 5, 7))]


@pytest.mark.parametrize("cut", range(6))
def test_a_stream_that_was_cut_saved_and_resumed_has_the_same_bits(cut, tmp_path):
    state = stream(BATCHES[:cut])
    np.savez(tmp_path / "state", *jax.tree.leaves(state))
    with np.load(tmp_path / "state.npz") as saved:
        state = jax.tree.structure(state).unflatten(list(saved.values()))
    for value, count in BATCHES[cut:]:
        state = UPDATE(state, value, count)
    whole = stream(BATCHES)
    assert not changed_bits(state, whole).any()
    assert not changed_bits(sap.mean_finalize(state), sap.mean_finalize(whole)).any()


@pytest.mark.slow
def test_eager_and_compiled_streams_have_the_same_bits():
    def at_once(batches):
        return sap.mean_finalize(stream(batches, sap.mean_update))

    with jax.disable_jit():
        eager = at_once(BATCHES)
    assert not changed_bits(jax.jit(at_once)(BATCHES), eager).any()
    assert not changed_bits(at_once(BATCHES), eager).any()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.booleans(), min_size=29, max_size=29), st.integers(0, 3))
def test_sums_that_fit_in_48_bits_do_not_depend_on_the_cuts_at_all(ends, seed):
    # Means over batches are exact where each example's value is a small integer times a power of
    # two and the batch sizes are powers of two; so nothing is left to be rounded but the result.
    rng = np.random.default_rng(seed)
    examples = rng.integers(-(2**20), 2**20, (32, 6)).astype(np.float32) * 2.0**-10
    sizes, start = [], 0
    while start < 32:
        size = 2 if start + 2 <= 32 and start % 2 == 0 and ends[start % 29] else 1
        sizes.append(size)
        start += size
    state = sap.mean_init(jnp.zeros(6))
    for size, end in zip(sizes, np.cumsum(sizes), strict=True):
        state = UPDATE(state, jnp.asarray(examples[end - size : end].mean(0)), size)
    want = examples.astype(np.float64).mean(0).astype(np.float32)
    np.testing.assert_array_equal(sap.mean_finalize(state), want)


def test_the_mean_is_right_to_its_last_bits_where_plain_sums_lose_them():
    rng = np.random.default_rng(0)
    numbers = (rng.normal(size=2_000) + np.repeat([1e4, -1e4], 1_000)).astype(np.float32)
    counts = rng.integers(1, 200, 1_000).tolist()
    counts += counts  # so that the large parts cancel
    state, _ = jax.lax.scan(
        lambda s, x: (sap.mean_update(s, *x), None),
        sap.mean_init(jnp.zeros(())),
        (jnp.asarray(numbers), jnp.asarray(counts)),
    )
    exact = sum(Fraction(float(x)) * n for x, n in zip(numbers, counts, strict=True)) / sum(counts)
    plain = np.float32(0)
    for x, n in zip(numbers, counts, strict=True):
        plain += x * np.float32(n)
    assert abs(float(sap.mean_finalize(state)) / float(exact) - 1) < 3e-7
    assert abs(float(plain) / sum(counts) / float(exact) - 1) > 1e-4


@pytest.mark.slow
def test_streamed_changes_make_the_first_order_update():
    loss_fn, params, original = mlp()
    corrected = (original[0], (original[1] + 1) % 3)
    state = sap.mean_init(params)
    for cut in (slice(0, 2), slice(2, 3), slice(3, 7)):
        parts = [jax.tree.map(lambda x, cut=cut: x[cut], b) for b in (original, corrected)]
        state = sap.mean_update(
            state, sap.gradient_change(loss_fn, params, *parts), cut.stop - cut.start
        )
    want = sap.gradient_change(loss_fn, params, original, corrected)
    got = sap.mean_finalize(state)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_float64_and_low_precision_states():
    with jax.enable_x64(True):
        state = sap.mean_init(jax.ShapeDtypeStruct((), jnp.float64))
        state = sap.mean_update(state, jnp.float64(1 / 3), 3)
        state = sap.mean_update(state, jnp.float64(1e-30), 1)
        assert state.total.dtype == jnp.float64
        assert math.isclose(float(sap.mean_finalize(state)), 0.25, rel_tol=1e-16)
    state = sap.mean_update(sap.mean_init(jnp.zeros(2, jnp.bfloat16)), jnp.ones(2, jnp.bfloat16), 2)
    assert sap.mean_finalize(state).dtype == jnp.float32


def test_nothing_and_no_numbers():
    assert jnp.isnan(sap.mean_finalize(sap.mean_init(jnp.zeros(()))))
    state = sap.mean_update(sap.mean_init(jnp.zeros(2)), jnp.array([jnp.inf, 1.0]), 1)
    np.testing.assert_array_equal(sap.mean_finalize(state), [jnp.nan, 1.0])


def test_a_stream_of_nothing():
    assert sap.mean_finalize(sap.mean_update(sap.mean_init({"a": ()}), {"a": ()}, 3)) == {"a": ()}


def test_large_and_small_numbers_have_means():
    # 1e-40 is denormal, and XLA's arithmetic on CPU takes it for 0.
    for numbers in ([3e38, 3e38], [-3e38, 3e38, 3e38], [2e-38, 4e-38], [1e-37, 1e-37], [1e-40]):
        state = sap.mean_init(jnp.zeros(()))
        for number in numbers:
            state = UPDATE(state, np.float32(number), 5)
        want = np.mean(np.asarray(numbers, np.float32), dtype=np.float64)
        np.testing.assert_allclose(sap.mean_finalize(state), want, rtol=1e-7, atol=2e-40)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(1, 2), st.integers(-125, 126), st.booleans(), st.integers(1, 1000)),
        min_size=1,
        max_size=8,
    )
)
def test_means_of_numbers_of_any_magnitude(parts):
    numbers = [np.float32((-1) ** sign * m * 2.0**e) for m, e, sign, _ in parts]
    counts = [count for *_, count in parts]
    state = sap.mean_init(jnp.zeros(()))
    for number, count in zip(numbers, counts, strict=True):
        state = UPDATE(state, number, count)
    terms = [Fraction(float(x)) * n for x, n in zip(numbers, counts, strict=True)]
    want = float(sum(terms) / sum(counts))
    # 44 bits of the largest term are kept, and denormal numbers are 0.
    slack = float(max(map(abs, terms)) / sum(counts)) * 2.0**-44 + 2.0**-126
    np.testing.assert_allclose(float(sap.mean_finalize(state)), want, rtol=2e-7, atol=slack)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: sap.mean_init({"a": jnp.arange(2)}),
            TypeError,
            "`like` must hold real floating-point arrays; leaf 'a' has dtype int32.",
        ),
        (
            lambda: sap.mean_update(sap.mean_init(jnp.zeros(2)), jnp.arange(2), 1),
            TypeError,
            "`value` must hold real floating-point arrays; the array has dtype int32.",
        ),
        (
            lambda: sap.mean_update(sap.mean_init(jnp.zeros(2)), {"a": jnp.zeros(2)}, 1),
            ValueError,
            "`value` and `state` must have the same structure; they first differ at 'a' against "
            "''.",
        ),
        (
            lambda: sap.mean_update(sap.mean_init(jnp.zeros(2)), jnp.zeros(2), -1),
            ValueError,
            "`num_examples` must be finite and at least 0; got -1.",
        ),
        (
            lambda: sap.mean_update(sap.mean_init(jnp.zeros(2)), jnp.zeros(2), "two"),
            TypeError,
            "`num_examples` must be a number; got str.",
        ),
    ],
)
def test_bad_arguments_of_streams(call, kind, message):
    refuses(call, kind, message)


def test_a_state_lies_where_the_parameters_lie():
    mesh = jax.make_mesh((8,), ("all",))
    place = jax.NamedSharding(mesh, jax.P("all"))
    params = jax.device_put(jnp.zeros((8, 2)), place)
    state = sap.mean_init(params)
    for leaf in (state.total, state.rest, state.magnitude):
        assert leaf.sharding.is_equivalent_to(place, 2)
    moved = jax.jit(sap.mean_update)(state, params + 3, 2)
    assert moved.total.sharding.is_equivalent_to(place, 2)
