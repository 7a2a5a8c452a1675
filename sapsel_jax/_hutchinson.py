"""Hutchinson's estimate of Hessian diagonals, with probes at the sites."""

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
)
from sapsel_jax._basis import _probe
from sapsel_jax._checks import check_count, check_float_leaves
from sapsel_jax._types import Batch, Diagonal, LossFn, Params


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
    return mean, jax.tree.map(lambda s: jnp.sqrt(jnp.maximum(s, 0) * scale), squares)
