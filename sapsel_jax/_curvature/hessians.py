"""Second derivatives as derivatives of a gradient, with custom rules as they stand.

They are taken forward over reverse. Where a custom rule can only be run in reverse, they are taken
reverse over reverse: the transpose, which has the same diagonal.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from sapsel_jax._graph.equations import all_equations
from sapsel_jax._graph.rules import has_rule, is_from_jax


def hessian_vector(
    fn: Callable[[Any], jax.Array], point: Any, vector: Any, *, has_rules: bool = True
) -> Any:
    """The Hessian of a function times a vector; without custom rules there is less to look at."""
    gradient = jax.grad(fn)
    if not has_rules or _runs_forward(fn, gradient, point):
        return jax.jvp(gradient, (point,), (vector,))[1]
    return _in_reverse(gradient, point)(vector)


def hessian_map(fn: Callable[[Any], jax.Array], point: Any) -> Callable[[Any], Any]:
    """The product of vectors with a Hessian, with what does not depend on the vector done."""
    gradient = jax.grad(fn)
    if _runs_forward(fn, gradient, point):
        return jax.linearize(gradient, point)[1]
    return _in_reverse(gradient, point)


def hessian(fn: Callable[[jax.Array], jax.Array], point: jax.Array) -> jax.Array:
    """The Hessian of a function of a vector."""
    gradient = jax.grad(fn)
    if _runs_forward(fn, gradient, point):
        return jax.jacfwd(gradient)(point)
    return jax.vmap(_in_reverse(gradient, point))(jnp.eye(point.size, dtype=point.dtype))


def jacobian_maps(
    fn: Callable[[Any], Any], point: Any
) -> tuple[Any, Callable[[Any], Any], Callable[[Any], Any]]:
    """The value of a function, and the products of vectors with its Jacobian and the transpose."""
    if _runs_forward(fn, fn, point):
        value, push = jax.linearize(fn, point)
        back = jax.linear_transpose(push, point)
    else:
        value, back = jax.vjp(fn, point)
        forth = jax.linear_transpose(lambda vector: back(vector)[0], value)
        push = lambda vector: forth(vector)[0]
    return value, push, lambda vector: back(vector)[0]


def _in_reverse(gradient: Callable[[Any], Any], point: Any) -> Callable[[Any], Any]:
    """The transposed derivative of a gradient as the function that multiplies a vector by it."""
    with _refusal():
        back = jax.vjp(gradient, point)[1]

    def product(vector: Any) -> Any:
        with _refusal():
            return back(vector)[0]

    return product


@contextlib.contextmanager
def _refusal() -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError) as error:  # equinox raises the second
        raise NotImplementedError(
            "JAX has no second derivatives of this function: a custom rule in it runs in reverse "
            "only, and cannot be run in reverse twice. Choose a solver or a loop that can be "
            "differentiated twice (in diffrax `adjoint=DirectAdjoint()`), or take first "
            "derivatives alone (`empirical_fisher_diagonal`)."
        ) from error


def _runs_forward(fn: Callable[[Any], Any], derived: Callable[[Any], Any], point: Any) -> bool:
    """Whether `derived`, which is `fn` or its gradient, has a forward derivative."""
    steps = [eqn for _, eqn in all_equations(jax.make_jaxpr(fn)(point).jaxpr) if has_rule(eqn)]
    if all(eqn.primitive.name == "custom_jvp_call" and is_from_jax(eqn) for eqn in steps):
        return True
    push = lambda point, vector: jax.jvp(derived, (point,), (vector,))[1]
    try:
        jaxpr = jax.make_jaxpr(push)(point, point).jaxpr
    except (TypeError, RuntimeError):  # equinox raises the second
        return False
    # JAX may leave in the place of a derivative that does not exist an operation that fails later.
    return all(eqn.primitive.name != "custom_lin" for _, eqn in all_equations(jaxpr))
