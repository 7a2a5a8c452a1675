"""Patches as files: sizes, codings, damage."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patches import round_trip, same_bits

import sapsel_jax as sap


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 400_000), st.sets(st.integers(0, 399_999), max_size=60), st.booleans())
def test_positions_come_through_in_either_coding(tmp_path_factory, size, positions, dense):
    positions = sorted(p for p in positions if p < size)
    before = np.zeros(size, np.int8)
    after = before.copy()
    after[positions] = 1
    if dense:
        after[::2] = 1
    patch = round_trip([before], [after], tmp_path_factory.getbasetemp())
    np.testing.assert_array_equal(patch.leaves[0].positions, np.flatnonzero(after))


def test_a_patch_of_an_update_is_as_small_as_its_entries(tmp_path):
    rng = np.random.default_rng(0)
    before = {"w": rng.normal(size=1_000_000).astype(np.float32)}
    chosen = rng.choice(1_000_000, 10_000, replace=False)
    after = {"w": before["w"].copy()}
    after["w"][chosen] = rng.normal(size=10_000)
    patch = sap.make_patch(before, after)
    sap.save_patch(tmp_path / "a.patch", patch)
    assert (tmp_path / "a.patch").stat().st_size < 140_000  # 14 bytes an entry
    assert repr(patch).startswith("Patch(10,000 of 1,000,000 entries, ")
    few = sap.make_patch(before, {"w": np.where(np.arange(1_000_000) == 7, 3, before["w"])})
    sap.save_patch(tmp_path / "few.patch", few)
    assert (tmp_path / "few.patch").stat().st_size < 2_000


@pytest.mark.slow
def test_one_per_cent_of_100_million_entries_takes_under_14_megabytes(tmp_path):
    rng = np.random.default_rng(0)
    before = rng.standard_normal(100_000_000, np.float32)
    after = before.copy()
    after[rng.choice(100_000_000, 1_000_000, replace=False)] += np.float32(1.5)
    sap.save_patch(tmp_path / "a.patch", sap.make_patch(before, after))
    assert (tmp_path / "a.patch").stat().st_size < 14_000_000
    patch = sap.load_patch(tmp_path / "a.patch")
    assert patch.num_changed == 1_000_000
    applied = sap.apply_patch(before, patch)
    np.testing.assert_array_equal(applied.view(np.uint32), after.view(np.uint32))


def test_files_of_leaves_in_the_order_of_their_tree_are_read(tmp_path):
    """As the first patches were: the fingerprint was taken in that order."""
    before = {"blocks": [np.full(1, i, np.float32) for i in range(11)]}
    after = {"blocks": [leaf + 1 for leaf in before["blocks"]]}
    patch = sap.make_patch(before, after)
    leaves = sorted(patch.leaves, key=lambda leaf: int(leaf.path.rpartition("/")[2]))
    assert [leaf.path for leaf in leaves] != [leaf.path for leaf in patch.leaves]

    def fingerprint(tree):
        layout = [[f"blocks/{i}", [1], "float32"] for i in range(11)]
        bits = b"".join(leaf.tobytes() for leaf in tree["blocks"])
        return hashlib.sha256(json.dumps(layout).encode() + bits).hexdigest()

    old = sap.Patch(tuple(leaves), fingerprint(before), fingerprint(after))
    assert old.before != patch.before
    sap.save_patch(tmp_path / "a.patch", old)
    got = sap.apply_patch(before, sap.load_patch(tmp_path / "a.patch"))
    assert all(map(same_bits, got["blocks"], after["blocks"]))


def test_damaged_files_are_refused_or_read_right(tmp_path):
    rng = np.random.default_rng(0)
    before = {"w": rng.normal(size=300).astype(np.float32)}
    after = {"w": np.where(np.arange(300) % 17, before["w"], 0)}
    path = tmp_path / "a.patch"
    sap.save_patch(path, sap.make_patch(before, after))
    whole, num_refused = path.read_bytes(), 0
    for trial in range(200):
        damaged = bytearray(whole)
        if trial % 3:
            damaged[rng.integers(len(whole))] ^= 1 + rng.integers(255)
        else:
            del damaged[rng.integers(len(whole)) :]
        path.write_bytes(damaged)
        try:
            assert same_bits(sap.apply_patch(before, sap.load_patch(path))["w"], after["w"])
        except ValueError:
            with pytest.raises(ValueError, match="must name a file that `save_patch` wrote; got"):
                sap.load_patch(path)
            num_refused += 1
    assert num_refused > 150


def test_masks_and_patches_are_not_taken_for_each_other(tmp_path):
    sap.save_mask(tmp_path / "mask", np.ones(2, bool))
    sap.save_patch(tmp_path / "patch", sap.make_patch(np.ones(2), np.zeros(2)))
    with pytest.raises(ValueError, match="that `save_patch` wrote"):
        sap.load_patch(tmp_path / "mask")
    with pytest.raises(ValueError, match="that `save_mask` wrote"):
        sap.load_mask(tmp_path / "patch", np.ones(2))
    with pytest.raises(FileNotFoundError):
        sap.load_patch(tmp_path / "nowhere")


def test_a_patch_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.patch"
    sap.save_patch(path, sap.make_patch(np.ones(2), np.zeros(2)))

    def break_off(file, **arrays):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez_compressed", break_off)
    with pytest.raises(OSError, match="No space left"):
        sap.save_patch(path, sap.make_patch(np.ones(3), np.zeros(3)))
    assert sap.load_patch(path).num_changed == 2
    assert [file.name for file in tmp_path.iterdir()] == ["a.patch"]
