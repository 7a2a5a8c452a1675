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
    """The Euclidean distance of two models' parameters: ‖θ − θ'‖.

    To the retrained model it says how much is left to do, for a convex loss; networks that compute
    the same function may lie far apart. To the poisoned model it says how much was done: a small
    change tends to be easily undone.

    Args:
      params: pytree of floating-point arrays.
      other: the same of the other model, shaped like `params`.

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
    """Which entries have other bits than before.

    Bits are compared, so that -0.0 is not 0.0 and one NaN is not another. `mask_count`,
    `mask_density` and `describe_mask` say how many there are, `sparsity` how many stayed.

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
    """The share of the entries that a mask leaves alone: 1 − `mask_density`.

    Args:
      mask: pytree of bool arrays; `changed_mask(before, after)` for what an update did leave alone.

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
