"""What figures over seeds allow to say: intervals, paired differences, and Holm's correction."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """A mean over seeds and the half width of its 95 % t interval, None for a single seed."""

    mean: float
    half_width: float | None


class PairedDifference(NamedTuple):
    """The mean difference of two methods on the same seeds, and how surely it is not zero."""

    mean: float
    half_width: float | None
    """Of its 95 % t interval; None for a single seed."""
    p_value: float
    """Of the two-sided paired t test; 1 for a single seed, which says nothing."""


def interval(values: Sequence[float]) -> Interval:
    """The mean of one value per seed, with its 95 % t interval."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, None)
    return Interval(mean, float(stats.t.ppf(0.975, len(values) - 1)) * standard_error(values))


def paired_test(first: Sequence[float], second: Sequence[float]) -> PairedDifference:
    """The mean of `first` less `second`, seed by seed, with the paired t test.

    Args:
      first: one method's figures, one per seed.
      second: another method's, on the same seeds in the same order.

    Raises:
      ValueError: if they are not of the same length.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean, half_width = interval(differences)
    if len(differences) < 2 or mean == 0:
        p_value = 1.0
    elif half_width == 0:
        p_value = 0.0
    else:  # not `scipy.stats.ttest_rel`, which warns where the differences are nearly equal
        statistic = abs(mean) / standard_error(differences)
        p_value = float(2 * stats.t.sf(statistic, len(differences) - 1))
    return PairedDifference(mean, half_width, p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number by Holm's step-down rule, in their order.

    The k-th smallest of n is multiplied by n − k + 1, made no smaller than the ones before it, and
    cut at 1. Where only those under 0.05 are claimed, the chance that any claim of the table is
    false is at most 5 %, however the tests depend on each other.
    """
    count = len(p_values)
    corrected, largest = [0.0] * count, 0.0
    for rank, i in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (count - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of at least two values."""
    return float(stats.sem(values))
