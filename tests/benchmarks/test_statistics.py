import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.tools.statistics import holm, interval, paired_test


def test_interval_is_students():
    mean, half_width = interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert half_width == pytest.approx(4.302653 / math.sqrt(3))  # t of 2 degrees, deviation 1
    assert interval([0.25]) == (0.25, None)


@pytest.mark.parametrize("shift", [0.0, 0.3, -2.0])
def test_paired_test_is_scipys(shift):
    first, second = np.random.default_rng(0).normal(size=(2, 7))
    second = second - shift
    ours, theirs = paired_test(first.tolist(), second.tolist()), stats.ttest_rel(first, second)
    low, high = theirs.confidence_interval(0.95)
    assert ours.p_value == pytest.approx(theirs.pvalue, rel=1e-9)
    assert ours.mean == pytest.approx((low + high) / 2)
    assert ours.half_width == pytest.approx((high - low) / 2)


def test_paired_test_where_there_is_no_spread():
    assert paired_test([0.5, 0.5], [0.5, 0.5]) == (0, 0, 1)
    assert paired_test([1.5, 2.5], [0.5, 1.5]) == (1, 0, 0)
    assert paired_test([1.0], [0.0]) == (1, None, 1)
    with pytest.raises(ValueError, match="shorter"):
        paired_test([1.0, 2.0], [1.0])


def test_holm_by_hand():
    # Sorted .01 .02 .03 .04, times 4 3 2 1: .04 .06 .06 .04, none below the one before it.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.5]) == [1, 1]
    assert holm([]) == []


def test_holm_keeps_order_and_lies_between_one_test_and_bonferroni():
    p_values = np.random.default_rng(1).uniform(size=30) ** 3
    corrected = np.array(holm(p_values.tolist()))
    assert (np.argsort(corrected, kind="stable")[:5] == np.argsort(p_values)[:5]).all()
    assert (corrected >= p_values).all()
    assert (corrected <= np.minimum(1, 30 * p_values)).all()
