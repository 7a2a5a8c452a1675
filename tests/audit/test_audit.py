"""Evidence as functions of arrays: hand-computed values, oracles in NumPy, and chance."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from audits import ENSEMBLE, LABELS, LOGITS, OTHERS, SCORES, SHARES, arguments, every, fast, results
from hypothesis import given, settings
from hypothesis import strategies as st

import sapsel_jax as sap


@pytest.mark.slow
def test_jit_equals_eager_and_bfloat16_is_computed_in_float32():
    some, compiled = arguments(), jax.jit(every)
    chex.assert_trees_all_close(compiled(some), every(some), rtol=1e-5, atol=1e-6)
    narrow, plain = (results(compiled, dtype) for dtype in (jnp.bfloat16, np.float32))
    chex.assert_trees_all_close(narrow, plain, rtol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "returned"),
    [(jnp.bfloat16, np.float32), (np.float32, np.float32), (np.float64, np.float64)],
)
def test_figures_are_float32_or_wider(dtype, returned):
    with jax.enable_x64(dtype == np.float64):
        leaves = jax.tree.leaves(results(lambda some: jax.eval_shape(every, some), dtype))
    assert {leaf.dtype for leaf in leaves if leaf.dtype != bool} == {np.dtype(returned)}


def test_confidence_is_its_formula_in_float64():
    logits = LOGITS.astype(float)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    own = p[np.arange(12), LABELS]
    np.testing.assert_allclose(
        fast.margin(LOGITS, LABELS), np.log(own / (1 - own)), rtol=1e-4, atol=1e-6
    )
    wrong = p[LABELS[:, None] != np.arange(4)].reshape(12, 3)
    want = -(1 - own) * np.log(own) - (wrong * np.log(1 - wrong)).sum(1)
    np.testing.assert_allclose(fast.modified_entropy(LOGITS, LABELS), want, rtol=1e-4, atol=1e-6)


def test_modified_entropy_tells_surely_wrong_from_surely_right():
    # p = (.9, .1): right −.1 log .9 − .1 log .9; wrong −.9 log .1 − .9 log .1
    logits = np.log(np.array([0.9, 0.1], np.float32))
    right, wrong = (float(fast.modified_entropy(logits, label)) for label in (0, 1))
    assert right == pytest.approx(-0.2 * math.log(0.9), rel=1e-5)
    assert wrong == pytest.approx(-1.8 * math.log(0.1), rel=1e-5)
    # Past where 1 − p rounds to nothing: p_y = e^−60, and log p_y and log(1 − p) are both −60.
    assert fast.modified_entropy(jnp.array([0.0, 60.0]), 0) == pytest.approx(120)
    sure = fast.modified_entropy(jnp.array([30.0, 0.0]), 0)  # (1 − p)² + p_1²
    assert sure == pytest.approx(2 * math.exp(-60), rel=1e-3)
    assert fast.margin(jnp.array([60.0, 0.0]), 0) == 60


@pytest.mark.slow
def test_what_has_no_value_is_nan_or_infinite():
    logits = jnp.array([[0.0, np.nan], [np.nan, 0.0], [1.0, 0.0], [1.0, 0.0], [-np.inf, 0.0]])
    labels = jnp.array([0, 0, 2, -1, 0])
    nan = [True, True, True, True, False]
    np.testing.assert_array_equal(jnp.isnan(fast.margin(logits, labels)), nan)
    np.testing.assert_array_equal(jnp.isnan(fast.modified_entropy(logits, labels)), nan)
    assert fast.margin(logits, labels)[4] == -np.inf
    assert fast.modified_entropy(logits, labels)[4] == np.inf
    broken = jnp.full((3, 4), jnp.nan)
    assert fast.accuracy(broken, jnp.zeros(3, int)) == 0
    assert fast.attack_success(broken, jnp.zeros(3, int), jnp.ones(3, int)) == 0
    assert np.isnan(fast.attack_success(LOGITS, LABELS, LABELS))
    bad = jnp.asarray(SCORES).at[2].set(jnp.nan)
    for pair in ((bad, OTHERS), (OTHERS, bad)):
        assert np.isnan(fast.auc(*pair))
        assert np.isnan(fast.true_positive_rate(*pair))
    assert np.isnan(fast.logistic_attack(bad, OTHERS)[:2]).all()
    assert np.isnan(fast.exposure(jnp.nan, SCORES))
    assert np.isnan(fast.exposure(0.0, bad))
    bad = jnp.asarray(ENSEMBLE).at[2, 3].set(jnp.nan)
    for ours in (fast.klom(bad, ENSEMBLE), fast.klom_binned(ENSEMBLE, bad)):
        np.testing.assert_array_equal(jnp.isnan(ours), np.arange(5) == 3)
    lira = fast.u_lira(bad, ENSEMBLE)
    np.testing.assert_array_equal(jnp.isnan(lira.per_example), np.arange(5) == 3)
    assert np.isnan(lira.accuracy)
    assert np.isnan(lira.auc)
    marked = jnp.asarray(ENSEMBLE).at[:, 3].set(jnp.nan)  # an example to be ignored
    lira = fast.u_lira(marked, marked[::-1])
    np.testing.assert_array_equal(jnp.isnan(lira.per_example), np.arange(5) == 3)
    assert np.isfinite([lira.accuracy, lira.auc]).all()
    assert np.isnan(fast.u_lira(marked, ENSEMBLE)[:2]).all()
    assert np.isnan(fast.u_lira(jnp.nan * ENSEMBLE, jnp.nan * ENSEMBLE)[:2]).all()


def test_shares_over_leading_axes():
    logits = jnp.array([[[2.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    np.testing.assert_array_equal(fast.accuracy(logits, jnp.zeros((2, 2), int)), [0.5, 0.0])
    targets, labels = jnp.zeros((2, 2), int), jnp.array([[1, 0], [1, 1]])
    np.testing.assert_array_equal(fast.attack_success(logits, targets, labels), [1.0, 0.0])


def test_recovery_and_what_counts_where_there_is_nothing_to_recover():
    got = fast.recovery(
        jnp.array([0.9, 0.7, 0.02, 0.9]),
        jnp.array([0.8, 0.8, 0.98, 0.9]),
        jnp.array([1.0, 1.0, 0.01, 0.908]),
        num_examples=10**6,
    )
    np.testing.assert_allclose(got.share, [0.5, -0.5, 0.96 / 0.97, np.nan], rtol=1e-5)
    np.testing.assert_allclose(got.gap, [-0.1, -0.3, 0.01, -0.008], rtol=1e-4)
    np.testing.assert_array_equal(got.measurable, [True, True, True, False])
    np.testing.assert_array_equal(np.asarray(got.reached)[[0, 1, 3]], [False, False, True])
    # Two standard errors of 0.8 against 0.85: 2 √((.16 + .1275) / n) is .0536 and .0480.
    assert np.isnan(fast.recovery(0.8, 0.8, 0.85, num_examples=400).share)
    assert fast.recovery(0.8, 0.8, 0.85, num_examples=500).share == 0
    assert np.isnan(fast.recovery(1.0, 1.0, 1.0, num_examples=9, small_gap=0.0).share)


shares = st.floats(0, 1, width=32)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.floats(-2, 2, width=32), shares, shares)
def test_recovery_is_affine_in_what_is_recovered(t, poisoned, retrained):
    after = poisoned + t * (retrained - poisoned)
    got = fast.recovery(after, poisoned, retrained, num_examples=1000)
    if got.measurable:
        assert got.share == pytest.approx(t, abs=1e-4)
    else:
        assert np.isnan(got.share)


def test_tug_of_war_is_the_product():
    assert fast.tug_of_war(jnp.array([0.5, 1.0, 0.75]), jnp.array([0.5, 0.5, 1.0])) == 0.375
    assert fast.tug_of_war(SHARES, SHARES) == 1


small = st.lists(st.integers(-3, 3), min_size=6, max_size=6)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(small, small)
def test_auc_is_the_count_of_pairs_and_does_not_see_monotone_maps(members, others):
    pairs = [(m > o) + 0.5 * (m == o) for m in members for o in others]
    a, b = np.array(members, np.float32), np.array(others, np.float32)
    got = fast.auc(a, b)
    assert got == pytest.approx(np.mean(pairs), abs=1e-6)
    assert fast.auc(np.exp(a), np.exp(b)) == got
    assert fast.auc(b, a) == pytest.approx(1 - np.mean(pairs), abs=1e-6)


def test_true_positive_rate_accuses_no_more_than_allowed():
    others = np.arange(100, dtype=np.float32)
    members = others + 10.5
    for rate, want in ((0.0, 0.11), (0.01, 0.12), (0.1, 0.21), (0.999, 1.0), (1.0, 1.0)):
        got = fast.true_positive_rate(members, others, false_positive_rate=rate)
        assert got == pytest.approx(want)
    # At chance the members score as the others do.
    assert fast.true_positive_rate(others, others, false_positive_rate=0.05) == pytest.approx(0.05)


def test_attacks_find_a_shift_and_nothing_where_there_is_nothing():
    rng = np.random.default_rng(1)
    members, others = rng.standard_normal((2, 400)).astype(np.float32)
    labels = np.zeros(400, int)
    two = lambda margin: np.stack([margin, np.zeros_like(margin)], 1)
    for found in (
        fast.logistic_attack(members - 2, others),  # a member's loss is lower
        fast.entropy_attack(two(members + 2), labels, two(others), labels),
    ):
        # Two Gaussians, two deviations apart: AUC Φ(√2) = .921, best accuracy Φ(1) = .841.
        assert found.auc == pytest.approx(0.921, abs=4 * 0.01)
        assert found.accuracy == pytest.approx(0.841, abs=4 * 0.013)
    for nothing in (
        fast.logistic_attack(members, others),
        fast.entropy_attack(two(members), labels, two(others), labels),
    ):
        assert nothing.standard_error == pytest.approx(math.sqrt(801 / (12 * 400 * 400)))
        assert abs(nothing.auc - 0.5) < 4 * nothing.standard_error
        assert abs(nothing.accuracy - 0.5) < 4 * 0.5 / math.sqrt(800) * math.sqrt(2)
    same = fast.logistic_attack(np.ones(400, np.float32), np.ones(400, np.float32))
    assert (same.auc, same.accuracy) == (0.5, 0.5)


def test_an_attack_sees_both_sides():
    rng = np.random.default_rng(1)
    forgotten, unseen = rng.standard_normal((2, 400)).astype(np.float32)
    labels = np.zeros(400, int)
    two = lambda margin: np.stack([margin, np.zeros_like(margin)], 1)
    attack = lambda a, b: fast.entropy_attack(two(a), labels, two(b), labels)
    surer, unsurer = attack(forgotten + 2, unseen), attack(forgotten - 2, unseen)
    assert unsurer.auc == pytest.approx(1 - 0.921, abs=4 * 0.01)
    assert unsurer.accuracy < 0.55
    for found in (surer, unsurer):
        assert found.two_sided_auc == max(found.auc, 1 - found.auc)
        assert found.two_sided_auc == pytest.approx(0.921, abs=4 * 0.01)
        assert found.two_sided_accuracy == pytest.approx(0.841, abs=4 * 0.013)
    assert surer.two_sided_accuracy == surer.accuracy
    alike = attack(forgotten, unseen)
    assert alike.two_sided_auc < 0.5 + 4 * alike.standard_error
    assert abs(alike.two_sided_accuracy - 0.5) < 0.1
    mirrored = attack(unseen, forgotten - 2)
    assert mirrored.two_sided_auc == pytest.approx(float(unsurer.two_sided_auc), abs=1e-6)
    fitted = fast.logistic_attack(forgotten - 2, unseen)
    assert fitted.two_sided_auc == fitted.auc > 0.85
    assert fitted.two_sided_accuracy == fitted.accuracy


def test_the_two_sided_rule_against_its_definition():
    """Every cut between two scores, with either side for members, tried on the other folds."""
    rng = np.random.default_rng(4)
    logits = np.zeros((2, 400, 2), np.float32)
    logits[:, :, 0] = rng.integers(-4, 4, (2, 400)) + np.arange(2)[:, None]
    labels = np.zeros(400, int)
    scores = -np.stack([fast.modified_entropy(some, labels) for some in logits])
    fold, told = np.arange(400) % 5, []
    values = np.unique(scores)
    cuts = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2])
    for held in range(5):
        train, test = scores[:, fold != held], scores[:, fold == held]
        lead = np.array([np.subtract(*(train > cut).mean(1)) for cut in cuts]).round(6)
        best = np.argmax(np.abs(lead))
        assert np.sum(np.abs(lead) == abs(lead[best])) == 1  # no tie to be broken by rounding
        taken = (test > cuts[best]) ^ (lead[best] < 0)
        told.append((taken[0].mean() + 1 - taken[1].mean()) / 2)
    got = fast.entropy_attack(logits[0], labels, logits[1], labels)
    assert got.accuracy < 0.55 < got.two_sided_accuracy
    assert got.two_sided_accuracy == pytest.approx(np.mean(told), abs=1e-6)


def test_the_logistic_fit_is_the_minimum_and_sees_several_features():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(2)
    members = rng.standard_normal((40, 2)).astype(np.float32) * [5, 0.1] + [2.0, 0.1]
    others = rng.standard_normal((60, 2)).astype(np.float32) * [5, 0.1]
    members, others = members.astype(np.float32), others.astype(np.float32)
    got = fast.logistic_attack(members, others, num_folds=2, penalty=0.05)
    x = np.concatenate([members, others])
    y = np.arange(100) < 40
    fold = np.concatenate([np.arange(40), np.arange(60)]) % 2
    scores, told = np.zeros(100), []
    for held in range(2):
        w = np.where(y, 0.5 / 20, 0.5 / 30)[fold != held]
        mean = w @ x[fold != held]
        std = np.sqrt(w @ (x[fold != held] - mean) ** 2)
        # Its loss is C Σ w log(1 + e^−f) + ½ ‖β‖²; ours the same divided by C.
        fit = LogisticRegression(C=1 / 0.05, tol=1e-8, solver="newton-cholesky").fit(
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
    got = fast.u_lira(unlearned, retrained, min_std=0.8, clip=1.5)
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
    chance = fast.u_lira(first, second)
    # 6,400 decisions, a few percent of them dependent: a standard error of about 0.01.
    assert abs(chance.accuracy - 0.5) < 0.04
    assert abs(chance.auc - 0.5) < 0.04
    assert fast.u_lira(first + 8, second).accuracy > 0.999
    wider = fast.u_lira(10 * first, second)  # the same mean
    assert wider.accuracy > 0.8
    constant = np.ones_like(first)
    assert fast.u_lira(constant, constant).accuracy == 0.5  # no deviation at all
    assert fast.u_lira(constant * np.inf, -constant * np.inf).accuracy == 1


def test_klom_of_one_training_is_what_the_number_of_models_makes_of_nothing():
    rng = np.random.default_rng(4)
    first, second = rng.standard_normal((2, 32, 2000)).astype(np.float32)
    floor = 31 * (1 + 2 / 32) / (2 * 32 - 6) - 0.5
    got = fast.klom(first, second)
    assert got.mean() == pytest.approx(floor, abs=4 * float(got.std()) / math.sqrt(2000))
    np.testing.assert_allclose(fast.klom(first, first), 0, atol=1e-6)
    np.testing.assert_allclose(fast.klom_binned(first, first), 0, atol=1e-6)
    # Means 0 and 3, deviations 1 and 2: log 1/2 + (4 + 9) / 2 − 1/2.
    wide = 2 * (second - second.mean(0)) / second.std(0, ddof=1) + 3
    narrow = (first - first.mean(0)) / first.std(0, ddof=1)
    np.testing.assert_allclose(fast.klom(narrow, wide), math.log(0.5) + 6, rtol=1e-4)


def test_klom_guards():
    constant = jnp.zeros((4, 1))
    np.testing.assert_allclose(fast.klom(constant, constant), 0)
    # Both deviations are 0, so the floor: (.1 / .5)² / 2.
    np.testing.assert_allclose(fast.klom(constant, constant + 0.1, min_std=0.5), 0.02, rtol=1e-5)
    infinite = constant.at[0].set(jnp.inf)
    assert np.isfinite(fast.klom(infinite, constant)).all()
    np.testing.assert_allclose(
        fast.klom(infinite, constant - jnp.inf, clip=5.0),
        fast.klom(constant.at[0].set(5.0), constant - 5.0),
    )


def test_binned_klom_by_hand():
    unlearned = jnp.array([[0.0], [1.0], [3.0], [4.0]])  # bins 0, 0, 1, 1
    retrained = jnp.array([[0.0], [1.0], [1.5], [4.0]])  # bins 0, 0, 0, 1
    got = fast.klom_binned(unlearned, retrained, num_bins=2, smoothing=1e-9)
    assert got[0] == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-5)
    # All of the retrained models in a bin without unlearned ones: log(1 / smoothing), nearly.
    apart = fast.klom_binned(jnp.zeros((4, 1)), jnp.ones((4, 1)))
    assert apart[0] == pytest.approx(math.log(1e5), rel=1e-3)


margins = st.lists(st.integers(-9, 9), min_size=5, max_size=5)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(margins, margins)
def test_divergences_are_not_negative(first, second):
    a, b = (np.array(x, np.float32)[:, None] for x in (first, second))
    assert fast.klom(a, b) >= -1e-5
    assert fast.klom_binned(a, b) >= -1e-5


def test_exposure_is_bits_of_rank():
    others = jnp.arange(7.0)  # with the canary, eight
    assert fast.exposure(-1.0, others) == 3
    assert fast.exposure(0.5, others) == 2
    assert fast.exposure(99.0, others) == 0
    assert fast.exposure(3.0, jnp.full(7, 3.0)) == pytest.approx(3 - math.log2(4.5))
    np.testing.assert_allclose(
        fast.exposure(jnp.array([-1.0, 0.5]), jnp.stack([others, others])), [3, 2]
    )
    # A rank that chance gives: log2 n − log2 rank has mean log2 e.
    ranks = jnp.arange(1000.0)
    drawn = fast.exposure(ranks - 0.5, jnp.broadcast_to(ranks, (1000, 1000)))
    assert drawn.mean() == pytest.approx(math.log2(math.e), abs=0.02)


def test_areas_between_curves():
    rates = jnp.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.5], [0.2, 0.2, 0.2]])
    retrained = jnp.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.5], [0.2, 0.2, 0.2]])
    got = fast.relearning_area(rates, retrained, counts=(0, 1, 3))  # both halves as wide
    # A triangle; two small ones that cancel and one; the same curve.
    np.testing.assert_allclose(got.signed, [0.5, -0.25, 0], atol=1e-6)
    np.testing.assert_allclose(got.absolute, [0.5, 0.25 + 0.25, 0], atol=1e-6)
    uneven = fast.relearning_area(
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
    mask = jax.jit(fast.changed_mask)(before, after)
    want = {
        "a": [True, False, False, True],
        "b": np.ones((2, 0), bool),
        "c": True,
        "d": [True, False],
    }
    chex.assert_trees_all_equal(
        mask, jax.tree.map(np.asarray, want, is_leaf=lambda x: isinstance(x, list))
    )
    assert fast.sparsity(mask) == pytest.approx(1 - 4 / 7)
    assert fast.sparsity({}) == 1
    assert sap.mask_count(fast.changed_mask(before, before)) == 0
    near = np.array([1.0, 2.0])  # float64, which JAX would make float32 of
    nearly = near + np.array([0, 1e-15])
    np.testing.assert_array_equal(sap.audit.changed_mask(near, nearly), [False, True])
    half = jnp.array([1.0, 2.0], jnp.bfloat16)
    assert fast.distance({"a": half, "b": jnp.zeros(())}, {"a": half + 3, "b": jnp.array(4.0)}) == (
        pytest.approx(math.sqrt(9 + 9 + 16))
    )
