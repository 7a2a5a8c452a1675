"""Second-order updates against dense solves and against what theorems say, in float64."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from networks import as_float64, cross_entropy, mean_loss, mlp
from sklearn.datasets import load_breast_cancer
from trees import changed_bits

import sapsel_jax as sap
from sapsel_jax import Reason

RNG = np.random.default_rng(0)
N, D, M = 40, 6, 5
X = RNG.normal(size=(N, D))
Y = RNG.normal(size=N)
POISONED = np.concatenate([Y[:M] + 3.0, Y[M:]])
MASK = np.array([True, False, True, True, False, True])


def squared_error(w, example):
    x, y = example
    return 0.5 * (jnp.vdot(w, x) - y) ** 2 + 0.05 * jnp.vdot(w, w)


def update(loss_fn, *batches, **options):
    """Under `jit`, which is many times faster than one operation after the other."""
    return jax.jit(lambda *b: sap.second_order_update(loss_fn, *b, **options))(*batches)


def least_squares(x, y, start: Any = None, mask: Any = None):
    """The minimiser of the mean of `squared_error`, over the selected entries."""
    hessian = x.T @ x / len(y) + 0.1 * np.eye(D)
    gradient = x.T @ y / len(y)
    if mask is None:
        return np.linalg.solve(hessian, gradient)
    w, inner = start.copy(), np.ix_(mask, mask)
    w[mask] = np.linalg.solve(hessian[inner], (gradient - hessian[:, ~mask] @ w[~mask])[mask])
    return w


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


TIGHT = {
    "cg": sap.conjugate_gradient(tolerance=1e-10),
    "dense": sap.dense_solver(),
    "packed": sap.dense_solver(count=6),
    "lissa": sap.lissa(num_iterations=3_000, tolerance=1e-8),
}


def quadratic(removal, mask=None, **options):
    """Retrains by least squares, and updates from the optimum on the poisoned examples."""
    poisoned = least_squares(X, POISONED)
    kept = (X[M:], Y[M:]) if removal else (X, Y)
    selection = None if mask is None else jnp.asarray(mask)
    moved, certificate = update(
        squared_error,
        jnp.asarray(poisoned),
        (X[:M], POISONED[:M]),
        None if removal else (X[:M], Y[:M]),
        kept,
        mask=selection,
        **options,
    )
    return poisoned, moved, certificate, least_squares(*kept, poisoned, mask)


@pytest.mark.parametrize("solver", TIGHT)
@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("removal", [False, True])
def test_one_step_on_a_quadratic_loss_is_retraining(solver, mask, removal):
    poisoned, moved, certificate, want = quadratic(
        removal, mask, damping=1e-9, solver=TIGHT[solver]
    )
    assert np.abs(want - poisoned).max() > 0.1
    np.testing.assert_allclose(moved, want, atol=1e-6)
    assert certificate.converged
    assert certificate.reason == Reason.CONVERGED
    assert certificate.num_steps == 1
    np.testing.assert_allclose(certificate.predicted_change, certificate.actual_change, rtol=1e-5)
    if mask is not None:
        assert not changed_bits(np.asarray(moved)[~mask], poisoned[~mask]).any()


def test_default_solvers_and_the_predicted_change():
    poisoned, moved, certificate, want = quadratic(False, damping=1e-9)  # 6 entries: dense
    np.testing.assert_allclose(moved, want, atol=1e-6)
    assert certificate.iterations == 1
    loss = lambda w: np.mean(0.5 * (X @ w - Y) ** 2) + 0.05 * w @ w
    slope = X.T @ (X @ poisoned - POISONED) / N + 0.1 * poisoned  # 0: trained to the optimum
    np.testing.assert_allclose(slope, 0, atol=1e-12)
    np.testing.assert_allclose(certificate.actual_change, loss(want) - loss(poisoned), rtol=1e-6)
    assert certificate.damping == 1e-9


def patients():
    """Breast cancer data with a column of ones, standardised, and labels of 0 and 1."""
    x, labels = load_breast_cancer(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    return np.concatenate([x, np.ones((len(x), 1))], 1), labels.astype(float)


def logistic_loss(w, example):
    x, y = example
    logit = jnp.vdot(w, x)
    return jax.nn.softplus(logit) - y * logit + 0.005 * jnp.vdot(w, w)


def slope_and_curvature(w, x, y):
    p = 1 / (1 + np.exp(-x @ w))
    hessian = (x.T * (p * (1 - p))) @ x / len(y) + 0.01 * np.eye(x.shape[1])
    return x.T @ (p - y) / len(y) + 0.01 * w, hessian


def train(x, y, w=None, num_steps=30):
    """Newton's method, dense, in NumPy."""
    w = np.zeros(x.shape[1]) if w is None else w
    for _ in range(num_steps):
        slope, hessian = slope_and_curvature(w, x, y)
        w = w - np.linalg.solve(hessian, slope)
    return w


