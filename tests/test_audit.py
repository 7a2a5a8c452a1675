"""Evidence as functions of arrays: hand-computed values, oracles in NumPy, and chance."""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sapsel_jax as sap
from sapsel_jax import audit

RNG = np.random.default_rng(0)
LOGITS = (3 * RNG.standard_normal((12, 4))).astype(np.float32)
LABELS = RNG.integers(0, 4, 12)
SCORES = RNG.standard_normal(9).astype(np.float32)
OTHERS = RNG.standard_normal(7).astype(np.float32)
ENSEMBLE = RNG.standard_normal((6, 5)).astype(np.float32)
SHARES = RNG.uniform(0, 1, 3).astype(np.float32)

CALLS = {
    "accuracy": (audit.accuracy, LOGITS, LABELS),
    "attack_success": (audit.attack_success, LOGITS, LABELS, LABELS[::-1]),
    "auc": (audit.auc, SCORES, OTHERS),
    "true_positive_rate": (
        lambda a, b: audit.true_positive_rate(a, b, false_positive_rate=0.3),
        SCORES,
        OTHERS,
    ),
    "margin": (audit.margin, LOGITS, LABELS),
    "modified_entropy": (audit.modified_entropy, LOGITS, LABELS),
    "entropy_attack": (audit.entropy_attack, LOGITS, LABELS, LOGITS[::-1] / 2, LABELS),
    "logistic_attack": (audit.logistic_attack, SCORES, OTHERS),
    "u_lira": (audit.u_lira, ENSEMBLE, ENSEMBLE[::-1] + 1),
    "klom": (audit.klom, ENSEMBLE, 2 * ENSEMBLE[1:]),
    "klom_binned": (audit.klom_binned, ENSEMBLE, 2 * ENSEMBLE[1:]),
    "exposure": (audit.exposure, SCORES, ENSEMBLE[:1].repeat(9, 0)),
    "recovery": (
        lambda a, p, r: audit.recovery(a, p, r, num_examples=50),
        SHARES,
        SHARES[::-1],
        SHARES / 2,
    ),
    "tug_of_war": (audit.tug_of_war, SHARES, SHARES[::-1]),
    "relearning_area": (
        lambda a, b: audit.relearning_area(a, b, counts=(0, 1, 5)),
        SHARES,
        SHARES[::-1],
    ),
    "distance": (audit.distance, SCORES, SCORES[::-1]),
    "changed_mask": (audit.changed_mask, SHARES, SHARES[::-1]),
    "sparsity": (audit.sparsity, SHARES > 0.5),
}


REALS = sorted(set(CALLS) - {"changed_mask", "sparsity"})
"""The functions whose results are real numbers."""


def every(arguments):
    """All of the functions as one, so that one program is compiled for all."""
    return {name: CALLS[name][0](*some) for name, some in arguments.items()}


def arguments(dtype=np.float32):
    """Numbers that bfloat16 holds, in another dtype."""

    def cast(x):
        return jnp.asarray(x, jnp.bfloat16).astype(dtype) if x.dtype == np.float32 else x

    return {name: [cast(x) for x in some] for name, (_, *some) in CALLS.items()}


def test_jit_equals_eager():
    some = arguments()
    chex.assert_trees_all_close(jax.jit(every)(some), every(some), rtol=1e-5, atol=1e-6)


def test_bfloat16_is_computed_in_float32_and_float64_stays():
    def reals(results):
        leaves = jax.tree.leaves({name: results[name] for name in REALS})
        return {leaf.dtype for leaf in leaves if leaf.dtype != bool}

    narrow, plain = (jax.jit(every)(arguments(dtype)) for dtype in (jnp.bfloat16, np.float32))
    assert reals(narrow) == {np.dtype(np.float32)}
    chex.assert_trees_all_close(
        *({name: results[name] for name in REALS} for results in (narrow, plain)), rtol=1e-5
    )
    with jax.enable_x64(True):
        wide = jax.eval_shape(every, arguments(np.float64))
    assert reals(wide) == {np.dtype(np.float64)}


