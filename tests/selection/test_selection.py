import dataclasses
import itertools
from collections import namedtuple
from typing import Any

import chex
import flax.core
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refuses
from trees import (
    NUM_ENTRIES,
    as_jax,
    flat,
    random_tree,
    top_oracle,
    tree_of,
)

import sapsel_jax as sap
from sapsel_jax._base import counts

COUNTS = (0, 1, 5, 17, NUM_ENTRIES)


@jax.jit
def select_counts(scores):
    return [sap.select_top_count(scores, count) for count in COUNTS]


# Few distinct numbers make ties; float32 brings denormals, infinities, NaN and both zeros.
VALUES = hnp.arrays(
    np.float32,
    NUM_ENTRIES,
    elements=st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, np.nan, -np.inf, np.inf]),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(VALUES)
def test_masks_equal_those_of_a_stable_sort_and_nest(values):
    with np.errstate(over="ignore"):
        scores = tree_of(values)
    masks = [flat(mask) for mask in select_counts(scores)]
    for count, mask in zip(COUNTS, masks, strict=True):
        np.testing.assert_array_equal(mask, top_oracle(scores, count))
        assert mask.sum() == min(count, (flat(scores) > -np.inf).sum())
    for smaller, larger in itertools.pairwise(masks):
        assert not (smaller & ~larger).any()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(VALUES)
def test_masks_follow_increasing_maps_and_permuted_leaves(values):
    names = ["first", "second"]
    halves = dict(zip(names, np.split(values, 2), strict=True))
    masks = select_halves(halves)
    usable = values > -np.inf
    ranks = np.unique(values[usable], return_inverse=True)[1]
    mapped = values.copy()
    mapped[usable] = ranks - 3.5
    chex.assert_trees_all_equal(
        masks, select_halves(dict(zip(names, np.split(mapped, 2), strict=True)))
    )
    # In another order of the leaves, ties fall to others, but never other scores are selected.
    swapped = select_halves({"first": halves["second"], "second": halves["first"]})
    picked = np.concatenate([halves[n][np.asarray(masks[n])] for n in names])
    again = np.concatenate(
        [halves[n][np.asarray(swapped[o])] for n, o in zip(names, names[::-1], strict=True)]
    )
    np.testing.assert_array_equal(np.sort(picked) + 0.0, np.sort(again) + 0.0)


@jax.jit
def select_halves(scores):
    return sap.select_top_count(scores, 9)


@pytest.mark.slow
def test_float64_leaves_are_ranked_in_float64_beside_narrower_ones():
    with jax.enable_x64(True):
        scores = {
            "narrow": jnp.asarray([1.0, 2.0], jnp.bfloat16),
            "single": jnp.asarray([1.0, jnp.nan], jnp.float32),
            "wide": 1.0 + jnp.asarray([3e-16, 0.0, 6e-16, -jnp.inf]),
        }
        for count in range(9):
            got = flat(jax.jit(lambda s, c=count: sap.select_top_count(s, c))(scores))
            np.testing.assert_array_equal(got, top_oracle(scores, count))


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.26, 1.0, 1])
def test_a_fraction_is_rounded_over_all_leaves_or_in_each(fraction):
    scores = random_tree()
    assert flat(sap.select_top_fraction(scores, fraction)).sum() == round(fraction * NUM_ENTRIES)
    per_leaf = sap.select_top_fraction_per_leaf(scores, fraction)
    for leaf, mask in zip(jax.tree.leaves(scores), jax.tree.leaves(per_leaf), strict=True):
        np.testing.assert_array_equal(flat(mask), top_oracle(leaf, round(fraction * leaf.size)))


def test_jit_equals_eager_and_masks_have_the_shapes_of_the_scores():
    scores = as_jax(random_tree())
    jitted = jax.jit(lambda s: sap.select_top_count(s, 7))(scores)
    chex.assert_trees_all_equal(jitted, sap.select_top_count(scores, 7))
    chex.assert_trees_all_equal(
        jax.tree.map(lambda m: (m.shape, str(m.dtype)), jitted),
        jax.tree.map(lambda s: (s.shape, "bool"), scores),
    )
    assert sap.select_top_count({}, 3) == {}
    assert sap.select_top_count({"none": None}, 3) == {"none": None}
    assert bool(sap.select_top_count(2.0, 3))