@pytest.mark.slow
@pytest.mark.parametrize("removal", [False, True])
def test_corrected_and_removed_patients(removal):
    x, labels = patients()
    order = np.random.default_rng(1).permutation(len(labels))
    changed = order[: len(labels) // 4 if removal else 15]
    learned = labels.copy()
    learned[changed] = labels[changed] if removal else 1 - labels[changed]
    kept = np.setdiff1d(order, changed) if removal else np.arange(len(labels))
    trained, retrained = train(x, learned), train(x[kept], labels[kept])
    distance = np.linalg.norm(trained - retrained)
    left = lambda w: np.linalg.norm(w - retrained) / distance
    dense = left(train(x[kept], labels[kept], trained, num_steps=1))

    def unlearn(num_steps, **options):
        return update(
            logistic_loss,
            jnp.asarray(trained),
            (x[changed], learned[changed]),
            None if removal else (x[changed], labels[changed]),
            (x[kept], labels[kept]),
            damping=1e-10,
            solver=sap.conjugate_gradient(tolerance=1e-8),
            num_steps=num_steps,
            **options,
        )

    once, certificate = unlearn(1)
    assert certificate.converged
    assert 0.02 < dense < 0.9
    assert left(once) <= dense + 1e-6
    more, certificate = unlearn(4)
    assert certificate.converged
    assert certificate.num_steps == 4
    assert left(more) < 0.01
    # The output loss of a linear model is convex, so that both curvatures are the same matrix.
    gauss_newton, certificate = unlearn(
        4,
        model_fn=lambda w, example: jnp.vdot(w, example[0]),
        output_loss_fn=lambda logit, example: jax.nn.softplus(logit) - example[1] * logit,
        penalty_fn=lambda w: 0.005 * jnp.vdot(w, w),
        microbatch=100,
    )
    assert certificate.converged
    np.testing.assert_allclose(gauss_newton, more, atol=1e-6)


def test_more_steps_keep_the_slope_that_training_had_left():
    x, labels = patients()
    learned = np.concatenate([1 - labels[:15], labels[15:]])
    early = train(x, learned, num_steps=2)  # not yet at the optimum
    slope, _ = slope_and_curvature(early, x, learned)
    moved, certificate = update(
        logistic_loss,
        jnp.asarray(early),
        (x[:15], learned[:15]),
        (x[:15], labels[:15]),
        (x, labels),
        damping=1e-10,
        num_steps=6,
    )
    assert certificate.converged
    want, _ = slope_and_curvature(np.asarray(moved), x, labels)
    assert np.abs(slope).max() > 1e-3
    np.testing.assert_allclose(want, slope, atol=1e-8)


def tree_case():
    """A tanh network at random parameters, with its dense curvature on every other entry."""
    loss_fn, params, batch = mlp()
    params, batch = as_float64(params), as_float64(batch)
    original, corrected = (batch[0][:3], batch[1][:3]), (batch[0][:3], (batch[1][:3] + 1) % 3)
    data = (batch[0], jnp.concatenate([corrected[1], batch[1][3:]]))
    mask = jax.tree.map(lambda p: (jnp.arange(p.size) % 2 == 0).reshape(p.shape), params)
    return loss_fn, params, original, corrected, data, mask


def logits(params, example):
    hidden = jnp.tanh(example[0] @ params["dense1"]["kernel"] + params["dense1"]["bias"])
    outputs = hidden @ params["dense2"]["kernel"] + params["dense2"]["bias"]
    return params["scale"] * outputs


OUTPUT_LOSS = lambda outputs, example: cross_entropy(outputs, example[1])


@functools.cache
def dense_curvature(gauss_newton):
    loss_fn, params, original, corrected, data, mask = tree_case()
    flat, unravel = ravel_pytree(params)
    selected = np.asarray(ravel_pytree(mask)[0])
    hessian = jax.jit(jax.hessian(lambda p: mean_loss(loss_fn, unravel(p), data)))(flat)
    if gauss_newton:
        outputs = lambda p: jax.vmap(lambda e: logits(unravel(p), e))(data)
        jacobian = jax.jit(jax.jacobian(outputs))(flat)
        curve = jax.vmap(jax.hessian(OUTPUT_LOSS))(outputs(flat), data)
        hessian = jnp.einsum("nci,ncd,ndj->ij", jacobian, curve, jacobian) / len(data[0])
    change = ravel_pytree(sap.gradient_change(loss_fn, params, original, corrected,
                                              num_examples=len(data[0])))[0]  # fmt: skip
    inner = np.ix_(selected, selected)
    return np.asarray(flat), selected, np.asarray(hessian)[inner], np.asarray(change)[selected]


def dense_step(damping, gauss_newton):
    """The masked Newton step by a dense solve, and the smallest eigenvalue of its matrix."""
    flat, selected, hessian, change = dense_curvature(gauss_newton)
    matrix = hessian + damping * np.eye(len(hessian))
    step = np.zeros(flat.size)
    step[selected] = -np.linalg.solve(matrix, change)
    return flat + step, np.linalg.eigvalsh(matrix)[0]


def network_step(damping, solver, loss_scale=1.0, **options):
    loss_fn, params, original, corrected, data, mask = tree_case()
    scaled = lambda p, example: loss_scale * loss_fn(p, example)
    moved, certificate = jax.jit(
        lambda p, m: sap.second_order_update(
            scaled, p, original, corrected, data, damping=damping, mask=m, solver=solver, **options
        )
    )(params, mask)
    outside = jax.tree.map(lambda m, a: jnp.where(m, 0, a), mask, moved)
    before = jax.tree.map(lambda m, a: jnp.where(m, 0, a), mask, params)
    assert not changed_bits(outside, before).any()
    return np.asarray(ravel_pytree(moved)[0]), certificate, params


SOLVERS = {
    "cg": sap.conjugate_gradient(tolerance=1e-11),
    "dense": sap.dense_solver(count=25, tolerance=1e-11),
    "lissa": sap.lissa(num_iterations=2_000, tolerance=1e-9),
}


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("gauss_newton", [False, True])
def test_solvers_agree_with_a_dense_solve_on_a_masked_network(solver, gauss_newton):
    want, smallest = dense_step(2.0, gauss_newton)
    assert smallest > 0
    options = {"model_fn": logits, "output_loss_fn": OUTPUT_LOSS} if gauss_newton else {}
    got, certificate, _ = network_step(2.0, SOLVERS[solver], **options)
    assert certificate.converged
    np.testing.assert_allclose(got, want, atol=1e-8)


@pytest.mark.slow
def test_the_microbatch_does_not_matter():
    whole, _, _ = network_step(2.0, SOLVERS["cg"])
    parts, _, _ = network_step(2.0, SOLVERS["cg"], microbatch=3)
    np.testing.assert_allclose(parts, whole, atol=1e-10)


@pytest.mark.slow
def test_damping_is_in_units_of_the_mean_loss():
    once, _, _ = network_step(2.0, SOLVERS["cg"])
    tenfold, _, _ = network_step(20.0, SOLVERS["cg"], loss_scale=10.0)
    np.testing.assert_allclose(once, tenfold, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damping", "solver", "reason"),
    [
        (1e-4, sap.conjugate_gradient(), Reason.NEGATIVE_CURVATURE),
        (1e-4, sap.dense_solver(), Reason.NEGATIVE_CURVATURE),
        (1e-4, sap.diagonal_solver(), Reason.NEGATIVE_CURVATURE),
        (1e-4, sap.lissa(num_iterations=3_000), Reason.NO_CONTRACTION),
        (2.0, sap.lissa(scale=0.2), Reason.NO_CONTRACTION),
        (2.0, sap.lissa(num_iterations=1, scale=50.0), Reason.NO_CONVERGENCE),
        (2.0, sap.conjugate_gradient(max_iterations=2), Reason.NO_CONVERGENCE),
        (2.0, sap.dense_solver(count=3), Reason.NO_CONVERGENCE),
        (2.0, sap.diagonal_solver(tolerance=1e-3), Reason.NO_CONVERGENCE),
    ],
)
def test_steps_that_do_not_hold_leave_the_parameters_and_say_why(damping, solver, reason):
    _, smallest = dense_step(damping, gauss_newton=False)
    assert (smallest < 0) == (damping < 1)
    got, certificate, params = network_step(damping, solver)
    assert certificate.reason == reason
    assert not certificate.converged
    assert certificate.num_steps == 0
    assert certificate.actual_change == 0
    np.testing.assert_array_equal(got, ravel_pytree(params)[0])


def test_a_step_that_raises_the_loss_is_refused_or_damped():
    # Newton's step from beyond the inflection of a bell overshoots: sqrt(1 + w²) at w = 2 to −8.
    loss_fn = lambda w, x: jnp.sqrt(1 + (w - x) ** 2)
    shift = lambda **options: update(
        loss_fn, jnp.array(0.0), jnp.zeros(1), jnp.full(1, 2.0), jnp.full(1, 2.0), **options
    )
    moved, certificate = shift(damping=1e-6)
    assert moved == 0.0
    assert certificate.reason == Reason.NO_DECREASE
    moved, certificate = shift(damping=1e-6, adapt_damping=True, num_steps=20)
    assert certificate.converged
    assert certificate.damping != 1e-6
    np.testing.assert_allclose(moved, 2.0, atol=1e-4)
    assert certificate.actual_change < -1


@pytest.mark.slow
def test_adapted_damping_finds_its_way_out_of_negative_curvature():
    start, _, params = network_step(1e-4, sap.conjugate_gradient())
    moved, certificate, _ = network_step(1e-4, sap.conjugate_gradient(), adapt_damping=True)
    np.testing.assert_array_equal(start, ravel_pytree(params)[0])
    assert certificate.converged
    assert certificate.damping > 1e-4
    assert certificate.actual_change < 0
    assert np.abs(moved - start).max() > 0.01


def test_the_diagonal_solver_is_exact_where_the_curvature_is_diagonal():
    scales = jnp.asarray(RNG.uniform(0.5, 2, D))
    loss_fn = lambda w, x: jnp.vdot(scales, (w - x) ** 2) / 2
    moved, certificate = update(
        loss_fn, jnp.zeros(D), jnp.zeros((1, D)), X[:1], X[:1], damping=1e-12,
        solver=sap.diagonal_solver(tolerance=1e-8),
    )  # fmt: skip
    assert certificate.converged
    np.testing.assert_allclose(moved, X[0], atol=1e-9)
    matched, _ = update(
        loss_fn, jnp.zeros(D), jnp.zeros((1, D)), X[:1], X[:1], damping=1e-12,
        solver=sap.diagonal_solver(tolerance=1e-8),
        model_fn=lambda w, x: jnp.sinh(w),
        output_loss_fn=lambda outputs, x: jnp.vdot(scales, (outputs - x) ** 2) / 4,
        penalty_fn=lambda w: jnp.vdot(scales, w**2) / 4,
    )  # fmt: skip
    np.testing.assert_allclose(matched, X[0], atol=1e-9)


def test_lissa_on_random_examples_has_the_right_fixed_point():
    poisoned, moved, certificate, _ = quadratic(
        False,
        damping=0.5,
        solver=sap.lissa(
            num_iterations=2_000, scale=60.0, batch_size=10, key=jax.random.key(0), tolerance=0.3
        ),
    )
    _, exact, _, _ = quadratic(False, damping=0.5, solver=TIGHT["cg"])
    assert certificate.converged
    # One noisy iterate, not an average: its noise shrinks with 1 / scale.
    assert np.linalg.norm(moved - exact) < 0.2 * np.linalg.norm(exact - poisoned)


def test_conjugate_gradients_agree_with_those_of_jax():
    _, moved, certificate, _ = quadratic(False, damping=0.3, solver=TIGHT["cg"])
    start = least_squares(X, POISONED)
    change = X[:M].T @ (POISONED[:M] - Y[:M]) / N
    matrix = jnp.asarray(X.T @ X / N + 0.4 * np.eye(D))
    want, _ = jax.scipy.sparse.linalg.cg(lambda v: matrix @ v, jnp.asarray(-change), tol=1e-12)
    np.testing.assert_allclose(moved, start + want, atol=1e-9)
    assert certificate.iterations <= D
    assert certificate.relative_residual <= 1e-10
