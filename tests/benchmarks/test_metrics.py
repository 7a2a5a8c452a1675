import numpy as np
import pytest

from benchmarks.measures.metrics import count_changed, count_entries, recovery
from benchmarks.measures.summary import paired_difference, summarise


def test_recovery_is_the_share_of_the_gap():
    assert recovery(0.9, 0.8, 1.0, 1000) == pytest.approx(0.5)
    assert recovery(0.7, 0.8, 1.0, 1000) == pytest.approx(-0.5)
    assert recovery(0.02, 0.98, 0.01, 1000) == pytest.approx(0.96 / 0.97)  # attack success falls


def test_no_recovery_where_there_is_nothing_to_recover():
    assert recovery(0.9, 0.9, 0.909, 10**6) is None  # under 1 point
    assert recovery(0.9, 0.9, 0.911, 10**6) is not None
    # Two standard errors of 0.8 against 0.85 on 400 examples: 2 sqrt((.16 + .1275) / 400) = .0536
    assert recovery(0.8, 0.8, 0.85, 400) is None
    assert recovery(0.8, 0.8, 0.85, 500) == 0  # .0480


def test_entries_are_compared_by_their_bits():
    before = {"a": np.array([0.0, 1.0, np.nan], np.float32), "b": np.float32(2)}
    after = {"a": np.array([-0.0, 1.0, np.nan], np.float32), "b": np.float32(3)}
    assert count_changed(before, after) == 2
    assert count_changed(before, before) == 0
    assert count_entries(before) == 4


def row(method, seed, test, **fields):
    return {
        "method": method,
        "update": "none",
        "seed": seed,
        "test_accuracy": test,
        "forget_accuracy": 0.5,
        "attack_success": None,
        "test_recovery": 0.5,
        "forget_recovery": None if seed == 1 else 0.25,
        "attack_recovery": None,
        "test_gap": -0.1,
        "forget_gap": -0.2,
        "attack_gap": None,
        "changed_entries": 10 * seed,
        "total_entries": 100,
        "selection_example_gradients": 7,
        "update_example_gradients": 3,
        "selection_seconds": 1.0,
        "update_seconds": 2.0,
        "tuned_value": 0.1,
        **fields,
    }


def test_summary_of_rows():
    rows = [row("a", 1, 0.5), row("b", 1, 0.4), row("a", 2, 0.7), row("b", 2, 0.7)]
    first, second = summarise(rows)
    assert (first.method, second.method) == ("a", "b")
    assert first.accuracies["test"].mean == pytest.approx(0.6)
    assert set(first.accuracies) == {"test", "forget"}  # no attack in this scenario
    assert set(first.recoveries) == {"test"}  # one seed had too little to recover
    assert set(first.gaps) == {"test", "forget"}
    assert (first.changed, first.total, first.gradients) == (15, 100, 10)
    gain = paired_difference(rows, "none", "a", "b", "test_accuracy")
    assert gain.mean == pytest.approx(0.05)
    # Differences .1 and 0: deviation .0707, over root 2, times t of 1 degree.
    assert gain.half_width == pytest.approx(0.05 * 12.7062, rel=1e-4)
