"""Hessian diagonals of any scalar function: exact, by basis vectors, and estimated, by probes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sapsel_jax._base.checks import check_count, check_float_leaves
from sapsel_jax._base.examples import sum_over_examples
from sapsel_jax._base.fusion import unfused
from sapsel_jax._base.losses import one_scalar
from sapsel_jax._base.precision import wide_dtype
from sapsel_jax._base.types import Diagonal, Params
from sapsel_jax._curvature.hessians import hessian_vector

DEFAULT_CHUNK = 32
"""Basis vectors or probes that run at once where the caller names no number."""


def basis_diagonal(
    fn: Callable[..., jax.Array], *, chunk: int | None = None
) -> Callable[..., Diagonal]:
    """Computes the exact diagonal of the Hessian of any scalar function of a pytree.

    Entry i is eᵢᵀ H eᵢ, read from `jax.jvp` of `jax.grad` along each basis vector eᵢ, or from
    `jax.vjp` of `jax.grad` where a custom rule can only be run in reverse. Each leaf is
    differentiated alone, which gives the same diagonal for less work. The faster diagonals are
    tested against this one, and fall back on it.

    Args:
      fn: `fn(params, *args) -> scalar`, twice differentiable in `params`.
      chunk: how many basis vectors run at once, at least 1; the default is 32. Memory grows with
        it in proportion.

    Returns:
      A function `(params, *args)` that returns a pytree shaped like `params`, in float32 or wider.

    Raises:
      TypeError: if `params` holds anything but real floating-point arrays, `fn` returns anything
        but one real scalar, or `chunk` is no integer.
      ValueError: if `chunk` is below 1.
      NotImplementedError: if JAX cannot differentiate `fn` twice.

    Cost: one Hessian-vector product per parameter: about 2 to 4 gradient equivalents each.

    Source: the definition; the products as in B. A. Pearlmutter, "Fast exact multiplication by the
      Hessian" (1994).

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> diagonal = sap.basis_diagonal(lambda x: jnp.sum(x**3))
      >>> diagonal(jnp.array([1.0, 2.0]))
      Array([ 6., 12.], dtype=float32)
    """
    if chunk is not None:
        check_count("chunk", chunk, minimum=1)

    def diagonal(params: Params, *args: Any) -> Diagonal:
        check_float_leaves("params", params)
        scalar = one_scalar(fn, "fn")
        leaves, structure = jax.tree.flatten(params)

        def leaf_diagonal(position: int) -> jax.Array:
            leaf = jnp.asarray(leaves[position])

            def fn_of_leaf(value: jax.Array) -> jax.Array:
                changed = [*leaves[:position], value, *leaves[position + 1 :]]
                return scalar(structure.unflatten(changed), *args)

            if leaf.size == 0:
                return jnp.zeros(leaf.shape, wide_dtype(leaf.dtype))
            return diagonal_by_products(fn_of_leaf, leaf, chunk=chunk).reshape(leaf.shape)

        return structure.unflatten([leaf_diagonal(i) for i in range(len(leaves))])

    return diagonal


def diagonal_by_products(
    fn: Callable[[jax.Array], jax.Array],
    point: jax.Array,
    directions: jax.Array | None = None,
    chunk: int | None = None,
) -> jax.Array:
    """vᵀHv for each of some directions, by one Hessian-vector product each.

    Args:
      fn: scalar function of one array.
      point: where it is differentiated.
      directions: any leading axes and then the axes of `point`; None takes all unit vectors.
      chunk: how many run at once.

    Returns:
      A vector with one number per direction, in float32 or wider.
    """
    dtype = wide_dtype(point.dtype)
    if directions is not None:
        directions = directions.reshape(-1, *point.shape).astype(point.dtype)
    count = point.size if directions is None else len(directions)

    def curvature(index: jax.Array) -> jax.Array:
        if directions is None:
            direction = (jnp.arange(point.size) == index).astype(point.dtype).reshape(point.shape)
        else:
            direction = directions[index]
        product = hessian_vector(fn, point, direction)
        if directions is None:
            return product.reshape(-1)[index].astype(dtype)
        return jnp.vdot(direction.astype(dtype), product.astype(dtype))

    width = min(chunk or DEFAULT_CHUNK, count)
    indices = jnp.arange(-(-count // width) * width).reshape(-1, width)
    return jax.lax.map(jax.vmap(curvature), indices).reshape(-1)[:count]


def probe_diagonal(
    fn: Callable[..., jax.Array], *, num_probes: int, chunk: int | None = None
) -> Callable[..., Diagonal]:
    """Estimates the Hessian diagonal of any scalar function of a pytree, by Hutchinson's probes.

    It computes the mean over probes of v ⊙ Hv, where every entry of v is an independent random
    sign. The estimate is unbiased. The variance of entry i is the sum of the squared off-diagonal
    entries of row i, divided by the number of probes. Hv is `jax.jvp` of `jax.grad`,
    vmapped over the probes.

    Args:
      fn: `fn(params, *args) -> scalar`, twice differentiable in `params`.
      num_probes: how many random vectors are averaged, at least 1.
      chunk: how many of them run at once, at least 1; the default is 32. Memory grows with it in
        proportion. The estimate does not depend on it but for rounding.

    Returns:
      A function `(params, key, *args)` that returns a pytree shaped like `params`, in float32 or
      wider.

    Raises:
      TypeError: if `params` holds anything but real floating-point arrays, `fn` returns anything
        but one real scalar, or a count is no integer.
      ValueError: if a count is below 1.

    Cost: about 2 to 4 gradient equivalents per probe.

    Source: M. F. Hutchinson, "A stochastic estimator of the trace of the influence matrix" (1989);
      for the diagonal C. Bekas, E. Kokiopoulou, Y. Saad, "An estimator for the diagonal of a
      matrix" (2007), equation 2.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> estimate = sap.probe_diagonal(lambda x: jnp.sum(x**3), num_probes=1)
      >>> estimate(jnp.array([1.0, 2.0]), jax.random.key(0))  # exact: this Hessian is diagonal
      Array([ 6., 12.], dtype=float32)
    """
    check_count("num_probes", num_probes, minimum=1)
    if chunk is not None:
        check_count("chunk", chunk, minimum=1)

    def diagonal(params: Params, key: jax.Array, *args: Any) -> Diagonal:
        check_float_leaves("params", params)
        scalar = one_scalar(fn, "fn")
        params = jax.tree.map(jnp.asarray, params)

        def one_probe(index: jax.Array) -> Diagonal:
            return _probe(lambda p: scalar(p, *args), params, jax.random.fold_in(key, index))

        def chunk_sum(indices: jax.Array) -> Diagonal:
            return jax.tree.map(lambda x: unfused(x).sum(0), jax.vmap(one_probe)(indices))

        total = sum_over_examples(
            chunk_sum, jnp.arange(num_probes), num_probes, chunk or DEFAULT_CHUNK
        )
        return optax.tree.scale(1 / num_probes, total)

    return diagonal


def _probe(fn: Callable[[Params], jax.Array], params: Params, key: jax.Array) -> Diagonal:
    """v ⊙ Hv for one vector v of random signs."""
    signs = optax.tree.random_like(key, params, sampler=jax.random.rademacher)
    product = hessian_vector(fn, params, signs)
    return jax.tree.map(
        lambda v, hv: v.astype(wide_dtype(v.dtype)) * hv.astype(wide_dtype(v.dtype)), signs, product
    )
