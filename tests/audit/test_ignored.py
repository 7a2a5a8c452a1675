"""Labels that are no classes: every figure is as if their examples were not there."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from audits import fast
from hypothesis import given, settings
from hypothesis import strategies as st

import sapsel_jax as sap

CLASSES = 3
COUNTED, IGNORED = 14, 5


@jax.jit
def shares(forget, unseen, where):
    """What aggregates over examples, from logits and labels of two sets."""
    audit = sap.audit
    scores = [audit.margin(*some) for some in (forget, unseen)]
    chosen = {"member_where": where[0], "other_where": where[1]}
    return {
        "accuracy": audit.accuracy(*forget),
        "attack_success": audit.attack_success(forget[0], unseen[1], forget[1]),
        "auc": audit.auc(*scores, **chosen),
        "true_positive_rate": audit.true_positive_rate(*scores, false_positive_rate=0.29, **chosen),
    }


@jax.jit
def attacks(forget, unseen, where):
    """What is fitted to examples, likewise."""
    audit = sap.audit
    margins = [audit.margin(*some) for some in (forget, unseen)]
    scale = jnp.array([1.0, 1.5, 0.5, -1.0])[:, None]
    lira = audit.u_lira(scale * margins[0], scale[::-1] * margins[1] + 1)
    return {
        "entropy_attack": audit.entropy_attack(*forget, *unseen, num_folds=3),
        "logistic_attack": audit.logistic_attack(
            *margins, num_folds=3, forget_where=where[0], unseen_where=where[1]
        ),
        "u_lira": (lira.accuracy, lira.auc),
    }


def check_ignored(figures, seed, mark, step):
    rng = np.random.default_rng(seed)
    size = COUNTED + IGNORED
    ignored = rng.permutation(size) < IGNORED  # the same in both sets, as `attack_success` needs
    logits = 3 * rng.standard_normal((2, size, CLASSES)).astype(np.float32)
    logits = step * np.round(logits / step)
    # Nonsense where they do not count.
    logits[:, ignored] = rng.choice([np.nan, np.inf, -np.inf, 0.5], (2, IGNORED, CLASSES))
    labels = rng.integers(0, CLASSES, (2, size))
    labels[:, ignored] = mark
    kept = lambda x: x[:, ~ignored]
    with_them = figures(*zip(logits, labels, strict=True), labels != mark)
    without = figures(*zip(kept(logits), kept(labels), strict=True), kept(labels) >= 0)
    chex.assert_trees_all_close(with_them, without, rtol=1e-5)


marks = st.sampled_from([-100, -1, CLASSES, 255])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), marks)
def test_shares_are_those_of_the_other_examples(seed, mark):
    check_ignored(shares, seed, mark, step=1)  # so that there are ties


@pytest.mark.slow
@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), marks)
def test_attacks_are_those_on_the_other_examples(seed, mark):
    check_ignored(attacks, seed, mark, step=1e-4)


def test_values_by_hand():
    logits = jnp.array([[2.0, 1.0], [0.0, 3.0], [0.0, 1.0], [jnp.nan, 0.0]])
    assert fast.accuracy(logits[:3], jnp.array([0, 1, -100])) == 1
    assert fast.accuracy(logits, jnp.array([0, -100, 0, 0])) == np.float32(1 / 3)  # NaN is wrong
    assert fast.accuracy(logits, jnp.array([0, 1, 2, 2])) == 1
    assert np.isnan(fast.accuracy(logits, jnp.full(4, -100)))
    targets, right = jnp.array([0, 0, 1, 1]), jnp.array([1, -100, 0, 0])
    assert fast.attack_success(logits, targets, right) == np.float32(2 / 3)
    assert fast.attack_success(logits, targets.at[2].set(-100), right) == 0.5
    # All of many are right: not a digit less than 1, whatever their number.
    assert all(sap.audit.accuracy(jnp.ones((n, 2)), jnp.zeros(n, int)) == 1 for n in (41, 47))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int64, np.uint32])
def test_labels_of_any_integers(dtype):
    """255 marks ignored pixels where labels are bytes; classes may be more than a byte counts."""
    logits = np.zeros((4, 300), np.float32)
    logits[[0, 1, 2], [1, 2, 3]] = 5
    labels = np.array([1, 2, 100, 0]).astype(dtype)
    assert fast.accuracy(logits, labels) == 0.75
    assert fast.accuracy(logits[:, :100], labels) == 1
    np.testing.assert_array_equal(
        jnp.isnan(fast.margin(logits[:, :100], labels)), [False, False, True, False]
    )


def test_what_does_not_count_may_be_nan_and_what_counts_may_not():
    margins = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    marked = margins[0].copy()
    marked[2] = np.nan
    none, all_but_one = np.zeros(6, bool), np.arange(6) != 2
    for call in (fast.auc, fast.true_positive_rate):
        assert np.isfinite(call(marked, margins[0], member_where=all_but_one))
        assert np.isfinite(call(margins[0], marked, other_where=all_but_one))
        assert np.isnan(call(marked, margins[1], other_where=all_but_one))
        assert np.isnan(call(margins[0], margins[1], other_where=none))
        assert np.isnan(call(margins[0], margins[1], member_where=none))


@pytest.mark.slow
def test_folds_that_are_not_filled_give_nan():
    scores = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    few = fast.logistic_attack(*scores, num_folds=3, forget_where=np.arange(6) < 2)
    assert np.isnan(few.auc)
    assert np.isnan(few.two_sided_accuracy)
    logits, labels = np.zeros((6, 2), np.float32), np.array([0, 1, -1, -1, -1, -1])
    few = fast.entropy_attack(logits, labels, logits, abs(labels), num_folds=3)
    assert few.auc == 0.5
    assert np.isnan(few.accuracy)
    assert np.isnan(few.two_sided_accuracy)
