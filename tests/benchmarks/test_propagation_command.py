"""`python -m benchmarks propagation`: its figures on known answers, and what it leaves."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.measures.diagonals import captured, overlaps, quality
from benchmarks.propagation.block_rules import matters
from benchmarks.propagation.command import Propagation
from benchmarks.propagation.networks import mlp
from benchmarks.propagation.report import GOALS, quality_table
from benchmarks.tools.errors import UsageError


def test_quality_on_known_answers():
    exact = np.array([4.0, 2.0, 1.0, 0.0])
    found = quality(exact, [exact, np.array([4.0, 2.0, 0.0, 1.0])])
    # No error and √2 over √21; rank correlations 1 and 1 − 6·2/(4·15).
    assert found["error"] == pytest.approx(np.sqrt(2 / 21) / 2)
    assert found["rank_correlation"] == pytest.approx((1 + 0.8) / 2)


def test_overlaps_on_known_answers():
    exact = np.arange(100.0)[::-1]
    shifted = np.roll(exact, 2)  # the largest two are elsewhere, at places 2 and 3
    assert overlaps(exact, [exact, shifted]) == pytest.approx(
        {"0.01": (1 + 0) / 2, "0.05": (1 + 3 / 5) / 2, "0.2": (1 + 18 / 20) / 2}
    )


def test_curvature_captured_on_known_answers():
    exact = np.array([8.0, 4.0, 2.0, 1.0, 0.0])
    worse = np.array([1.0, 0.0, 3.0, 0.0, 0.0])  # selects the third where the first is the largest
    assert captured(exact, [exact, worse], 0.2) == pytest.approx((1 + 2 / 8) / 2)


def test_rules_are_taken_away_where_a_network_has_blocks_for_them():
    batch = (jnp.ones((1, 3)), jnp.zeros(1, int))
    loss_fn, params = mlp("relu", (3, 2, 2))
    assert matters("the root of logsumexp", loss_fn, params, batch)
    assert not matters("the roots of elementwise blocks", loss_fn, params, batch)


def test_a_goal_that_is_missed_is_named():
    shares = {"0.01": 1.0, "0.05": 0.9, "0.2": 0.9}
    row = {"part": "quality", "network": "relu mlp", "dataset": "digits", "entries": 9}
    row |= {
        "captured": 0.99,
        "cost": 2.1,
        "exact_cost": 5.0,
        "error": 0.1,
        "rank_correlation": 0.98,
    }
    ((*_, goals),) = quality_table([row | {"overlap": shares}])[1]
    cost, _, correlation = GOALS["relu mlp"]
    assert goals == f"missed: cost {cost}, rank correlation {correlation}"


def test_seeds_are_checked():
    with pytest.raises(UsageError, match="`seeds` must be at least 1; got 0"):
        Propagation(seeds=0).run()


@pytest.mark.slow
def test_a_quick_run_leaves_every_part_and_a_report(tmp_path):
    output = tmp_path / "propagation"
    options = ["--quick", "--seeds", "2", "--seconds", "0.2"]
    assert main(["propagation", "--output", str(output), *options]) == 0
    rows = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert {row["part"] for row in rows} == {
        *("quality", "probes", "examples", "loops", "depth", "stack", "rules")
    }
    for row in (row for row in rows if row["part"] == "quality"):
        _, error, correlation = GOALS[row["network"]]
        assert row["error"] <= error
        assert row["rank_correlation"] >= correlation
    everything = [r for r in rows if r["part"] == "examples" and r["examples"] == r["of"]]
    assert all(r["overlap"]["0.05"] == 1 for r in everything if r["method"] == "exact")
    rules = {row["without"]: row["error"] for row in rows if row["part"] == "rules"}
    assert all(error >= rules["nothing"] for error in rules.values())
    for name in ("report.md", "report.html", "masks.png", "examples.png", "depth.png"):
        assert (output / name).stat().st_size > 500
