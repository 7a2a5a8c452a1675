"""The loss of one example, summed over a batch: its values, its gradients, its change."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sapsel_jax._base.checks import batch_size, check_scalar
from sapsel_jax._base.examples import one_by_one, sum_over_examples
from sapsel_jax._base.precision import Precision, find_precision, widen
from sapsel_jax._base.types import Batch, LossFn, Params

APART_ENTRIES = 2**22
"""How many entries the gradients of single examples may have together, where these are added."""


def one_scalar(fn: Callable[..., Any], name: str = "loss_fn") -> Callable[..., jax.Array]:
    """The same function, which refuses while it is traced to return anything but one real scalar.

    It stands around the function where that is called, not where it is handed on, so that whoever
    compiles by the function itself finds it again.
    """

    def checked(*inputs: Any) -> jax.Array:
        returned = fn(*inputs)
        check_scalar(name, returned)
        return returned

    return checked


class Loss(NamedTuple):
    """The loss of one example, and how it is summed over a batch.

    Every method takes parameters in float32 or wider and sums in the same: narrower parameters do
    not make a sum over examples a narrow one. `wide_loss` makes a loss of this kind of any other.

    Attributes:
      fn: `fn(params, example, *args) -> scalar`.
      microbatch: how many examples are worked on at once; None takes all of them.
      args: further arguments of `fn`.
      precision: how other functions of the same parameters are called.
    """

    fn: LossFn
    microbatch: int | None = None
    args: tuple[Any, ...] = ()
    precision: Precision = Precision()

    def sum_over(self, of_chunk: Callable[[Batch], Any], batch: Batch) -> Any:
        """The sum of `of_chunk`, itself a sum over the examples of a chunk, over a batch."""
        of_chunk = one_by_one(of_chunk) if self.precision.apart else of_chunk
        return sum_over_examples(of_chunk, batch, batch_size("batch", batch), self.microbatch)

    def of_each(self, params: Params, batch: Batch) -> jax.Array:
        """The loss of each example, shape (examples,)."""
        fn = one_scalar(self.fn)
        return widen(jax.vmap(lambda example: fn(params, example, *self.args))(batch))

    def total(self, params: Params, batch: Batch) -> jax.Array:
        """Σ ℓ over the examples, all of them at once."""
        return jnp.sum(self.of_each(params, batch))

    def gradient_sum(self, params: Params, batch: Batch) -> Params:
        """Σ ∇ℓ over the examples."""
        return self.sum_over(lambda chunk: jax.grad(self.total)(params, chunk), batch)

    def gradient(self, params: Params, batch: Batch) -> Params:
        """The gradient of the mean loss."""
        return optax.tree.scale(1 / batch_size("batch", batch), self.gradient_sum(params, batch))

    def mean_and_gradient(self, params: Params, batch: Batch) -> tuple[jax.Array, Params]:
        """The mean loss and its gradient."""
        num_examples = batch_size("batch", batch)
        part = lambda p, chunk: self.total(p, chunk) / num_examples
        return self.sum_over(lambda chunk: jax.value_and_grad(part)(params, chunk), batch)

    def change(self, before: Params, after: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """The change of the mean loss, summed up from that of each example, and its size before."""

        def of_chunk(chunk: Batch) -> tuple[jax.Array, jax.Array]:
            old, new = self.of_each(before, chunk), self.of_each(after, chunk)
            return jnp.sum(new - old), jnp.sum(jnp.abs(old))

        num_examples = batch_size("batch", batch)
        change, level = self.sum_over(of_chunk, batch)
        return change / num_examples, level / num_examples


def wide_loss(
    loss_fn: LossFn, params: Params, batch: Batch, microbatch: int | None, args: tuple[Any, ...]
) -> Loss:
    """A loss that is written for `params`, for the same parameters in float32 or wider."""
    precision = find_precision(loss_fn, params, batch, args)
    if precision.apart:
        size = sum(jnp.size(leaf) for leaf in jax.tree.leaves(params))
        most = max(APART_ENTRIES // size, 1)
        microbatch = most if microbatch is None else min(microbatch, most)
    return Loss(precision.on(loss_fn), microbatch, args, precision)
