"""Patches that somebody has rewritten: applied as they should be, or refused in one sentence."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patches import same_bits

import sapsel_jax as sap

BEFORE = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1 + 2j, 3, 4j])}
AFTER = {
    "a": BEFORE["a"] + np.array([[0, 1, 0], [0, 0, 2]], np.float32),
    "b": BEFORE["b"] * [1, 1, 2],
}
PATCH = sap.make_patch(BEFORE, AFTER)


def rewritten(leaf, **parts):
    """The patch with other parts of one leaf."""
    leaves = list(PATCH.leaves)
    leaves[leaf] = dataclasses.replace(leaves[leaf], **parts)
    return dataclasses.replace(PATCH, leaves=tuple(leaves))


def longer(words):
    return np.concatenate([words, words[:1]])


A, B = PATCH.leaves
LAYOUT = "`patch` must fit `params` to the bit; "
FAULTS = {
    "a negative position": (
        rewritten(0, positions=np.array([-5, 5])),
        "`patch` is damaged at 'a': position -5 lies before the first entry.",
    ),
    "a position past the end": (
        rewritten(0, positions=np.array([1, 6])),
        "`patch` is damaged at 'a': position 6 lies past the last of 6 entries.",
    ),
    "positions that fall": (
        rewritten(0, positions=np.array([5, 1])),
        "`patch` is damaged at 'a': its positions do not rise.",
    ),
    "a position twice": (
        rewritten(0, positions=np.array([5, 5])),
        "`patch` is damaged at 'a': its positions do not rise.",
    ),
    "real positions": (
        rewritten(0, positions=np.array([1.0, 5.0])),
        "`patch` is damaged at 'a': its positions are no integers.",
    ),
    "positions with two axes": (
        rewritten(0, positions=np.array([[1, 5]])),
        "`patch` is damaged at 'a': its positions have the shape [1, 2].",
    ),
    "fewer positions than values": (
        rewritten(0, positions=np.array([1])),
        "`patch` is damaged at 'a': its old values are not uint32[1, 1].",
    ),
    "more new values": (
        rewritten(0, new=longer(A.new)),
        "`patch` is damaged at 'a': its new values are not uint32[2, 1].",
    ),
    "values themselves in place of their bits": (
        rewritten(0, new=A.new.view(np.float32)),
        "`patch` is damaged at 'a': its new values are not uint32[2, 1].",
    ),
    "half of a complex number": (
        rewritten(1, new=B.new[:, :1]),
        "`patch` is damaged at 'b': its new values are not uint64[1, 2].",
    ),
    "an unknown dtype": (
        rewritten(0, dtype="float33"),
        "`patch` is damaged at 'a': 'float33' is no dtype of numbers.",
    ),
    "a dtype of objects": (
        rewritten(0, dtype="object"),
        "`patch` is damaged at 'a': 'object' is no dtype of numbers.",
    ),
    "another dtype of the same size": (
        rewritten(0, dtype="int32"),
        LAYOUT + "at 'a' they are int32[2, 3] and float32[2, 3].",
    ),
    "a complex dtype": (
        rewritten(0, dtype="complex64", old=np.zeros((2, 1), "u8"), new=np.zeros((2, 1), "u8")),
        LAYOUT + "at 'a' they are complex64[2, 3] and float32[2, 3].",
    ),
    "another shape": (
        rewritten(0, shape=(3, 2)),
        LAYOUT + "at 'a' they are float32[3, 2] and float32[2, 3].",
    ),
    "another path": (rewritten(0, path="c"), LAYOUT + "only `params` has 'a'."),
    "a leaf less": (
        dataclasses.replace(PATCH, leaves=PATCH.leaves[:1]),
        LAYOUT + "only `params` has 'b'.",
    ),
    "a leaf more": (
        dataclasses.replace(PATCH, leaves=(*PATCH.leaves, dataclasses.replace(A, path="c"))),
        LAYOUT + "only `patch` has 'c'.",
    ),
    "another old value": (
        rewritten(0, old=A.old ^ np.array([[1], [0]], np.uint32)),
        "`patch` is damaged at 'a': the values that it replaces are not those of `params`.",
    ),
    "positions of other entries": (
        rewritten(0, positions=np.array([0, 5])),
        "`patch` is damaged at 'a': the values that it replaces are not those of `params`.",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_rewritten_patch_is_refused_in_one_sentence(name):
    patch, message = FAULTS[name]
    with pytest.raises(ValueError, match="`patch`") as raised:
        sap.apply_patch(BEFORE, patch)
    assert str(raised.value) == message


def test_the_result_must_have_the_fingerprint_that_the_patch_says():
    new = A.new ^ np.array([[0], [1]], np.uint32)
    rewritten_values = rewritten(0, new=new)
    with pytest.raises(ValueError, match="it leads to parameters with the fingerprint") as raised:
        sap.apply_patch(BEFORE, rewritten_values)
    assert str(raised.value).endswith(f"and says {PATCH.after[:16]}.")
    # What takes other values back is refused there, too.
    with pytest.raises(ValueError, match="the values that it replaces are not"):
        sap.revert_patch(AFTER, rewritten_values)
    with pytest.raises(ValueError, match=f"and says {PATCH.before[:16]}"):
        sap.revert_patch(AFTER, rewritten(0, old=A.old ^ np.array([[1], [0]], np.uint32)))
    with pytest.raises(ValueError, match="and says 0000000000000000"):
        sap.apply_patch(BEFORE, dataclasses.replace(PATCH, after="0" * 64))
    with pytest.raises(ValueError, match="it leads to parameters"):  # one change left out
        sap.apply_patch(
            BEFORE, rewritten(0, positions=A.positions[:1], old=A.old[:1], new=A.new[:1])
        )
    with pytest.raises(ValueError, match="`patch` is damaged at 'a'"):
        sap.save_patch("nowhere", FAULTS["a negative position"][0])


def words(leaf):
    return st.integers(0, 2**64 - 1).map(
        lambda n: np.full_like(leaf.new, n % 2 ** (8 * leaf.new.itemsize))
    )


@st.composite
def any_patch(draw):
    """One part of one leaf replaced by whatever comes."""
    place = draw(st.integers(0, 1))
    leaf = PATCH.leaves[place]
    part = draw(st.sampled_from(["path", "shape", "dtype", "positions", "old", "new"]))
    value = {
        "path": st.sampled_from(["a", "b", "", "a/0"]),
        "shape": st.lists(st.integers(0, 3), max_size=3).map(tuple),
        "dtype": st.sampled_from(["float32", "int32", "complex64", "complex128", "bool", "V4"]),
        "positions": st.lists(
            st.integers(-7, 7), min_size=leaf.positions.size, max_size=leaf.positions.size
        ).map(np.array),
        "old": words(leaf),
        "new": words(leaf),
    }[part]
    return rewritten(place, **{part: draw(value)})


@settings(max_examples=60, deadline=None, derandomize=True)
@given(any_patch())
def test_whatever_is_rewritten_never_gives_other_parameters(patch):
    for call, start, end in (
        (sap.apply_patch, BEFORE, AFTER),
        (sap.revert_patch, AFTER, BEFORE),
    ):
        try:
            got = call(start, patch)
        except ValueError:
            with pytest.raises(ValueError, match=r"^`patch` "):
                call(start, patch)
        else:
            assert all(same_bits(got[name], end[name]) for name in end)
