"""Patches: bits, fingerprints, files."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from trees import changed_bits

import sapsel_jax as sap

DTYPES = [
    np.float32, np.float64, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn,
    np.int8, np.uint16, np.int32, np.int64, np.bool_, np.complex64, np.complex128,
]  # fmt: skip


def same_bits(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())


def round_trip(before, after, folder):
    sap.save_patch(folder / "a.patch", sap.make_patch(before, after))
    patch = sap.load_patch(folder / "a.patch")
    there = sap.apply_patch(before, patch)
    back = sap.revert_patch(there, patch)
    for got, want in ((there, after), (back, before)):
        assert jax.tree.structure(got) == jax.tree.structure(want)
        assert all(map(same_bits, jax.tree.leaves(got), jax.tree.leaves(want)))
    return patch


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5])
def test_every_bit_of_every_dtype_comes_through(dtype, share, tmp_path):
    rng = np.random.default_rng(0)
    itemsize = np.dtype(dtype).itemsize
    draw = lambda: rng.integers(0, 2 if dtype == np.bool_ else 256, (1000, itemsize), np.uint8)
    old, new = draw(), draw()
    keep = rng.random(1000) >= share
    new[keep] = old[keep]
    as_leaf = lambda x: x.view(dtype).reshape(10, 100)
    patch = round_trip({"a": as_leaf(old)}, {"a": as_leaf(new)}, tmp_path)
    assert patch.num_changed == (old != new).any(1).sum()
    assert patch.num_entries == 1000


def test_zeros_and_nans_are_told_apart_on_the_device(tmp_path):
    words = np.array([0x80000000, 0x7FC00001, 0x7FC00000, 0xFFC12345, 1, 0x7F800000], np.uint32)
    before = {"a": jnp.asarray(words.view(np.float32)), "b": jnp.zeros(()), "c": jnp.zeros((0, 3))}
    changed = np.array([0, 0x7FC00002, 0x7FC00000, 0xFFC12345, 0, 0x7F800001], np.uint32)
    after = before | {"a": jnp.asarray(changed.view(np.float32)), "b": jnp.asarray(-0.0)}
    patch = round_trip(before, after, tmp_path)
    np.testing.assert_array_equal(patch.leaves[0].positions, [0, 1, 4, 5])
    assert patch.num_changed == 5
    applied = sap.apply_patch(before, patch)
    assert isinstance(applied["a"], jax.Array)
    assert applied["c"] is before["c"]


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


def test_arrays_in_another_order_of_memory(tmp_path):
    before = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    after = before.copy(order="F")
    after[1, 2] = -1
    assert round_trip([before], [after], tmp_path).num_changed == 1


def test_a_patch_keeps_the_sharding_of_its_parameters():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    before = jax.device_put(jnp.arange(16.0), sharding)
    after = before.at[3].set(-1.0)
    applied = sap.apply_patch(before, sap.make_patch(before, after))
    assert applied.sharding == sharding
    assert not changed_bits(applied, after).any()


@pytest.mark.parametrize(
    "other",
    [
        {"w": np.array([1.0, 2.0, 3.5], np.float32)},
        {"w": np.array([1.0, 2.0, 3.0], np.float64)},
        {"v": np.array([1.0, 2.0, 3.0], np.float32)},
        {"w": np.array([[1.0, 2.0, 3.0]], np.float32)},
        {"w": np.array([1.0, 5.0, 3.0], np.float32)},
        {},
    ],
)
def test_other_parameters_are_refused(other):
    before = {"w": np.array([1.0, 2.0, 3.0], np.float32)}
    patch = sap.make_patch(before, {"w": np.array([1.0, 5.0, 3.0], np.float32)})
    with pytest.raises(ValueError, match="must fit `params` to the bit") as raised:
        sap.apply_patch(other, patch)
    assert str(raised.value).endswith(f"the patch has {patch.before[:16]} before the update.")
    with pytest.raises(ValueError, match="after the update"):
        sap.revert_patch(before, patch)


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


@pytest.mark.parametrize(
    ("before", "after", "kind", "message"),
    [
        ({"a": "x"}, {"a": "x"}, TypeError, "`before` must hold arrays only; leaf 'a' is a str."),
        (np.ones(2), ["x"], TypeError, "`after` must hold arrays only; leaf '0' is a str."),
        (
            {"a": np.ones(2)},
            {"a": np.ones(3)},
            ValueError,
            "`after` and `before` must have the same shapes; at 'a' they are float64[3] and "
            "float64[2].",
        ),
        (
            {"a": np.ones(2)},
            {"a": np.ones(2, np.float32)},
            ValueError,
            "`after` and `before` must have the same dtypes; at 'a' they are float32 and float64.",
        ),
        (
            {"a": np.ones(2)},
            {"b": np.ones(2)},
            ValueError,
            "`after` and `before` must have the same structure; they first differ at 'b' against "
            "'a'.",
        ),
    ],
)
def test_bad_arguments_of_patches(before, after, kind, message):
    with pytest.raises(kind) as raised:
        sap.make_patch(before, after)
    assert str(raised.value) == message


def test_random_keys_are_no_arrays_of_numbers():
    with pytest.raises(TypeError, match="`before` must hold arrays of numbers; the array has"):
        sap.make_patch(jax.random.key(0), jax.random.key(0))
