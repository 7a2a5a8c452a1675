"""Trained parameters by a hash of what they depend on."""

import os
import pickle
import stat

import jax
import numpy as np
import pytest

import benchmarks.learning.checkpoints as checkpoints
from benchmarks.learning.checkpoints import train_once, training_hash
from benchmarks.learning.data import Split
from benchmarks.learning.models import build_model
from benchmarks.learning.training import Recipe
from benchmarks.tools.errors import UsageError

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


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_umask_says_who_may_read_the_cache(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        train_once(tmp_path, MODEL, RECIPE, DATA, IDS, 4, 1)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {mode}


def rewrite(**changes):
    """Another archive with these arrays changed, or without them."""

    def work(path):
        with np.load(path) as saved:
            arrays = {k: v for k, v in (dict(saved) | changes).items() if v is not None}
        np.savez(path.with_suffix(""), **arrays)

    return work


def flip(path, place):
    """Another byte in the middle of the file."""
    text = bytearray(path.read_bytes())
    text[place % len(text)] ^= 1
    path.write_bytes(text)


NAN = np.full((64, 64), np.nan, np.float32)
ARCHIVE, CHECKSUM = "it is no archive of arrays", "its checksum is missing or wrong"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(b""), ARCHIVE),
        (lambda path: path.write_bytes(b"parameters"), ARCHIVE),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), ARCHIVE),
        (lambda path: flip(path, 5_000), ARCHIVE),
        (lambda path: path.write_bytes(pickle.dumps(NAN)), ARCHIVE),
        (rewrite(**{"dense1/kernel": NAN}), CHECKSUM),
        (rewrite(**{"dense1/kernel": np.zeros((64, 64), np.float32)}), CHECKSUM),
        (rewrite(**{"dense1/kernel": None}), CHECKSUM),
        (rewrite(checksum=None), CHECKSUM),
        (rewrite(**{"seconds of training": np.array(0.5)}), CHECKSUM),
    ],
)
def test_a_damaged_file_is_moved_aside_and_its_model_trained_again(
    damage, reason, tmp_path, monkeypatch, capsys
):
    first = train_once(tmp_path, MODEL, RECIPE, DATA, IDS, 4, 1)
    (path,) = tmp_path.iterdir()
    damage(path)
    damaged = path.read_bytes()
    monkeypatch.setattr(checkpoints, "train", lambda *_: first.params)
    again = train_once(tmp_path, MODEL, RECIPE, DATA, IDS, 4, 1)
    jax.tree.map(np.testing.assert_array_equal, again.params, first.params)
    aside = path.with_name(f"{path.name}.damaged")
    told = f"note: {path} is damaged ({reason}); it is now {aside.name}, and is trained again.\n"
    assert capsys.readouterr().err == told
    assert aside.read_bytes() == damaged
    assert train_once(tmp_path, MODEL, RECIPE, DATA, IDS, 4, 1).seconds == again.seconds
    assert capsys.readouterr().err == ""


def test_a_file_of_other_or_broken_parameters_is_not_taken(tmp_path):
    params = MODEL.init(0)
    path = tmp_path / "kept.npz"
    checkpoints._save(path, params | {"dense1": params["dense2"]}, 1.0)
    with pytest.raises(checkpoints.Damaged, match="are not those of this network"):
        checkpoints._load(path, params)
    checkpoints._save(path, jax.tree.map(lambda x: x * np.nan, params), 1.0)
    with pytest.raises(checkpoints.Damaged, match="are not finite"):
        checkpoints._load(path, params)


def test_parameters_that_are_not_finite_are_not_kept(tmp_path, monkeypatch):
    broken = jax.tree.map(lambda x: x * np.nan, MODEL.init(0))
    monkeypatch.setattr(checkpoints, "train", lambda *_: broken)
    with pytest.raises(UsageError, match="Training of mlp with seed 1 gave parameters that are no"):
        train_once(tmp_path, MODEL, RECIPE, DATA, IDS, 4, 1)
    assert list(tmp_path.iterdir()) == []
