"""The study of selections: its masks, its rescaling test, what it finds, and that it goes on."""

import json

import jax
import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.ablation.command import Ablation
from benchmarks.ablation.findings import figure, find
from benchmarks.ablation.records import OverlapRow
from benchmarks.ablation.stability import UNDAMPED, measure_stability, rescale
from benchmarks.ablation.study import Part
from benchmarks.learning.data import Dataset, Split
from benchmarks.learning.models import build_model
from benchmarks.learning.scenarios import SCENARIOS, notice, poison
from benchmarks.learning.settings import Settings
from benchmarks.methods.case import make_case
from benchmarks.methods.rankings import (
    LIKE,
    RANKED,
    Evidence,
    make_masks,
    mask_names,
    needs,
    summary,
)
from benchmarks.methods.updates import STUDIED_UPDATES, make_batches
from benchmarks.tools.errors import UsageError
from benchmarks.tools.records import Journal
from benchmarks.tools.statistics import holm, paired_test


def digits_model(name):
    return build_model(name, dataset="digits", image_shape=(8, 8, 1), num_classes=10)


def random_params(model, seed):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: model.init(0))
    return jax.tree.map(lambda x: rng.uniform(-1, 1, x.shape).astype("f4"), shapes)


def counts(mask):
    return [int(leaf.sum()) for leaf in jax.tree.leaves(mask)]


def bits(mask):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(mask)])


@pytest.mark.slow
def test_every_mask_has_its_count_and_its_control():
    model = digits_model("mlp")
    # Every part of the evidence another random tree, with a curvature that is above its floor.
    trees = [jax.tree.map(np.abs, random_params(model, seed)) for seed in range(6)]
    evidence = Evidence(*trees, key=jax.random.key(0))
    masks = make_masks(model, evidence, (0.2,))
    assert list(masks) == mask_names((0.2,))
    sizes = [x.size for x in jax.tree.leaves(trees[0])]
    for name in RANKED:
        mask, control = masks[name, 0.2], masks[LIKE + name, 0.2]
        assert counts(control) == counts(mask)
        if name == "sharpest_per_leaf":
            assert counts(mask) == [round(0.2 * size) for size in sizes]
        else:
            assert sum(counts(mask)) == round(0.2 * sum(sizes))
    assert sum(counts(masks["random", 0.2])) == round(0.2 * sum(sizes))
    assert len({bits(mask).tobytes() for mask in masks.values()}) == len(masks)
    assert counts(masks["full", None]) == sizes
    assert sum(counts(masks["last_layer", None])) == 32 * 10 + 10
    largest = np.argsort(-np.concatenate([np.ravel(x) for x in jax.tree.leaves(trees[1])]))
    assert bits(masks["sharpest", 0.2])[largest[: round(0.2 * sum(sizes))]].all()


def test_what_a_mask_needs_is_known_for_each():
    assert needs("random_like_newton_step") == needs("newton_step") == ("diagonal", "change")
    assert needs("random_like_sharpest_per_leaf") == needs("sharpest_per_leaf") == ("diagonal",)
    assert needs("full") == needs("random") == needs("magnitude") == ()
    assert all(summary(method) for method, _ in mask_names((0.1,)))


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_rescaling_leaves_the_function_and_changes_the_parameters(name):
    model = digits_model(name)
    params = random_params(model, 1)
    images = np.random.default_rng(1).uniform(size=(20, 8, 8, 1)).astype("f4")
    rescaled = rescale(model, params)
    # Powers of two: the same floats come out.
    apply = jax.jit(model.apply)
    np.testing.assert_array_equal(apply(rescaled, images), apply(params, images))
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), params, rescaled)
    first, second, *_ = sorted(params)
    assert changed[first]["kernel"]
    assert changed[second] == {"kernel": True, "bias": False}


def digits_like(count):
    rng = np.random.default_rng(2)
    make = lambda n: Split(
        rng.uniform(size=(n, 8, 8, 1)).astype("f4"), rng.integers(0, 10, n).astype("i4")
    )
    return Dataset("digits", "made up", 10, make(count), make(20), make(20))


