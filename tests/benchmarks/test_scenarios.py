import numpy as np
import pytest

from benchmarks.learning.data import Dataset, Split
from benchmarks.learning.scenarios import SCENARIOS, TARGET, add_mark, poison
from benchmarks.tools.errors import UsageError

SHAPES = [(8, 8, 1), (28, 28, 1), (32, 32, 3)]


def make_dataset(shape, num_train=60, num_test=30):
    """Dark images, so that every white pixel of a trigger or mark shows."""
    rng = np.random.default_rng(0)

    def split(count):
        images = rng.uniform(0, 0.5, (count, *shape)).astype(np.float32)
        return Split(images, (np.arange(count) % 10).astype(np.int32))

    train, validation, test = split(num_train), split(10), split(num_test)
    return Dataset("dark", "made up", 10, train, validation, test)


@pytest.fixture(params=SHAPES, ids=str)
def dataset(request):
    return make_dataset(request.param)


def assert_same(split, other):
    np.testing.assert_array_equal(split.images, other.images)
    np.testing.assert_array_equal(split.labels, other.labels)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_only_the_named_examples_are_poisoned(dataset, scenario):
    before = Split(dataset.train.images.copy(), dataset.train.labels.copy())
    poisoned = poison(dataset, scenario, 0.2, seed=1)
    assert_same(dataset.train, before)  # the data itself is not touched
    assert len(poisoned.indices) == 12
    assert np.all(np.diff(poisoned.indices) > 0)
    np.testing.assert_array_equal(
        np.sort(np.concatenate([poisoned.indices, poisoned.retained])), np.arange(60)
    )
    assert_same(poisoned.train.take(poisoned.retained), dataset.train.take(poisoned.retained))
    assert_same(poisoned.train.take(poisoned.indices), poisoned.original)
    if poisoned.corrected is not None:
        assert_same(poisoned.corrected, dataset.train.take(poisoned.indices))
        assert_same(poisoned.data, dataset.train)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_seed_names_the_examples(dataset, scenario):
    first, again, other = (poison(dataset, scenario, 0.2, seed=s).indices for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert set(first) != set(other)


def test_label_moves_labels_and_leaves_images(dataset):
    poisoned = poison(dataset, "label", 0.2, seed=1)
    right = dataset.train.take(poisoned.indices)
    np.testing.assert_array_equal(poisoned.original.images, right.images)
    np.testing.assert_array_equal(poisoned.original.labels, (right.labels + 1) % 10)
    assert_same(poisoned.forget, right)
    assert poisoned.attack is None


def test_backdoor_adds_a_corner_and_the_target_label(dataset):
    poisoned = poison(dataset, "backdoor", 0.2, seed=1)
    clean = dataset.train.take(poisoned.indices)
    size = clean.images.shape[1] // 8
    assert not np.any(clean.labels == TARGET)
    assert np.all(poisoned.original.labels == TARGET)
    assert np.all(poisoned.original.images[:, -size:, -size:] == 1)
    restored = poisoned.original.images.copy()
    restored[:, -size:, -size:] = clean.images[:, -size:, -size:]
    np.testing.assert_array_equal(restored, clean.images)
    np.testing.assert_array_equal(poisoned.forget.images, poisoned.original.images)
    np.testing.assert_array_equal(poisoned.forget.labels, clean.labels)
    assert poisoned.attack is not None
    # The attack: every test image of another class, with the corner, taken for the target.
    assert len(poisoned.attack.labels) == np.sum(dataset.test.labels != TARGET)
    assert np.all(poisoned.attack.labels == TARGET)
    assert np.all(poisoned.attack.images[:, -size:, -size:] == 1)


def test_feature_adds_a_block_that_gives_the_label_away(dataset):
    poisoned = poison(dataset, "feature", 0.5, seed=1)
    clean = dataset.train.take(poisoned.indices)
    np.testing.assert_array_equal(poisoned.original.labels, clean.labels)
    changed = np.any(poisoned.original.images != clean.images, axis=-1)
    size = max(1, clean.images.shape[1] // 10)
    assert np.all(changed.sum((1, 2)) == size**2)
    assert np.all(poisoned.original.images[changed] == 1)
    places = {label: changed[clean.labels == label] for label in np.unique(clean.labels)}
    assert all(np.all(group == group[0]) for group in places.values())
    assert len({group[0].tobytes() for group in places.values()}) == len(places)
    assert_same(poisoned.forget, clean)
    assert poisoned.attack is not None
    # The attack: every test image with the block of the next class, which is the label it wants.
    wanted = (dataset.test.labels + 1) % 10
    np.testing.assert_array_equal(poisoned.attack.labels, wanted)
    np.testing.assert_array_equal(
        poisoned.attack.images, add_mark(dataset.test.images, wanted, num_classes=10)
    )


def test_sample_removes_the_records(dataset):
    poisoned = poison(dataset, "sample", 0.2, seed=1)
    assert_same(poisoned.train, dataset.train)
    assert_same(poisoned.data, dataset.train.take(poisoned.retained))
    assert_same(poisoned.forget, dataset.train.take(poisoned.indices))
    assert poisoned.corrected is None
    assert poisoned.attack is None


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_unseen_examples_are_made_like_the_poisoned_ones(dataset, scenario):
    """What `poison` makes of test examples where it is given those to train on."""
    spec = SCENARIOS[scenario]
    indices = np.flatnonzero(spec.eligible(dataset.test.labels))
    as_training = dataset._replace(train=dataset.test)
    assert_same(spec.unseen(dataset), spec.poison(as_training, indices).original)
    poisoned = poison(dataset, scenario, 0.2, seed=1)
    assert np.all(spec.eligible(dataset.train.labels)[poisoned.indices])
    assert spec.judged_by == ("attack" if scenario == "backdoor" else "forget")
    assert spec.judged_by == "forget" or poisoned.attack is not None


def test_unknown_scenario(dataset):
    with pytest.raises(UsageError, match="`scenario` must be one of label, backdoor, feature, sa"):
        poison(dataset, "typo", 0.2, seed=1)
