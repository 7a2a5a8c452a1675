"""Optax transformations that touch only the selected parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sapsel_jax._checks import check_bool_leaves, check_mask, check_same_tree
from sapsel_jax._types import Mask, Params


def selective(
    inner: optax.GradientTransformation, mask: Mask
) -> optax.GradientTransformationExtraArgs:
    """Runs an optax transformation on the selected entries and leaves all others bit-identical.

    Gradients outside the mask are set to zero before `inner` sees them, so that its statistics
    hold nothing of them, and updates outside the mask are set to -0.0 after it, so that nothing
    that `inner` adds of its own (weight decay, noise, momentum) moves them. -0.0 is what leaves
    every float as it is when added: -0.0 + 0.0 would turn a parameter of -0.0 into 0.0. Denormal
    parameters are the one exception on backends that flush them to zero in any addition.

    Args:
      inner: any optax transformation, `optax.chain` and schedules included.
      mask: pytree of bool arrays shaped like the parameters, True for the entries to train. It may
        be traced: a second mask needs no new compilation.

    Returns:
      A transformation with the state of `inner`; keyword arguments of `update` are passed on.

    Raises:
      TypeError: if a leaf of `mask` is not bool.
      ValueError: by `init` and `update`, if the tree they are given does not fit the mask.

    Cost: that of `inner`, and two passes over the parameters.

    Source: optax's masking wrappers take one bool per leaf; this is their elementwise form.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import sapsel_jax as sap
      >>> params = jnp.array([1.0, 1.0])
      >>> tx = sap.selective(optax.adamw(0.1, weight_decay=0.5), jnp.array([True, False]))
      >>> updates, state = tx.update(jnp.array([1.0, 1.0]), tx.init(params), params)
      >>> print(optax.apply_updates(params, updates).round(3))
      [0.85 1.  ]
    """
    check_bool_leaves("mask", mask)
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> Any:
        check_mask("mask", mask, "params", params)
        return inner.init(params)

    def update(
        updates: Any, state: Any, params: Params | None = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        check_same_tree("mask", mask, "updates", updates)
        selected = _where(mask, updates, 0.0)
        updates, state = inner.update(selected, state, params, **extra_args)
        return _where(mask, updates, -0.0), state

    return optax.GradientTransformationExtraArgs(init, update)


def _where(mask: Mask, tree: Any, other: float) -> Any:
    return jax.tree.map(lambda m, x: jnp.where(m, x, jnp.asarray(other, x.dtype)), mask, tree)