@pytest.mark.parametrize("scenario", ["label", "backdoor", "sample"])
def test_what_goes_unnoticed_stays_in_the_data(scenario):
    dataset = digits_like(100)
    whole = poison(dataset, scenario, 0.4, seed=3)
    part = notice(whole, 0.25, seed=3)
    assert len(part.indices) == 10
    assert set(part.indices) < set(whole.indices)
    np.testing.assert_array_equal(part.train.labels, whole.train.labels)
    kept = np.isin(whole.indices, part.indices)
    np.testing.assert_array_equal(part.original.images, whole.original.images[kept])
    np.testing.assert_array_equal(part.forget.labels, whole.forget.labels[kept])
    assert set(part.retained) == set(range(100)) - set(part.indices)
    if part.corrected is None:
        assert len(part.data.labels) == 90
        return
    unnoticed = np.setdiff1d(whole.indices, part.indices)
    np.testing.assert_array_equal(part.data.images[unnoticed], whole.train.images[unnoticed])
    np.testing.assert_array_equal(part.data.labels[part.indices], part.corrected.labels)
    assert len(notice(whole, 1e-9, seed=3).indices) == 1


def test_batches_without_retained_examples_are_all_about_the_poisoned():
    about = digits_like(30).train
    batches = make_batches(about, -0.5, None, steps=3, batch_size=8, seed=0)
    assert batches["label"].shape == (3, 8)
    assert (batches["weight"] == -0.5).all()
    rows = batches["image"].reshape(24, -1)
    assert (rows[:, None] == about.images.reshape(30, -1)).all(-1).any(-1).all()
    assert len(np.unique(rows, axis=0)) == 24  # one pass, no example twice


def stable(rows):
    return [{k: v for k, v in row.items() if not k.endswith("_seconds")} for row in rows]


def cell(method, fraction, update, seed, test, forget, **fields):
    return {
        "part": "p",
        "method": method,
        "fraction": fraction,
        "update": update,
        "seed": seed,
        "test_accuracy": test,
        "forget_accuracy": forget,
        "attack_success": None,
        "changed_entries": 5,
        **fields,
    }


def test_a_cell_is_judged_by_the_mean_of_its_shares():
    assert figure(cell("full", None, "iterative", 1, 0.8, 0.4)) == pytest.approx(0.6)
    row = cell("full", None, "iterative", 1, 0.8, 0.4, attack_success=0.7)
    assert figure(row) == pytest.approx(0.5)


def test_findings_are_paired_and_corrected_over_the_part():
    gains = {"sharpest": [0.1, 0.12, 0.11], "magnitude": [0.02, -0.03, 0.04]}
    rows = []
    for i, seed in enumerate((1, 2, 3)):
        base = 0.5 + 0.05 * i
        rows += [
            cell("poisoned", None, "none", seed, base - 0.1, base - 0.1),
            cell("retrained", None, "none", seed, base + 0.3, base + 0.3),
        ]
        for method, gain in gains.items():
            rows.append(cell(LIKE + method, 0.1, "iterative", seed, base, base))
            rows.append(cell(method, 0.1, "iterative", seed, base + 2 * gain[i], base))
        for method in ("full", "last_layer"):
            rows.append(cell(method, None, "iterative", seed, base, base))
    rows.append(cell("poisoned", None, "none", 4, 0.5, 0.5))  # a seed that was cut off
    found = find("p", [*rows, {**rows[0], "part": "another"}])
    assert found is not None
    assert found.num_seeds == 3
    assert found.recoveries["sharpest", 0.1, "iterative"].mean == pytest.approx(0.21 / 0.4)
    assert found.recoveries["random_like_sharpest", 0.1, "iterative"].mean == pytest.approx(0.25)
    tests = [paired_test(gains[name], [0, 0, 0]) for name in ("sharpest", "magnitude")]
    corrected = holm([test.p_value for test in tests])
    for comparison, test, p in zip(found.controlled, tests, corrected, strict=True):
        assert comparison.other == LIKE + comparison.method
        assert comparison.difference == pytest.approx(test)
        assert comparison.corrected == pytest.approx(p)
    assert [c.survives for c in found.controlled] == [True, False]
    assert {(c.method, c.other) for c in found.whole} == {
        (a, b) for a in gains for b in ("last_layer", "full")
    }
    assert find("absent", rows) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fractions": (0.1, 1.5)}, r"`fractions` must lie between 0 and 1; got 1\.5"),
        ({"seeds": 0}, "`seeds` must be at least 1; got 0"),
        ({"parts": ("digits",)}, "`parts` must be one of digits-label, .*; got 'digits'"),
        ({"mnist_examples": 10}, "`mnist-examples` must be at least 1000; got 10"),
    ],
)
def test_options_are_checked_before_anything_is_done(options, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        Ablation(output=tmp_path / "out", **options).run()
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match=r"`known` must lie above 0, at most 1; got 1\.2"):
        Settings(known=1.2).check()


