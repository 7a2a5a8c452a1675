"""Diagonals of Hessians: exact, by basis vectors, and estimated, by random probes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sapsel_jax._accumulate import (
    check_options,
    count_examples,
    reduce_sum,
    sum_over_examples,
    wide_dtype,
)
from sapsel_jax._checks import check_count, check_float_leaves
from sapsel_jax._types import Batch, Diagonal, LossFn, Params

DEFAULT_CHUNK = 32
"""Basis vectors or probes that run at once where the caller names no number."""


def basis_diagonal(
    fn: Callable[..., jax.Array], *, chunk: int | None = None
) -> Callable[..., Diagonal]:
    """The exact diagonal of the Hessian of any scalar function of a pytree.

    Entry i is eᵢᵀ H eᵢ, read from `jax.jvp` of `jax.grad` along each basis vector eᵢ. Each leaf is
    differentiated alone, which gives the same diagonal for less work. This is the oracle that the
    faster diagonals are tested against, and their fallback.

    Args:
      fn: `fn(params, *args) -> scalar`, twice differentiable in `params`.
      chunk: how many basis vectors run at once, at least 1; the default is 32. Memory grows with
        it in proportion.

    Returns:
      A function `(params, *args)` that returns a pytree shaped like `params`, in float32 or wider.

    Raises:
      TypeError: if `params` holds anything but real floating-point arrays, or `chunk` is no
        integer.
      ValueError: if `chunk` is below 1.

    Cost: one Hessian-vector product per parameter: about 2 to 4 gradient equivalents each.

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
        leaves, structure = jax.tree.flatten(params)

        def leaf_diagonal(position: int) -> jax.Array:
            leaf = jnp.asarray(leaves[position])

            def fn_of_leaf(value: jax.Array) -> jax.Array:
                changed = [*leaves[:position], value, *leaves[position + 1 :]]
                return fn(structure.unflatten(changed), *args)

            def entry(index: jax.Array) -> jax.Array:
                basis = (jnp.arange(leaf.size) == index).astype(leaf.dtype).reshape(leaf.shape)
                product = jax.jvp(jax.grad(fn_of_leaf), (leaf,), (basis,))[1]
                return product.reshape(-1)[index].astype(wide_dtype(leaf.dtype))

            if leaf.size == 0:
                return jnp.zeros(leaf.shape, wide_dtype(leaf.dtype))
            width = min(chunk or DEFAULT_CHUNK, leaf.size)
            indices = jnp.arange(-(-leaf.size // width) * width).reshape(-1, width)
            entries = jax.lax.map(jax.vmap(entry), indices).reshape(-1)[: leaf.size]
            return entries.reshape(leaf.shape)

        return structure.unflatten([leaf_diagonal(i) for i in range(len(leaves))])

    return diagonal


def probe_diagonal(
    fn: Callable[..., jax.Array], *, num_probes: int, chunk: int | None = None
) -> Callable[..., Diagonal]:
    """Hutchinson's estimate of the Hessian diagonal of any scalar function of a pytree.

    The mean over probes of v ⊙ Hv, with every entry of v an independent sign: its expectation is
    the diagonal, and the variance of entry i is the sum of the squared off-diagonal entries of row
    i over the number of probes. Hv is `jax.jvp` of `jax.grad`, vmapped over the probes.

    Args:
      fn: `fn(params, *args) -> scalar`, twice differentiable in `params`.
      num_probes: how many random vectors are averaged, at least 1.
      chunk: how many of them run at once, at least 1; the default is 32. Memory grows with it in
        proportion. The estimate does not depend on it but for rounding.

    Returns:
      A function `(params, key, *args)` that returns a pytree shaped like `params`, in float32 or
      wider.

    Raises:
      TypeError: if `params` holds anything but real floating-point arrays, or a count is no
        integer.
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
        params = jax.tree.map(jnp.asarray, params)

        def one_probe(index: jax.Array) -> Diagonal:
            return _probe(lambda p: fn(p, *args), params, jax.random.fold_in(key, index))

        def chunk_sum(indices: jax.Array) -> Diagonal:
            return jax.tree.map(lambda x: x.sum(0), jax.vmap(one_probe)(indices))

        total = sum_over_examples(
            chunk_sum, jnp.arange(num_probes), num_probes, chunk or DEFAULT_CHUNK
        )
        return optax.tree.scale(1 / num_probes, total)

    return diagonal


def _probe(fn: Callable[[Params], jax.Array], params: Params, key: jax.Array) -> Diagonal:
    """v ⊙ Hv for one vector v of random signs."""
    signs = optax.tree.random_like(key, params, sampler=jax.random.rademacher)
    product = jax.jvp(jax.grad(fn), (params,), (signs,))[1]
    return jax.tree.map(
        lambda v, hv: v.astype(wide_dtype(v.dtype)) * hv.astype(wide_dtype(v.dtype)), signs, product
    )


def exact_diagonal(
    loss_fn: LossFn, *, microbatch: int | None = None, reduction: str = "mean"
) -> Callable[..., Diagonal]:
    """The exact diagonal of the Hessian of a loss over a batch.

    Entry i is Σₙ wₙ ∂²ℓ(θ, xₙ)/∂θᵢ² / Σₙ wₙ, or without the division for `reduction="sum"`.

    Args:
      loss_fn: `loss_fn(params, example, *args) -> scalar`, the loss of one example.
      microbatch: how many examples are worked on at once, at least 1; the default is all of them.
        Memory grows with it in proportion; the result does not depend on it but for rounding.
      reduction: "mean" or "sum" over the examples.

    Returns:
      A function `(params, batch, *args, weights=None)` that returns a pytree shaped like `params`,
      in float32 or wider. `batch` holds the examples along the leading axis of every leaf, `args`
      are passed through as they are, `weights` has shape (examples,).

    Raises:
      TypeError: if `params` holds anything but real floating-point arrays.
      ValueError: if the batch is empty or its leaves differ in length, if `weights` has another
        shape, if `microbatch` is below 1 or `reduction` is unknown.

    Cost: one Hessian-vector product per parameter: about 2 to 4 gradient equivalents each.

    Source: the quantity that parameters are selected by in Malekmohammadi, Lee, Xiong,
      "Sharpness-Aware Parameter Selection for Machine Unlearning" (arXiv 2504.06398).

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> def loss_fn(w, example):  # half the squared error: second derivatives are x²
      ...     x, y = example
      ...     return 0.5 * (jnp.vdot(w, x) - y) ** 2
      >>> batch = (jnp.array([[1.0, 2.0], [3.0, 0.0]]), jnp.array([1.0, 0.0]))
      >>> sap.exact_diagonal(loss_fn)(jnp.zeros(2), batch)
      Array([5., 2.], dtype=float32)
    """
    check_options(microbatch, reduction)

    def diagonal(params: Params, batch: Batch, *args: Any, weights: Any = None) -> Diagonal:
        check_float_leaves("params", params)
        num_examples = count_examples(batch, weights)

        def chunk_sum(chunk: Any) -> Diagonal:
            def total_loss(p: Params) -> jax.Array:
                examples, w = chunk
                losses = jax.vmap(lambda example: loss_fn(p, example, *args))(examples)
                losses = losses.astype(wide_dtype(losses.dtype))
                return jnp.sum(losses if w is None else w * losses)

            return basis_diagonal(total_loss)(params)

        total = sum_over_examples(chunk_sum, (batch, weights), num_examples, microbatch)
        return reduce_sum(total, num_examples, weights, reduction)

    return diagonal


def hutchinson_diagonal(
    loss_fn: LossFn,
    *,
    num_probes: int = 1,
    microbatch: int | None = None,
    reduction: str = "mean",
    return_error: bool = False,
) -> Callable[..., Any]:
    """Hutchinson's estimate of the Hessian diagonal of a loss over a batch.

    The mean over examples of v ⊙ Hₙv, with Hₙ the Hessian of example n's loss and v drawn anew for
    every example and probe: unbiased, and errors average out over the examples as well as over the
    probes, which one vector for the whole batch would not give.

    Args:
      loss_fn: `loss_fn(params, example, *args) -> scalar`, the loss of one example.
      num_probes: how many random vectors per example, at least 1.
      microbatch: how many examples are worked on at once, at least 1; the default is all of them.
        Memory is about three times that many copies of the parameters. The draws belong to the
        examples, so the result does not depend on it but for rounding.
      reduction: "mean" or "sum" over the examples.
      return_error: also return the standard error of each entry, from the spread between probes;
        needs `num_probes >= 2`.

    Returns:
      A function `(params, batch, key, *args, weights=None)` that returns a pytree shaped like
      `params`, in float32 or wider; with `return_error` a pair `(diagonal, standard_error)`.

    Raises:
      TypeError: if `params` holds anything but real floating-point arrays.
      ValueError: if the batch is empty or its leaves differ in length, if `weights` has another
        shape, if a count is too small or `reduction` is unknown.

    Cost: one Hessian-vector product per example and probe, about 3 to 6 gradient equivalents per
      probe on the batch.

    Source: M. F. Hutchinson, "A stochastic estimator of the trace of the influence matrix" (1989);
      for the diagonal C. Bekas, E. Kokiopoulou, Y. Saad, "An estimator for the diagonal of a
      matrix" (2007), equation 2.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> def loss_fn(w, x):
      ...     return jnp.sum(jnp.cosh(w) * x)
      >>> estimate = sap.hutchinson_diagonal(loss_fn, num_probes=2, return_error=True)
      >>> diagonal, error = estimate(jnp.zeros(2), jnp.array([[1.0, 2.0]]), jax.random.key(0))
      >>> diagonal, error  # this Hessian is diagonal, so that every probe is exact
      (Array([1., 2.], dtype=float32), Array([0., 0.], dtype=float32))
    """
    check_count("num_probes", num_probes, minimum=1)
    if return_error and num_probes < 2:
        raise ValueError(f"`return_error` needs `num_probes` of at least 2; got {num_probes}.")
    check_options(microbatch, reduction)

    def diagonal(
        params: Params, batch: Batch, key: jax.Array, *args: Any, weights: Any = None
    ) -> Any:
        check_float_leaves("params", params)
        num_examples = count_examples(batch, weights)
        params = jax.tree.map(jnp.asarray, params)

        def probe_of_example(example: Any, index: jax.Array, probe: jax.Array) -> Diagonal:
            own_key = jax.random.fold_in(jax.random.fold_in(key, index), probe)
            return _probe(lambda p: loss_fn(p, example, *args), params, own_key)

        def one_probe(probe: jax.Array) -> Diagonal:
            def chunk_sum(chunk: Any) -> Diagonal:
                examples, indices, w = chunk
                products = jax.vmap(lambda e, i: probe_of_example(e, i, probe))(examples, indices)
                weigh = (lambda x: x.sum(0)) if w is None else (lambda x: jnp.tensordot(w, x, 1))
                return jax.tree.map(weigh, products)

            examples = (batch, jnp.arange(num_examples), weights)
            total = sum_over_examples(chunk_sum, examples, num_examples, microbatch)
            return reduce_sum(total, num_examples, weights, reduction)

        return _mean_of_probes(one_probe, num_probes, return_error)

    return diagonal


def _mean_of_probes(
    one_probe: Callable[[jax.Array], Diagonal], num_probes: int, return_error: bool
) -> Any:
    """Mean and standard error of the mean over probes, one probe at a time (Welford's update)."""
    if num_probes == 1:
        return one_probe(jnp.asarray(0))

    def step(state: Any, probe: jax.Array) -> Any:
        mean, squares = state
        value = one_probe(probe)
        delta = optax.tree.sub(value, mean)
        mean = optax.tree.add_scale(mean, 1 / (probe + 1), delta)
        squares = jax.tree.map(lambda s, d, v, m: s + d * (v - m), squares, delta, value, mean)
        return (mean, squares), None

    shapes = jax.eval_shape(one_probe, jnp.asarray(0))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (mean, squares), _ = jax.lax.scan(step, (zeros, zeros), jnp.arange(num_probes))
    if not return_error:
        return mean
    scale = 1 / (num_probes * (num_probes - 1))
    return mean, jax.tree.map(lambda s: jnp.sqrt(s * scale), squares)


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
