"""In which precision numbers are kept, and which of them are not finite."""

from typing import Any

import jax
import jax.numpy as jnp


def count_nonfinite(tree: Any) -> Any:
    """How many entries of each leaf are NaN or infinite.

    Curvature that is not finite is never selected; this says how much of it there was.

    Args:
      tree: pytree of arrays.

    Returns:
      A pytree of the same structure; each leaf is an integer scalar.

    Cost: one pass over the tree.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> print(sap.count_nonfinite({"a": jnp.array([1.0, jnp.nan, jnp.inf]), "b": jnp.ones(2)}))
      {'a': Array(2, dtype=int32), 'b': Array(0, dtype=int32)}
    """
    return jax.tree.map(lambda x: jnp.sum(~jnp.isfinite(x), dtype=jnp.int32), tree)


def wide_dtype(dtype: Any) -> Any:
    """The dtype that sums are kept in: float32, or wider where `dtype` is."""
    return jnp.promote_types(dtype, jnp.float32)


def widen(tree: Any) -> Any:
    """The same numbers in float32 or wider."""
    return jax.tree.map(lambda x: jnp.asarray(x, wide_dtype(jnp.result_type(x))), tree)
