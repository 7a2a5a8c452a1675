"""From parameters to new parameters in one call: curvature, scores, mask, update."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from sapsel_jax._base.checks import batch_size, check_count, check_fraction, check_number
from sapsel_jax._base.losses import gradient_sum, loss_change
from sapsel_jax._base.precision import widen
from sapsel_jax._base.types import Batch, Diagonal, LossFn, Mask, Params, Scores
from sapsel_jax._curvature.propagation import propagated_diagonal
from sapsel_jax._selection.entries import select_top_fraction
from sapsel_jax._selection.scores import score_sharpest
from sapsel_jax._updates.certificates import Certificate, Reason, judge
from sapsel_jax._updates.corrections import check_corrections, gradient_change
from sapsel_jax._updates.first_order import first_order_step
from sapsel_jax._updates.iterative import iterative_update
from sapsel_jax._updates.masked import check_update, is_finite, keep_unselected, on_mask
from sapsel_jax._updates.second_order import draw_examples, second_order_update

Update: TypeAlias = Callable[..., tuple[Params, Certificate]]
"""`update(loss_fn, params, original, corrected, data, *, mask, num_examples, microbatch, args)`."""

DAMPING = 0.1
"""Where the default update starts: see `unlearn`.

Measured by `python -m benchmarks ablation`: adapted dampings from 0.003 to 0.3 end within 3 points
of accuracy of each other; on false labels, those up to 0.1 meet negative curvature without it.
"""

NUM_STEPS = 3
"""How many steps the default update takes.

