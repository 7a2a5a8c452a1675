"""A patch through its file and back, compared bit by bit."""

import jax
import numpy as np

import sapsel_jax as sap


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