def test_selection_can_be_vmapped():
    scores = np.random.default_rng(0).integers(0, 4, (5, 3, 4)).astype(np.float32)
    got = jax.jit(jax.vmap(lambda s: sap.select_top_count(s, 5)))(scores)
    for mask, row in zip(got, scores, strict=True):
        np.testing.assert_array_equal(flat(mask), top_oracle(row, 5))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Pair:
    first: jax.Array
    second: jax.Array | None


def containers():
    equinox = pytest.importorskip("equinox")
    linear = equinox.nn.Linear(3, 2, key=jax.random.key(0))
    linear = equinox.tree_at(lambda m: m.bias, linear, jnp.asarray([5.0, -5.0]))
    model = nnx.Sequential(
        nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.BatchNorm(2, rngs=nnx.Rngs(1)), nnx.Dropout(0.5)
    )
    _, trained, _ = nnx.split(model, nnx.Param, ...)
    array = jnp.arange(6.0).reshape(2, 3)
    return {
        "equinox": equinox.partition(linear, equinox.is_inexact_array)[0],
        "nnx": trained,
        "frozen": flax.core.freeze({"layer": {"kernel": array, "bias": -array[0]}}),
        "dataclass": Pair(array, None),
        "namedtuple": namedtuple("Two", "a b")(array, [array[0], None]),
    }


@pytest.mark.parametrize("name", ["equinox", "nnx", "frozen", "dataclass", "namedtuple"])
def test_any_container_keeps_its_structure(name):
    scores = containers()[name]
    mask = sap.select_top_count(sap.score_magnitude(scores), 3)
    assert jax.tree.structure(mask) == jax.tree.structure(scores)
    np.testing.assert_array_equal(flat(mask), top_oracle(sap.score_magnitude(scores), 3))
    assert int(sap.mask_count(sap.select_like(mask, jax.random.key(0)))) == 3


def test_memory_beside_the_scores_is_that_of_the_mask():
    scores = {name: jax.ShapeDtypeStruct((1000, 100), jnp.float32) for name in "abc"}
    compiled = jax.jit(lambda s: sap.select_top_fraction(s, 0.01)).lower(scores).compile()
    memory: Any = compiled.memory_analysis()
    num_bytes = 3 * 4 * 1000 * 100
    assert memory.output_size_in_bytes < 0.26 * num_bytes
    assert memory.temp_size_in_bytes < 0.35 * num_bytes


def test_a_tree_may_have_more_than_32_bits_of_entries():
    scores = [jax.ShapeDtypeStruct((2**16, 2**15), jnp.float32)] * 4  # 2³³ entries
    work = lambda s: (mask := sap.select_top_fraction(s, 0.9), sap.mask_density(mask))
    exported = jax.export.export(jax.jit(work), platforms=["tpu"])(scores)
    assert [leaf.shape for leaf in exported.out_avals] == [*(leaf.shape for leaf in scores), ()]


def test_too_large_leaves_are_refused_before_anything_is_computed():
    scores = [jnp.zeros(1), jax.ShapeDtypeStruct((2**16, 2**16), jnp.float32)]
    with pytest.raises(
        NotImplementedError, match="leaves of fewer than 4294967289 entries; got one of 4294967296"
    ):
        jax.eval_shape(lambda s: sap.select_top_count(s, 1), scores)


@pytest.mark.parametrize("count", [0, 1, 7, 20, 39, 40])
def test_counts_of_two_words_carry_and_borrow(count, monkeypatch):
    # With words of two bits every sum of these few entries carries.
    monkeypatch.setattr(counts, "BITS", 2)
    jax.clear_caches()
    rng = np.random.default_rng(count)
    scores = {
        name: rng.integers(0, 4, (n,)).astype(np.float32)
        for name, n in zip("abcd", SIZES, strict=True)
    }
    mask = sap.select_top_count(scores, count)
    np.testing.assert_array_equal(flat(mask), top_oracle(scores, count))
    assert int(sap.mask_count(mask)) == count
    jax.clear_caches()


SIZES = (9, 1, 23, 7)


