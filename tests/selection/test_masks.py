import json

import chex
import flax.core
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from refusals import refuses
from trees import NUM_ENTRIES, flat, tree_of

import sapsel_jax as sap


def mask_of(selected):
    return jax.tree.map(lambda leaf: leaf.astype(bool), tree_of(selected))


@jax.jit
def algebra(a, b):
    return {
        "union": sap.mask_union(a, b),
        "intersection": sap.mask_intersection(a, b),
        "complement": sap.mask_complement(a),
        "count": sap.mask_count(a),
        "density": sap.mask_density(a),
        "overlap": sap.mask_overlap(a, b),
    }


@settings(max_examples=60, deadline=None, derandomize=True)
@given(hnp.arrays(bool, NUM_ENTRIES), hnp.arrays(bool, NUM_ENTRIES))
def test_algebra_is_that_of_sets(a, b):
    got = algebra(mask_of(a), mask_of(b))
    np.testing.assert_array_equal(flat(got["union"]), a | b)
    np.testing.assert_array_equal(flat(got["intersection"]), a & b)
    np.testing.assert_array_equal(flat(got["complement"]), ~a)
    assert got["count"] == a.sum()
    assert got["count"] + sap.mask_count(got["complement"]) == NUM_ENTRIES
    np.testing.assert_allclose(got["density"], a.mean(), rtol=1e-6)
    want = (a & b).sum() / (a | b).sum() if (a | b).any() else 1.0
    np.testing.assert_allclose(got["overlap"], want, rtol=1e-6)


def test_masks_without_entries():
    empty = {"a": jnp.zeros((0, 2), bool), "none": None}
    assert sap.mask_count(empty) == 0
    assert sap.mask_density(empty) == 0
    assert sap.mask_overlap(empty, empty) == 1
    assert sap.mask_count({}) == 0


def test_the_table_names_every_leaf_and_aligns_its_columns():
    mask = {
        "conv": {"kernel": jnp.arange(1200).reshape(30, 40) < 1100},
        "empty": jnp.zeros(0, bool),
    }
    assert sap.describe_mask(mask).split("\n") == [
        "leaf         selected  entries  share",
        "conv/kernel     1,100    1,200  91.7%",
        "empty               0        0   0.0%",
        "total           1,100    1,200  91.7%",
    ]


def some_mask():
    return mask_of(np.arange(NUM_ENTRIES) % 3 == 0)


def test_a_mask_comes_back_from_its_file(tmp_path):
    mask = flax.core.freeze({"layer": [some_mask(), None], "scalar": np.array(True)})
    path = tmp_path / "a.mask"
    sap.save_mask(path, mask)
    for like in (mask, jax.eval_shape(lambda: jax.tree.map(jnp.float32, mask))):
        loaded = sap.load_mask(str(path), like)
        chex.assert_trees_all_equal(loaded, mask)
        assert jax.tree.structure(loaded) == jax.tree.structure(mask)
        assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(bool)}
    assert [file.name for file in tmp_path.iterdir()] == ["a.mask"]
    sap.save_mask(path, {})
    assert sap.load_mask(path, {}) == {}


def test_a_mask_is_read_for_the_same_leaves_in_another_container(tmp_path):
    nested = {
        "blocks": [np.arange(3) == i % 3 for i in range(12)],  # as a path "10" is before "2"
        "norm": {"scale": np.array([True, False])},
        "norm-out": np.array([False, True]),  # "-" is before "/"
    }
    names = [f"blocks/{i}" for i in range(12)] + ["norm/scale", "norm-out"]
    leaves = [*nested["blocks"], nested["norm"]["scale"], nested["norm-out"]]
    flat_mask = dict(zip(names, leaves, strict=True))
    sap.save_mask(tmp_path / "nested", nested)
    sap.save_mask(tmp_path / "flat", flat_mask)
    for path in (tmp_path / "nested", tmp_path / "flat"):
        chex.assert_trees_all_equal(sap.load_mask(path, flat_mask), flat_mask)
        chex.assert_trees_all_equal(sap.load_mask(path, nested), nested)
    other = nested | {"norm": {"out": np.ones(2)}}
    with pytest.raises(ValueError, match="they first differ at 'norm/scale' against 'norm/out'"):
        sap.load_mask(tmp_path / "flat", other)


