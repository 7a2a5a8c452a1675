"""Many small models trained in one program."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sapsel_jax._base.checks import batch_size, check_count, check_float_leaves
from sapsel_jax._base.losses import wide_loss
from sapsel_jax._base.precision import widen
from sapsel_jax._base.types import Batch, LossFn, Params


def train_ensemble(
    loss_fn: LossFn,
    params: Params,
    data: Batch,
    ids: Any,
    *,
    optimizer: optax.GradientTransformation,
    at_once: int = 8,
    args: tuple[Any, ...] = (),
) -> tuple[Params, jax.Array]:
    """Trains many models on examples of one data set, each on its own and in its own order.

    Each step is taken on the mean loss of its batch. Groups of `at_once` models run side by side
    under `vmap`, the groups one after the other in a `lax.map`, so only one group is in memory at a
    time. Under `jax.jit` all of it is one program.

    Args:
      loss_fn: `loss_fn(params, example, *args) -> scalar`, the loss of one example.
      params: pytree of floating-point arrays with a leading axis over models: where each starts,
        for instance `jax.vmap(init)(jax.random.split(key, 32))`. Models that were trained before
        can be trained on.
      data: batch of all examples that any model may see.
      ids: integers in [0, examples), shape (models, steps, batch): which examples each step of each
        model takes. A model whose ids leave out some examples is retrained without them.
      optimizer: any optax transformation; every model has a state of its own.
      at_once: how many models run side by side, a Python integer of at least 1.
      args: further arguments of `loss_fn`, passed through as they are.

    Returns:
      A pair: parameters shaped like `params`, and the mean loss of each batch before its step,
      shape (models, steps), in float32 or wider. A model that diverges ends in NaN and leaves the
      others alone.

    Raises:
      TypeError: if `params` holds anything but real floating-point arrays or `ids` no integers,
        `loss_fn` returns anything but one real scalar, or `at_once` is no Python integer.
      ValueError: if the data is empty, `ids` has other axes, the number of models differs, or
        `at_once` is below 1.

    Cost: models × steps gradient equivalents on one batch. On a CPU one model already fills the
      cores. Measured on 2 cores, in times of one model: 32 MLPs 64-64-32-10 take 33 in groups of 8,
      37 one by one, 46 all under one `vmap`; 8 small convolutional networks take 9 one by one, 13
      under one `vmap`.

    Source: own, a plain training loop; `u_lira` and `klom` compare ensembles of this kind.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import sapsel_jax as sap
      >>> def loss_fn(w, y):
      ...     return 0.5 * (w - y) ** 2
      >>> ids = jnp.array([[[0, 1]], [[1, 1]]])  # two models, one step of two examples
      >>> params, losses = sap.audit.train_ensemble(
      ...     loss_fn, jnp.zeros(2), jnp.array([1.0, 3.0]), ids, optimizer=optax.sgd(1.0)
      ... )
      >>> print(params, losses)
      [2. 3.] [[2.5]
       [4.5]]
    """
    check_float_leaves("params", params)
    num_models = batch_size("params", params)
    batch_size("data", data)
    ids = _check_ids(ids, num_models)
    check_count("at_once", at_once, minimum=1)
    params, data = (jax.tree.map(jnp.asarray, tree) for tree in (params, data))
    optimizer = optax.with_extra_args_support(optimizer)

    def train(start: Params, order: jax.Array) -> tuple[Params, jax.Array]:
        loss = wide_loss(loss_fn, start, data, None, args)

        def step(carry: Any, rows: jax.Array) -> Any:
            current, state = carry
            batch = jax.tree.map(lambda x: x[rows], data)
            mean, gradient = loss.mean_and_gradient(widen(current), batch)
            gradient = jax.tree.map(lambda g, p: g.astype(p.dtype), gradient, current)
            updates, state = optimizer.update(gradient, state, current)
            return (optax.apply_updates(current, updates), state), mean

        (end, _), losses = lax.scan(step, (start, optimizer.init(start)), order)
        return end, losses

    return map_models(lambda pair: train(*pair), (params, ids), at_once)


def map_models(fn: Any, models: Any, at_once: int) -> Any:
    """A function of each model, in groups side by side; one by one without the cost of `vmap`."""
    return lax.map(fn, models, batch_size=None if at_once == 1 else at_once)


def _check_ids(ids: Any, num_models: int) -> jax.Array:
    ids = jnp.asarray(ids)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"`ids` must hold integers; got dtype {ids.dtype}.")
    if ids.ndim != 3 or ids.shape[0] != num_models or 0 in ids.shape:
        raise ValueError(
            f"`ids` must have the shape (models, steps, batch) with {num_models} models; "
            f"got {list(ids.shape)}."
        )
    return ids
