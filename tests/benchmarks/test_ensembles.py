"""Ensembles in the benchmarks: what single training gives, and what `audit` leaves."""

import json

import jax
import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.audit.ensembles import evidence, margins, train_models
from benchmarks.learning.models import build_model
from benchmarks.learning.settings import Settings
from benchmarks.learning.training import RECIPES, train


@pytest.mark.parametrize("name", ["mlp", pytest.param("cnn", marks=pytest.mark.slow)])
def test_every_model_is_the_one_that_training_alone_gives(name, tmp_path):
    dataset = Settings(train_examples=100).load(1)
    model = build_model(name, dataset="digits", image_shape=(8, 8, 1), num_classes=10)
    recipe, ids = RECIPES["digits", name], np.arange(60)
    work = (tmp_path, model, recipe, dataset.train, ids)
    models = train_models(*work, steps=6, seeds=range(3, 5)).params
    alone = train(model, recipe, dataset.train, ids, steps=6, seed=4)
    for many, one in zip(jax.tree.leaves(models), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(many[1], one, rtol=1e-3, atol=1e-4)
    kept = train_models(*work, steps=6, seeds=range(3, 5)).params  # not trained again
    assert len(list(tmp_path.glob("ensemble-*.npz"))) == 1
    for again, once in zip(jax.tree.leaves(kept), jax.tree.leaves(models), strict=True):
        np.testing.assert_array_equal(again, once)
    assert margins(model, models, dataset.test).shape == (2, 449)


@pytest.mark.slow
def test_evidence_of_the_same_ensemble_is_none():
    rng = np.random.default_rng(0)
    some = rng.standard_normal((6, 9)).astype(np.float32)
    got = evidence(some, some)
    assert got.klom_median == pytest.approx(0, abs=1e-6)
    assert got.lira_accuracy == pytest.approx(0.5)
    assert evidence(some + 20, some).lira_accuracy == 1


@pytest.mark.slow
def test_audit_leaves_a_row_for_every_ensemble_and_a_report(tmp_path):
    output = tmp_path / "audit"
    options = ["--quick", "--models", "3", "--methods", "full", "--scenario", "sample"]
    assert main(["audit", "--output", str(output), *options]) == 0
    rows = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert [(row["method"], row["set"]) for row in rows] == [
        (method, name)
        for method in ("poisoned", "full", "retrained")
        for name in ("forget", "test")
    ]
    assert all(row["klom_median"] >= 0 and 0 <= row["lira_accuracy"] <= 1 for row in rows)
    for name in ("report.md", "report.html", "audit.png"):
        assert (output / name).stat().st_size > 500


def test_audit_checks_its_options(capsys):
    assert main(["audit", "--models", "2"]) == 2
    assert "`models` must be at least 3; got 2." in capsys.readouterr().err
    assert main(["audit", "--methods", "best"]) == 2
    assert "`methods` must be one of full" in capsys.readouterr().err