def test_a_file_holds_one_bit_for_an_entry(tmp_path):
    # Random bits, which do not compress: 13 MB for 100 million entries is 1.04 bits each.
    mask = np.random.default_rng(0).random((2000, 1000)) < 0.5
    sap.save_mask(tmp_path / "a.mask", mask)
    assert (tmp_path / "a.mask").stat().st_size * 8 < 1.04 * mask.size
    np.testing.assert_array_equal(sap.load_mask(tmp_path / "a.mask", mask), mask)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_mask_is_loaded_onto_the_mesh_of_the_parameters(tmp_path, axis_type):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    params = jax.device_put(np.zeros((16, 2)), NamedSharding(mesh, P("data")))
    mask = np.arange(32).reshape(16, 2) % 5 == 0
    sap.save_mask(tmp_path / "a.mask", mask)
    loaded = sap.load_mask(tmp_path / "a.mask", params)
    assert loaded.sharding == params.sharding
    np.testing.assert_array_equal(loaded, mask)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (
            {"b": np.zeros(3), "c": np.zeros(2)},
            "the same structure; they first differ at 'a' against 'b'.",
        ),
        (
            {"a": np.zeros(4), "c": np.zeros(2)},
            "the same shapes; at 'a' they are bool[3] and float64[4].",
        ),
        ({"a": np.zeros(3)}, "the same structure; only `mask` has 'c'."),
        (
            {"a": np.zeros(3), "c": np.zeros(2), "d": np.zeros(2)},
            "the same structure; only `like` has 'd'.",
        ),
    ],
)
def test_a_mask_for_another_model_is_refused_with_the_first_difference(tmp_path, like, message):
    sap.save_mask(tmp_path / "a.mask", {"a": np.ones(3, bool), "c": np.ones(2, bool)})
    with pytest.raises(ValueError, match="`mask` and `like`") as raised:
        sap.load_mask(tmp_path / "a.mask", like)
    assert str(raised.value) == f"`mask` and `like` must have {message}"


def foreign_files(folder):
    np.save(folder / "array.npy", np.ones(3))
    np.savez(folder / "arrays.npz", a=np.ones(3))
    header = {"kind": "sapsel_jax mask 1", "leaves": [["a", [3]]]}
    np.savez(
        folder / "object.npz", header=np.array(json.dumps(header)), bits=np.array([{}], object)
    )
    np.savez(folder / "short.npz", header=np.array(json.dumps(header)), bits=np.zeros(2, np.uint8))
    shapeless = '{"kind": "sapsel_jax mask 1", "leaves": [["a", "b"]]}'
    np.savez(folder / "shape.npz", header=np.array(shapeless), bits=np.zeros(1, np.uint8))
    (folder / "empty").write_bytes(b"")
    (folder / "text").write_text("a mask")
    return list(folder.iterdir())


def check_refused(path, like):
    with pytest.raises(ValueError, match="`path` must name") as raised:
        sap.load_mask(path, like)
    assert str(raised.value) == f"`path` must name a file that `save_mask` wrote; got {path}."


def test_foreign_files_are_refused(tmp_path):
    files = foreign_files(tmp_path)
    assert len(files) == 7
    for path in files:
        check_refused(path, {"a": np.zeros(3)})
    with pytest.raises(FileNotFoundError):
        sap.load_mask(tmp_path / "nowhere", {})


