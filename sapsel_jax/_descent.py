"""The update of `unlearn` itself: steps of adam on few entries, cut down as they move."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sapsel_jax._base.checks import check_count, check_number, check_positive, check_scalar
from sapsel_jax._base.examples import draw_examples
from sapsel_jax._base.losses import one_scalar
from sapsel_jax._base.types import Batch, Diagonal, LossFn, Mask, Params
from sapsel_jax._sparsify import sparsify_update
from sapsel_jax._updates.certificates import Certificate, no_number
from sapsel_jax._updates.corrections import Correction

WIDE = 4
"""How many times as many entries as are wanted move at first, as measured for `gain_then_change` by
`python -m benchmarks sparsity`."""
REMOVAL_WEIGHT = 0.2
"""How much a removed example counts against a retained one, with the opposite sign."""


class Steps(NamedTuple):
    """The steps that `unlearn` takes by itself.

    Attributes:
      num_steps: how many, at least 3: one for each stage.
      batch_size: examples per step, even, at least 2: half of them about the originals, half from
        `data`.
      step_size: of adam, above 0; may be traced.
      step_sizes: those that are tried where `unlearn` gets `validate`.
      ceiling: removed examples are climbed on until their loss is this; for a cross entropy 2.3
        stands for a probability of one tenth.
    """

    num_steps: int = 200
    batch_size: int = 32
    step_size: Any = 0.01
    step_sizes: Sequence[float] = (0.003, 0.01, 0.03, 0.1)
    ceiling: float = 2.3


DEFAULT_STEPS = Steps()


class Descent(NamedTuple):
    """Where the steps lead."""

    params: Params
    mask: Mask
    certificate: Certificate
    step_size: jax.Array


def check_steps(steps: Steps) -> None:
    """Raises unless every number is in its range."""
    check_count("steps.num_steps", steps.num_steps, minimum=3)
    check_count("steps.batch_size", steps.batch_size, minimum=2)
    if steps.batch_size % 2:
        raise ValueError(f"`steps.batch_size` must be even; got {steps.batch_size}.")
    check_positive("steps.step_size", steps.step_size)
    if len(steps.step_sizes) == 0:
        raise ValueError("`steps.step_sizes` must name at least one step size; got none.")
    for i, size in enumerate(steps.step_sizes):
        check_positive(f"steps.step_sizes[{i}]", size)
    check_number("steps.ceiling", steps.ceiling, minimum=0)


def descend_on_few(
    loss_fn: LossFn,
    params: Params,
    correction: Correction,
    diagonal: Diagonal,
    mask: Mask,
    counts: Sequence[int],
    *,
    steps: Steps,
    key: jax.Array,
    validate: Callable[[Params], jax.Array] | None,
    microbatch: int | None,
    args: tuple[Any, ...],
) -> Descent:
    """Moves the entries of `mask`, cut down to `counts`, by the step size that `validate` prefers.

    Memory is that of two results, however many sizes are tried, and all are compiled as one.
    """
    if any(leaf.dtype.itemsize < 2 for leaf in jax.tree.leaves(params)):
        raise TypeError(
            "`params` must hold floats of 16 bits or more where no `update` is given: adam does "
            "not move floats of 8 bits. `second_order_update` does."
        )
    loss_fn, about, retained = _batches(loss_fn, correction, steps, key)

    def run(step_size: Any) -> Descent:
        moved = sparsify_update(
            loss_fn,
            params,
            about,
            correction.data,
            key=key,
            counts=counts,
            optimizer=optax.adam(step_size),
            mask=mask,
            retained=retained,
            curvature=lambda params, batch, *args: diagonal,
            microbatch=microbatch,
            args=args,
        )
        return Descent(moved.params, moved.mask, moved.certificate, jnp.float32(step_size))

    if validate is None:
        return run(steps.step_size)

    def judge(params: Params) -> jax.Array:
        value = validate(params)
        check_scalar("validate", value, differentiable=False)
        return jnp.asarray(value, jnp.float32)

    def try_one(best: tuple[jax.Array, Descent], trial: Any) -> Any:
        is_first, step_size = trial
        found = run(step_size)
        value = judge(found.params)
        value = jnp.where(found.certificate.converged & (value < jnp.inf), value, jnp.inf)
        better = is_first | (value < best[0])
        found = _with_residual(found, jnp.zeros_like)
        return jax.tree.map(lambda a, b: jnp.where(better, a, b), (value, found), best), None

    sizes = jnp.asarray(steps.step_sizes, jnp.float32)
    shapes = jax.eval_shape(lambda: (jnp.float32(0), run(sizes[0])))
    start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (_, found), _ = jax.lax.scan(try_one, start, (jnp.arange(len(sizes)) == 0, sizes))
    return _with_residual(found, lambda x: no_number(x.dtype))


def _with_residual(found: Descent, make: Callable[[jax.Array], jax.Array]) -> Descent:
    """With another residual: a loop may not carry the NaN, which `jax_debug_nans` would stop at."""
    residual = make(found.certificate.relative_residual)
    return found._replace(certificate=found.certificate._replace(relative_residual=residual))


def _batches(
    loss_fn: LossFn, correction: Correction, steps: Steps, key: jax.Array
) -> tuple[LossFn, Batch, Batch]:
    """The loss to descend on, and what its examples are drawn from: one half of a step each."""
    shape = (steps.num_steps, steps.batch_size // 2)
    first, second = jax.random.split(key)
    retained = draw_examples(correction.data, second, shape)
    if correction.corrected is not None:
        return loss_fn, draw_examples(correction.corrected, first, shape), retained

    def climbing(params: Params, marked: Any, *args: Any) -> jax.Array:
        example, removed = marked
        loss = one_scalar(loss_fn)(params, example, *args)
        return jnp.where(removed, -REMOVAL_WEIGHT * jnp.minimum(loss, steps.ceiling), loss)

    about = draw_examples(correction.original, first, shape)
    return climbing, (about, jnp.ones(shape, bool)), (retained, jnp.zeros(shape, bool))
