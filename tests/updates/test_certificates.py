"""Every reason an update can end for, reached with every solver that can end for it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees import changed_bits

import sapsel_jax as sap
from sapsel_jax import Reason

START = jnp.array([0.0, -0.0])
ZERO = jnp.zeros((1, 2))
SOLVERS = {
    "cg": sap.conjugate_gradient(),
    "dense": sap.dense_solver(),
    "lissa": sap.lissa(),
    "diagonal": sap.diagonal_solver(tolerance=0.9),
}


def quadratic(matrix):
    """½ (w − x)ᵀ A (w − x)."""
    return lambda w, x: 0.5 * (w - x) @ jnp.asarray(matrix) @ (w - x)


CONVEX = quadratic([[2.0, 1.0], [1.0, 3.0]])  # eigenvalues 1.4 and 3.6
INDEFINITE = quadratic([[-1.0, 0.5], [0.5, 2.0]])  # eigenvalues −1.1 and 2.1


def bell(w, x):
    """From x − w = 2 Newton's step goes to −8: beyond the inflection of the curve it overshoots."""
    return jnp.sum(jnp.sqrt(1 + (w - x) ** 2))


def no_curvature(w, x):
    """At w = 0 its slope in w is finite and its curvature is not."""
    return jnp.sum(jnp.abs(w) ** 1.5 - w * x)


def step(loss_fn, target, *, params: Any = START, **options):
    """One step to the optimum of the loss at `target`, where the data were at zero."""
    corrected = jnp.full((1, 2), jnp.asarray(target))
    given: dict[str, Any] = {"damping": 0.1} | options
    return jax.jit(
        lambda p, c: sap.second_order_update(loss_fn, p, ZERO, c, c, **given)
    )(params, corrected)  # fmt: skip


def check_refused(params, moved, certificate, reason):
    assert certificate.reason == reason
    assert not certificate.converged
    assert not changed_bits(params, moved).any()
    assert certificate.num_steps == 0
    assert certificate.predicted_change == 0
    assert certificate.actual_change == 0


REFUSED: list[tuple[str, Any, Any, Any, dict[str, Any], Reason]] = [
    # A slope that is not finite, a curvature that is not, and new parameters that are not.
    *[(s, s, CONVEX, jnp.nan, {}, Reason.NOT_FINITE) for s in SOLVERS],
    *[(f"{s} no curvature", s, no_curvature, 1.0, {}, Reason.NOT_FINITE) for s in SOLVERS],
    *[
        (f"{s} float16", s, CONVEX, 1e6, {"params": jnp.zeros(2, jnp.float16)}, Reason.NOT_FINITE)
        for s in SOLVERS
    ],
    *[(s, s, bell, 2.0, {"damping": 1e-6}, Reason.NO_DECREASE) for s in SOLVERS],
    ("cg", "cg", INDEFINITE, 1.0, {}, Reason.NEGATIVE_CURVATURE),
    ("dense", "dense", INDEFINITE, 1.0, {}, Reason.NEGATIVE_CURVATURE),
    ("diagonal", "diagonal", INDEFINITE, 1.0, {}, Reason.NEGATIVE_CURVATURE),
    ("lissa", "lissa", INDEFINITE, 1.0, {}, Reason.NO_CONTRACTION),
    ("lissa scale", sap.lissa(scale=1.0), CONVEX, 1.0, {}, Reason.NO_CONTRACTION),
    ("cg", sap.conjugate_gradient(max_iterations=1), CONVEX, 1.0, {}, Reason.NO_CONVERGENCE),
    ("dense", sap.dense_solver(count=1), CONVEX, 1.0, {}, Reason.NO_CONVERGENCE),
    ("lissa", sap.lissa(num_iterations=1, scale=50.0), CONVEX, 1.0, {}, Reason.NO_CONVERGENCE),
    ("diagonal", sap.diagonal_solver(tolerance=0.1), CONVEX, 1.0, {}, Reason.NO_CONVERGENCE),
    # With adapted damping a step that can never hold is given up in the end.
    ("adapted", "cg", CONVEX, jnp.nan, {"adapt_damping": True}, Reason.NOT_FINITE),
]


