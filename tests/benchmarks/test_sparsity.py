"""The study of few entries: numbers needed, what is compared, and a run that can be cut off."""

import json
import math
import os

import jax
import numpy as np
import pytest
from scipy import stats

from benchmarks.__main__ import main
from benchmarks.learning.data import Split
from benchmarks.learning.settings import Settings
from benchmarks.methods.bench import FULL, Bench, make_start, taught
from benchmarks.methods.case import make_case
from benchmarks.methods.ways import (
    LIKE,
    PROPOSED,
    WAYS,
    stage_counts,
    stage_steps,
)
from benchmarks.reporting import needed


def row(way, count, seed, recovery, *, gap=None, scenario="label"):
    return {
        "scenario": scenario,
        "known": 1.0,
        "way": way,
        "count": count,
        "seed": seed,
        "forget_recovery": recovery,
        "forget_gap": 1 - recovery if gap is None else gap,
        "attack_recovery": None,
        "test_accuracy": recovery / 2,
        "total_entries": 10_000,
    }


ROWS = [
    row(FULL, 0, 1, 1.0),
    row(FULL, 0, 2, 0.5),
    *(row(PROPOSED, n, 1, r) for n, r in ((1, 0.1), (10, 0.8), (100, 1.0))),
    *(row(PROPOSED, n, 2, r) for n, r in ((1, 0.45), (10, 0.2), (100, 0.5))),
    *(row("random", n, seed, 0.1) for n in (1, 10, 100) for seed in (1, 2)),
]


def test_numbers_needed_lie_between_those_that_were_tried():
    found = needed.needed_by_seed(ROWS, "label", 1.0, PROPOSED)
    # 0.9 lies half way from 0.8 to 1; 90 % of 0.5 is met by the first number.
    assert found == {1: pytest.approx(math.sqrt(10 * 100)), 2: 1.0}
    assert needed.needed_by_seed(ROWS, "label", 1.0, "random") == {1: math.inf, 2: math.inf}
    of_random = needed.needed(ROWS, "label", 1.0, "random")
    assert of_random is not None
    assert of_random[:3] == pytest.approx((1e4, 1e4, 1e4))
    assert of_random.misses == 2
    own = needed.needed(ROWS, "label", 1.0, PROPOSED)
    assert own is not None
    assert own.geometric_mean == pytest.approx(10**0.75)
    half = stats.t.ppf(0.975, 1) * 0.75  # the standard error of 1.5 and 0
    assert own.low == pytest.approx(10 ** (0.75 - half))
    assert own.misses == 0


def test_nothing_to_restore_is_no_number():
    rows = [row(FULL, 0, 1, 1.0) | {"forget_recovery": None}, row(PROPOSED, 1, 1, 0.5)]
    assert needed.needed(rows, "label", 1.0, PROPOSED) is None
    assert needed.compare(rows, ["label"], 1.0, [PROPOSED, "random"]) == []


def test_where_all_entries_restore_little_there_is_nothing_to_share():
    rows = [row(FULL, 0, 1, 0.1), row(FULL, 0, 2, 0.2), row(PROPOSED, 1, 1, 0.1)]
    assert needed.restored_by_all(rows, "label", 1.0) == {}
    assert needed.needed(rows, "label", 1.0, PROPOSED) is None


def test_the_climb_ends_at_its_ceiling():
    model = Settings().build(Settings().load(1))
    params = model.init(0)
    example = {"image": np.zeros((8, 8, 1), np.float32), "label": 0}
    loss, bounded = (
        jax.vmap(lambda w, f=f: f(params, example | {"weight": w}))(np.array([1.0, -1.0, -0.5]))
        for f in (model.loss, model.bounded_loss)
    )
    np.testing.assert_allclose(loss, np.log(10) * np.array([1, -1, -0.5]), rtol=1e-6)
    np.testing.assert_allclose(
        bounded, np.minimum(np.abs(loss), [9, 2.3, 1.15]) * [1, -1, -1], rtol=1e-6
    )


def test_inputs_with_a_wrong_answer_are_taught_the_right_one():
    original = Split(np.full((3, 1, 1, 1), 9.0), np.array([0, 0, 2]))
    corrected = Split(np.arange(3.0).reshape(3, 1, 1, 1), np.array([1, 0, 3]))
    images, labels = taught(original, corrected)
    assert images.ravel().tolist() == [0, 1, 2, 9, 9]
    assert labels.tolist() == [1, 0, 3, 1, 3]