def test_damaged_files_are_refused_or_read_right(tmp_path):
    mask, path = some_mask(), tmp_path / "a.mask"
    sap.save_mask(path, mask)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    num_refused = 0
    for trial in range(300):
        damaged = bytearray(whole)
        if trial % 3:
            for position in rng.integers(0, len(whole), 3):
                damaged[position] = rng.integers(256)
        else:
            del damaged[rng.integers(0, len(whole)) :]
        path.write_bytes(damaged)
        try:
            # Some bytes, such as dates, mean nothing to a mask.
            chex.assert_trees_all_equal(sap.load_mask(path, mask), mask)
        except ValueError:
            check_refused(path, mask)
            num_refused += 1
    assert num_refused > 200


def test_a_mask_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.mask"
    sap.save_mask(path, np.array([True, False]))

    def break_off(file, **arrays):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez_compressed", break_off)
    with pytest.raises(OSError, match="No space left"):
        sap.save_mask(path, np.array([False, False]))
    np.testing.assert_array_equal(sap.load_mask(path, np.zeros(2)), [True, False])
    assert [file.name for file in tmp_path.iterdir()] == ["a.mask"]
    with pytest.raises(FileNotFoundError):
        sap.save_mask(tmp_path / "nowhere" / "a.mask", np.array([True]))


def test_masks_pass_through_orbax(tmp_path):
    checkpoint = pytest.importorskip("orbax.checkpoint")
    mask = jax.tree.map(jnp.asarray, some_mask())
    del mask["empty"]  # orbax saves no empty arrays
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "mask", mask)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "mask", jax.eval_shape(lambda: mask))
    chex.assert_trees_all_equal(restored, mask)


BOOLS = {"a": jnp.ones(2, bool)}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: sap.mask_union(BOOLS, {"b": jnp.ones(2, bool)}),
            ValueError,
            "`a` and `b` must have the same structure; they first differ at 'a' against 'b'.",
        ),
        (
            lambda: sap.mask_intersection(BOOLS, {"a": jnp.ones(3, bool)}),
            ValueError,
            "`a` and `b` must have the same shapes; at 'a' they are bool[2] and bool[3].",
        ),
        (
            lambda: sap.mask_overlap(BOOLS, [jnp.ones(2, bool)]),
            ValueError,
            "`a` and `b` must have the same structure; they first differ at 'a' against '0'.",
        ),
        (
            lambda: sap.mask_union([BOOLS], (BOOLS,)),
            ValueError,
            "`a` and `b` must have the same structure; their containers differ.",
        ),
        (
            lambda: sap.mask_union({"a": jnp.ones(2)}, BOOLS),
            TypeError,
            "`a` must hold bool arrays; leaf 'a' has dtype float32.",
        ),
        (
            lambda: sap.mask_intersection(BOOLS, {"a": 1}),
            TypeError,
            "`b` must hold bool arrays; leaf 'a' has dtype int32.",
        ),
        (
            lambda: sap.mask_complement(jnp.ones(2)),
            TypeError,
            "`a` must hold bool arrays; the array has dtype float32.",
        ),
        (
            lambda: sap.mask_count(jnp.ones(2)),
            TypeError,
            "`m` must hold bool arrays; the array has dtype float32.",
        ),
        (
            lambda: sap.mask_density(jnp.ones(2)),
            TypeError,
            "`m` must hold bool arrays; the array has dtype float32.",
        ),
        (
            lambda: sap.describe_mask(jnp.ones(2)),
            TypeError,
            "`m` must hold bool arrays; the array has dtype float32.",
        ),
        (
            lambda: sap.save_mask("nowhere", jnp.ones(2)),
            TypeError,
            "`mask` must hold bool arrays; the array has dtype float32.",
        ),
        (
            lambda: sap.mask_count({"a": "x"}),
            TypeError,
            "`m` must hold arrays only; leaf 'a' is a str.",
        ),
    ],
)
def test_bad_arguments_are_told_in_one_sentence(call, error, message):
    refuses(call, error, message)
