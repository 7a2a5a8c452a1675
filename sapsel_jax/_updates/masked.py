"""What every update does with a mask: checks, and old bits outside of it."""

from typing import Any

import jax
import jax.numpy as jnp

from sapsel_jax._base.checks import check_float_leaves, check_mask
from sapsel_jax._base.types import Mask, Params


def check_update(params: Params, mask: Mask | None) -> None:
    """Checks the parameters and the mask of an update."""
    check_float_leaves("params", params)
    if mask is not None:
        check_mask("mask", mask, "params", params)


def is_finite(tree: Any, mask: Mask | None) -> jax.Array:
    """Whether every selected entry is finite."""
    tree = tree if mask is None else on_mask(tree, mask)
    return jnp.all(jnp.asarray([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def keep_unselected(params: Params, moved: Params, mask: Mask | None, accept: jax.Array) -> Params:
    """The old bits outside the mask, denormal numbers included, and everywhere unless accepted."""
    if mask is None:
        return jax.tree.map(lambda old, new: jnp.where(accept, new, old), params, moved)
    return jax.tree.map(lambda m, old, new: jnp.where(m & accept, new, old), mask, params, moved)


def on_mask(tree: Any, mask: Mask) -> Any:
    """Zeros outside the mask, whatever was there."""
    return jax.tree.map(lambda m, x: jnp.where(m, x, jnp.zeros_like(x)), mask, tree)