def test_confidence_is_its_formula_in_float64():
    logits = LOGITS.astype(float)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    own = p[np.arange(12), LABELS]
    np.testing.assert_allclose(
        audit.margin(LOGITS, LABELS), np.log(own / (1 - own)), rtol=1e-4, atol=1e-6
    )
    wrong = p[LABELS[:, None] != np.arange(4)].reshape(12, 3)
    want = -(1 - own) * np.log(own) - (wrong * np.log(1 - wrong)).sum(1)
    np.testing.assert_allclose(audit.modified_entropy(LOGITS, LABELS), want, rtol=1e-4, atol=1e-6)


def test_modified_entropy_tells_surely_wrong_from_surely_right():
    # p = (.9, .1): right −.1 log .9 − .1 log .9; wrong −.9 log .1 − .9 log .1
    logits = np.log(np.array([0.9, 0.1], np.float32))
    right, wrong = (float(audit.modified_entropy(logits, label)) for label in (0, 1))
    assert right == pytest.approx(-0.2 * math.log(0.9), rel=1e-5)
    assert wrong == pytest.approx(-1.8 * math.log(0.1), rel=1e-5)
    # Past where 1 − p rounds to nothing: p_y = e^−60, and log p_y and log(1 − p) are both −60.
    assert audit.modified_entropy(jnp.array([0.0, 60.0]), 0) == pytest.approx(120)
    assert 0 < audit.modified_entropy(jnp.array([60.0, 0.0]), 0) < 1e-20
    assert audit.margin(jnp.array([60.0, 0.0]), 0) == 60


def test_what_has_no_value_is_nan_or_infinite():
    logits = jnp.array([[0.0, np.nan], [np.nan, 0.0], [1.0, 0.0], [1.0, 0.0], [-np.inf, 0.0]])
    labels = jnp.array([0, 0, 2, -1, 0])
    nan = [True, True, True, True, False]
    np.testing.assert_array_equal(jnp.isnan(audit.margin(logits, labels)), nan)
    np.testing.assert_array_equal(jnp.isnan(audit.modified_entropy(logits, labels)), nan)
    assert audit.margin(logits, labels)[4] == -np.inf
    assert audit.modified_entropy(logits, labels)[4] == np.inf
    broken = jnp.full((3, 4), jnp.nan)
    assert audit.accuracy(broken, jnp.zeros(3, int)) == 0
    assert audit.attack_success(broken, jnp.zeros(3, int), jnp.ones(3, int)) == 0
    assert np.isnan(audit.attack_success(LOGITS, LABELS, LABELS))
    bad = jnp.asarray(SCORES).at[2].set(jnp.nan)
    for pair in ((bad, OTHERS), (OTHERS, bad)):
        assert np.isnan(audit.auc(*pair))
        assert np.isnan(audit.true_positive_rate(*pair))
        assert np.isnan(audit.logistic_attack(*pair)[:2]).all()
    assert np.isnan(audit.exposure(jnp.nan, SCORES))
    assert np.isnan(audit.exposure(0.0, bad))
    bad = jnp.asarray(ENSEMBLE).at[2, 3].set(jnp.nan)
    for ours in (audit.klom(bad, ENSEMBLE), audit.klom_binned(ENSEMBLE, bad)):
        np.testing.assert_array_equal(jnp.isnan(ours), np.arange(5) == 3)
    lira = audit.u_lira(bad, ENSEMBLE)
    np.testing.assert_array_equal(jnp.isnan(lira.per_example), np.arange(5) == 3)
    assert np.isnan(lira.accuracy)
    assert np.isnan(lira.auc)


