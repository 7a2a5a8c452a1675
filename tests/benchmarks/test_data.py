import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.learning.data import is_prepared, load_dataset
from benchmarks.tools.errors import UsageError


def rows(split):
    return {image.tobytes() + label.tobytes() for image, label in zip(*split, strict=True)}


def test_digits_are_divided_without_loss_or_overlap():
    first, second = load_dataset("digits", seed=1), load_dataset("digits", seed=2)
    sizes = [len(part.labels) for part in (first.train, first.validation, first.test)]
    assert sizes == [1078, 270, 449]
    parts = [rows(part) for part in (first.train, first.validation, first.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 1797
    assert rows(first.test) == rows(second.test)
    assert rows(first.train) != rows(second.train)
    assert (first.train.images.min(), first.train.images.max()) == (0, 1)


def test_a_subset_of_the_training_examples():
    whole, part = load_dataset("digits", seed=1), load_dataset("digits", seed=1, train_examples=100)
    assert len(part.train.labels) == 100
    assert rows(part.train) < rows(whole.train)
    with pytest.raises(UsageError, match="`train-examples` must be at most 1078 for digits; got 2"):
        load_dataset("digits", seed=1, train_examples=2000)


def test_unknown_data():
    with pytest.raises(UsageError, match="`dataset` must be one of digits, mnist, cifar10; got 'm"):
        load_dataset("mnits", seed=1)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_data_that_is_not_prepared_says_what_to_run(name, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    assert not is_prepared(name, str(tmp_path))
    with pytest.raises(UsageError) as error:
        load_dataset(name, data_dir=str(tmp_path), seed=1)
    text = str(error.value)
    assert text.startswith(f"`{name}` is not prepared in {tmp_path}")
    assert f"tfds.builder('{name}', data_dir='{tmp_path}', file_format='array_record')" in text
    assert "download_and_prepare()" in text
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_prepared_data_that_is_damaged_is_told(name, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    folder = tmp_path / name / "3.0.1" if name == "mnist" else tmp_path / name / "3.0.2"
    folder.mkdir(parents=True)
    for text in ("{", "", '{"name": 3}'):
        (folder / "dataset_info.json").write_text(text)
        told = rf"`{name}` cannot be read from {tmp_path} \(.*\); if it is damaged, remove it there"
        with pytest.raises(UsageError, match=told) as caught:
            load_dataset(name, data_dir=str(tmp_path), seed=1)
        assert str(caught.value).count("\n") == 0
        with pytest.raises(UsageError, match=told):
            is_prepared(name, str(tmp_path))


def flip(path):
    text = bytearray(path.read_bytes())
    text[len(text) // 2] ^= 1
    path.write_bytes(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "damage", "reason"),
    [
        ("mnist-test.array_record*", flip, "Corrupted"),
        # Some versions of the reader refuse a file that is cut off, others find nothing in it.
        (
            "mnist-test.array_record*",
            lambda path: os.truncate(path, 2**20),
            "(Corrupted|0 records of 10000 in test)",
        ),
        (
            "mnist-test.array_record*",
            lambda path: path.write_bytes(b""),
            "(ArrayRecord file should|0 records of 10000 in test)",
        ),
        ("mnist-train.array_record*", lambda path: path.unlink(), "0 records of 60000 in train"),
        (
            "dataset_info.json",
            lambda path: path.write_text(path.read_text().replace('"10000"', '"9000"')),
            "10000 records of 9000 in test",
        ),
    ],
)
def test_damaged_mnist_is_told(pattern, damage, reason, tmp_path):
    if not is_prepared("mnist"):
        pytest.skip("MNIST is not prepared here")
    import tensorflow_datasets as tfds

    source = Path(tfds.builder("mnist", file_format="array_record").data_path)
    folder = shutil.copytree(source, tmp_path / "mnist" / source.name)
    (path,) = folder.glob(pattern)
    damage(path)
    with pytest.raises(UsageError, match=rf"`mnist` cannot be read from {folder} \({reason}"):
        load_dataset("mnist", data_dir=str(tmp_path), seed=1)


@pytest.mark.slow
def test_mnist_is_read_whole():
    if not is_prepared("mnist"):
        pytest.skip("MNIST is not prepared here")
    data = load_dataset("mnist", seed=1)
    sizes = [len(part.labels) for part in (data.train, data.validation, data.test)]
    assert sizes == [55_000, 5_000, 10_000]
    assert data.train.images.shape == (55_000, 28, 28, 1)
    # How often each digit occurs in the published training set.
    counts = np.bincount(np.concatenate([data.train.labels, data.validation.labels]))
    np.testing.assert_array_equal(
        counts, [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    )
