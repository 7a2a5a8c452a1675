"""The main job on a tiny configuration, its files, and what it says about bad input."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import flax.traverse_util
import numpy as np
import pytest
from trees import changed_bits

import benchmarks.unlearn.command
import sapsel_jax as sap
from benchmarks.__main__ import main
from benchmarks.learning.data import Split
from benchmarks.learning.scenarios import SCENARIOS
from benchmarks.learning.settings import Settings
from benchmarks.measures.metrics import accuracy
from benchmarks.methods.bench import RATES, REFERENCES
from benchmarks.methods.masks import METHODS
from benchmarks.methods.tuning import tuning_objective
from benchmarks.methods.updates import (
    MAX_PRODUCTS,
    UPDATES,
    Corrections,
    as_batch,
    make_batches,
    within_budget,
)
from benchmarks.methods.ways import PROPOSED
from benchmarks.tools.origin import add_origin
from benchmarks.unlearn.command import Unlearn
from benchmarks.unlearn.sparsity import COMPARED, SHIPPED

TINY = ["--train-examples", "120", "--epochs", "4", "--curvature-examples", "30"]
FIELDS = {
    "dataset",
    "variant",
    "model",
    "scenario",
    "method",
    "seed",
    "test_accuracy",
    "forget_accuracy",
    "attack_success",
    "test_recovery",
    "forget_recovery",
    "changed_entries",
    "total_entries",
    "selection_seconds",
    "update_seconds",
    "selection_example_gradients",
    "update_example_gradients",
    "retrain_example_gradients",
}
MEASURED = {"selection_seconds", "update_seconds"}


def run(output, *options, seeds=1, counts=(SHIPPED,)):
    command = ["unlearn", "--output", str(output), "--seeds", str(seeds), *TINY, *options]
    command += ["--cache", str(output.parent / "cache")]
    with mock.patch.object(benchmarks.unlearn.command, "COUNTS", counts):
        assert main(command) == 0
    return read(output / "results.jsonl")


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module", params=[pytest.param("label", marks=pytest.mark.slow)])
def label_run(tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "label"
    return output, run(output, seeds=2, counts=(3, SHIPPED))


def test_a_run_leaves_one_folder_with_everything(label_run):
    output, _ = label_run
    assert {path.name for path in output.parent.iterdir()} == {"label", "cache"}
    names = {path.name for path in output.iterdir()}
    pictures = ["sparsity.png", "recovery.png", "accuracy.png", "masks.png", "images.png"]
    records = {"results.jsonl", "tuning.jsonl", "sparsity.jsonl", "sparsity-tuning.jsonl"}
    records |= {"pieces.jsonl", "pieces.jsonl.sums", "settings.json", "origin.json"}
    patch = {"poisoned.npz", "unlearned.patch"}
    assert names == {*pictures} | records | patch | {"report.md", "report.html"}
    assert all((output / p).read_bytes().startswith(b"\x89PNG") for p in pictures)
    text, page = (output / "report.md").read_text(), (output / "report.html").read_text()
    assert re.findall(r"!\[\w+\]\((.*)\)", text) == pictures
    assert "random like sharpest" in text
    assert sap.describe_patch(sap.load_patch(output / "unlearned.patch"), most=SHIPPED) in text
    # The page needs no other file: every picture is inside, and nothing is loaded.
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == len(pictures)
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_a_row_per_method_update_and_seed(label_run):
    _, rows = label_run
    assert all(set(row) >= FIELDS for row in rows)
    names = [(row["seed"], row["method"], row["update"]) for row in rows]
    want = [("poisoned", "none"), ("retrained", "none")]
    want += [(method, update) for method in METHODS for update in UPDATES]
    assert names == [(seed, *pair) for seed in (1, 2) for pair in want]


def test_figures_of_the_rows(label_run):
    _, rows = label_run
    total = rows[0]["total_entries"]
    assert total == 64 * 64 + 64 + 64 * 32 + 32 + 32 * 10 + 10
    steps = 4 * (120 // 32)
    for row in rows:
        assert row["retrain_example_gradients"] == steps * 32
        for name in ("test", "forget"):
            recovery = row[f"{name}_recovery"]
            if recovery is not None:
                assert recovery == {"poisoned": 0, "retrained": 1}.get(row["method"], recovery)
        if row["method"] == "poisoned":
            assert row["changed_entries"] == 0
        if row["method"] not in ("poisoned", "retrained", "full", "last_layer"):
            assert row["changed_entries"] <= round(0.05 * total)
        if row["method"] == "last_layer":
            assert row["changed_entries"] <= 32 * 10 + 10
        if row["update"] in ("first_order", "iterative"):  # a step that does not hold is not taken
            assert row["changed_entries"] > 0
        if row["update"] == "first_order":
            assert row["update_example_gradients"] == 2 * 24
        if row["update"] == "second_order":
            # A quarter of the 32 examples of the budget on either side, and one of the data: 3
            # gradients, 2 for each product.
            num_products = (row["update_example_gradients"] - 2 * 8 - 3) / 2
            assert num_products in range(3, MAX_PRODUCTS + 3)
        if row["update"] == "iterative":
            assert row["update_example_gradients"] == round(0.05 * steps) * 32
        curved = row["method"] in ("sharpest", "random_like_sharpest", "flattest")
        assert (row["selection_example_gradients"] > 0) == (curved or row["method"] == "saliency")
        if row["method"] == "saliency":
            assert row["selection_example_gradients"] == 24


def test_a_row_per_way_number_and_seed(label_run):
    output, _ = label_run
    rows = read(output / "sparsity.jsonl")
    names = [(row["seed"], row["way"], row["count"]) for row in rows]
    want = [("poisoned", 0), ("retrained", 0), ("full", 0)]
    want += [(way, count) for count in (3, SHIPPED) for way in COMPARED]
    assert names == [(seed, *pair) for seed in (1, 2) for pair in want]
    for row in rows:
        if row["count"]:
            assert sum(row["leaves"].values()) == row["count"] >= row["changed_entries"]
            assert row["update_example_gradients"] == 8 * 8  # at least 8 steps, a quarter as large
    (chosen,) = {t["chosen"] for t in read(output / "sparsity-tuning.jsonl") if t["way"] == "full"}
    assert chosen in RATES


def test_the_references_are_those_of_the_comparison(label_run):
    output, rows = label_run
    reference = lambda row, name: (row[name], row["seed"], round(row["forget_accuracy"], 4))
    want = [reference(row, "method") for row in rows if row["update"] == "none"]
    sparse = [row for row in read(output / "sparsity.jsonl") if row["way"] in REFERENCES]
    assert [reference(row, "way") for row in sparse] == want


def test_a_newton_step_stays_within_the_budget():
    split = lambda count: Split(np.zeros((count, 1, 1, 1), np.float32), np.arange(count))
    given = Corrections(
        original=as_batch(split(1_000)),
        corrected=as_batch(split(1_000)),
        data=as_batch(split(200)),
        num_examples=5_000,
        batches=as_batch(split(2_000)),
        own_batches=None,
    )
    got = within_budget(given)
    # A quarter of 2,000 each; of the other half 39 for each example: 3 gradients, 18 products.
    labels = [batch["label"].tolist() for batch in (got.original, got.corrected, got.data) if batch]
    assert [len(set(each)) for each in labels] == [500, 500, 1_000 // 39]
    assert labels[0] == labels[1]
    assert got.original["weight"].sum() == 1_000
    removal = within_budget(given._replace(original=as_batch(split(30)), corrected=None))
    assert removal.corrected is None
    np.testing.assert_array_equal(removal.original["label"], np.arange(30))
    assert len(removal.data["label"]) == (2_000 - 30) // 39


def test_tuning_gives_every_method_the_same_trials(label_run):
    output, rows = label_run
    trials = read(output / "tuning.jsonl")
    for method in METHODS:
        for name, update in UPDATES.items():
            own = [t for t in trials if (t["method"], t["update"]) == (method, name)]
            assert [t["value"] for t in own] == list(update.trials)
            assert len(own) <= 8
            (chosen,) = (t for t in own if t["chosen"])
            assert chosen["objective"] == max(t["objective"] for t in own)
            assert chosen["objective"] == chosen["validation_accuracy"] + chosen["forget_accuracy"]
            used = {r["tuned_value"] for r in rows if (r["method"], r["update"]) == (method, name)}
            assert used == {chosen["value"]}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_table(label_run, tmp_path):
    _, rows = label_run
    again = run(tmp_path / "again")
    stable = lambda row: {name: value for name, value in row.items() if name not in MEASURED}
    assert [stable(row) for row in again] == [stable(row) for row in rows if row["seed"] == 1]


def test_the_patch_is_the_model_that_was_measured_and_the_readme_applies_it(
    label_run, tmp_path, monkeypatch
):
    output, _ = label_run
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (snippet,) = (s for s in re.findall(r"```python\n(.*?)```", readme, re.S) if "load_patch" in s)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "unlearn-digits-label-mlp").symlink_to(output)
    names: dict[str, Any] = {}
    exec(snippet, names)
    poisoned, unlearned, restored = (names[n] for n in ("poisoned", "unlearned", "restored"))
    assert not changed_bits(poisoned, restored).any()

    settings = Settings(train_examples=120)
    dataset = settings.load(seed=1)
    model = settings.build(dataset)
    rows = read(output / "sparsity.jsonl")
    first = {(row["way"], row["count"]): row for row in rows if row["seed"] == 1}
    for params, row in ((poisoned, first["poisoned", 0]), (unlearned, first[PROPOSED, SHIPPED])):
        assert changed_bits(poisoned, params).sum() == row["changed_entries"]
        tree = flax.traverse_util.unflatten_dict(params, sep="/")
        assert round(accuracy(model, tree, dataset.test), 4) == row["test_accuracy"]
    with pytest.raises(ValueError, match="`patch` must fit `params` to the bit"):
        sap.apply_patch(unlearned, names["patch"])


# Labels with a perceptron are run above; what a network is does not depend on the scenario.
RUNS = [("label", "cnn"), *((scenario, "mlp") for scenario in SCENARIOS if scenario != "label")]


@pytest.mark.slow
@pytest.mark.parametrize(("scenario", "model"), RUNS)
def test_every_scenario_and_model_runs(scenario, model, tmp_path):
    rows = run(tmp_path / "run", "--scenario", scenario, "--model", model)
    assert len(rows) == 2 + len(METHODS) * len(UPDATES)
    has_attack = scenario in ("backdoor", "feature")
    assert all((row["attack_success"] is not None) == has_attack for row in rows)


def test_removal_aims_at_the_accuracy_of_unseen_data():
    assert tuning_objective(0.9, 0.9, removal=True) == pytest.approx(0.9)
    assert tuning_objective(0.9, 1.0, removal=True) == pytest.approx(0.8)
    assert tuning_objective(0.9, 1.0, removal=False) == pytest.approx(1.9)


def test_batches_are_half_corrected_and_half_retained():
    split = lambda label, count: Split(
        np.full((count, 2, 2, 1), label, np.float32), np.full(count, label, np.int32)
    )
    batches = make_batches(split(1, 5), -0.5, split(2, 9), steps=4, batch_size=6, seed=0)
    np.testing.assert_array_equal(batches["label"], [[1, 1, 1, 2, 2, 2]] * 4)
    np.testing.assert_array_equal(batches["weight"], [[-0.5] * 3 + [1.0] * 3] * 4)
    np.testing.assert_array_equal(batches["image"][..., 0, 0, 0], batches["label"])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--dataset", "mnits"], "`dataset` must be one of digits, mnist, cifar10; got 'mnits'."),
        (["--scenario", "x"], "`scenario` must be one of label, backdoor, feature, sample; got"),
        (["--model", "vit"], "`model` must be one of mlp, cnn, convnet, resnet; got 'vit'."),
        (["--seeds", "0"], "`seeds` must be at least 1; got 0."),
        (["--share", "1"], "`share` must lie between 0 and 1; got 1."),
        (["--fraction", "1.4"], "`fraction` must lie between 0 and 1; got 1.4."),
        (["--budget", "0"], "`budget` must lie between 0 and 1; got 0."),
        (["--epochs", "0"], "`epochs` must be at least 1; got 0."),
        (["--curvature-examples", "0"], "`curvature-examples` must be at least 1; got 0."),
        (["--train-examples", "9"], "`train-examples` must be at least 100; got 9."),
        (["--train-examples", "5000"], "`train-examples` must be at most 1078 for digits; got"),
    ],
)
@pytest.mark.parametrize("quick", [False, True])
def test_bad_options_end_in_one_sentence(options, error, quick, tmp_path, capsys):
    output = ["--output", str(tmp_path / "run"), *(["--quick"] if quick else [])]
    assert main(["unlearn", *output, *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {error}")
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_data_that_is_not_prepared_ends_in_one_sentence(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    command = [sys.executable, "-m", "benchmarks", "unlearn", "--dataset", "mnist"]
    folders = ["--data-dir", str(tmp_path / "data"), "--output", str(tmp_path / "run")]
    done = subprocess.run([*command, *folders], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: `mnist` is not prepared in ")
    assert done.stderr.count("\n") == 1
    assert "download_and_prepare()" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_other_options_is_refused(label_run, capsys):
    output, _ = label_run
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    assert main(["unlearn", "--output", str(output), *TINY, "--budget", "0.1"]) == 2
    want = "error: `output` was begun with other settings (budget):"
    assert capsys.readouterr().err.startswith(want)
    assert before == {path.name: path.stat().st_mtime_ns for path in output.iterdir()}


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for place, error in [
        ("file", f"error: `output` cannot be written: {tmp_path / 'file'} (a part of its"),
        (
            "file/run",
            f"error: `output` cannot be written: {tmp_path / 'file/run'} (a part of its",
        ),
    ]:
        assert main(["unlearn", "--output", str(tmp_path / place), *TINY]) == 2
        assert capsys.readouterr().err.startswith(error)


def test_list_and_help_name_every_choice(tmp_path, capsys):
    report = tmp_path / "results" / "mine" / "report.md"
    report.parent.mkdir(parents=True)
    report.write_text("# What came of it\n\nMuch.\n")
    begun = tmp_path / "results" / "begun"
    begun.mkdir()
    for folder in (report.parent, begun):
        add_origin(folder, Unlearn(quick=True))
    folders = ["--data-dir", str(tmp_path), "--results", str(report.parent.parent)]
    assert main(["list", *folders]) == 0
    said = capsys.readouterr().out
    texts = ["tiny_shakespeare", "manual"]
    sets = ["digits", "mnist", "cifar10", *texts]
    for name in [*sets, "mlp", "cnn", *SCENARIOS, *METHODS, *UPDATES]:
        assert re.search(rf"^\s+{name} ", said, re.MULTILINE)
    assert said.count("not prepared") == 3
    assert re.search(r"^\s+mine\s+What came of it", said, re.MULTILINE)
    assert re.search(r"^\s+begun\s+not finished: python -m benchmarks unlearn --quick", said, re.M)
    assert re.search(r"^\s+unlearn-digits-label-mlp\s+Unlearning on digits", said, re.MULTILINE)
    with pytest.raises(SystemExit) as end:
        main(["unlearn", "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    names = [field.name.replace("_", "-") for field in dataclasses.fields(Unlearn)]
    assert all(f"--{name}" in said for name in names)
    assert said.count("(default:") == len(names)
