"""Unlearning updates: from parameters that learned something wrong to ones that have not."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sapsel_jax._accumulate import check_options, sum_over_examples, wide_dtype
from sapsel_jax._checks import (
    batch_size,
    check_count,
    check_float_leaves,
    check_mask,
    check_number,
    check_same_tree,
)
from sapsel_jax._transforms import selective
from sapsel_jax._types import Batch, LossFn, Mask, Params


def first_order_update(
    loss_fn: LossFn,
    params: Params,
    original: Batch,
    corrected: Batch | None,
    *,
    step_size: Any,
    mask: Mask | None = None,
    num_examples: int | None = None,
    microbatch: int | None = None,
    args: tuple[Any, ...] = (),
) -> Params:
    """One closed-form step that takes the originals' influence back and puts the corrections in.

        θ ← θ − τ · m ⊙ Δ,    Δ = (Σ ∇ℓ(corrected, θ) − Σ ∇ℓ(original, θ)) / N

    Args:
      loss_fn: `loss_fn(params, example, *args) -> scalar`, the loss of one example.
      params: pytree of floating-point arrays, where the loss was trained to.
      original: batch of the examples as they were trained on.
      corrected: batch of the same examples as they should have been; None removes the originals.
      step_size: τ, at least 0; may be traced.
      mask: pytree of bool arrays shaped like `params`, True for the entries that may move; None
        moves all of them.
      num_examples: N, the size of the training set as it should have been; None averages over the
        originals.
      microbatch: how many examples are worked on at once, at least 1; the default is all of them.
        Memory grows with it in proportion; the result does not depend on it but for rounding.
      args: further arguments of `loss_fn`, passed through as they are.

    Returns:
      New parameters with the structure, shapes and dtypes of `params`; bit-identical outside the
      mask.

    Raises:
      TypeError: if `params` holds anything but real floating-point arrays or `mask` anything but
        bool arrays.
      ValueError: if a batch is empty, `corrected` differs from `original` in structure or number,
        `mask` does not fit `params`, or a number is out of range.

    Cost: one gradient on the originals and one on the corrections.

    Source: Warnecke et al. (arXiv 2108.11577), the first-order update; the mask is that of
      Malekmohammadi, Lee, Xiong (arXiv 2504.06398).

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> def loss_fn(w, y):
      ...     return 0.5 * jnp.sum((w - y) ** 2)
      >>> original, corrected = jnp.array([[4.0, 4.0]]), jnp.array([[1.0, 1.0]])
      >>> mask = jnp.array([True, False])
      >>> sap.first_order_update(
      ...     loss_fn, jnp.array([2.0, 2.0]), original, corrected, step_size=1.0, mask=mask
      ... )
      Array([-1.,  2.], dtype=float32)
    """
    check_number("step_size", step_size, minimum=0)
    _check_update(params, mask)
    check_options(microbatch)
    num_originals = batch_size("original", original)
    if corrected is not None:
        check_same_tree("corrected", corrected, "original", original)
    if num_examples is not None:
        check_count("num_examples", num_examples, minimum=1)

    def gradient_sum(batch: Batch) -> Params:
        def chunk_sum(chunk: Batch) -> Params:
            def total_loss(p: Params) -> jax.Array:
                return jnp.sum(jax.vmap(lambda example: loss_fn(p, example, *args))(chunk))

            gradient = jax.grad(total_loss)(params)
            return jax.tree.map(lambda g: g.astype(wide_dtype(g.dtype)), gradient)

        return sum_over_examples(chunk_sum, batch, num_originals, microbatch)

    params = jax.tree.map(jnp.asarray, params)
    change = optax.tree.scale(-1, gradient_sum(original))
    if corrected is not None:
        change = optax.tree.add(change, gradient_sum(corrected))
    change = optax.tree.scale(1 / (num_examples or num_originals), change)
    optimizer = optax.sgd(step_size) if mask is None else selective(optax.sgd(step_size), mask)
    updates, _ = optimizer.update(change, optimizer.init(params), params)
    return _keep_unselected(params, optax.apply_updates(params, updates), mask)


def iterative_update(
    loss_fn: LossFn,
    params: Params,
    batches: Batch,
    *,
    optimizer: optax.GradientTransformation,
    mask: Mask | None = None,
    args: tuple[Any, ...] = (),
) -> tuple[Params, jax.Array]:
    """Steps of any optax optimizer on the selected entries, one per batch, in one `lax.scan`.

    Each step descends on the mean loss of its batch. What to put into the batches is the caller's
    choice: corrected examples, retained ones, or, with a sign inside the loss, originals to be
    ascended on.

    Args:
      loss_fn: `loss_fn(params, example, *args) -> scalar`, the loss of one example.
      params: pytree of floating-point arrays.
      batches: pytree of arrays with leading axes (steps, examples).
      optimizer: any optax transformation; it is wrapped by `selective`.
      mask: pytree of bool arrays shaped like `params`, True for the entries that may move; None
        moves all of them.
      args: further arguments of `loss_fn`, passed through as they are.

    Returns:
      A pair: new parameters with the structure, shapes and dtypes of `params`, bit-identical
      outside the mask, and the mean loss of each batch before its step, shape (steps,).

    Raises:
      TypeError: if `params` holds anything but real floating-point arrays or `mask` anything but
        bool arrays.
      ValueError: if the batches are empty or differ in length, or `mask` does not fit `params`.

    Cost: one gradient per batch.

    Source: Warnecke et al. (arXiv 2108.11577) apply their update repeatedly; the optimizer is free
      here.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import sapsel_jax as sap
      >>> def loss_fn(w, y):
      ...     return 0.5 * jnp.sum((w - y) ** 2)
      >>> batches = jnp.ones((2, 1, 2))  # two steps of one example
      >>> params, losses = sap.iterative_update(
      ...     loss_fn,
      ...     jnp.zeros(2),
      ...     batches,
      ...     optimizer=optax.sgd(0.5),
      ...     mask=jnp.array([True, False]),
      ... )
      >>> print(params, losses)
      [0.75 0.  ] [1.    0.625]
    """
    _check_update(params, mask)
    batch_size("batches", batches)
    batch_size("batches", jax.eval_shape(lambda b: jax.tree.map(lambda x: x[0], b), batches))
    params = jax.tree.map(jnp.asarray, params)
    if mask is not None:
        optimizer = selective(optimizer, mask)
    optimizer = optax.with_extra_args_support(optimizer)

    def step(carry: Any, batch: Batch) -> Any:
        current, state = carry

        def mean_loss(p: Params) -> jax.Array:
            return jnp.mean(jax.vmap(lambda example: loss_fn(p, example, *args))(batch))

        loss, gradient = jax.value_and_grad(mean_loss)(current)
        updates, state = optimizer.update(gradient, state, current)
        moved = _keep_unselected(current, optax.apply_updates(current, updates), mask)
        return (moved, state), loss

    (params, _), losses = lax.scan(step, (params, optimizer.init(params)), batches)
    return params, losses


def _check_update(params: Params, mask: Mask | None) -> None:
    check_float_leaves("params", params)
    if mask is not None:
        check_mask("mask", mask, "params", params)


def _keep_unselected(params: Params, moved: Params, mask: Mask | None) -> Params:
    """The old bits outside the mask, denormal numbers included."""
    return moved if mask is None else jax.tree.map(jnp.where, mask, moved, params)