def test_arithmetic_of_counts_is_that_of_python():
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 2**32, 1000, np.uint64)
    value = lambda count: np.asarray(count.high, np.uint64) * 2**16 + np.asarray(count.low)
    words = jnp.asarray(numbers.astype(np.uint32))
    assert int(value(counts.total(words))) == numbers.sum()
    sums = counts.totals_so_far(words)
    np.testing.assert_array_equal(value(sums), numbers.cumsum())
    back = counts.totals_so_far(words, reverse=True)
    np.testing.assert_array_equal(value(back), numbers[::-1].cumsum()[::-1])
    np.testing.assert_array_equal(value(counts.plus(sums, back)), numbers.sum() + numbers)
    np.testing.assert_array_equal(counts.at_least(sums, back), value(sums) >= value(back))
    np.testing.assert_array_equal(counts.equal(sums, sums), True)
    most = 3_000_000_000
    more = np.clip(value(sums).astype(np.int64) - value(back).astype(np.int64), 0, most)
    np.testing.assert_array_equal(counts.excess(sums, back, most), more)
    assert int(value(counts.count_of(2**40 + 5))) == 2**40 + 5


def test_random_controls_match_the_counts_and_are_uniform():
    mask = {
        "a": jnp.asarray([[True, False], [True, False]]),
        "b": jnp.ones(3, bool),
        "c": jnp.zeros(2, bool),
    }
    keys = jax.random.split(jax.random.key(0), 1200)
    drawn = jax.jit(jax.vmap(lambda key: sap.select_like(mask, key)))(keys)
    np.testing.assert_array_equal(drawn["a"].sum((1, 2)), 2)
    assert drawn["b"].all()
    assert not drawn["c"].any()
    # Six pairs of four entries, 200 expected each: 5 standard deviations are 65.
    pairs = (drawn["a"].reshape(-1, 4) @ jnp.asarray([8, 4, 2, 1])).tolist()
    counts = [pairs.count(pair) for pair in (3, 5, 6, 9, 10, 12)]
    assert sum(counts) == 1200
    assert all(135 < count < 265 for count in counts)


def test_whole_leaves_are_chosen_by_path():
    params = {"head": [jnp.zeros((2, 3)), jnp.zeros(())], "body": jnp.zeros((0, 4))}
    seen = []

    def predicate(path, leaf):
        seen.append((path, leaf.shape))
        return path == "head/0"

    mask = sap.select_leaves(params, predicate)
    assert seen == [("body", (0, 4)), ("head/0", (2, 3)), ("head/1", ())]
    assert mask["head"][0].all()
    assert not mask["head"][1]
    assert mask["body"].shape == (0, 4)


FLOAT: Any = 1.0
ARRAY: Any = jnp.ones(())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: sap.select_top_fraction_per_leaf({"a": "x"}, 0.5),
            TypeError,
            "`scores` must hold arrays only; leaf 'a' is a str.",
        ),
        (
            lambda: sap.select_top_fraction({"a": jnp.ones(2, int)}, 0.5),
            TypeError,
            "`scores` must hold real floating-point arrays; leaf 'a' has dtype int32.",
        ),
        (
            lambda: sap.select_top_fraction(jnp.ones(2), 1.4),
            ValueError,
            "`fraction` must lie in [0, 1]; got 1.4.",
        ),
        (
            lambda: sap.select_top_fraction(jnp.ones(2), float("nan")),
            ValueError,
            "`fraction` must lie in [0, 1]; got nan.",
        ),
        (
            lambda: sap.select_top_fraction_per_leaf(jnp.ones(2), -0.1),
            ValueError,
            "`fraction` must lie in [0, 1]; got -0.1.",
        ),
        (
            lambda: sap.select_top_fraction(jnp.ones(2), ARRAY),
            TypeError,
            "`fraction` must be a Python number; got ArrayImpl.",
        ),
        (
            lambda: sap.select_top_count(jnp.ones(2), -1),
            ValueError,
            "`count` must be at least 0; got -1.",
        ),
        (
            lambda: sap.select_top_count(jnp.ones(2), FLOAT),
            TypeError,
            "`count` must be a Python integer; got float.",
        ),
        (
            lambda: sap.select_top_count({"a": jnp.ones(2, int)}, 1),
            TypeError,
            "`scores` must hold real floating-point arrays; leaf 'a' has dtype int32.",
        ),
        (
            lambda: sap.select_top_count(jnp.ones(2, complex), 1),
            TypeError,
            "`scores` must hold real floating-point arrays; the array has dtype complex64.",
        ),
        (
            lambda: sap.select_top_count({"a": "x"}, 1),
            TypeError,
            "`scores` must hold arrays only; leaf 'a' is a str.",
        ),
        (
            lambda: sap.select_like(jnp.ones(2), jax.random.key(0)),
            TypeError,
            "`mask` must hold bool arrays; the array has dtype float32.",
        ),
    ],
)
def test_bad_arguments_are_told_in_one_sentence(call, error, message):
    refuses(call, error, message)
