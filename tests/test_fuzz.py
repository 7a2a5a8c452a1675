"""The whole public API on random numbers of all sizes, dtypes and masks, each compiled once."""

import functools
from typing import Any
from unittest import mock

import audits
import calls
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import changed_bits, flat, top_oracle

import sapsel_jax as sap

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compiler")]

NUM_EXAMPLES = 25
"""For each public function; updates and relearning get twice as many."""
DTYPES = (
    {},
    {"up": np.float16, "bias": ml_dtypes.bfloat16},
    {"down": ml_dtypes.bfloat16},
)
DENORMAL = 1e-40
ODD = (np.nan, np.inf, -np.inf, 0.0, -0.0, DENORMAL, 3e38)
OF_ENTRIES = ("PARAMS", "GRADIENT", "STARTS")
OF_EXAMPLES = ("DATA", "ORIGINAL", "CORRECTED", "BATCHES")

# Text and files are made on the host, from arrays that are there.
ON_THE_HOST = {
    *("apply_patch", "revert_patch", "make_patch", "describe_patch", "describe_mask"),
    *("save_patch", "load_patch", "save_mask", "load_mask", "explain", "audit.report"),
    "is_piecewise_affine",
}
PAIRS = (
    *("second_order_update", "conjugate_gradient", "dense_solver", "diagonal_solver", "lissa"),
    *("iterative_update", "selective", "selective_packed"),
)
RESULTS = ("unlearn", "with_first_order", "with_iteration", "sparsify_update")
UPDATES = ("first_order_update", *PAIRS, *RESULTS)
ADD = ("selective", "selective_packed")
"""Transformations: the caller adds the step, even if it is not finite."""


def updated(name, result, given):
    """The new parameters that an update returns, and its mask."""
    if name in RESULTS:
        return result.params, result.mask
    return (result[0] if name in PAIRS else result), given["MASK"]


@functools.cache
def program(name):
    """A public function as one program of the arrays that `calls` hands to it."""

    def run(given):
        with mock.patch.multiple(calls, **given):
            return calls.CALLS[name]()

    return run if name in ON_THE_HOST else jax.jit(run)


def eager(name, given):
    with mock.patch.multiple(calls, **given):
        return calls.CALLS[name]()


def reals(rng, like, scale, odd, share):
    """Normal numbers, among them a share of one odd number, in the dtype of an array."""
    values = rng.standard_normal(np.shape(like)) * scale
    values = np.where(rng.uniform(size=values.shape) < share, odd, values)
    with np.errstate(over="ignore"):
        return values.astype(np.asarray(like).dtype)


def cast(tree, dtypes):
    return {name: leaf.astype(dtypes.get(name, leaf.dtype)) for name, leaf in tree.items()}


def numbers(dtypes, seed, scale=1.0, odd_one=None, odd=0.0, share=0.0, selected=0.5):
    """What `calls` hands to the public functions, drawn anew, one tree with odd ones."""
    rng = np.random.default_rng(seed)
    like = {name: cast(getattr(calls, name), dtypes) for name in OF_ENTRIES}
    like |= {name: getattr(calls, name) for name in OF_EXAMPLES}
    drawn: dict[str, Any] = {}
    for name, tree in like.items():
        some = share * (name == odd_one)
        drawn[name] = jax.tree.map(lambda x, some=some: reals(rng, x, scale, odd, some), tree)
    pick = lambda x: rng.uniform(size=x.shape) < selected
    return drawn | {"MASK": jax.tree.map(pick, calls.PARAMS)}


SEEDS = st.integers(0, 2**32 - 1)


def all_numbers(dtypes, odd=ODD):
    return st.builds(
        functools.partial(numbers, dtypes),
        SEEDS,
        scale=st.sampled_from((0.01, 1.0, 30.0, 1e4)),
        odd_one=st.sampled_from((None, *OF_ENTRIES, *OF_EXAMPLES)),
        odd=st.sampled_from(odd),
        share=st.sampled_from((0.1, 1.0)),
        selected=st.sampled_from((0.0, 0.1, 0.5, 1.0)),
    )


def fuzz(check, strategy, num_examples=NUM_EXAMPLES):
    """The same examples every time."""

    @settings(max_examples=num_examples, deadline=None, derandomize=True, database=None)
    @given(strategy)
    def each(drawn):
        check(drawn)

    each()


def dtypes_of(name):
    """One of the choices of dtypes for each function."""
    return DTYPES[sum(name.encode()) % len(DTYPES)]


def with_dtype(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree) if hasattr(x, "dtype")]


def assert_same(got, want, digits):
    """Masks and whole numbers are equal; reals are near, by their largest."""
    for a, b in zip(with_dtype(got), with_dtype(want), strict=True):
        assert a.dtype == b.dtype
        if a.dtype.kind in "biu":
            np.testing.assert_array_equal(a, b)
            continue
        a, b = a.astype(float), b.astype(float)
        largest = np.abs(b[np.isfinite(b)]).max(initial=0.0)
        np.testing.assert_allclose(a, b, rtol=digits, atol=digits * largest)


def is_certificate(x):
    return isinstance(x, sap.Certificate)


def certificates(result):
    return [x for x in jax.tree.leaves(result, is_leaf=is_certificate) if is_certificate(x)]


def comparable(result):
    """A residual is a share of 1, and what is left of it may be rounding alone."""
    beside_one = lambda x: x._replace(relative_residual=1 + x.relative_residual)
    change = lambda x: beside_one(x) if is_certificate(x) else x
    return jax.tree.map(change, result, is_leaf=is_certificate)