def test_shares_over_leading_axes():
    logits = jnp.array([[[2.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    np.testing.assert_array_equal(audit.accuracy(logits, jnp.zeros((2, 2), int)), [0.5, 0.0])
    targets, labels = jnp.zeros((2, 2), int), jnp.array([[1, 0], [1, 1]])
    np.testing.assert_array_equal(audit.attack_success(logits, targets, labels), [1.0, 0.0])


def test_recovery_and_what_counts_where_there_is_nothing_to_recover():
    got = audit.recovery(
        jnp.array([0.9, 0.7, 0.02, 0.9]),
        jnp.array([0.8, 0.8, 0.98, 0.9]),
        jnp.array([1.0, 1.0, 0.01, 0.908]),
        num_examples=10**6,
    )
    np.testing.assert_allclose(got.share, [0.5, -0.5, 0.96 / 0.97, np.nan], rtol=1e-5)
    np.testing.assert_allclose(got.gap, [-0.1, -0.3, 0.01, -0.008], rtol=1e-4)
    np.testing.assert_array_equal(got.measurable, [True, True, True, False])
    np.testing.assert_array_equal(got.reached[[0, 1, 3]], [False, False, True])
    # Two standard errors of 0.8 against 0.85: 2 √((.16 + .1275) / n) is .0536 and .0480.
    assert np.isnan(audit.recovery(0.8, 0.8, 0.85, num_examples=400).share)
    assert audit.recovery(0.8, 0.8, 0.85, num_examples=500).share == 0
    assert np.isnan(audit.recovery(1.0, 1.0, 1.0, num_examples=9, small_gap=0.0).share)


shares = st.floats(0, 1, width=32)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.floats(-2, 2, width=32), shares, shares)
def test_recovery_is_affine_in_what_is_recovered(t, poisoned, retrained):
    after = poisoned + t * (retrained - poisoned)
    got = audit.recovery(after, poisoned, retrained, num_examples=1000)
    if got.measurable:
        assert got.share == pytest.approx(t, abs=1e-4)
    else:
        assert np.isnan(got.share)


def test_tug_of_war_is_the_product():
    assert audit.tug_of_war(jnp.array([0.5, 1.0, 0.75]), jnp.array([0.5, 0.5, 1.0])) == 0.375
    assert audit.tug_of_war(SHARES, SHARES) == 1


small = st.lists(st.integers(-3, 3), min_size=6, max_size=6)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(small, small)
def test_auc_is_the_count_of_pairs_and_does_not_see_monotone_maps(members, others):
    pairs = [(m > o) + 0.5 * (m == o) for m in members for o in others]
    a, b = np.array(members, np.float32), np.array(others, np.float32)
    got = audit.auc(a, b)
    assert got == pytest.approx(np.mean(pairs), abs=1e-6)
    assert audit.auc(np.exp(a), np.exp(b)) == got
    assert audit.auc(b, a) == pytest.approx(1 - got, abs=1e-6)


def test_true_positive_rate_accuses_no_more_than_allowed():
    others = np.arange(100, dtype=np.float32)
    members = others + 10.5
    for rate, want in ((0.0, 0.11), (0.01, 0.12), (0.1, 0.21), (0.999, 1.0), (1.0, 1.0)):
        got = audit.true_positive_rate(members, others, false_positive_rate=rate)
        assert got == pytest.approx(want)
    # At chance the members score as the others do.
    assert audit.true_positive_rate(others, others, false_positive_rate=0.05) == pytest.approx(0.05)


def test_attacks_find_a_shift_and_nothing_where_there_is_nothing():
    rng = np.random.default_rng(1)
    members, others = rng.standard_normal((2, 400)).astype(np.float32)
    labels = np.zeros(400, int)
    two = lambda margin: np.stack([margin, np.zeros_like(margin)], 1)
    for found in (
        audit.logistic_attack(members - 2, others),  # a member's loss is lower
        audit.entropy_attack(two(members + 2), labels, two(others), labels),
    ):
        # Two Gaussians, two deviations apart: AUC Φ(√2) = .921, best accuracy Φ(1) = .841.
        assert found.auc == pytest.approx(0.921, abs=4 * 0.01)
        assert found.accuracy == pytest.approx(0.841, abs=4 * 0.013)
    for nothing in (
        audit.logistic_attack(members, others),
        audit.entropy_attack(two(members), labels, two(others), labels),
    ):
        assert nothing.standard_error == pytest.approx(math.sqrt(801 / (12 * 400 * 400)))
        assert abs(nothing.auc - 0.5) < 4 * nothing.standard_error
        assert abs(nothing.accuracy - 0.5) < 4 * 0.5 / math.sqrt(800) * math.sqrt(2)
    same = audit.logistic_attack(np.ones(10, np.float32), np.ones(10, np.float32))
    assert (same.auc, same.accuracy) == (0.5, 0.5)


def test_the_logistic_fit_is_the_minimum_and_sees_several_features():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(2)
    members = rng.standard_normal((40, 2)).astype(np.float32) * [5, 0.1] + [2.0, 0.1]
    others = rng.standard_normal((60, 2)).astype(np.float32) * [5, 0.1]
    members, others = members.astype(np.float32), others.astype(np.float32)
    got = audit.logistic_attack(members, others, num_folds=2, penalty=0.05)
    x = np.concatenate([members, others])
    y = np.arange(100) < 40
    fold = np.concatenate([np.arange(40), np.arange(60)]) % 2
    scores, told = np.zeros(100), []
    for held in range(2):
        w = np.where(y, 0.5 / 20, 0.5 / 30)[fold != held]
        mean = w @ x[fold != held]
        std = np.sqrt(w @ (x[fold != held] - mean) ** 2)
        # Its loss is C Σ w log(1 + e^−f) + ½ ‖β‖²; ours the same divided by C.
        fit = LogisticRegression(C=1 / 0.05, tol=1e-10).fit(
            (x[fold != held] - mean) / std, y[fold != held], w
        )
        scores[fold == held] = fit.decision_function((x[fold == held] - mean) / std)
        right = (scores > 0) == y
        told += [right[y & (fold == held)].mean(), right[~y & (fold == held)].mean()]
    pairs = scores[y][:, None] > scores[~y]
    assert got.auc == pytest.approx(pairs.mean(), abs=2 / pairs.size)
    assert got.accuracy == pytest.approx(np.mean(told), abs=0.02)
    assert got.auc > 0.7


def test_u_lira_against_its_definition_in_numpy():
    unlearned, retrained = ENSEMBLE + 0.5, ENSEMBLE[::-1] * 1.5
    got = audit.u_lira(unlearned, retrained, min_std=0.8, clip=1.5)
    a, b = np.clip(unlearned, -1.5, 1.5).astype(float), np.clip(retrained, -1.5, 1.5).astype(float)
    log_density = lambda x, m, s: -((x - m) ** 2) / (2 * s**2) - np.log(s)
    told, ratios = np.zeros((2, 6, 5)), np.zeros((2, 6, 5))
    for i in range(6):
        fits = [
            (rest.mean(0), np.maximum(rest.std(0, ddof=1), 0.8))
            for rest in (np.delete(a, i, 0), np.delete(b, i, 0))
        ]
        for kind, x in enumerate((a[i], b[i])):
            ratios[kind, i] = log_density(x, *fits[0]) - log_density(x, *fits[1])
            told[kind, i] = (ratios[kind, i] > 0) == (kind == 0)
    np.testing.assert_allclose(got.per_example, told.mean((0, 1)), rtol=1e-6)
    assert got.accuracy == pytest.approx(told.mean(), rel=1e-6)
    pairs = ratios[0].ravel()[:, None] > ratios[1].ravel()
    assert got.auc == pytest.approx(pairs.mean(), abs=2 / pairs.size)


def test_u_lira_is_at_chance_where_the_ensembles_are_alike_and_sure_where_they_are_not():
    rng = np.random.default_rng(3)
    first, second = rng.standard_normal((2, 32, 100)).astype(np.float32)
    chance = audit.u_lira(first, second)
    # 6,400 decisions, a few percent of them dependent: a standard error of about 0.01.
    assert abs(chance.accuracy - 0.5) < 0.04
    assert abs(chance.auc - 0.5) < 0.04
    assert audit.u_lira(first + 8, second).accuracy > 0.999
    wider = audit.u_lira(10 * first, second)  # the same mean
    assert wider.accuracy > 0.8
    constant = jnp.ones((4, 2))
    assert audit.u_lira(constant, constant).accuracy == 0.5  # no deviation at all
    assert audit.u_lira(constant * jnp.inf, -constant * jnp.inf).accuracy == 1


def test_klom_of_one_training_is_what_the_number_of_models_makes_of_nothing():
    rng = np.random.default_rng(4)
    first, second = rng.standard_normal((2, 32, 2000)).astype(np.float32)
    floor = 31 * (1 + 2 / 32) / (2 * 32 - 6) - 0.5
    got = audit.klom(first, second)
    assert got.mean() == pytest.approx(floor, abs=4 * float(got.std()) / math.sqrt(2000))
    np.testing.assert_allclose(audit.klom(first, first), 0, atol=1e-6)
    np.testing.assert_allclose(audit.klom_binned(first, first), 0, atol=1e-6)
    # Means 0 and 3, deviations 1 and 2: log 1/2 + (4 + 9) / 2 − 1/2.
    wide = 2 * (second - second.mean(0)) / second.std(0, ddof=1) + 3
    narrow = (first - first.mean(0)) / first.std(0, ddof=1)
    np.testing.assert_allclose(audit.klom(narrow, wide), math.log(0.5) + 6, rtol=1e-4)


def test_klom_guards():
    constant = jnp.zeros((4, 1))
    np.testing.assert_allclose(audit.klom(constant, constant), 0)
    # Both deviations are 0, so the floor: (.1 / .5)² / 2.
    np.testing.assert_allclose(audit.klom(constant, constant + 0.1, min_std=0.5), 0.02, rtol=1e-5)
    infinite = constant.at[0].set(jnp.inf)
    assert np.isfinite(audit.klom(infinite, constant)).all()
    np.testing.assert_allclose(
        audit.klom(infinite, constant - jnp.inf, clip=5.0),
        audit.klom(constant.at[0].set(5.0), constant - 5.0),
    )


def test_binned_klom_by_hand():
    unlearned = jnp.array([[0.0], [1.0], [3.0], [4.0]])  # bins 0, 0, 1, 1
    retrained = jnp.array([[0.0], [1.0], [1.5], [4.0]])  # bins 0, 0, 0, 1
    got = audit.klom_binned(unlearned, retrained, num_bins=2, smoothing=1e-9)
    assert got[0] == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-5)
    # All of the retrained models in a bin without unlearned ones: log(1 / smoothing), nearly.
    apart = audit.klom_binned(jnp.zeros((4, 1)), jnp.ones((4, 1)))
    assert apart[0] == pytest.approx(math.log(1e5), rel=1e-3)


margins = st.lists(st.integers(-9, 9), min_size=5, max_size=5)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(margins, margins)
def test_divergences_are_not_negative(first, second):
    a, b = (np.array(x, np.float32)[:, None] for x in (first, second))
    assert audit.klom(a, b) >= -1e-5
    assert audit.klom_binned(a, b) >= -1e-5


def test_exposure_is_bits_of_rank():
    others = jnp.arange(7.0)  # with the canary, eight
    assert audit.exposure(-1.0, others) == 3
    assert audit.exposure(0.5, others) == 2
    assert audit.exposure(99.0, others) == 0
    assert audit.exposure(3.0, jnp.full(7, 3.0)) == pytest.approx(3 - math.log2(4.5))
    np.testing.assert_allclose(
        audit.exposure(jnp.array([-1.0, 0.5]), jnp.stack([others, others])), [3, 2]
    )
    # A rank that chance gives: log2 n − log2 rank has mean log2 e.
    ranks = jnp.arange(1000.0)
    drawn = audit.exposure(ranks - 0.5, jnp.broadcast_to(ranks, (1000, 1000)))
    assert drawn.mean() == pytest.approx(math.log2(math.e), abs=0.02)


def test_areas_between_curves():
    rates = jnp.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.5], [0.2, 0.2, 0.2]])
    retrained = jnp.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.5], [0.2, 0.2, 0.2]])
    got = audit.relearning_area(rates, retrained, counts=(0, 1, 3))  # both halves as wide
    # A triangle; two small ones that cancel and one; the same curve.
    np.testing.assert_allclose(got.signed, [0.5, -0.25, 0], atol=1e-6)
    np.testing.assert_allclose(got.absolute, [0.5, 0.25 + 0.25, 0], atol=1e-6)
    uneven = audit.relearning_area(
        jnp.array([0.0, 1.0, 1.0]), jnp.zeros(3), counts=(0, 1, 7)
    )  # log2(1 + count): 0, 1, 3
    assert uneven.signed == pytest.approx((0.5 + 2) / 3, rel=1e-5)


