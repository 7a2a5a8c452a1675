"""The files under docs/examples run as they stand, and do what the pages say of them."""

import re
import runpy
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sapsel_jax as sap

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
MODELS = (
    "bare_functions",
    "equinox_filtered",
    "flax_linen",
    "flax_nnx",
    "haiku_transformed",
    "lora",
    "tied_embeddings",
)
FAST = ("bare_functions",)


@pytest.fixture(autouse=True)
def quick_to_compile(monkeypatch):
    """They spend their time in the compiler, also in the slow suite."""
    monkeypatch.syspath_prepend(EXAMPLES)
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def run(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def changed(before, after):
    return int(sap.mask_count(sap.audit.changed_mask(before, after)))


@pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in MODELS],
)
def test_twelve_entries_of_any_model_unlearn_false_labels(name):
    found = run(name)
    before, after = found["accuracies"]
    assert after > before + 0.03
    assert 0 < changed(found["before"], found["after"]) <= 12


@pytest.mark.slow
def test_devices_select_what_one_device_selects():
    found = run("devices")
    assert found["mesh"].size == jax.device_count() == 8
    assert found["same"]
    chex.assert_trees_all_close(found["spread"][0], found["alone"][0], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_optax_moves_the_selected_entries_alone():
    found = run("optax_chain")
    params, result = found["params"], found["result"]
    assert found["mean_loss"](result) < 1e-3 * found["mean_loss"](params)
    moved = sap.audit.changed_mask(jax.tree.map(jnp.asarray, params), result)
    chex.assert_trees_all_equal(moved, found["mask"])
    sizes = {leaf.size for leaf in jax.tree.leaves(found["packed"].init(params).inner)}
    assert sizes == {1, 5}


@pytest.mark.slow
def test_labels():
    found = run("labels")
    assert changed(found["before"], found["result"].params) <= 24
    assert found["text"].startswith("24 of 2,410 entries (1 %) changed.\n")
    logits = found["model_fn"](found["result"].params, found["original"][0])
    share = 100 * float(np.mean(np.argmax(logits, 1) == found["original"][1]))
    (told,) = re.findall(r", and ([\d.]+) % after\.", found["text"])
    assert float(told) == pytest.approx(share, abs=0.06)
    assert share < 10


@pytest.mark.slow
def test_backdoors():
    found = run("backdoors")
    assert changed(found["before"], found["result"].params) <= 24
    others = found["test_labels"] != 0
    success = [
        np.mean(np.argmax(found["model_fn"](params, found["triggered"]), 1)[others] == 0)
        for params in (found["before"], found["result"].params)
    ]
    assert success[0] > 0.9
    assert success[1] < 0.1


@pytest.mark.slow
def test_features():
    found = run("features")
    accuracies = [
        found["accuracy"](found[name], found["test_images"], found["test_labels"])
        for name in ("before", "after")
    ]
    assert accuracies[1] > accuracies[0] + 0.02


@pytest.mark.slow
def test_records():
    found = run("records")
    assert changed(found["before"], found["result"].params) <= 241
    logits = found["model_fn"](found["result"].params, found["original"][0])
    assert np.mean(np.argmax(logits, 1) == found["original"][1]) < 1


@pytest.mark.slow
def test_secrets():
    found = run("passwords")
    assert found["result"].certificate.converged
    assert changed(found["before"], found["result"].params) <= 256
    models = found["before"], found["result"].params, found["retrained"]
    secret, others = ([found["SECRET"]], found["others"])
    own = [float(found["losses"](params, secret)[0]) for params in models]
    ranks = [
        np.sum(np.asarray(found["losses"](params, others)) < loss)
        for params, loss in zip(models, own, strict=True)
    ]
    assert ranks[0] == 0
    assert min(ranks[1:]) > 20


@pytest.mark.slow
def test_own_arrays_to_a_patch_and_a_report(tmp_path, monkeypatch):
    runpy.run_path(str(EXAMPLES / "your_files.py"))["write"](tmp_path)
    monkeypatch.setattr("sys.argv", ["own_arrays.py", str(tmp_path)])
    found = run("own_arrays")
    patch = sap.load_patch(tmp_path / "unlearned.patch")
    assert patch.num_changed == 24
    chex.assert_trees_all_equal(
        sap.apply_patch(found["params"], patch), jax.device_get(found["result"].params)
    )
    report = (tmp_path / "report.md").read_text()
    assert report.startswith("# Unlearning 240 rows\n\n24 of 2,410 entries (1 %) changed.\n")
    assert sap.describe_patch(patch) in report
    logits = found["logits_fn"](found["result"].params, found["corrected"][0])
    right = 100 * float(np.mean(np.argmax(logits, 1) == found["right"]))
    (row,) = re.findall(r"corrected .* \| [\d.]+ % \| ([\d.]+) % \|", report)
    assert float(row) == pytest.approx(right, abs=0.06)
    assert right > 75