Measured likewise: one step falls short of three by 2 to 7 points. Ten take back 11 points more of a
backdoor where `data` is the whole training set, and lose 2 where it is a tenth of it.
"""


class Unlearned(NamedTuple):
    """What `unlearn` returns.

    Attributes:
      params: pytree shaped like the parameters, bit-identical outside the mask.
      mask: pytree of bool arrays, True for the entries that might move.
      diagonal: the curvature of the loss that was trained, float32 or wider.
      certificate: whether to trust the result: a `Certificate`.
    """

    params: Params
    mask: Mask
    diagonal: Diagonal
    certificate: Certificate


def unlearn(
    loss_fn: LossFn,
    params: Params,
    original: Batch,
    corrected: Batch | None,
    data: Batch,
    *,
    key: jax.Array,
    fraction: float = 0.05,
    num_examples: int | None = None,
    curvature: Callable[..., Diagonal] | None = None,
    score: Callable[[Diagonal], Scores] = score_sharpest,
    select: Callable[[Scores, float], Mask] = select_top_fraction,
    update: Update | None = None,
    microbatch: int | None = None,
    args: tuple[Any, ...] = (),
) -> Unlearned:
    """Takes back what was learned from wrong examples, by the parameters where it matters most.

    The curvature of the loss that was trained is ranked, the top fraction selected, and the update
    run on the selection. The call is one function of arrays: `jax.jit` compiles it whole, with
    `loss_fn` and the options bound beforehand, and nothing in it goes through the host.

    Args:
      loss_fn: `loss_fn(params, example, *args) -> scalar`, the loss of one example.
      params: pytree of floating-point arrays, where the loss was trained to.
      original: batch of the examples as they were trained on.
      corrected: batch of the same examples as they should have been; None removes the originals.
      data: batch of the training set as it should have been: corrected examples in place, removed
        ones absent. A random sample of it will do, with `num_examples` given.
      key: a JAX random key, for curvature that is estimated.
      fraction: share of all entries to select, a Python number in [0, 1].
      num_examples: the size of the training set as it should have been; None takes that of `data`.
      curvature: `curvature(params, batch, *args)`, or `(params, batch, key, *args)` if it has a
        parameter of the name `key`: the mean diagonal over a batch, as `hutchinson_diagonal` and
        its like return it. None takes `propagated_diagonal`, whose masks hardly differ from those
        of `exact_diagonal` at a fraction of its cost.
      score: diagonal to scores; what else a score needs, it may close over.
      select: scores and fraction to mask.
      update: `update(loss_fn, params, original, corrected, data, *, mask, num_examples, microbatch,
        args) -> (params, Certificate)`: `with_first_order`, `with_iteration`, or
        `second_order_update` with its damping bound by `functools.partial`. None takes three
        second-order steps with adapted damping from 0.1.
      microbatch: how many examples are worked on at once, at least 1; the default is all of them.
        For the default curvature and the update.
      args: further arguments of `loss_fn`, passed through as they are.

    Returns:
      An `Unlearned`. Where the certificate has not converged, the parameters are those of the last
      step that held, the old ones where none did. A fraction that selects nothing changes nothing.

    Raises:
      TypeError: if `params` holds anything but real floating-point arrays, `loss_fn` returns
        anything but one real scalar, or a number is none.
      ValueError: if a batch is empty, `corrected` differs from `original` in structure or number,
        or a number is out of range.

    Cost: the curvature of `data`, `original` and `corrected`, a selection, and the update.

    Source: Malekmohammadi, Lee, Xiong (arXiv 2504.06398); the updates are those of Warnecke et al.
      (arXiv 2108.11577). The curvature is that of the training set as it was, from its parts:
      diag(data) + (Σ diag(original) − Σ diag(corrected)) / N for corrections, and
      (N diag(data) + Σ diag(original)) / (N + m) for m removed examples.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> def loss_fn(w, example):
      ...     x, y = example
      ...     return 0.5 * (jnp.vdot(w, x) - y) ** 2
      >>> x = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.1]])
      >>> data = (x, jnp.array([1.0, 1.0, 0.0]))
      >>> original, corrected = (x[:1], jnp.array([3.0])), (x[:1], jnp.array([1.0]))
      >>> result = sap.unlearn(
      ...     loss_fn, jnp.array([2.0, 0.0]), original, corrected, data,
      ...     key=jax.random.key(0), fraction=0.5,
      ... )
      >>> print(result.params.round(1), result.mask, result.certificate.converged)
      [1. 0.] [ True False] True
    """
    check_fraction("fraction", fraction)
    check_corrections(params, original, corrected, num_examples, microbatch)
    num_data = batch_size("data", data)
    num_examples = num_examples or num_data
    if curvature is None:
        curvature = propagated_diagonal(loss_fn, microbatch=microbatch)
    if update is None:
        total = sum(jnp.size(leaf) for leaf in jax.tree.leaves(params))
        most = round(fraction * total) if select is select_top_fraction else None
        update = functools.partial(
            second_order_update,
            damping=DAMPING,
            adapt_damping=True,
            num_steps=NUM_STEPS,
            num_selected=most,
        )
    diagonal = _trained_diagonal(
        curvature, params, original, corrected, data, num_examples, key, args
    )
    mask = select(score(diagonal), fraction)
    moved, certificate = update(
        loss_fn,
        params,
        original,
        corrected,
        data,
        mask=mask,
        num_examples=num_examples,
        microbatch=microbatch,
        args=args,
    )
    return Unlearned(moved, mask, diagonal, certificate)


def with_first_order(*, step_size: Any) -> Update:
    """The closed-form step as the update of `unlearn`, with a certificate.

    Args:
      step_size: τ of `first_order_update`, at least 0; may be traced.

    Returns:
      A function for `unlearn`. Its certificate predicts to first order, and holds no residual. A
      step that would raise the loss it was to lower is not taken.

    Raises:
      TypeError: if `step_size` is no number.
      ValueError: if `step_size` is negative.

    Cost: that of `first_order_update`, a gradient on `data` and two passes for its loss.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> def loss_fn(w, y):
      ...     return 0.5 * jnp.sum((w - y) ** 2)
      >>> result = sap.unlearn(
      ...     loss_fn, jnp.ones(2), jnp.ones((1, 2)), jnp.zeros((1, 2)), jnp.zeros((1, 2)),
      ...     key=jax.random.key(0), fraction=0.5, update=sap.with_first_order(step_size=0.5),
      ... )
      >>> print(result.params)
      [0.5 1. ]
    """
    check_number("step_size", step_size, minimum=0)

    def update(
        loss_fn: LossFn,
        params: Params,
        original: Batch,
        corrected: Batch | None,
        data: Batch,
        *,
        mask: Mask | None = None,
        num_examples: int | None = None,
        microbatch: int | None = None,
        args: tuple[Any, ...] = (),
    ) -> tuple[Params, Certificate]:
        check_update(params, mask)
        change = gradient_change(
            loss_fn,
            params,
            original,
            corrected,
            num_examples=num_examples or batch_size("data", data),
            microbatch=microbatch,
            args=args,
        )
        moved, finite = first_order_step(params, change, step_size, mask)
        return _certified(loss_fn, params, moved, data, change, finite, mask, 1, microbatch, args)

    return update


def with_iteration(
    *, optimizer: optax.GradientTransformation, num_steps: int, batch_size: int, key: jax.Array
) -> Update:
    """Steps of any optax optimizer as the update of `unlearn`, with a certificate.

    Half of each batch is drawn from the corrected examples and half from `data`; where examples are
    removed, all of it from `data`.

    Args:
      optimizer: any optax transformation; it is wrapped by `selective`.
      num_steps: at least 1.
      batch_size: examples per step, an even number.
      key: a JAX random key, for the draws.

    Returns:
      A function for `unlearn`. Its certificate is about the mean loss on `data`, predicts to first
      order, and holds no residual. Steps that together raise that loss are not taken; single ones
      that are not finite are passed over, as in `iterative_update`, which also has the loss curve.

    Raises:
      TypeError: if a count is no Python integer.
      ValueError: if `num_steps` is below 1, `batch_size` below 2 or odd.

    Cost: `num_steps` gradients on `batch_size` examples, a gradient on `data` and two passes for
      its loss; the memory of all batches at once.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import sapsel_jax as sap
      >>> def loss_fn(w, y):
      ...     return 0.5 * jnp.sum((w - y) ** 2)
      >>> update = sap.with_iteration(
      ...     optimizer=optax.sgd(0.5), num_steps=2, batch_size=2, key=jax.random.key(1)
      ... )
      >>> result = sap.unlearn(
      ...     loss_fn, jnp.ones(2), jnp.ones((1, 2)), jnp.zeros((1, 2)), jnp.zeros((1, 2)),
      ...     key=jax.random.key(0), fraction=0.5, update=update,
      ... )
      >>> print(result.params)
      [0.25 1.  ]
    """
    check_count("num_steps", num_steps, minimum=1)
    check_count("batch_size", batch_size, minimum=2)
    if batch_size % 2:
        raise ValueError(f"`batch_size` must be even; got {batch_size}.")

    def update(
        loss_fn: LossFn,
        params: Params,
        original: Batch,
        corrected: Batch | None,
        data: Batch,
        *,
        mask: Mask | None = None,
        num_examples: int | None = None,
        microbatch: int | None = None,
        args: tuple[Any, ...] = (),
    ) -> tuple[Params, Certificate]:
        del original, num_examples
        first, second = jax.random.split(key)
        about = data if corrected is None else corrected
        moved, _ = iterative_update(
            loss_fn,
            params,
            draw_examples(about, first, (num_steps, batch_size // 2)),
            optimizer=optimizer,
            mask=mask,
            retained=draw_examples(data, second, (num_steps, batch_size // 2)),
            args=args,
        )
        finite = jnp.bool_(True)
        return _certified(
            loss_fn, params, moved, data, None, finite, mask, num_steps, microbatch, args
        )

    return update


def _trained_diagonal(
    curvature: Callable[..., Diagonal],
    params: Params,
    original: Batch,
    corrected: Batch | None,
    data: Batch,
    num_examples: int,
    key: jax.Array,
    args: tuple[Any, ...],
) -> Diagonal:
    """The diagonal on the training set as it was, from that on its parts."""
    takes_key = "key" in inspect.signature(curvature).parameters
    data_key, own_key = jax.random.split(key)

    def on(batch: Batch, batch_key: jax.Array) -> Diagonal:
        return curvature(params, batch, *([batch_key] if takes_key else []), *args)

    num_originals = batch_size("original", original)
    whole, old = on(data, data_key), on(original, own_key)
    if corrected is None:
        total = num_examples + num_originals
        return jax.tree.map(
            lambda d, o: (num_examples / total) * d + (num_originals / total) * o, whole, old
        )
    # The same key, so that what original and corrected examples have in common cancels.
    new, share = on(corrected, own_key), num_originals / num_examples
    return jax.tree.map(lambda d, o, c: d + share * (o - c), whole, old, new)


def _certified(
    loss_fn: LossFn,
    params: Params,
    moved: Params,
    data: Batch,
    change: Params | None,
    finite: jax.Array,
    mask: Mask | None,
    iterations: int,
    microbatch: int | None,
    args: tuple[Any, ...],
) -> tuple[Params, Certificate]:
    """The moved parameters if they hold, the old ones if not, and what is known of them.

    `change` is the slope of the loss that was to fall; None stands for the mean loss on `data`.
    `finite` says whether the step to `moved` was taken.
    """
    params = jax.tree.map(jnp.asarray, params)
    step = optax.tree.sub(widen(moved), widen(params))
    step = step if mask is None else on_mask(step, mask)
    num_data = batch_size("data", data)
    slope = optax.tree.scale(1 / num_data, gradient_sum(loss_fn, params, data, microbatch, args))
    change = slope if change is None else change
    rise, level = loss_change(loss_fn, params, moved, data, microbatch, args)
    actual = rise - optax.tree.vdot(optax.tree.sub(slope, change), step)
    predicted = optax.tree.vdot(change, step)
    finite &= is_finite(change, mask) & jnp.isfinite(actual)
    reason = judge(actual, level, finite)
    holds = reason == Reason.CONVERGED
    certificate = Certificate(
        converged=holds,
        reason=reason,
        num_steps=holds.astype(jnp.int32),
        iterations=jnp.int32(iterations),
        relative_residual=jnp.full_like(actual, jnp.nan),
        damping=jnp.zeros_like(actual),
        predicted_change=jnp.where(holds, predicted, 0),
        actual_change=jnp.where(holds, actual, 0),
    )
    return keep_unselected(params, moved, mask, holds), certificate
