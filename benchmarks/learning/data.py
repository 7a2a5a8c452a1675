"""Real images: scikit-learn's digits, and MNIST and CIFAR-10 through tensorflow-datasets."""

import contextlib
import functools
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.tools.errors import UsageError, check_choice

DATASETS = {
    "digits": "1,797 handwritten digits, 8×8, embedded in scikit-learn",
    "mnist": "70,000 handwritten digits, 28×28, through tensorflow-datasets",
    "cifar10": "60,000 colour photographs, 32×32, through tensorflow-datasets",
}
NUM_CLASSES = 10
DIGITS_TEST = 449
"""A quarter of scikit-learn's digits; the other sets come with a test split."""
VALIDATION_SHARE = {"digits": 0.2, "mnist": 1 / 12, "cifar10": 0.1}
READ_AT_ONCE = 5_000


class Split(NamedTuple):
    """Examples: images of float32 in [0, 1], shape (n, height, width, channels), int32 labels."""

    images: np.ndarray
    labels: np.ndarray

    def take(self, indices: np.ndarray) -> "Split":
        """The examples at these places, in this order."""
        return Split(self.images[indices], self.labels[indices])


class Dataset(NamedTuple):
    """A data set in three parts; `variant` says how it differs from the published one, if it does.

    The test split is the same for every seed; training and validation are divided by the seed.
    """

    name: str
    variant: str
    num_classes: int
    train: Split
    validation: Split
    test: Split


def load_dataset(
    name: str, *, data_dir: str | None = None, seed: int, train_examples: int | None = None
) -> Dataset:
    """Loads a data set and divides it.

    Args:
      name: `digits`, `mnist` or `cifar10`.
      data_dir: where tensorflow-datasets keeps prepared data; None is its own default, which
        `TFDS_DATA_DIR` sets.
      seed: divides training from validation, and picks the subset.
      train_examples: how many training examples to keep; None keeps all.

    Raises:
      UsageError: if the name is unknown or the data is not prepared.
    """
    check_choice("dataset", name, DATASETS)
    variant, train, test = _load_digits() if name == "digits" else _load_tfds(name, data_dir)
    order = np.random.default_rng([seed, 0]).permutation(len(train.labels))
    num_validation = round(VALIDATION_SHARE[name] * len(order))
    rest = order[num_validation:]
    if train_examples is not None and train_examples > len(rest):
        raise UsageError(
            f"`train-examples` must be at most {len(rest)} for {name}; got {train_examples}."
        )
    return Dataset(
        name=name,
        variant=variant,
        num_classes=NUM_CLASSES,
        train=train.take(np.sort(rest[:train_examples])),
        validation=train.take(np.sort(order[:num_validation])),
        test=test,
    )


def is_prepared(name: str, data_dir: str | None = None) -> bool:
    """Whether a data set can be read here and now."""
    if name == "digits":
        return True
    try:
        import tensorflow_datasets  # noqa: F401
    except ImportError:
        return False
    with _told_where(name, data_dir):
        return _builder(name, data_dir).is_prepared()


@functools.cache
def _load_digits() -> tuple[str, Split, Split]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images[..., None] / 16).astype(np.float32)  # type: ignore[attr-defined]
    everything = Split(images, bunch.target.astype(np.int32))  # type: ignore[attr-defined]
    order = np.random.default_rng(0).permutation(len(everything.labels))
    test, train = everything.take(order[:DIGITS_TEST]), everything.take(order[DIGITS_TEST:])
    return "scikit-learn", train, test


def read_texts(name: str, data_dir: str | None = None) -> list[str]:
    """The training, the validation and the test text of a data set that is one text.

    Raises:
      UsageError: if it is not prepared.
    """
    builder: Any = _prepared(name, data_dir)
    parts = ("train", "validation", "test")
    with _told_where(name, builder.data_path):
        sources = [builder.as_data_source(split=part) for part in parts]
        return [b"".join(record["text"] for record in source).decode() for source in sources]


@functools.cache
def _load_tfds(name: str, data_dir: str | None) -> tuple[str, Split, Split]:
    builder = _prepared(name, data_dir)
    with _told_where(name, builder.data_path):
        train, test = (_read(builder, split) for split in ("train", "test"))
        return _variant(Path(builder.data_path)), train, test


def _prepared(name: str, data_dir: str | None):
    """What reads the data set."""
    with _told_where(name, data_dir):
        builder = _builder(name, data_dir)
        prepared = builder.is_prepared()
    if not prepared:
        raise UsageError(
            f"`{name}` is not prepared in {builder.data_path}; prepare it once with "
            f"`pip install tensorflow importlib_resources` and "
            f'`python -c "import tensorflow_datasets as tfds; '
            f"tfds.builder('{name}', {_data_dir_argument(data_dir)}file_format='array_record')"
            f'.download_and_prepare()"`.'
        )
    return builder


def _builder(name: str, data_dir: str | None):
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UsageError(
            f'`{name}` needs tensorflow-datasets; install it with `pip install -e ".[bench]"`.'
        ) from error
    return tfds.builder(name, data_dir=data_dir, file_format="array_record")


def _data_dir_argument(data_dir: str | None) -> str:
    return "" if data_dir is None else f"data_dir='{data_dir}', "


def _read(builder, split: str) -> Split:
    from array_record.python.array_record_module import ArrayRecordReader

    info = builder.info.splits[split]
    num_records = sum(ArrayRecordReader(str(path)).num_records() for path in info.filepaths)
    if (num_examples := info.num_examples) != num_records:
        raise ValueError(f"{num_records} records of {num_examples} in {split}")
    source = builder.as_data_source(split=split)
    images, labels = [], []
    for start in range(0, num_examples, READ_AT_ONCE):
        examples = source.__getitems__(range(start, min(start + READ_AT_ONCE, num_examples)))
        images.append(np.stack([example["image"] for example in examples]))
        labels.append(np.array([example["label"] for example in examples], np.int32))
    return Split(np.concatenate(images).astype(np.float32) / 255, np.concatenate(labels))


def _variant(folder: Path) -> str:
    """What a file beside the data says of how it differs from the published data set."""
    note = folder / "NOT_ORIGINAL.txt"
    if not note.is_file():
        return "original"
    text = note.read_text().strip()
    named = re.search(r"variant\W+(\w+)", text)
    return named[1] if named else (text.splitlines() or ["not original"])[0]


@contextlib.contextmanager
def _told_where(name: str, folder: Any) -> Iterator[None]:
    """Says of a data set that cannot be read where it stands and what is wrong with it.

    Hints of tensorflow-datasets' dependencies, which are not about the data, are left out.
    """
    level = logging.getLogger("absl").level
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # each layer of the readers has exceptions of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        place = "the default folder" if folder is None else folder
        raise UsageError(
            f"`{name}` cannot be read from {place} ({reason}); if it is damaged, remove it there "
            "and prepare it again."
        ) from error
    finally:
        logging.getLogger("absl").setLevel(level)