def check_eager(name, digits):
    """Compiled numbers may keep digits that narrow ones are rounded to in between."""
    dtypes = dtypes_of(name)
    digits = max(digits, *(4 * float(jnp.finfo(x).eps) for x in (np.float32, *dtypes.values())))
    for seed in range(2):
        drawn = numbers(dtypes, seed)
        got, want = program(name)(drawn), eager(name, drawn)
        assert_same(comparable(got), comparable(want), digits)


FIGURES = [f"audit.{name}" for name in audits.CALLS]


@pytest.mark.parametrize("name", sorted(set(calls.CALLS) - {*UPDATES, *FIGURES}))
def test_any_numbers_pass_and_compiled_ones_are_those_of_eager_calls(name):
    fuzz(program(name), all_numbers(dtypes_of(name)))
    # The tests of the diagonals compare each of them with its eager call.
    if name not in ON_THE_HOST and not name.endswith("_diagonal"):
        check_eager(name, 1e-5)


def test_exact_and_basis_diagonals_agree():
    def check(drawn):
        exact, basis = program("exact_diagonal")(drawn), program("basis_diagonal")(drawn)
        assert_same(exact, basis, 1e-4)

    fuzz(check, st.builds(functools.partial(numbers, {}), SEEDS))


@pytest.mark.parametrize("name", audits.CALLS)
def test_figures_of_any_numbers(name):
    fn, *like = audits.CALLS[name]
    compiled = jax.jit(lambda *inputs: fn(*inputs))

    def draw(seed, scale, odd, share):
        rng = np.random.default_rng(seed)
        return [reals(rng, x, scale, odd, share) if x.dtype == np.float32 else x for x in like]

    scales, shares = st.sampled_from((0.01, 1.0, 30.0, 1e4)), st.sampled_from((0.1, 1.0))
    strange = st.builds(draw, SEEDS, scales, st.sampled_from(ODD), shares)
    fuzz(lambda inputs: compiled(*inputs), strange)
    for seed in range(2):
        inputs = draw(seed, 1.0, 0.0, 0.0)
        assert_same(compiled(*inputs), fn(*inputs), 1e-4)


@pytest.mark.parametrize("name", UPDATES)
def test_updates_keep_what_is_not_selected_and_what_is_finite(name):
    def check(drawn):
        result, before = program(name)(drawn), drawn["PARAMS"]
        params, chosen = updated(name, result, drawn)
        changed = changed_bits(before, params)
        assert not changed[~flat(chosen)].any()
        if name not in ADD:
            assert np.isfinite(flat(params))[np.isfinite(flat(before))].all()
        for certificate in certificates(result):
            assert certificate.num_steps or not changed.any()

    # An addition on CPU takes a denormal parameter for 0: the two say so.
    odd = [x for x in ODD if x != DENORMAL] if name in ADD else ODD
    fuzz(check, all_numbers(dtypes_of(name), odd), num_examples=2 * NUM_EXAMPLES)
    check_eager(name, 1e-3)


LEAVES = st.builds(
    lambda shape, dtype, seed: np.random.default_rng(seed).standard_normal(shape).astype(dtype),
    st.sampled_from(((), (3,), (2, 2), (0, 2))),
    st.sampled_from((np.float32, np.float16, ml_dtypes.bfloat16)),
    SEEDS,
)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.dictionaries(st.sampled_from("abcd"), inner, max_size=3)
        | st.lists(inner, max_size=3)
        | st.tuples(inner, st.none())
    ),
    max_leaves=5,
)


def test_trees_of_any_form():
    def check(drawn):
        params, share = drawn
        scores = sap.score_magnitude(params)
        size = flat(params).size if jax.tree.leaves(params) else 0
        mask = sap.select_top_count(scores, round(share * size))
        assert jax.tree.structure(mask) == jax.tree.structure(params)
        if not size:
            return
        np.testing.assert_array_equal(flat(mask), top_oracle(scores, round(share * size)))
        outside = sap.mask_complement(mask)
        assert int(sap.mask_count(outside)) == size - int(sap.mask_count(mask))
        ones = np.ones(2, np.float32)
        moved = sap.first_order_update(squares, params, ones, 2 * ones, step_size=0.1, mask=mask)
        assert not changed_bits(params, moved)[flat(outside)].any()
        patch = sap.make_patch(params, moved)
        assert not changed_bits(moved, sap.apply_patch(params, patch)).any()
        assert not changed_bits(params, sap.revert_patch(moved, patch)).any()

    fuzz(check, st.tuples(TREES, st.sampled_from((0.0, 0.3, 1.0))), num_examples=40)


def squares(params, example):
    leaves = [x.astype(jnp.float32) for x in jax.tree.leaves(params)]
    return example * sum((jnp.sum(x**2) for x in leaves), jnp.float32(0))


@pytest.mark.parametrize("odd", [np.nan, np.inf, 3e38])
def test_a_model_that_diverges_leaves_the_others_alone(odd):
    train = program("audit.train_ensemble")

    def check(seed):
        drawn = numbers({}, seed)
        poisoned = jax.tree.map(np.copy, drawn["STARTS"])
        for leaf in jax.tree.leaves(poisoned):
            leaf[0] = odd
        got, want = train(drawn | {"STARTS": poisoned}), train(drawn)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_array_equal(a[1], b[1])

    fuzz(check, SEEDS)


def test_relearning_takes_the_best_step_size_of_those_whose_score_is_a_number():
    def check(drawn):
        rates, step_size, trials = map(np.asarray, program("audit.relearn")(drawn))
        with np.errstate(over="ignore", invalid="ignore"):
            means = trials.mean(1)
        best = np.argmax(np.where(np.isnan(means), -np.inf, means))
        assert step_size == calls.STEP_SIZES[best]
        np.testing.assert_array_equal(rates, trials[best])

    fuzz(check, all_numbers({}), num_examples=2 * NUM_EXAMPLES)
