"""Ideas beyond masks of entries: their parts against NumPy, and a run that goes on."""

import functools
import json
import os

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.beyond import eigenbasis, projection, relearning, study, units
from benchmarks.beyond.report import Contest, verdict
from benchmarks.learning.models import build_model
from benchmarks.learning.settings import Settings
from benchmarks.methods.bench import Bench
from benchmarks.methods.case import make_case
from benchmarks.tools.statistics import PairedDifference


@pytest.fixture(scope="module")
def bench():
    settings = Settings(scenario="label", epochs=2, train_examples=200, curvature_examples=40)
    return Bench.of(make_case(settings, 0))


@pytest.mark.parametrize("bases_of", [eigenbasis.eigenbases, eigenbasis.random_bases])
def test_coordinates_turn_back_and_keep_lengths(bench, bases_of):
    bases, params = bases_of(bench), bench.start.params
    there = eigenbasis.to_coordinates(bases, params)
    chex.assert_trees_all_close(
        eigenbasis.from_coordinates(bases, there, params), params, atol=1e-5
    )
    squares = lambda tree: sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree))
    assert squares(there) == pytest.approx(squares(params), rel=1e-4)


def test_the_eigenbasis_makes_second_moments_diagonal(bench):
    start = bench.start
    bases = eigenbasis.eigenbases(bench)
    chances = jax.nn.softmax(start.model.apply(start.params, start.data["image"]))
    moments = []
    for label in range(10):
        batch = start.data | {"label": np.full(len(chances), label)}
        gradients = jax.vmap(jax.grad(start.model.loss), (None, 0))(start.params, batch)
        turned = jax.vmap(lambda g: eigenbasis.to_coordinates(bases, g)["dense2"])(gradients)
        turned = np.sqrt(chances[:, label])[:, None, None] * turned
        moments.append([sum(g @ g.T for g in each) for each in (turned, turned.swapaxes(1, 2))])
    rows, cols = (sum(pair[i] for pair in moments) for i in (0, 1))
    for moment in (rows, cols):
        off = moment - np.diag(np.diag(moment))
        assert np.abs(off).max() < 1e-4 * np.abs(moment).max()


def test_weights_are_scaled_along_the_inputs_directions():
    rng = np.random.default_rng(0)
    inputs, kernel = rng.normal(size=(50, 4)) * [3, 1, 0.3, 0], rng.normal(size=(4, 2))
    params = {"dense1": {"kernel": jnp.asarray(kernel), "bias": jnp.ones(2)}}
    along = projection.directions({"dense1": jnp.asarray(inputs.T @ inputs)})
    got = projection.projected(params, along, 100.0)
    _, sizes, directions = np.linalg.svd(inputs, full_matrices=True)
    share = sizes**2 / np.sum(sizes**2)
    want = directions.T @ np.diag(100 * share / (99 * share + 1)) @ directions @ kernel
    np.testing.assert_allclose(got["dense1"]["kernel"], want, atol=1e-5)
    np.testing.assert_array_equal(got["dense1"]["bias"], 1)


def test_moments_are_summed_over_images_and_places(monkeypatch):
    monkeypatch.setattr(projection, "AT_ONCE", 2)
    model = build_model("cnn", dataset="digits", image_shape=(8, 8, 1), num_classes=10)
    params, images = model.init(0), np.random.default_rng(0).random((5, 8, 8, 1), np.float32)
    got = projection.second_moments(model, params, images)
    for name, x in model.layer_inputs(params, jnp.asarray(images)).items():
        rows = np.asarray(x).reshape(-1, x.shape[-1])
        np.testing.assert_allclose(got[name], rows.T @ rows, rtol=1e-4)


@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_what_each_kernel_is_multiplied_with(name):
    model = build_model(name, dataset="digits", image_shape=(8, 8, 1), num_classes=10)
    params, images = model.init(0), jax.random.uniform(jax.random.key(0), (2, 8, 8, 1))
    inputs = model.layer_inputs(params, images)
    assert inputs.keys() == params.keys()
    for layer, x in inputs.items():
        kernel = params[layer]["kernel"]
        assert x.shape[-1] == np.prod(kernel.shape[:-1])
    last = params[model.last_layer]
    logits = inputs[model.last_layer] @ last["kernel"] + last["bias"]
    np.testing.assert_allclose(logits, model.apply(params, images), rtol=1e-5)