@pytest.mark.slow
def test_scores_that_do_not_depend_on_the_scale_keep_their_masks(tmp_path):
    part = Part("p", "P", Settings(seeds=2, epochs=5), (0.05,))
    record = Journal(tmp_path / "stability.jsonl", OverlapRow)
    measure_stability(part, record, lambda _: None)
    overlap = {(row["kind"], row["method"]): row["overlap"] for row in record.rows}
    for method in ("brain_damage", "sharpest_per_leaf", UNDAMPED):
        assert overlap["rescaling", method] > 0.97
    for method in ("sharpest", "magnitude", "saliency"):
        assert overlap["rescaling", method] < 0.8
    assert overlap["probes", "magnitude"] == overlap["samples", "magnitude"] == 1
    assert overlap["probes", "saliency"] == 1
    assert 0.2 < overlap["probes", "sharpest"] < 0.99
    assert 0.2 < overlap["samples", "sharpest"] < 0.99
    assert overlap["seeds", "sharpest"] < 0.6


@pytest.mark.slow
def test_a_quick_study_is_whole_and_goes_on_where_it_was_cut(tmp_path):
    output = tmp_path / "study"
    command = ["ablation", "--quick", "--output", str(output)]
    assert main(command) == 0
    names = {path.name for path in output.iterdir()}
    assert {"results.jsonl", "tuning.jsonl", "report.md", "report.html", "gains.png"} <= names
    path = output / "results.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    updates = {"first_order", "second_order", "iterative", "corrected_only"}
    assert len(rows) == 2 + len(mask_names((0.05,))) * len(updates)
    assert {row["update"] for row in rows} == updates | {"none"}
    full = next(r for r in rows if r["method"] == "full" and r["update"] == "iterative")
    assert full["forget_recovery"] > 0.8
    # Cut off in the middle of a line, with one mask's rows gone: it is measured anew, alone.
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-4]) + lines[-4][:50])
    tuned = (output / "tuning.jsonl").read_bytes()
    assert main(command) == 0
    assert path.read_bytes().splitlines(keepends=True)[:-4] == lines[:-4]
    assert (output / "tuning.jsonl").read_bytes() == tuned
    again = [json.loads(line) for line in path.read_text().splitlines()]
    assert stable(again) == stable(rows)
    assert main(["ablation", "--output", str(output)]) == 2  # begun with other options


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_takes_every_update(scenario):
    settings = Settings(scenario=scenario, epochs=3, curvature_examples=200)
    case = make_case(settings, 1)
    mask = jax.tree.map(lambda p: np.random.default_rng(0).random(p.shape) < 0.2, case.params)
    held = jax.tree.map(lambda m: ~m, mask)
    for update in STUDIED_UPDATES.values():
        params, _ = update.run(case.model, case.params, mask, case.corrections, update.trials[2])
        moved = jax.tree.map(lambda a, b: np.asarray(a) != np.asarray(b), case.params, params)
        assert all(np.isfinite(p).all() for p in jax.tree.leaves(params))
        assert sum(counts(moved)) > 100
        outside = jax.tree.map(lambda m, h: bool((m & h).any()), moved, held)
        assert not any(jax.tree.leaves(outside))
