"""Steps of any optax optimizer over batches."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sapsel_jax._base.checks import batch_size, check_same_tree
from sapsel_jax._base.losses import Loss, wide_loss
from sapsel_jax._base.precision import widen
from sapsel_jax._base.types import Batch, LossFn, Mask, Params
from sapsel_jax._updates.masked import check_update, is_finite, keep_unselected
from sapsel_jax._updates.selective import selective


def iterative_update(
    loss_fn: LossFn,
    params: Params,
    batches: Batch,
    *,
    optimizer: optax.GradientTransformation,
    mask: Mask | None = None,
    retained: Batch | None = None,
    args: tuple[Any, ...] = (),
) -> tuple[Params, jax.Array]:
    """Takes steps of any optax optimizer on the selected entries, one step for each batch.

    Each step descends on the mean loss of its batch: corrected examples, mixed with retained
    examples if they are given. With a minus sign inside the loss it ascends on originals. All steps
    run in one `lax.scan`.

    Args:
      loss_fn: `loss_fn(params, example, *args) -> scalar`, the loss of one example.
      params: pytree of floating-point arrays.
      batches: pytree of arrays with leading axes (steps, examples).
      optimizer: any optax transformation; it is wrapped by `selective`.
      mask: pytree of bool arrays shaped like `params`, True for the entries that may move; None
        moves all of them.
      retained: batches to mix in, with as many steps; each step's loss is the mean over the
        examples of both.
      args: further arguments of `loss_fn`, passed through as they are.

    Returns:
      A pair: new parameters with the structure, shapes and dtypes of `params`, bit-identical
      outside the mask, and the mean loss of each batch before its step, shape (steps,). A step
      that would leave a selected entry NaN or infinite is not taken: parameters and optimizer state
      stay as they were, and the batch's loss is returned as it is. The mean loss and its gradient
      are computed in float32 or wider; the optimizer gets the gradient in the dtypes of `params`.

    Raises:
      TypeError: if `params` holds anything but real floating-point arrays or `mask` anything but
        bool arrays, or `loss_fn` returns anything but one real scalar.
      ValueError: if the batches are empty or differ in length, `retained` differs from them in
        structure, steps or the shape of an example, or `mask` does not fit `params`.

    Cost: one gradient equivalent for each batch.

    Source: Warnecke et al. (arXiv 2108.11577) apply their update repeatedly; here any optimizer
      can.

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
    params, losses, _ = descend(
        loss_fn, params, batches, optimizer=optimizer, mask=mask, retained=retained, args=args
    )
    return params, losses


def descend(
    loss_fn: LossFn,
    params: Params,
    batches: Batch,
    *,
    optimizer: optax.GradientTransformation,
    mask: Mask | None,
    retained: Batch | None,
    args: tuple[Any, ...],
) -> tuple[Params, jax.Array, jax.Array]:
    """What `iterative_update` returns, and for each step whether it was taken, shape (steps,)."""
    check_update(params, mask)
    batches = join_batches(batches, retained)
    params = jax.tree.map(jnp.asarray, params)
    if mask is not None:
        optimizer = selective(optimizer, mask)
    optimizer = optax.with_extra_args_support(optimizer)
    loss = wide_loss(loss_fn, params, jax.tree.map(lambda x: x[0], batches), None, args)

    def step(carry: Any, batch: Batch) -> Any:
        current, state = carry
        moved, state, mean, taken = take_step(loss, optimizer, mask, current, state, batch)
        return (moved, state), (mean, taken)

    (params, _), (losses, taken) = lax.scan(step, (params, optimizer.init(params)), batches)
    return params, losses, taken


def take_step(
    loss: Loss,
    optimizer: optax.GradientTransformationExtraArgs,
    mask: Mask | None,
    params: Params,
    state: Any,
    batch: Batch,
) -> tuple[Params, Any, jax.Array, jax.Array]:
    """One step: new parameters and state, the loss before it, and whether it was taken."""
    mean, gradient = loss.mean_and_gradient(widen(params), batch)
    gradient = jax.tree.map(lambda g, p: g.astype(p.dtype), gradient, params)
    with jax.numpy_dtype_promotion("standard"):  # a strict setting is about what users mix
        updates, next_state = optimizer.update(gradient, state, params)
        moved = optax.apply_updates(params, updates)
    accept = is_finite(moved, mask)
    moved = keep_unselected(params, moved, mask, accept)
    return moved, lax.cond(accept, lambda: next_state, lambda: state), mean, accept


def join_batches(batches: Batch, retained: Batch | None) -> Batch:
    """Checks batches with two leading axes, and mixes the retained ones in, step by step."""
    _check_batches("batches", batches)
    if retained is None:
        return batches
    _check_batches("retained", retained)
    one = lambda b: jax.tree.map(lambda x: x[:, 0], b)
    check_same_tree(
        "retained", jax.eval_shape(one, retained), "batches", jax.eval_shape(one, batches)
    )
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), batches, retained)


def _check_batches(name: str, batches: Batch) -> None:
    """Two leading axes, steps and examples, neither of them empty."""
    batch_size(name, batches)
    batch_size(name, jax.eval_shape(lambda b: jax.tree.map(lambda x: x[0], b), batches))