@pytest.mark.parametrize(
    ("solver", "loss_fn", "target", "options", "reason"),
    [case[1:] for case in REFUSED],
    ids=[f"{case[-1].name.lower()}-{case[0].replace(' ', '-')}" for case in REFUSED],
)
def test_a_step_that_does_not_hold_leaves_every_bit_and_says_why(
    solver, loss_fn, target, options, reason
):
    moved, certificate = step(loss_fn, target, solver=SOLVERS.get(solver, solver), **options)
    check_refused(options.get("params", START), moved, certificate, reason)
    assert moved.dtype == options.get("params", START).dtype


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_same_steps_hold_where_nothing_is_wrong(solver):
    moved, certificate = step(CONVEX, 1.0, solver=SOLVERS[solver])
    assert certificate.reason == Reason.CONVERGED
    assert certificate.converged
    assert certificate.num_steps == 1
    assert certificate.actual_change < -1
    assert changed_bits(START, moved).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_mask_that_selects_nothing_is_a_step_that_holds(solver):
    mask = jnp.zeros(2, bool)
    moved, certificate = step(CONVEX, 1.0, solver=SOLVERS[solver], mask=mask)
    assert certificate.converged
    assert certificate.relative_residual == 0
    assert certificate.actual_change == 0
    assert not changed_bits(START, moved).any()


def test_more_steps_keep_the_last_that_held():
    # Each step goes 2 / (2 + damping) of the way: to 0.32, and then to 0.51.
    loss_fn = lambda w, x: jnp.sum((w - x) ** 2 + jnp.where(w > 0.5, jnp.nan, 0.0))
    moved, certificate = step(loss_fn, 0.8, damping=3.0, num_steps=3)
    assert certificate.num_steps == 1
    assert certificate.reason == Reason.NOT_FINITE
    assert not certificate.converged
    np.testing.assert_allclose(moved, [0.32, 0.32], rtol=1e-5)


@pytest.mark.parametrize(
    ("damping", "reason"),
    [
        (-10.0, Reason.NEGATIVE_CURVATURE),
        (jnp.nan, Reason.NOT_FINITE),
        (jnp.inf, Reason.NOT_FINITE),
    ],
)
def test_a_damping_that_is_out_of_range_and_traced_is_found_out(damping, reason):
    update = lambda d: sap.second_order_update(
        CONVEX, START, ZERO, ZERO + 1, ZERO + 1, damping=d, solver=SOLVERS["cg"]
    )
    moved, certificate = jax.jit(update)(damping)
    check_refused(START, moved, certificate, reason)


@pytest.mark.parametrize(
    ("move", "reason"),
    [
        ((2.0, 2.0), Reason.CONVERGED),  # bfloat16 holds 258
        ((1.1, 1.1), Reason.CONVERGED),  # rounded up to it
        ((0.3, 0.3), Reason.NO_DECREASE),  # rounded away
        ((1.1, -0.9), Reason.NO_DECREASE),  # rounded to (2, -1), which is worse than no step
    ],
)
def test_the_certificate_is_about_the_rounded_parameters(move, reason):
    loss_fn = quadratic([[1.0, 0.9], [0.9, 1.0]])
    start = jnp.full(2, 256, jnp.bfloat16)
    original = jnp.full((1, 2), 256.0)
    corrected = original + jnp.asarray(move)
    moved, certificate = jax.jit(
        lambda p, o, c: sap.second_order_update(loss_fn, p, o, c, c, damping=1e-6)
    )(start, original, corrected)
    if reason != Reason.CONVERGED:
        check_refused(start, moved, certificate, reason)
        return
    assert certificate.converged
    np.testing.assert_array_equal(moved.astype(jnp.float32), [258, 258])
    loss = lambda w: loss_fn(w.astype(jnp.float32), corrected[0])
    np.testing.assert_allclose(certificate.actual_change, loss(moved) - loss(start), rtol=1e-5)


FIRST = sap.with_first_order(step_size=0.1)
ITERATION = {"num_steps": 2, "batch_size": 2, "key": jax.random.key(0)}


@pytest.mark.parametrize(
    ("update", "target", "reason"),
    [
        (FIRST, 1.0, Reason.CONVERGED),
        (FIRST, jnp.nan, Reason.NOT_FINITE),
        (sap.with_first_order(step_size=3e38), 1.0, Reason.NOT_FINITE),
        (sap.with_first_order(step_size=10.0), 1.0, Reason.NO_DECREASE),
        (sap.with_iteration(optimizer=optax.sgd(0.1), **ITERATION), 1.0, Reason.CONVERGED),
        (sap.with_iteration(optimizer=optax.sgd(0.1), **ITERATION), jnp.nan, Reason.NOT_FINITE),
        (sap.with_iteration(optimizer=optax.sgd(10.0), **ITERATION), 1.0, Reason.NO_DECREASE),
    ],
)
def test_reasons_of_the_other_updates_of_the_one_call(update, target, reason):
    corrected = ZERO + target
    moved, certificate = jax.jit(lambda p, c: update(CONVEX, p, ZERO, c, c))(START, corrected)
    if reason == Reason.CONVERGED:
        assert certificate.converged
        assert certificate.num_steps == 1
        assert certificate.actual_change < -1
        assert changed_bits(START, moved).all()
    else:
        check_refused(START, moved, certificate, reason)