def test_comparisons_are_paired_by_seed():
    (found,) = needed.compare(ROWS, ["label"], 1.0, [PROPOSED, "random"])
    assert (found.scenario, found.other) == ("label", "random")
    assert found.factor == pytest.approx(10 ** (4 - 0.75))
    assert needed.tiny_count(ROWS) == 10  # 0.1 % of the entries
    # At 10 entries the gaps are 0.2 and 0.8, those of random entries 0.9.
    assert found.gap.mean == pytest.approx(0.4)
    want = stats.ttest_rel([4.0, 4.0], [1.5, 0.0]).pvalue
    assert found.needed_p == pytest.approx(want)


def test_few_entries_are_compared_with_all_of_them():
    found = {each.entries: each for each in needed.compare_with_all(ROWS, ["label"], 1.0)}
    assert list(found) == [1, 10, 100]
    assert found[10].few.mean == pytest.approx(0.5)
    assert found[10].all.mean == pytest.approx(0.75)
    assert found[10].more.mean == pytest.approx(-0.25)
    assert found[10].test.mean == pytest.approx(-0.125)
    ps = [stats.ttest_rel(few, [1.0, 0.5]).pvalue for few in ([0.1, 0.45], [0.8, 0.2])]
    # The least of three p values counts three times; what is equal has p 1.
    assert found[10].p == pytest.approx(3 * ps[1])
    assert found[1].p == pytest.approx(max(2 * ps[0], 3 * ps[1]))
    assert found[100].p == 1
    nothing = [row(FULL, 0, seed, 0.1) for seed in (1, 2)]
    assert needed.compare_with_all([*nothing, *ROWS[2:]], ["label"], 1.0) == []


def test_stages():
    assert stage_counts(1000, 8, 3) == [50, 20, 8]
    assert stage_counts(1000, 8, 1) == [8]
    assert stage_counts(1000, 500, 3) == [500, 500, 500]
    assert stage_steps(20, 4, 0.4) == (8, 3, 3, 3, 3)
    assert sum(stage_steps(397, 4, 0.15)) == 397


@pytest.fixture(scope="module")
def bench():
    return Bench.of(make_case(Settings(epochs=2, curvature_examples=50), 1))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_way_moves_as_many_entries_as_it_is_asked_for(way, bench):
    params, mask = bench.run(way, 5, 0.01, None)
    assert sum(int(leaf.sum()) for leaf in jax.tree.leaves(mask)) == 5
    for old, new, chosen in zip(
        *map(jax.tree.leaves, (bench.start.params, params, mask)), strict=True
    ):
        np.testing.assert_array_equal(np.where(chosen, old, new), old)
        assert np.any(new != old) or not np.any(chosen)
    if way != "random":
        _, like = bench.run(LIKE + way, 5, 0.01, 0.01)
        counts = [[int(leaf.sum()) for leaf in jax.tree.leaves(m)] for m in (mask, like)]
        assert counts[0] == counts[1]


@pytest.mark.slow
def test_removed_records_are_climbed_on():
    case = make_case(Settings(scenario="sample", epochs=1), 1)
    start = make_start(case)
    weights = start.batches["weight"]
    assert (weights[:, : weights.shape[1] // 2] < 0).all()
    assert (weights[:, weights.shape[1] // 2 :] == 1).all()


@pytest.mark.slow
def test_a_quick_run_leaves_a_report_and_goes_on_where_it_was_cut(tmp_path, capsys):
    output = tmp_path / "out"
    command = ["sparsity", "--quick", "--output", str(output), "--cache", str(tmp_path / "cache")]
    assert main(command) == 0
    names = {"report.html", "report.md", "settings.json", "origin.json", "sparsity-100.png"}
    journals = {"results.jsonl", "results.jsonl.sums", "tuning.jsonl", "tuning.jsonl.sums"}
    assert set(os.listdir(output)) == names | journals
    report = (output / "report.md").read_text()
    assert "Entries that restore 90 % of what an update of all 6,570 entries restores" in report
    lines = (output / "results.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert {row["way"] for row in rows} == {
        "poisoned",
        "retrained",
        FULL,
        PROPOSED,
        LIKE + PROPOSED,
        "sharpest",
        LIKE + "sharpest",
        "random",
    }
    few = [row for row in rows if row["count"]]
    assert all(row["changed_entries"] <= row["count"] for row in few)
    assert all(sum(row["leaves"].values()) == row["count"] for row in few)
    (output / "results.jsonl").write_text("".join(f"{line}\n" for line in lines[:7]))
    assert main(command) == 0
    again = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert again == rows
    assert "12 entries" not in capsys.readouterr().out


def test_bad_options(tmp_path, capsys):
    for options, message in (
        (["--known", "0.5"], "`known` must hold shares above 0 and end with 1."),
        (["--ways", "sharp"], "`ways` must be one of"),
        (["--counts", "0"], "`counts` must be at least 1; got 0."),
        (["--scenarios", "labels"], "`scenarios` must be one of"),
    ):
        assert main(["sparsity", "--output", str(tmp_path / "x"), *options]) == 2
        assert message in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
