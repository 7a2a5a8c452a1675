"""Solvers of the damped system of a second-order step, each with what it knows of its answer.

JAX's own conjugate gradients report neither iterations nor residual, and no library's report
negative curvature; a step needs all three.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from sapsel_jax._base.checks import check_count, check_positive
from sapsel_jax._base.types import Diagonal, Mask, Params
from sapsel_jax._curvature.products import Product
from sapsel_jax._updates.certificates import Reason

DENSE_LIMIT = 16
"""Up to this many selected entries the whole matrix is solved: see `dense_solver`."""

POWER_ITERATIONS = 10
CHUNK = 16
RUNNING = -1


class System(NamedTuple):
    """The linear system of a step: (H + damping·I) x = rhs on the selected entries, 0 elsewhere.

    Attributes:
      curvature: v ↦ H v in units of the mean loss; zero outside the mask, whatever v is there.
      rhs: pytree shaped like the parameters, float32 or wider, zero outside the mask.
      mask: pytree of bool arrays, True for the selected entries.
      damping: scalar above 0, in units of the mean loss.
      diagonal: computes the diagonal of H when it is called.
      sample: `sample(key, num_examples)`, the curvature of random examples, in the same units.
    """

    curvature: Product
    rhs: Params
    mask: Mask
    damping: jax.Array
    diagonal: Callable[[], Diagonal]
    sample: Callable[[jax.Array, int], Product]

    def product(self, v: Params) -> Params:
        """(H + damping·I) v."""
        return optax.tree.add_scale(self.curvature(v), self.damping, v)


class Solution(NamedTuple):
    """What a solver returns.

    Attributes:
      x: pytree shaped like the right-hand side; use it only if `reason` is CONVERGED.
      reason: int32, a `Reason`.
      iterations: int32, how many iterations were run.
      relative_residual: ‖rhs − (H + damping·I) x‖ / ‖rhs‖, computed from x itself.
    """

    x: Params
    reason: jax.Array
    iterations: jax.Array
    relative_residual: jax.Array


Solver: TypeAlias = Callable[[System], Solution]


def conjugate_gradient(*, tolerance: float = 1e-4, max_iterations: int = 250) -> Solver:
    """Solves the system of a second-order step by conjugate gradients.

    Each iteration minimises ½ xᵀ(H + damping·I)x − rhsᵀx along one more direction. It ends as soon
    as the curvature along a direction is not positive. The recurrence only estimates the residual,
    so it is computed again from x when the estimate meets the tolerance; if the true residual does
    not meet it, the iteration continues from there.

    Args:
      tolerance: the relative residual to reach, above 0.
      max_iterations: how many iterations at most, a Python integer of at least 1.

    Returns:
      A solver for `second_order_update`: a function from `System` to `Solution`.

    Raises:
      TypeError: if `max_iterations` is no Python integer or `tolerance` no number.
      ValueError: if a number is out of range.

    Cost: a product with H for each iteration, about 2 gradient equivalents on `data`; one more for
      each residual that is computed again, and one at the end.

    Source: M. R. Hestenes, E. Stiefel, "Methods of conjugate gradients for solving linear systems"
      (1952); stopping at negative curvature as in T. Steihaug, "The conjugate gradient method and
      trust regions in large scale optimization" (1983).

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> def loss_fn(w, y):  # its Hessian is diag(1, 2)
      ...     return 0.5 * jnp.vdot(jnp.array([1.0, 2.0]), (w - y) ** 2)
      >>> original, corrected = jnp.array([[4.0, 4.0]]), jnp.array([[1.0, 2.0]])
      >>> params, certificate = sap.second_order_update(
      ...     loss_fn, jnp.array([4.0, 4.0]), original, corrected, corrected, damping=1e-3,
      ...     solver=sap.conjugate_gradient(tolerance=1e-5),
      ... )
      >>> print(params.round(1), certificate.converged)
      [1. 2.] True
    """
    check_positive("tolerance", tolerance)
    check_count("max_iterations", max_iterations, minimum=1)

    def solve(system: System) -> Solution:
        target = (tolerance * optax.tree.norm(system.rhs)) ** 2

        def running(state: Any) -> jax.Array:
            return (state[-1] == RUNNING) & (state[-2] < max_iterations)

        def step(state: Any) -> Any:
            x, residual, direction, square, iterations, _ = state
            product = system.product(direction)
            curvature = jnp.asarray(optax.tree.vdot(direction, product))
            usable = (curvature > 0) & jnp.isfinite(curvature)
            length = jnp.where(usable, square / curvature, 0)
            x = optax.tree.add_scale(x, length, direction)
            residual = optax.tree.add_scale(residual, -length, product)
            met = optax.tree.norm(residual, squared=True) <= target
            residual = lax.cond(met, lambda: _residual(system, x), lambda: residual)
            new_square = optax.tree.norm(residual, squared=True)
            ratio = jnp.where(met, 0, new_square / square)
            direction = optax.tree.add_scale(residual, ratio, direction)
            reason = jnp.where(new_square <= target, Reason.CONVERGED, RUNNING)
            reason = jnp.where(curvature > 0, reason, Reason.NEGATIVE_CURVATURE)
            finite = jnp.isfinite(curvature) & jnp.isfinite(new_square)
            reason = jnp.where(finite, reason, Reason.NOT_FINITE)
            return x, residual, direction, new_square, iterations + 1, reason.astype(jnp.int32)

        square = jnp.asarray(optax.tree.norm(system.rhs, squared=True))
        reason = jnp.where(square > 0, RUNNING, Reason.CONVERGED)
        reason = jnp.where(jnp.isfinite(square), reason, Reason.NOT_FINITE).astype(jnp.int32)
        start = (optax.tree.zeros_like(system.rhs), system.rhs, system.rhs, square)
        x, *_, iterations, reason = lax.while_loop(running, step, (*start, jnp.int32(0), reason))
        reason = jnp.where(reason == RUNNING, Reason.NO_CONVERGENCE, reason)
        return _solution(system, x, reason, iterations, tolerance)

    return solve


def lissa(
    *,
    num_iterations: int = 100,
    scale: float | None = None,
    tolerance: float = 0.1,
    batch_size: int | None = None,
    key: jax.Array | None = None,
) -> Solver:
    """Solves the system of a second-order step by LiSSA, on all examples or on random examples.

        x ← x + (rhs − (H + damping·I) x) / scale

    The fixed point is (H + damping·I)⁻¹ rhs for every scale, in units of the mean loss. The
    iteration reaches it if scale exceeds half the largest eigenvalue and no eigenvalue is negative.
    Then no iterate is longer than ‖rhs‖ scale / damping; a longer iterate ends the iteration with
    `NO_CONTRACTION`.

    Args:
      num_iterations: how many iterations, a Python integer of at least 1.
      scale: above 0, in units of the mean loss; None takes 1.5 times the largest eigenvalue, which
        10 power iterations from the right-hand side estimate.
      tolerance: the relative residual to reach on all examples, above 0. Random examples leave
        noise in it.
      batch_size: how many random examples each iteration sees, a Python integer of at least 1; None
        takes all examples.
      key: a JAX random key, needed with `batch_size`.

    Returns:
      A solver for `second_order_update`: a function from `System` to `Solution`.

    Raises:
      TypeError: if a count is no Python integer, or `scale` or `tolerance` no number.
      ValueError: if a number is out of range, or `batch_size` or `key` is given without the other.

    Cost: a product with H for each iteration, about 2 gradient equivalents on `batch_size`
      examples; one on all examples at the end, and 10 more if `scale` is None.

    Source: N. Agarwal, B. Bullins, E. Hazan, "Second-order stochastic optimization for machine
      learning in linear time" (arXiv 1602.03943); used by Warnecke et al. (arXiv 2108.11577).

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> def loss_fn(w, y):  # its Hessian is diag(1, 2)
      ...     return 0.5 * jnp.vdot(jnp.array([1.0, 2.0]), (w - y) ** 2)
      >>> original, corrected = jnp.array([[4.0, 4.0]]), jnp.array([[1.0, 2.0]])
      >>> params, certificate = sap.second_order_update(
      ...     loss_fn, jnp.array([4.0, 4.0]), original, corrected, corrected, damping=1e-3,
      ...     solver=sap.lissa(num_iterations=50, tolerance=0.01),
      ... )
      >>> print(params.round(1), certificate.converged)
      [1. 2.] True
    """
    check_count("num_iterations", num_iterations, minimum=1)
    check_positive("tolerance", tolerance)
    if scale is not None:
        check_positive("scale", scale)
    if batch_size is not None:
        check_count("batch_size", batch_size, minimum=1)
    if (batch_size is None) != (key is None):
        raise ValueError("`batch_size` and `key` must be given together.")

    def solve(system: System) -> Solution:
        width = _scale(system) if scale is None else jnp.asarray(scale)
        bound = optax.tree.norm(system.rhs) * width / system.damping

        def running(state: Any) -> jax.Array:
            _, length, iterations = state
            return (iterations < num_iterations) & (length <= bound * 1.001)

        def step(state: Any) -> Any:
            x, _, iterations = state
            if key is None or batch_size is None:
                curved = system.curvature(x)
            else:
                curved = system.sample(jax.random.fold_in(key, iterations), batch_size)(x)
            curved = optax.tree.add_scale(curved, system.damping, x)
            x = optax.tree.add_scale(x, 1 / width, optax.tree.sub(system.rhs, curved))
            return x, optax.tree.norm(x), iterations + 1

        start = optax.tree.scale(1 / width, system.rhs)
        state = (start, optax.tree.norm(start), jnp.int32(0))
        x, length, iterations = lax.while_loop(running, step, state)
        solution = _solution(system, x, Reason.CONVERGED, iterations, tolerance)
        grew = (length > bound * 1.001) | (solution.relative_residual > 1)
        reason = jnp.where(grew, Reason.NO_CONTRACTION, solution.reason)
        reason = jnp.where(jnp.isfinite(length), reason, Reason.NOT_FINITE)
        return solution._replace(reason=reason.astype(jnp.int32))

    return solve


def diagonal_solver(*, tolerance: float = 1.0) -> Solver:
    """Solves the system of a second-order step approximately, by one division by the diagonal.

    It computes x = rhs / (diag(H) + damping). This is exact if H is diagonal. Otherwise it is an
    approximation: the relative residual says how good, and more damping makes it better.

    Args:
      tolerance: the relative residual that the approximation may leave, above 0. At 1, the default,
        it must be better than no step.

    Returns:
      A solver for `second_order_update`: a function from `System` to `Solution`.

    Raises:
      TypeError: if `tolerance` is no number.
      ValueError: if `tolerance` is not above 0.

    Cost: one diagonal on `data`, by `exact_diagonal` or `gauss_newton_diagonal`, and one product
      with H, about 2 gradient equivalents.

    Source: own; known as the Jacobi preconditioner of iterative solvers.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> def loss_fn(w, y):  # its Hessian is diag(1, 2)
      ...     return 0.5 * jnp.vdot(jnp.array([1.0, 2.0]), (w - y) ** 2)
      >>> original, corrected = jnp.array([[4.0, 4.0]]), jnp.array([[1.0, 2.0]])
      >>> params, certificate = sap.second_order_update(
      ...     loss_fn, jnp.array([4.0, 4.0]), original, corrected, corrected, damping=1e-3,
      ...     solver=sap.diagonal_solver(),
      ... )
      >>> print(params.round(1), certificate.converged)
      [1. 2.] True
    """
    check_positive("tolerance", tolerance)

    def solve(system: System) -> Solution:
        def damped(selected: jax.Array, h: jax.Array) -> jax.Array:
            return jnp.where(selected, h + system.damping, 1)

        divisor = jax.tree.map(damped, system.mask, system.diagonal())
        positive = [jnp.all((d > 0) | jnp.isnan(d)) for d in jax.tree.leaves(divisor)]
        reason = jnp.where(
            jnp.all(jnp.asarray(positive)), Reason.CONVERGED, Reason.NEGATIVE_CURVATURE
        )
        x = jax.tree.map(jnp.divide, system.rhs, divisor)
        return _solution(system, x, reason, jnp.int32(1), tolerance)

    return solve


def dense_solver(*, count: int | None = None, tolerance: float = 1e-4) -> Solver:
    """Solves the system of a second-order step by a Cholesky factor of the whole matrix.

    It computes the k × k matrix of the selected entries, one column for each product with H,
    factors it, solves, and corrects the answer once by its residual. The cost does not depend on
    the conditioning of the matrix. Measured on a tanh network of 2,410 parameters and 1,200
    examples, it takes the time of 9 iterations of conjugate gradients for 16 entries, of 30 for 64,
    of 230 for 256. `second_order_update` takes it by default if at most 16 entries can be selected;
    beyond that, choose it for systems that are badly conditioned.

    Args:
      count: room for this many selected entries, a Python integer of at least 1; None has room for
        all parameters. If more are selected, the solver ends with `NO_CONVERGENCE`.
      tolerance: the relative residual to reach, above 0.

    Returns:
      A solver for `second_order_update`: a function from `System` to `Solution`. It joins the tree
      into one vector, which gathers parameters that are spread over devices.

    Raises:
      TypeError: if `count` is no Python integer or `tolerance` no number.
      ValueError: if `count` is below 1 or `tolerance` not above 0.

    Cost: `count` products with H and 2 more, about 2 gradient equivalents each; memory for
      `count`² numbers, and `count`³/3 operations.

    Source: Cholesky's factorisation with one step of iterative refinement; see N. J. Higham,
      "Accuracy and Stability of Numerical Algorithms" (2002), chapters 10 and 12.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> def loss_fn(w, y):  # its Hessian is diag(1, 2)
      ...     return 0.5 * jnp.vdot(jnp.array([1.0, 2.0]), (w - y) ** 2)
      >>> original, corrected = jnp.array([[4.0, 4.0]]), jnp.array([[1.0, 2.0]])
      >>> params, certificate = sap.second_order_update(
      ...     loss_fn, jnp.array([4.0, 4.0]), original, corrected, corrected, damping=1e-3,
      ...     solver=sap.dense_solver(count=2),
      ... )
      >>> print(params.round(1), certificate.converged)
      [1. 2.] True
    """
    check_positive("tolerance", tolerance)
    if count is not None:
        check_count("count", count, minimum=1)

    def solve(system: System) -> Solution:
        rhs, unravel = ravel_pytree(system.rhs)
        size = rhs.size
        room = size if count is None else min(count, size)
        if room == 0:
            return _solution(system, system.rhs, Reason.CONVERGED, jnp.int32(0), tolerance)
        selected = ravel_pytree(system.mask)[0]
        positions = jnp.flatnonzero(selected, size=room, fill_value=size)

        def pack(tree: Any) -> jax.Array:
            return ravel_pytree(tree)[0].at[positions].get(mode="fill", fill_value=0)

        def unpack(vector: jax.Array) -> Any:
            return unravel(jnp.zeros_like(rhs).at[positions].set(vector, mode="drop"))

        column = lambda unit: pack(system.curvature(unpack(unit)))
        matrix = lax.map(column, jnp.eye(room, dtype=rhs.dtype), batch_size=CHUNK)
        # A place without an entry has the curvature 0, so damping makes it a row of the identity.
        matrix = (matrix + matrix.T) / 2 + system.damping * jnp.eye(room, dtype=rhs.dtype)
        factor = jnp.linalg.cholesky(matrix)
        invert = lambda vector: jax.scipy.linalg.cho_solve((factor, True), vector)
        x = unpack(invert(pack(system.rhs)))
        x = optax.tree.add(x, unpack(invert(pack(_residual(system, x)))))
        positive = jnp.all(jnp.isfinite(factor)) | ~jnp.all(jnp.isfinite(matrix))
        reason = jnp.where(positive, Reason.CONVERGED, Reason.NEGATIVE_CURVATURE)
        return _solution(system, x, reason, jnp.int32(1), tolerance)

    return solve


def _residual(system: System, x: Params) -> Params:
    return optax.tree.sub(system.rhs, system.product(x))


def _solution(
    system: System, x: Params, reason: Any, iterations: jax.Array, tolerance: float
) -> Solution:
    """Looks at the answer itself: whatever a solver believes, its residual decides."""
    length = optax.tree.norm(system.rhs)
    relative = optax.tree.norm(_residual(system, x)) / jnp.where(length > 0, length, 1)
    believed = jnp.asarray(reason) == Reason.CONVERGED
    # A residual computed twice may differ in its last bits.
    found = jnp.where(relative <= tolerance * 1.01, Reason.CONVERGED, Reason.NO_CONVERGENCE)
    found = jnp.where(jnp.isfinite(relative), found, Reason.NOT_FINITE)
    reason = jnp.where(believed, found, reason)
    return Solution(x, reason.astype(jnp.int32), iterations, relative)


def _scale(system: System) -> jax.Array:
    """1.5 times the largest eigenvalue in size, by power iterations from the right-hand side."""

    def step(_: Any, state: Any) -> Any:
        v, _ = state
        v = system.product(v)
        length = optax.tree.norm(v)
        return optax.tree.scale(1 / jnp.where(length > 0, length, 1), v), length

    length = optax.tree.norm(system.rhs)
    unit = optax.tree.scale(1 / jnp.where(length > 0, length, 1), system.rhs)
    _, largest = lax.fori_loop(0, POWER_ITERATIONS, step, (unit, jnp.zeros_like(length)))
    return jnp.where(largest > 0, 1.5 * largest, 1)
