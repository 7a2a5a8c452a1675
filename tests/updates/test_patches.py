"""Patches: bits, fingerprints, containers, what is refused."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.tree_util import DictKey, keystr
from patches import round_trip, same_bits
from refusals import refuses
from trees import changed_bits

import sapsel_jax as sap

DTYPES = [
    np.float32, np.float64, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn,
    np.int8, np.uint16, np.int32, np.int64, np.bool_, np.complex64, np.complex128,
]  # fmt: skip


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


BEFORE = {"w": np.array([1.0, 2.0, 3.0], np.float32)}
AFTER = {"w": np.array([1.0, 5.0, 3.0], np.float32)}


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"w": np.array([1.0, 2.0, 3.5], np.float32)}, None),
        (AFTER, None),
        ({"w": np.ones(3)}, "at 'w' they are float32[3] and float64[3]"),
        ({"w": np.ones((1, 3), np.float32)}, "at 'w' they are float32[3] and float32[1, 3]"),
        ({"v": BEFORE["w"]}, "only `params` has 'v'"),
        ({"x": BEFORE["w"]}, "only `patch` has 'w'"),
        (BEFORE | {"x": np.ones(1)}, "only `params` has 'x'"),
        ({}, "only `patch` has 'w'"),
    ],
)
def test_other_parameters_are_refused_with_the_first_difference(other, difference):
    patch = sap.make_patch(BEFORE, AFTER)
    with pytest.raises(ValueError, match="must fit `params` to the bit") as raised:
        sap.apply_patch(other, patch)
    if difference is None:
        assert str(raised.value).endswith(f"the patch has {patch.before[:16]} before the update.")
    else:
        assert str(raised.value) == f"`patch` must fit `params` to the bit; {difference}."
    with pytest.raises(ValueError, match="after the update"):
        sap.revert_patch(BEFORE, patch)


def test_a_patch_fits_the_same_arrays_in_another_container():
    rng = np.random.default_rng(0)
    draw = lambda: rng.normal(size=3).astype(np.float32)
    # As paths "blocks/10" comes before "blocks/2", and "norm-out" before "norm/scale".
    nested = {
        "blocks": [{"kernel": draw()} for _ in range(12)],
        "norm": {"scale": draw()},
        "norm-out": draw(),
        "norm0": draw(),
    }
    updated = jax.tree.map(lambda x: x + np.float32(1), nested)
    flat_of = lambda tree: {
        keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    backwards = lambda tree: dict(reversed(flat_of(tree).items()))
    patch = sap.make_patch(nested, updated)
    for of in (flat_of, backwards, lambda tree: tree):
        got = sap.apply_patch(of(nested), patch)
        assert all(map(same_bits, jax.tree.leaves(got), jax.tree.leaves(of(updated))))
        again = sap.revert_patch(got, patch)
        assert all(map(same_bits, jax.tree.leaves(again), jax.tree.leaves(of(nested))))
        other = sap.make_patch(of(nested), of(updated))
        assert (other.before, other.after) == (patch.before, patch.after)
    listed = {"blocks": {str(i): leaf for i, leaf in enumerate(nested["blocks"])}}
    got = sap.apply_patch({**nested, **listed}, patch)
    assert same_bits(got["blocks"]["10"]["kernel"], updated["blocks"][10]["kernel"])


paths = st.text("ab/-0129.", min_size=1, max_size=5)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.dictionaries(paths, st.integers(0, 3), min_size=1, max_size=6), st.randoms())
def test_leaves_are_matched_by_path_whatever_their_order(values, random):
    # A list of pairs keeps its order; a dictionary is sorted by JAX.
    before = {path: np.full(2, value, np.int8) for path, value in values.items()}
    after = {path: leaf + np.int8(1) for path, leaf in before.items()}
    order = list(before)
    random.shuffle(order)
    patch = sap.make_patch(before, after)
    shuffled = InOrder({path: before[path] for path in order})
    got = sap.apply_patch(shuffled, patch)
    assert list(got.leaves) == order
    assert all(same_bits(leaf, after[path]) for path, leaf in got.leaves.items())
    assert sap.make_patch(shuffled, got).after == patch.after


class InOrder:
    """A container whose leaves keep their order."""

    def __init__(self, leaves):
        self.leaves = leaves


jax.tree_util.register_pytree_with_keys(
    InOrder,
    lambda node: (
        [(DictKey(path), leaf) for path, leaf in node.leaves.items()],
        tuple(node.leaves),
    ),
    lambda paths, leaves: InOrder(dict(zip(paths, leaves, strict=True))),
)


def test_leaves_of_one_path_keep_their_order():
    before = {"a": {"b": np.zeros(2)}, "a/b": np.ones(2)}
    after = {"a": {"b": np.full(2, 2.0)}, "a/b": np.full(2, 3.0)}
    got = sap.apply_patch(before, sap.make_patch(before, after))
    assert same_bits(got["a/b"], after["a/b"])
    assert same_bits(got["a"]["b"], after["a"]["b"])


def test_eight_bytes_stay_eight_outside_of_their_context():
    with jax.enable_x64(True):
        before, after = jnp.array([1.0, 1 / 3]), jnp.array([1.0, 1 / 7])
    patch = sap.make_patch(before, after)
    got = sap.apply_patch(before, patch)
    assert got.dtype == np.float64
    assert same_bits(got, after)
    scalar = sap.apply_patch(np.float32(1), sap.make_patch(np.float32(1), np.float32(2)))
    assert (type(scalar), scalar) == (np.float32, 2)


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
    refuses(lambda: sap.make_patch(before, after), kind, message)


STRANGE = "arrays of dtypes that JAX has; leaf 'a' has dtype"
NUMBERS = "hand over an array of numbers"


@pytest.mark.parametrize(
    ("leaf", "kind"),
    [
        (1.0, "arrays only; leaf 'a' is a float"),
        (2, "arrays only; leaf 'a' is a int"),
        (True, "arrays only; leaf 'a' is a bool"),
        (jax.ShapeDtypeStruct((2,), jnp.float32), "arrays only; leaf 'a' is a ShapeDtypeStruct"),
        (np.zeros(2, [("x", np.float32)]), f"{STRANGE} [('x', '<f4')]: {NUMBERS}"),
        (np.zeros(2, "V4"), f"{STRANGE} |V4: {NUMBERS}"),
        (np.array(["x"]), f"{STRANGE} <U1: {NUMBERS}"),
        (np.array([None]), f"{STRANGE} object: {NUMBERS}"),
        (np.zeros(2, ">f4"), f"{STRANGE} >f4: hand over `x.astype(x.dtype.newbyteorder('='))`"),
        (np.zeros(2, np.longdouble), f"{STRANGE} float128: hand over `x.astype(float)`"),
        (np.zeros(2, "M8[s]"), f"{STRANGE} datetime64[s]: {NUMBERS}"),
    ],
    ids=repr,
)
def test_what_is_no_array_of_numbers_is_refused_both_ways(leaf, kind):
    patch = sap.make_patch({"a": np.zeros(2)}, {"a": np.ones(2)})
    for name, call in (
        ("before", lambda: sap.make_patch({"a": leaf}, {"a": leaf})),
        ("after", lambda: sap.make_patch({"a": np.zeros(2)}, {"a": leaf})),
        ("params", lambda: sap.apply_patch({"a": leaf}, patch)),
        ("params", lambda: sap.revert_patch({"a": leaf}, patch)),
    ):
        refuses(call, TypeError, f"`{name}` must hold {kind}.")


def test_python_numbers_and_traced_arrays_are_refused_in_one_sentence():
    with pytest.raises(TypeError, match=r"^`before` must hold arrays only; the tree is a float\.$"):
        sap.make_patch(1.0, 2.0)
    traced = "^`before` must hold arrays with values; leaf 'a' is traced."
    with pytest.raises(TypeError, match=traced):
        jax.jit(lambda x: sap.make_patch({"a": x}, {"a": x}))(1.0)
    name: Any = "a.patch"
    for call in (
        lambda: sap.apply_patch(np.ones(2), name),
        lambda: sap.save_patch("nowhere", name),
    ):
        with pytest.raises(TypeError, match=r"^`patch` must be a Patch; got str\.$"):
            call()


def test_random_keys_are_no_arrays_of_numbers():
    with pytest.raises(TypeError, match="`before` must hold arrays of numbers; the array has"):
        sap.make_patch(jax.random.key(0), jax.random.key(0))


def test_a_patch_as_a_table():
    before = {
        "a": jnp.array([[1.0, 2.0], [3.0, 4.0]], jnp.bfloat16),
        "b": np.array(7),
        "c": np.array([True, False]),
        "d": np.array([1.0, np.nan]),
        "e": np.zeros(0, np.float16),
    }
    after = {
        "a": before["a"].at[1, 0].set(3.015625),
        "b": np.array(-1000),
        "c": np.array([True, True]),
        "d": np.array([np.nan, 0.125]),
        "e": before["e"],
    }
    patch = sap.make_patch(before, after)
    lines = [
        "leaf  index  before    after  difference",
        "b                 7    -1000       -1007",
        "c     1           0        1           1",
        "a     1, 0        3  3.01562    0.015625",
        "d     0           1      nan         nan",
        "d     1         nan    0.125         nan",
    ]
    assert sap.describe_patch(patch).split("\n") == lines
    shortened = sap.describe_patch(patch, most=2).split("\n")
    assert [line.split() for line in shortened[:3]] == [line.split() for line in lines[:3]]
    assert shortened[3:] == ["and 3 more"]
    assert sap.describe_patch(sap.make_patch(before, before)).split() == lines[0].split()


def test_what_cannot_be_described():
    with pytest.raises(TypeError, match=r"`patch` must be a Patch; got int\."):
        sap.describe_patch(cast(Any, 3))
    with pytest.raises(ValueError, match=r"`most` must be at least 1; got 0\."):
        sap.describe_patch(sap.make_patch(jnp.ones(1), jnp.zeros(1)), most=0)
