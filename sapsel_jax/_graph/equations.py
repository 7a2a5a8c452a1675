"""The equations of a jaxpr as functions."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

PROMISED = lax.GatherScatterMode.PROMISE_IN_BOUNDS
CALLS = {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"}
ZERO_DERIVATIVE = {"stop_gradient", "sign", "floor", "ceil", "round"}
PASSING = {"add", "sub", "add_any", "neg", "convert_element_type", "copy", "copy_p"}
ELEMENTWISE = PASSING | {
    "mul",
    "div",
    "max",
    "min",
    "select_n",
    "clamp",
    "exp",
    "exp2",
    "log",
    "log1p",
    "expm1",
    "tanh",
    "logistic",
    "erf",
    "erfc",
    "erf_inv",
    "sin",
    "cos",
    "tan",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "asinh",
    "acosh",
    "atanh",
    "atan2",
    "lgamma",
    "digamma",
    "integer_pow",
    "pow",
    "sqrt",
    "rsqrt",
    "cbrt",
    "square",
    "abs",
    "reduce_precision",
}


def open_jaxpr(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """A jaxpr and its constants, closed or not."""
    return (jaxpr.jaxpr, jaxpr.consts) if isinstance(jaxpr, core.ClosedJaxpr) else (jaxpr, ())


def as_function(jaxpr: Any, eqn: Any) -> Callable[..., Sequence[Any]]:
    """The operation of an equation as a function, custom derivative rules included."""
    if eqn.primitive.name == "dot_general":
        shapes = [atom.aval.shape for atom in eqn.invars]
        return functools.partial(_dot_general, shapes, eqn.outvars[0].aval.shape, eqn.params)
    if eqn.primitive.name == "gather" and eqn.params["mode"] == PROMISED:
        return functools.partial(_gather, eqn.params)
    variables = [atom for atom in eqn.invars if not isinstance(atom, core.Literal)]
    first = [variables.index(var) == i for i, var in enumerate(variables)]
    alone = jaxpr.replace(
        constvars=(),
        invars=[var for var, keep in zip(variables, first, strict=True) if keep],
        outvars=eqn.outvars,
        eqns=[eqn],
    )
    fn = core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))
    literal = [isinstance(atom, core.Literal) for atom in eqn.invars]

    def apply(*values: Any) -> Sequence[Any]:
        arguments = [x for x, fixed in zip(values, literal, strict=True) if not fixed]
        return fn(*(x for x, keep in zip(arguments, first, strict=True) if keep))

    return apply


def _dot_general(
    shapes: Sequence[tuple[int, ...]],
    out_shape: tuple[int, ...],
    params: dict[str, Any],
    lhs: jax.Array,
    rhs: jax.Array,
) -> Sequence[Any]:
    """`lax.dot_general` without the free axes of length 1, which XLA copies arrays for."""
    contracted, batch = params["dimension_numbers"]
    operands, numbers = [], []
    for side, x in enumerate((lhs, rhs)):
        bound = (*contracted[side], *batch[side])
        kept = [a for a, size in enumerate(shapes[side]) if a in bound or size != 1]
        operands.append(x.reshape([shapes[side][a] for a in kept]))
        numbers.append([tuple(kept.index(a) for a in axes[side]) for axes in (contracted, batch)])
    (lhs_contracted, lhs_batch), (rhs_contracted, rhs_batch) = numbers
    out = lax.dot_general(
        operands[0],
        operands[1],
        ((lhs_contracted, rhs_contracted), (lhs_batch, rhs_batch)),
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )
    return [out.reshape(out_shape)]


def _gather(params: dict[str, Any], table: jax.Array, ids: jax.Array) -> Sequence[Any]:
    """`lax.gather` where ids are promised to be in range, with one derivative where they are not.

    JAX's forward derivative reads the nearest entry there and its reverse derivative is 0: tangents
    and cotangents would be of different functions. Here both are 0.
    """
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    options = {key: params[key] for key in ("indices_are_sorted", "unique_indices")}
    gather = functools.partial(lax.gather, dimension_numbers=numbers, slice_sizes=sizes, **options)

    @jax.custom_jvp
    def read(table: jax.Array, ids: jax.Array) -> jax.Array:
        return gather(table, ids, mode=PROMISED)

    read.defjvps(lambda t, _, __, ids: gather(t, ids, mode="fill", fill_value=0), None)
    return [read(table, ids)]


def broadcasts_to(shapes: Sequence[tuple[int, ...]], shape: tuple[int, ...]) -> bool:
    """Whether all are scalars or, axis by axis, of length 1 or that of `shape`."""
    return all(
        not s or (len(s) == len(shape) and all(a in (1, b) for a, b in zip(s, shape, strict=True)))
        for s in shapes
    )


def is_elementwise(eqn: Any) -> bool:
    """Whether every entry of the result depends on the same entry of each input alone."""
    name = eqn.primitive.name
    if len(eqn.outvars) != 1:
        return False
    if name in CALLS or name == "custom_jvp_call":
        body, _ = open_jaxpr(eqn.params.get("jaxpr", eqn.params.get("call_jaxpr")))
        return all(is_elementwise(inner) for inner in body.eqns)
    if eqn.outvars[0].aval.dtype == jnp.bool_:
        return name in {"eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "is_finite"}
    return name in ELEMENTWISE or name in ZERO_DERIVATIVE