def test_changes_are_seen_by_their_bits():
    before = {
        "a": jnp.array([0.0, 1.0, jnp.nan, 2.0]),
        "b": jnp.ones((2, 0), jnp.bfloat16),
        "c": jnp.array(3),
        "d": jnp.array([1 + 2j, 0j]),
    }
    after = {
        "a": jnp.array([-0.0, 1.0, jnp.nan, 2.5]),
        "b": jnp.ones((2, 0), jnp.bfloat16),
        "c": jnp.array(4),
        "d": jnp.array([1 + 3j, 0j]),
    }
    mask = jax.jit(audit.changed_mask)(before, after)
    want = {
        "a": [True, False, False, True],
        "b": np.ones((2, 0), bool),
        "c": True,
        "d": [True, False],
    }
    chex.assert_trees_all_equal(
        mask, jax.tree.map(np.asarray, want, is_leaf=lambda x: isinstance(x, list))
    )
    assert audit.sparsity(mask) == pytest.approx(1 - 4 / 7)
    assert audit.sparsity({}) == 1
    assert sap.mask_count(audit.changed_mask(before, before)) == 0
    half = jnp.array([1.0, 2.0], jnp.bfloat16)
    assert audit.distance(
        {"a": half, "b": jnp.zeros(())}, {"a": half + 3, "b": jnp.array(4.0)}
    ) == (pytest.approx(math.sqrt(9 + 9 + 16)))


