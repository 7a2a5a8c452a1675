"""The benchmarks' networks."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import sapsel_jax as sap
from benchmarks.learning.models import MODELS, build_model, convolve
from benchmarks.learning.training import RECIPES, predict
from benchmarks.methods.curvature import (
    PROPAGATED_GRADIENTS,
    counted_by,
    counted_gradients,
    curvature,
    estimator,
)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("image", [(7, 6), (8, 8)])
def test_convolutions_by_patches_are_those_of_lax(stride, size, padding, image):
    rng = np.random.default_rng(0)
    layout = ("NHWC", "HWIO", "NHWC")
    with jax.enable_x64(True):
        x = jnp.asarray(rng.standard_normal((2, *image, 3)))
        kernel = jnp.asarray(rng.standard_normal((size, size, 3, 4)))
        want = lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=layout
        )
        got = convolve(x, kernel, (stride, stride), padding)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_every_network_has_a_recipe_for_every_data_set():
    assert set(RECIPES) == {(d, m) for d in ("digits", "mnist", "cifar10") for m in MODELS}


def small(name):
    return build_model(name, dataset="digits", image_shape=(8, 8, 1), num_classes=10)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in ("convnet", "resnet") else n for n in MODELS],
)
def test_networks_give_logits_and_name_their_last_layer(name):
    model = small(name)
    params = model.init(3)
    images = np.random.default_rng(0).random((5, 8, 8, 1), np.float32)
    logits = jax.jit(model.apply)(params, images)
    assert logits.shape == (5, 10)
    np.testing.assert_allclose(
        model.apply(params, jnp.asarray(images[:1]))[0], logits[0], rtol=1e-4, atol=1e-5
    )
    last = sap.select_leaves(params, lambda path, _: path.startswith(f"{model.last_layer}/"))
    assert sap.mask_count(last["dense1" if name != "mlp" else "dense3"]) > 0
    again, other = model.init(3), model.init(4)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), params, again))
    assert not jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), params, other))


def test_predictions_are_the_largest_logits_and_nan_is_no_class():
    model = small("mlp")
    params = model.init(0)
    images = np.random.default_rng(0).random((120, 8, 8, 1), np.float32)
    np.testing.assert_array_equal(
        predict(model, params, images), np.argmax(model.apply(params, jnp.asarray(images)), -1)
    )
    images[7] = np.nan
    assert np.flatnonzero(np.asarray(predict(model, params, images)) == -1).tolist() == [7]


@pytest.mark.parametrize("name", MODELS)
def test_the_curvature_is_exact_where_that_is_cheap(name, monkeypatch):
    asked = []

    def exact(loss_fn):
        asked.append("exact")
        return lambda params, batch: params

    def propagated(loss_fn, *, microbatch):
        asked.append("propagated")
        return lambda params, batch, key: params

    monkeypatch.setattr(sap, "exact_diagonal", exact)
    monkeypatch.setattr(sap, "propagated_diagonal", propagated)
    jitted: Any = curvature
    jitted.__wrapped__(small(name), {}, {})
    assert asked[0] in estimator(name)
    assert asked == ["propagated" if name in ("convnet", "resnet") else "exact"]


def test_what_curvature_costs_is_counted_without_a_clock(monkeypatch):
    def clock():
        raise AssertionError("timed")

    monkeypatch.setattr(time, "perf_counter", clock)
    batch = {
        "image": np.zeros((2, 8, 8, 1), np.float32),
        "label": np.zeros(2, np.int32),
        "weight": np.ones(2, np.float32),
    }
    for name in ("mlp", "cnn"):
        model = small(name)
        example = jax.tree.map(lambda x: x[0], batch)
        want = sap.explain(model.loss, model.init(0), example).cost
        assert counted_gradients(model, model.init(1), batch) == want > 1
        assert "`sap.explain`" in counted_by(name)
    assert counted_gradients(small("resnet"), None, batch) == PROPAGATED_GRADIENTS
    assert "probe" in counted_by("resnet")
