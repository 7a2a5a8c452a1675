"""The masked Newton step, taken as often as asked for, with a certificate."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sapsel_jax._base.checks import check_count, check_positive
from sapsel_jax._base.examples import draw_examples
from sapsel_jax._base.losses import Loss, one_scalar, wide_loss
from sapsel_jax._base.precision import widen
from sapsel_jax._base.types import Batch, LossFn, Mask, Params
from sapsel_jax._curvature.products import Product
from sapsel_jax._updates.certificates import Certificate, Reason, judge, rounding
from sapsel_jax._updates.corrections import read_correction
from sapsel_jax._updates.masked import check_update, is_finite, keep_unselected, on_mask
from sapsel_jax._updates.matrices import Matrix
from sapsel_jax._updates.solvers import (
    DENSE_LIMIT,
    Solver,
    System,
    conjugate_gradient,
    dense_solver,
)

MAX_RETRIES = 10
"""How often in all an adapted damping may be raised because a step did not hold."""

RUNNING = -1


def second_order_update(
    loss_fn: LossFn,
    params: Params,
    original: Batch,
    corrected: Batch | None,
    data: Batch,
    *,
    damping: Any,
    mask: Mask | None = None,
    num_examples: int | None = None,
    solver: Solver | None = None,
    num_steps: int = 1,
    adapt_damping: bool = False,
    num_selected: int | None = None,
    model_fn: Callable[..., Any] | None = None,
    output_loss_fn: Callable[[Any, Any], jax.Array] | None = None,
    penalty_fn: Callable[[Params], jax.Array] | None = None,
    microbatch: int | None = None,
    args: tuple[Any, ...] = (),
) -> tuple[Params, Certificate]:
    """Takes Newton's step on the selected entries, from the original optimum to the corrected one.

        θ ← θ − (H + damping·I)⁻¹ g on the mask,    g = ∇L(data, θ) − r

    H is the curvature of the mean loss on `data`. r = ∇L(data, θ₀) − Δ is the gradient that the
    original training left, with Δ as in `gradient_change`. At the first step g is Δ: the step of
    the paper. Each further step computes H and g again where the last one ended. A step is taken
    only if its solver converged, the new parameters are finite, and the loss that it is to lower
    (see `Certificate`) does not rise.

    Args:
      loss_fn: `loss_fn(params, example, *args) -> scalar`, the loss of one example.
      params: pytree of floating-point arrays, where the loss was trained to.
      original: batch of the examples as they were trained on.
      corrected: batch of the same examples as they should have been; None removes the originals.
      data: batch of the training set as it should have been: with the corrected examples, without
        the removed ones. A random sample of it will do if `num_examples` is given.
      damping: added to the curvature, in units of the mean loss, above 0; may be traced.
      mask: pytree of bool arrays shaped like `params`, True for the entries that may move; None
        moves all of them. If it selects nothing, nothing moves and the step has converged.
      num_examples: N, the size of the training set as it should have been; None takes the size of
        `data`.
      solver: `conjugate_gradient()`, `lissa()`, `diagonal_solver()`, `dense_solver()`, or any
        function from `System` to `Solution`; None takes conjugate gradients, or the dense solver if
        at most 16 entries can be selected.
      num_steps: how many steps to take, at least 1.
      adapt_damping: adapt the damping as Levenberg and Marquardt do. If a step lowered the loss by
        less than a quarter of the prediction, the damping is multiplied by 4; if by more than three
        quarters, it is divided by 2. A step that does not hold is tried again with 4 times the
        damping, up to 10 times in all.
      num_selected: the most entries that `mask` can select, if known before the call is traced.
      model_fn: `model_fn(params, example, *args) -> outputs`; with it H is the Gauss-Newton matrix,
        which has no negative curvature where the output loss is convex.
      output_loss_fn: `output_loss_fn(outputs, example) -> scalar`, given with `model_fn`.
      penalty_fn: `penalty_fn(params) -> scalar`, the part of `loss_fn` that `output_loss_fn` lacks;
        its Hessian is added to the Gauss-Newton matrix.
      microbatch: how many examples are worked on at once, at least 1; the default is all of them.
        Memory grows with it in proportion; the result does not depend on it but for rounding.
      args: further arguments of `loss_fn` and `model_fn`, passed through as they are.

    Returns:
      A pair: new parameters with the structure, shapes and dtypes of `params`, bit-identical
      outside the mask, and a `Certificate`. If a step does not hold, the parameters are the result
      of the last step that held, and the certificate says why. Parameters narrower than float32 are
      widened for the computation, and the examples with them, and rounded once; the certificate is
      about the rounded parameters.

    Raises:
      TypeError: if `params` holds anything but real floating-point arrays or `mask` anything but
        bool arrays, `loss_fn`, `output_loss_fn` or `penalty_fn` returns anything but one real
        scalar, or a number is none.
      ValueError: if a batch is empty, `corrected` differs from `original` in structure or number,
        `mask` does not fit `params`, a number is out of range, or only one of `model_fn` and
        `output_loss_fn` is given, or `penalty_fn` without them.

    Cost: for each step one gradient equivalent on `data`, the solver's products, one more product,
      and two forward passes; once one gradient equivalent each on the originals, the corrections
      and `data`.

    Source: Warnecke et al. (arXiv 2108.11577), the second-order update; the mask as in
      Malekmohammadi, Lee, Xiong (arXiv 2504.06398). Adapting: D. W. Marquardt, "An algorithm for
      least-squares estimation of nonlinear parameters" (1963), with rates of common practice.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> def loss_fn(w, y):  # trained to the mean of its examples
      ...     return 0.5 * jnp.sum((w - y) ** 2)
      >>> data = jnp.array([[1.0, 1.0], [3.0, 2.0]])
      >>> params, certificate = sap.second_order_update(
      ...     loss_fn,
      ...     jnp.array([4.0, 4.0]),
      ...     jnp.array([[7.0, 6.0]]),  # what the second example was
      ...     data[1:],
      ...     data,
      ...     damping=1e-6,
      ...     solver=sap.conjugate_gradient(),
      ... )
      >>> print(params.round(3), sap.Reason(int(certificate.reason)).name)
      [2. 2.] CONVERGED
    """
    check_positive("damping", damping)
    check_count("num_steps", num_steps, minimum=1)
    if num_selected is not None:
        check_count("num_selected", num_selected, minimum=0)
    check_update(params, mask)
    correction = read_correction(params, original, corrected, data, num_examples, microbatch)
    if (model_fn is None) != (output_loss_fn is None):
        raise ValueError("`model_fn` and `output_loss_fn` must be given together.")
    if penalty_fn is not None and model_fn is None:
        raise ValueError("`penalty_fn` must be given with `model_fn` and `output_loss_fn`.")
    if solver is None:
        total = sum(jnp.size(leaf) for leaf in jax.tree.leaves(params))
        most = total if num_selected is None else min(num_selected, total)
        solver = dense_solver(count=max(most, 1)) if most <= DENSE_LIMIT else conjugate_gradient()

    params = jax.tree.map(jnp.asarray, params)
    start = widen(params)
    loss = wide_loss(loss_fn, params, data, microbatch, args)
    change = correction.gradient_change(loss, start)
    problem = _Problem(
        loss=loss,
        matrix=Matrix(
            loss,
            model_fn and loss.precision.on(model_fn),
            output_loss_fn and loss.precision.on_outputs(output_loss_fn),
            penalty_fn and one_scalar(penalty_fn, "penalty_fn"),
        ),
        data=data,
        residual=optax.tree.sub(loss.gradient(start, data), change),
        mask=jax.tree.map(lambda p: jnp.ones(p.shape, bool), params) if mask is None else mask,
        like=params,
        solver=solver,
        num_steps=num_steps,
        adapt_damping=adapt_damping,
    )
    dtype = jnp.result_type(*jax.tree.leaves(start)) if jax.tree.leaves(start) else jnp.float32
    zero, strength = jnp.zeros((), dtype), jnp.asarray(damping, dtype)
    nothing = Certificate(
        jnp.bool_(False), jnp.int32(RUNNING), jnp.int32(0), jnp.int32(0), zero, strength, zero, zero
    )
    state = _State(start, strength, jnp.int32(0), jnp.bool_(False), nothing)
    state = lax.while_loop(lambda s: ~s.done, functools.partial(_attempt, problem), state)
    moved, certificate = _rounded(problem, state.params), state.certificate
    if any(p.dtype != s.dtype for p, s in zip(*map(jax.tree.leaves, (params, start)), strict=True)):
        certificate = _after_rounding(problem, start, moved, certificate)
    taken = certificate.num_steps > 0
    return keep_unselected(params, moved, problem.mask, taken), certificate


class _Problem(NamedTuple):
    """What stays the same from step to step.

    Attributes:
      loss: at parameters in float32 or wider.
      matrix: the curvature.
      data: the batch that both are means over.
      residual: r, the gradient that the original training had left.
      mask: pytree of bool arrays.
      like: the parameters in their own dtypes.
      solver: of the damped system.
      num_steps: how many steps to take.
      adapt_damping: whether each step changes the damping of the next.
    """

    loss: Loss
    matrix: Matrix
    data: Batch
    residual: Params
    mask: Mask
    like: Params
    solver: Solver
    num_steps: int
    adapt_damping: bool


class _State(NamedTuple):
    params: Params
    damping: jax.Array
    num_failed: jax.Array
    done: jax.Array
    certificate: Certificate


def _attempt(problem: _Problem, state: _State) -> _State:
    """One step: solved, tried, and taken if it holds."""
    slope = optax.tree.sub(problem.loss.gradient(state.params, problem.data), problem.residual)
    system = _system(problem, state, slope)
    solution = problem.solver(system)
    step = on_mask(solution.x, problem.mask)
    curved = jnp.asarray(optax.tree.vdot(step, system.curvature(step)))
    predicted = jnp.asarray(optax.tree.vdot(slope, step)) + curved / 2
    moved = keep_unselected(
        state.params, optax.tree.add(state.params, step), problem.mask, jnp.bool_(True)
    )
    rise, level = problem.loss.change(state.params, moved, problem.data)
    # What training had left is no part of the loss that the step is to lower.
    actual = rise - optax.tree.vdot(problem.residual, step)
    finite = is_finite(_rounded(problem, moved), problem.mask) & jnp.isfinite(actual)
    reason = judge(actual, level, finite)
    reason = jnp.where(solution.reason == Reason.CONVERGED, reason, solution.reason)
    holds = reason == Reason.CONVERGED
    before = state.certificate
    num_taken = before.num_steps + holds.astype(jnp.int32)
    num_failed = state.num_failed + (~holds).astype(jnp.int32)
    retries = MAX_RETRIES if problem.adapt_damping else 0
    damping = state.damping
    if problem.adapt_damping:
        damping = _adapted(damping, predicted, actual, rounding(level), holds)
    added = lambda total, part: total + jnp.where(holds, part, 0).astype(total.dtype)
    return _State(
        keep_unselected(state.params, moved, None, holds),
        damping,
        num_failed,
        (num_taken == problem.num_steps) | (num_failed > retries),
        Certificate(
            converged=holds,
            reason=reason.astype(jnp.int32),
            num_steps=num_taken,
            iterations=before.iterations + solution.iterations,
            relative_residual=solution.relative_residual.astype(damping.dtype),
            damping=damping,
            predicted_change=added(before.predicted_change, predicted),
            actual_change=added(before.actual_change, actual),
        ),
    )


def _system(problem: _Problem, state: _State, slope: Params) -> System:
    """The damped system of a step, on the selected entries."""
    params, mask = state.params, problem.mask

    def on(batch: Batch) -> Product:
        product = problem.matrix.product(params, batch)
        return lambda v: on_mask(product(on_mask(v, mask)), mask)

    return System(
        curvature=on(problem.data),
        rhs=on_mask(optax.tree.scale(-1, slope), mask),
        mask=mask,
        damping=state.damping,
        diagonal=lambda: problem.matrix.diagonal(params, problem.data),
        sample=lambda key, count: on(draw_examples(problem.data, key, (count,))),
    )


def _adapted(
    damping: jax.Array, predicted: jax.Array, actual: jax.Array, slack: jax.Array, holds: jax.Array
) -> jax.Array:
    """The damping of the next step: less of it where the prediction was good."""
    ratio = jnp.where(jnp.abs(predicted) <= slack, 1.0, actual / predicted)
    factor = jnp.where(ratio > 0.75, 0.5, jnp.where(ratio < 0.25, 4.0, 1.0))
    return damping * jnp.where(holds, factor, 4.0).astype(damping.dtype)


def _after_rounding(
    problem: _Problem, start: Params, moved: Params, certificate: Certificate
) -> Certificate:
    """What is true of the steps once they are rounded to the parameters' own dtypes."""
    end = keep_unselected(start, widen(moved), problem.mask, jnp.bool_(True))
    step = optax.tree.sub(end, start)
    rise, level = problem.loss.change(start, end, problem.data)
    actual = rise - optax.tree.vdot(problem.residual, on_mask(step, problem.mask))
    # A step that is rounded away lowers nothing, and is no success where something was to fall.
    lost = (actual == 0) & (certificate.actual_change < -rounding(level))
    lost = (certificate.num_steps > 0) & (lost | ~(actual <= rounding(level)))
    kept = lambda x: jnp.where(lost, jnp.zeros_like(x), x)
    return certificate._replace(
        converged=certificate.converged & ~lost,
        reason=jnp.where(lost, Reason.NO_DECREASE, certificate.reason).astype(jnp.int32),
        num_steps=kept(certificate.num_steps),
        predicted_change=kept(certificate.predicted_change),
        actual_change=jnp.where(certificate.num_steps > 0, kept(actual), 0),
    )


def _rounded(problem: _Problem, params: Params) -> Params:
    """Parameters in their own dtypes."""
    return jax.tree.map(lambda p, like: p.astype(like.dtype), params, problem.like)
