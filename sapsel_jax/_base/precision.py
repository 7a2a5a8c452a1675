"""In which precision numbers are kept, and which of them are not finite."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sapsel_jax._base.checks import check_arrays
from sapsel_jax._base.types import Batch, LossFn, Params


def count_nonfinite(tree: Any) -> Any:
    """Counts the entries of each leaf that are NaN or infinite.

    Curvature that is not finite is never selected; the counts say how much of it there is.

    Args:
      tree: pytree of arrays of numbers, any shapes; may be traced.

    Returns:
      A pytree of the same structure; each leaf is an int32 scalar.

    Raises:
      TypeError: if `tree` holds anything but arrays of numbers.

    Cost: one pass over the entries; no gradient.

    Source: own.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> print(sap.count_nonfinite({"a": jnp.array([1.0, jnp.nan, jnp.inf]), "b": jnp.ones(2)}))
      {'a': Array(2, dtype=int32), 'b': Array(0, dtype=int32)}
    """
    check_arrays("tree", tree)
    return jax.tree.map(lambda x: jnp.sum(~jnp.isfinite(x), dtype=jnp.int32), tree)


def wide_dtype(dtype: Any) -> Any:
    """The dtype that sums are kept in: float32, or wider where `dtype` is."""
    if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
        return jnp.dtype(jnp.float32)  # floats of 8 bits are promoted to nothing by themselves
    with jax.numpy_dtype_promotion("standard"):  # a strict setting is about what users mix
        return jnp.promote_types(dtype, jnp.float32)


def widen(tree: Any) -> Any:
    """The same numbers in float32 or wider."""
    return jax.tree.map(lambda x: jnp.asarray(x, wide_dtype(jnp.result_type(x))), tree)


def widen_floats(tree: Any) -> Any:
    """Floating-point leaves in float32 or wider, all others as they are."""
    return jax.tree.map(lambda x: widen(x) if _is_narrow(jnp.result_type(x)) else x, tree)


class Precision(NamedTuple):
    """How functions that are written for narrow parameters are called with wide ones.

    Attributes:
      widens: whether examples are widened like the parameters, so that the two still fit.
      narrow: pytree of the parameters' own dtypes, where a function computes in these all the same.
    """

    widens: bool = False
    narrow: Any = None

    @property
    def apart(self) -> bool:
        """Whether a sum over examples inside of the function would be a narrow one."""
        return self.narrow is not None

    def on(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn(params, example, *args)` as a function of wide parameters."""
        if self.apart:
            narrow = lambda p: jax.tree.map(lambda x, dtype: x.astype(dtype), p, self.narrow)
            return lambda params, example, *args: fn(narrow(params), example, *args)
        if self.widens:
            return lambda params, example, *args: fn(params, widen_floats(example), *args)
        return fn

    def on_outputs(self, fn: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """`fn(outputs, example)` with the example as the functions take it."""
        return (lambda outputs, example: fn(outputs, widen_floats(example))) if self.widens else fn


def find_precision(
    loss_fn: LossFn, params: Params, batch: Batch, args: tuple[Any, ...]
) -> Precision:
    """How a loss is computed with its parameters in float32 or wider.

    Parameters that are narrower are widened, and the examples with them: then most losses are
    computed in float32 throughout. Some are not, because they cast by themselves, or because they
    cannot be: the carry of a loop keeps its dtype, strict promotion refuses a mixture. They get the
    parameters in their own dtypes, and the gradients of single examples are widened and then added.
    """
    dtypes = jax.tree.map(jnp.result_type, params)
    if not any(map(_is_narrow, jax.tree.leaves(dtypes))):
        return Precision()
    widened = Precision(widens=True)
    gradient = jax.grad(lambda p, example: widened.on(loss_fn)(p, example, *args))
    first = lambda batch: jax.tree.map(lambda x: x[0], batch)
    shapes = jax.eval_shape(lambda p, b: (widen(p), first(b)), params, batch)
    try:
        jaxpr = jax.make_jaxpr(gradient)(*shapes).jaxpr
    except (TypeError, ValueError):
        return Precision(narrow=dtypes)
    return Precision(narrow=dtypes) if _computes_narrowly(jaxpr) else widened


def _is_narrow(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) and dtype != wide_dtype(dtype)


def _computes_narrowly(jaxpr: Any) -> bool:
    """Whether any operation, those inside of others included, has a narrow result."""
    for equation in jaxpr.eqns:
        results = [out.aval.dtype for out in equation.outvars if hasattr(out.aval, "dtype")]
        values = jax.tree.leaves(list(equation.params.values()), is_leaf=_holds_jaxpr)
        inner = [getattr(value, "jaxpr", value) for value in values if _holds_jaxpr(value)]
        if any(map(_is_narrow, results)) or any(map(_computes_narrowly, inner)):
            return True
    return False


def _holds_jaxpr(value: Any) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")
