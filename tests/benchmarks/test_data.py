import os

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