def test_units_are_scored_reset_and_matched_by_random_ones():
    tree = lambda *values: {"a": {"kernel": jnp.array(values[0]), "bias": jnp.array(values[1])}}
    params = tree([[1.0, -2.0], [3.0, 4.0]], [1.0, 1.0])
    poison = tree([[1.0, 1.0], [1.0, 0.0]], [0.0, 2.0])
    retained = tree([[1.0, 1.0], [0.0, 0.0]], [1.0, 0.0])
    scores = units.score_units(params, poison, retained, ["a"])
    np.testing.assert_allclose(scores["a"], [4 / 2, 4 / 2])
    chosen = units.top_units({"a": np.array([1.0, 5.0]), "b": np.array([3.0])}, 2)
    assert [flags.tolist() for flags in chosen.values()] == [[False, True], [True]]
    assert [flags.sum() for flags in units.random_units(chosen, 0).values()] == [1, 1]
    fresh = tree([[7.0, 7.0], [7.0, 7.0]], [7.0, 7.0])
    back = units.set_back(params, fresh, {"a": np.array([True, False])})
    assert back["a"]["kernel"].tolist() == [[7, -2], [7, 4]]
    assert back["a"]["bias"].tolist() == [7, 1]


def quadratic(params, example):
    return example["weight"] * 0.5 * jnp.sum((params - example["label"]) ** 2)


BATCH = {"label": jnp.array([[1.0, 1.0], [-2.0, 1.0]]), "weight": jnp.ones(2)}


def test_gradients_of_halves_have_to_agree_in_sign():
    # At 0 the halves pull by (-1, -1) and (2, -1).
    got = relearning.where_signs_agree(quadratic, jnp.zeros(2), BATCH)
    assert got.tolist() == [0, -1]


def test_steps_are_drawn_away_from_where_they_began():
    params, mask = jnp.array([3.0, 4.0]), jnp.array([True, True])
    got = relearning.away(quadratic, params, BATCH, jnp.zeros(2), mask, 10.0)
    plain = jax.grad(lambda p: jax.vmap(quadratic, (None, 0))(p, BATCH).mean())(params)
    np.testing.assert_allclose(got, plain - 10 * params / 5, rtol=1e-6)
    still = relearning.away(quadratic, params, BATCH, params, mask, 10.0)
    np.testing.assert_allclose(still, plain)


def test_noise_has_the_size_of_the_leaf_and_keeps_the_rest():
    params = {"a": jnp.full(4000, 2.0), "b": jnp.zeros(3)}
    mask = {"a": jnp.arange(4000) < 2000, "b": jnp.ones(3, bool)}
    got = relearning.add_noise(params, mask, jax.random.key(0), 0.5)
    moved = np.asarray(got["a"] - params["a"])
    assert np.std(moved[:2000]) == pytest.approx(1.0, rel=0.1)
    assert not moved[2000:].any()
    assert not got["b"].any()


def test_the_strongest_of_what_hardly_loses_is_kept():
    judged = lambda kind: study.ALL["plain"]._replace(judged_by=kind)
    objectives = [1.89, 1.9, 1.885, 1.87]
    assert study.choose(judged("recovery"), objectives) == 1
    assert study.choose(judged("relearning"), objectives) == 2


def test_the_verdict_names_what_was_shown():
    of = lambda size, mean, p: Contest(
        "label",
        "eigenbasis",
        "rotation",
        size,
        "forget_recovery",
        PairedDifference(mean, 0.1, p),
        p,
    )
    words = verdict([of(6, 0.2, 0.01), of(24, -0.2, 0.01), of(96, 0.3, 0.2)])
    assert words == "- **eigenbasis** against rotation: better on label at 6, worse on label at 24."


@pytest.mark.slow
def test_every_idea_makes_parameters(bench):
    backdoor = Settings(
        scenario="backdoor", known=0.5, epochs=2, train_examples=200, curvature_examples=40
    )
    benches = {1.0: bench, 0.1: Bench.of(make_case(backdoor, 0))}
    for idea in study.ALL.values():
        own = benches[idea.known]
        params = idea.begin(own)(idea.sizes[0], idea.trials[0])
        chex.assert_trees_all_equal_shapes(params, own.start.params)
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params))
        case = own.evidence.case
        chex.assert_trees_all_equal_dtypes(params, case.params)


@pytest.mark.slow
def test_a_quick_run_leaves_a_report_and_goes_on_where_it_was_cut(tmp_path, capsys):
    run = functools.partial(
        main,
        [
            *("beyond", "--quick", "--train-examples", "200", "--curvature-examples", "40"),
            *("--cache", str(tmp_path / "cache"), "--output", str(tmp_path / "out")),
        ],
    )
    assert run() == 0
    capsys.readouterr()
    cells = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in cells]
    assert [row["idea"] for row in rows if row["scenario"] == "label"] == [
        "poisoned",
        "retrained",
        "full",
        "projection",
    ]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| projection |" in report
    os.remove(tmp_path / "out" / "report.md")
    assert run() == 0
    assert (tmp_path / "out" / "results.jsonl").read_text().splitlines() == cells
    assert (tmp_path / "out" / "report.md").read_text() == report


def test_bad_options(tmp_path, capsys):
    for option, message in {
        ("--ideas", "magic"): "`ideas` must be one of",
        ("--model", "resnet"): "`model` must be one of mlp, cnn, convnet; got 'resnet'.",
    }.items():
        assert main(["beyond", *option, "--output", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
