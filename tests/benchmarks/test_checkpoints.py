"""Trained parameters by a hash of what they depend on."""

import numpy as np
import pytest

import benchmarks.learning.checkpoints as checkpoints
from benchmarks.learning.checkpoints import train_once, training_hash
from benchmarks.learning.data import Split
from benchmarks.learning.models import build_model
from benchmarks.learning.training import Recipe

MODEL = build_model("mlp", dataset="digits", image_shape=(8, 8, 1), num_classes=10)
RECIPE = Recipe(epochs=1, batch_size=4, learning_rate=1e-3)
DATA = Split(
    np.random.default_rng(0).random((16, 8, 8, 1), np.float32),
    np.arange(16, dtype=np.int32) % 10,
)
IDS = np.arange(16)


def test_the_hash_changes_with_data_configuration_and_seed():
    images, labels = DATA.images.copy(), DATA.labels.copy()
    images[3, 2, 1, 0] += 1e-3
    labels[7] = 0
    other = build_model("cnn", dataset="digits", image_shape=(8, 8, 1), num_classes=10)
    variants = [
        (MODEL, RECIPE, DATA, IDS, 4, 1),
        (MODEL, RECIPE, Split(images, DATA.labels), IDS, 4, 1),
        (MODEL, RECIPE, Split(DATA.images, labels), IDS, 4, 1),
        (MODEL, RECIPE, DATA, IDS[1:], 4, 1),
        (MODEL, RECIPE, DATA, IDS[::-1], 4, 1),
        (MODEL, RECIPE._replace(learning_rate=2e-3), DATA, IDS, 4, 1),
        (other, RECIPE, DATA, IDS, 4, 1),
        (MODEL, RECIPE, DATA, IDS, 5, 1),
        (MODEL, RECIPE, DATA, IDS, 4, 2),
    ]
    names = [training_hash(*variant) for variant in variants]
    assert len(set(names)) == len(names)
    assert training_hash(*variants[0]) == names[0]


def test_nothing_is_trained_twice(tmp_path, monkeypatch):
    first = train_once(tmp_path, MODEL, RECIPE, DATA, IDS, 4, 1)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]

    def refuse(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(checkpoints, "train", refuse)
    again = train_once(tmp_path, MODEL, RECIPE, DATA, IDS, 4, 1)
    for layer, leaves in first.params.items():
        for name, leaf in leaves.items():
            np.testing.assert_array_equal(leaf, again.params[layer][name])
    assert again.seconds == first.seconds > 0
    with pytest.raises(AssertionError, match="trained again"):
        train_once(tmp_path, MODEL, RECIPE, DATA, IDS, 4, 2)