ANY: Any = None
EMPTY = jnp.zeros(0)
WHOLE = jnp.ones(3, int)
THREE, FOUR = jnp.ones(3), jnp.ones(4)
MANY = jnp.ones((4, 2))
REAL = "must hold real floating-point arrays; the array has dtype int32."

ERRORS = {
    "logits that are whole": (
        lambda: audit.accuracy(jnp.ones((3, 2), int), WHOLE),
        TypeError,
        f"`logits` {REAL}",
    ),
    "labels that are real": (
        lambda: audit.margin(jnp.ones((3, 2)), THREE),
        TypeError,
        "`labels` must hold integers; got dtype float32.",
    ),
    "labels that do not fit": (
        lambda: audit.modified_entropy(jnp.ones((3, 2)), jnp.ones(4, int)),
        ValueError,
        "`labels` must have the shape of `logits` without its last axis, [3]; got [4].",
    ),
    "one class": (
        lambda: audit.margin(jnp.ones((3, 1)), WHOLE),
        ValueError,
        "`logits` must have at least 2 classes along its last axis; got shape [3, 1].",
    ),
    "no examples": (
        lambda: audit.accuracy(jnp.ones((0, 2)), jnp.ones(0, int)),
        ValueError,
        "`logits` is empty; its shape is [0, 2].",
    ),
    "no axis over examples": (
        lambda: audit.accuracy(THREE, jnp.array(0)),
        ValueError,
        "`logits` must have an axis over examples before that over classes.",
    ),
    "right labels that do not fit": (
        lambda: audit.attack_success(jnp.ones((3, 2)), WHOLE, jnp.ones(4, int)),
        ValueError,
        "`labels` must have the shape of `logits` without its last axis, [3]; got [4].",
    ),
    "targets that are real": (
        lambda: audit.attack_success(jnp.ones((3, 2)), THREE, WHOLE),
        TypeError,
        "`targets` must hold integers; got dtype float32.",
    ),
    "no members": (
        lambda: audit.auc(EMPTY, THREE),
        ValueError,
        "`member_scores` is empty; its shape is [0].",
    ),
    "scores with two axes": (
        lambda: audit.true_positive_rate(THREE, MANY),
        ValueError,
        "`other_scores` must have one axis, over examples; got shape [4, 2].",
    ),
    "a rate above 1": (
        lambda: audit.true_positive_rate(THREE, FOUR, false_positive_rate=1.5),
        ValueError,
        "`false_positive_rate` must lie in [0, 1]; got 1.5.",
    ),
    "too many folds": (
        lambda: audit.logistic_attack(THREE, FOUR, num_folds=4),
        ValueError,
        "`num_folds` must be at most the number of examples of either set, 3 and 4; got 4.",
    ),
    "one fold": (
        lambda: audit.entropy_attack(MANY, jnp.ones(4, int), MANY, jnp.ones(4, int), num_folds=1),
        ValueError,
        "`num_folds` must be at least 2; got 1.",
    ),
    "other features": (
        lambda: audit.logistic_attack(MANY, jnp.ones((4, 3))),
        ValueError,
        "`forget_features` and `unseen_features` must have the same features; got 2 and 3.",
    ),
    "features with three axes": (
        lambda: audit.logistic_attack(jnp.ones((3, 2, 2)), MANY),
        ValueError,
        "`forget_features` must have one axis, over examples, or a second over features; "
        "got shape [3, 2, 2].",
    ),
    "no penalty": (
        lambda: audit.logistic_attack(THREE, FOUR, penalty=0),
        ValueError,
        "`penalty` must be finite and above 0; got 0.",
    ),
    "margins of one axis": (
        lambda: audit.u_lira(THREE, MANY),
        ValueError,
        "`unlearned_margins` must have two axes, models and examples; got shape [3].",
    ),
    "two models": (
        lambda: audit.u_lira(MANY[:2], MANY),
        ValueError,
        "`unlearned_margins` must come from at least 3 models; got 2.",
    ),
    "one model": (
        lambda: audit.klom(MANY, MANY[:1]),
        ValueError,
        "`retrained_margins` must come from at least 2 models; got 1.",
    ),
    "other examples": (
        lambda: audit.klom_binned(MANY, jnp.ones((4, 3))),
        ValueError,
        "`unlearned_margins` and `retrained_margins` must be of the same examples; got 2 and 3.",
    ),
    "other numbers of models": (
        lambda: audit.u_lira(MANY, MANY[:3]),
        ValueError,
        "`unlearned_margins` and `retrained_margins` must come from as many models; got 4 and 3.",
    ),
    "no floor": (
        lambda: audit.klom(MANY, MANY, min_std=0.0),
        ValueError,
        "`min_std` must be finite and above 0; got 0.",
    ),
    "no clip": (
        lambda: audit.u_lira(MANY, MANY, clip=-1.0),
        ValueError,
        "`clip` must be finite and above 0; got -1.",
    ),
    "no bins": (
        lambda: audit.klom_binned(MANY, MANY, num_bins=0),
        ValueError,
        "`num_bins` must be at least 1; got 0.",
    ),
    "no alternatives": (
        lambda: audit.exposure(0.0, EMPTY),
        ValueError,
        "`alternative_losses` is empty; its shape is [0].",
    ),
    "alternatives that do not fit": (
        lambda: audit.exposure(THREE, FOUR),
        ValueError,
        "`alternative_losses` must have the shape of `canary_loss` and a last axis over "
        "alternatives; got [4] and [3].",
    ),
    "shares that are whole": (
        lambda: audit.recovery(WHOLE, THREE, THREE, num_examples=9),
        TypeError,
        f"`after` {REAL}",
    ),
    "no examples measured": (
        lambda: audit.recovery(THREE, THREE, THREE, num_examples=0),
        ValueError,
        "`num_examples` must be at least 1; got 0.",
    ),
    "no shares": (
        lambda: audit.recovery(THREE, EMPTY, THREE, num_examples=9),
        ValueError,
        "`poisoned` is empty; its shape is [0].",
    ),
    "a negative gap": (
        lambda: audit.recovery(THREE, THREE, THREE, num_examples=9, small_gap=-0.1),
        ValueError,
        "`small_gap` must be finite and at least 0; got -0.1.",
    ),
    "other sets": (
        lambda: audit.tug_of_war(THREE, FOUR),
        ValueError,
        "`after` and `retrained` must have the same shape, with a last axis over sets; "
        "got [3] and [4].",
    ),
    "rates that do not fit": (
        lambda: audit.relearning_area(THREE, FOUR, counts=(0, 1, 5)),
        ValueError,
        "`retrained_rates` must have a last axis over the 3 counts; got shape [4].",
    ),
    "counts that fall": (
        lambda: audit.relearning_area(THREE, THREE, counts=(0, 5, 1)),
        ValueError,
        "`counts` must rise; got (0, 5, 1).",
    ),
    "one count": (
        lambda: audit.relearning_area(jnp.ones(1), jnp.ones(1), counts=(3,)),
        ValueError,
        "`counts` must hold at least 2 numbers; got 1.",
    ),
    "other trees": (
        lambda: audit.distance({"a": THREE}, {"a": FOUR}),
        ValueError,
        "`params` and `other` must have the same shapes; at 'a' they are float32[3] and "
        "float32[4].",
    ),
    "whole parameters": (lambda: audit.distance(THREE, WHOLE), TypeError, f"`other` {REAL}"),
    "other dtypes": (
        lambda: audit.changed_mask({"a": THREE}, {"a": WHOLE}),
        ValueError,
        "`after` and `before` must have the same dtypes; got int32 and float32.",
    ),
    "a mask that is not bool": (
        lambda: audit.sparsity(THREE),
        TypeError,
        "`mask` must hold bool arrays; the array has dtype float32.",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_arguments_are_told_in_one_sentence(name):
    call, error, message = ERRORS[name]
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == message
