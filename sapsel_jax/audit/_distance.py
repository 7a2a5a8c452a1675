"""How far parameters moved, and how many of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from sapsel_jax._base.bits import words_of
from sapsel_jax._base.checks import (
    check_arrays,
    check_bool_leaves,
    check_float_leaves,
    check_same_tree,
)
from sapsel_jax._base.precision import widen
from sapsel_jax._base.types import Mask, Params
from sapsel_jax._selection.masks import mask_density


def distance(params: Params, other: Params) -> jax.Array:
    """Computes the Euclidean distance of two models' parameters.

    The distance is ‖θ − θ'‖ over all leaves. For a convex loss, the distance to the retrained model
    says how much is left to do; networks that compute the same function may lie far apart. The
    distance to the poisoned model says how much was done: a small change is often easy to undo.

    Args:
      params: pytree of floating-point arrays.
      other: pytree of the other model's parameters, shaped like `params`.

    Returns:
      A float32 (or wider) scalar of at least 0; NaN where an entry is.

    Raises:
      TypeError: if a tree holds anything but real floating-point arrays.
      ValueError: if the trees differ.

    Cost: one pass over the entries.

    Source: the usual definition.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> print(sap.audit.distance({"w": jnp.array([1.0, 5.0])}, {"w": jnp.array([4.0, 1.0])}))
      5.0
    """
    for name, tree in (("params", params), ("other", other)):
        check_float_leaves(name, tree)
    check_same_tree("params", params, "other", other)
    return optax.tree.norm(optax.tree.sub(widen(params), widen(other)))


def changed_mask(before: Params, after: Params) -> Mask:
    """Selects the entries whose bits differ.

    Bits are compared: -0.0 differs from 0.0, and NaN differs from a NaN with other bits.
    `mask_count`, `mask_density` and `describe_mask` say how many entries changed; `sparsity` says
    how many did not.

    Args:
      before: pytree of arrays.
      after: pytree of arrays with the structure, shapes and dtypes of `before`.

    Returns:
      A mask shaped like `before`: True for the entries that changed.

    Raises:
      TypeError: if a leaf is no array.
      ValueError: if the trees differ in structure, shapes or dtypes.

    Cost: one pass over the entries.

    Source: the definition; `make_patch` is its form on the host.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> before, after = jnp.array([1.0, 0.0, 2.0]), jnp.array([1.0, -0.0, 3.0])
      >>> sap.audit.changed_mask(before, after)
      Array([False,  True,  True], dtype=bool)
    """
    check_arrays("before", before)
    check_arrays("after", after)
    check_same_tree("after", after, "before", before)

    def differ(old: Any, new: Any) -> jax.Array:
        dtypes = [getattr(leaf, "dtype", None) or jnp.result_type(leaf) for leaf in (old, new)]
        if dtypes[0] != dtypes[1]:
            raise ValueError(
                f"`after` and `before` must have the same dtypes; got {dtypes[1]} and {dtypes[0]}."
            )
        if isinstance(old, np.ndarray) and isinstance(new, np.ndarray):
            # On the host, where eight bytes stay eight whatever JAX makes of them.
            differs = (words_of(old) != words_of(new)).any(axis=1)
            return jnp.asarray(differs.reshape(old.shape))
        old, new = jnp.asarray(old), jnp.asarray(new)
        if jnp.issubdtype(old.dtype, jnp.complexfloating):
            parts = zip((old.real, old.imag), (new.real, new.imag), strict=True)
            return jnp.logical_or(*(_bits(a) != _bits(b) for a, b in parts))
        return _bits(old) != _bits(new)

    return jax.tree.map(differ, before, after)


def sparsity(mask: Mask) -> jax.Array:
    """Computes the share of the entries that a mask does not select.

    It is 1 − `mask_density(mask)`.

    Args:
      mask: pytree of bool arrays, any shapes: `changed_mask(before, after)`, for example.

    Returns:
      A float32 scalar in [0, 1]; 1 for a tree without entries.

    Raises:
      TypeError: if a leaf is not bool.

    Cost: one pass over the entries.

    Source: the usual definition.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> print(sap.audit.sparsity(jnp.array([True, False, False, False])))
      0.75
    """
    check_bool_leaves("mask", mask)
    return 1 - mask_density(mask)


def _bits(leaf: jax.Array) -> jax.Array:
    """Floating-point numbers as unsigned integers; others as they are."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
