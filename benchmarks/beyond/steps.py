"""Steps of adam whose gradient is worked on first: what the ideas about steps share."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

import sapsel_jax as sap
from benchmarks.learning.models import Model

Loss = Callable[[Any, Any], jax.Array]
Rule = Callable[..., Any]
"""`rule(loss, params, batch, *args)` returns the gradient to step by; the loss is that of ONE
example."""


def mean_gradient(loss: Loss, params: Any, batch: Any) -> Any:
    """The gradient of the mean loss of a batch, as it is."""
    return jax.grad(lambda p: jax.vmap(loss, (None, 0))(p, batch).mean())(params)


@functools.partial(jax.jit, static_argnums=(0, 1))
def take_steps(
    model: Model, rule: Rule, params: Any, mask: Any, batches: Any, rate: Any, *args: Any
) -> Any:
    """All steps on one mask, the learning rate falling on a half cosine.

    Args:
      model: whose bounded loss falls.
      rule: makes a gradient of the parameters and a batch.
      params: where to begin.
      mask: the entries that move.
      batches: steps by examples.
      rate: the learning rate at the beginning.
      *args: what else the rule takes.
    """
    schedule = optax.cosine_decay_schedule(rate, len(batches["label"]))
    optimizer = sap.selective(optax.adam(schedule), mask)

    def step(state: Any, batch: Any) -> Any:
        params, inner = state
        gradient = rule(model.bounded_loss, params, batch, *args)
        updates, inner = optimizer.update(gradient, inner, params)
        return (optax.apply_updates(params, updates), inner), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), batches)
    return params
