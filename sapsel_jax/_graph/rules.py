"""Custom derivative rules: what may be said of an operation that carries one.

A rule replaces the derivative of a value, so nothing is read from the value alone. JAX takes the
first derivative from the tangent that the rule returns, and differentiates for the second one both
this tangent and the value that the rule returns with it. These two can contradict each other: a
rule for rounding that returns `round(x), t` has the slope 1 the first time and 0 the second time.
An operation whose rule can be shown to agree with itself is treated like any other, with the rule
for its derivative. All others are *ruled*: they are only run as a whole, inside of `jax.jvp` of
`jax.grad`, whose answer is the one that counts.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend import core

from sapsel_jax._graph.equations import (
    CALLS,
    all_equations,
    as_function,
    has_rule,
    inner_jaxprs,
    open_jaxpr,
)
from sapsel_jax._graph.expressions import Table, number_inputs, number_outputs
from sapsel_jax._primitives.table import TABLE, UNKNOWN

ORDERS = 2
"""How many derivatives of an operation are used."""

_JAX = str(pathlib.Path(jax.__file__).parent)


class ClosedOver(Exception):
    """A rule closes over traced values, so that it can only be run where it was written."""


def judge(jaxpr: Any, eqn: Any, *, moves: bool) -> tuple[bool, bool]:
    """Whether an equation is ruled, and whether it is elementwise, its derivatives included.

    Derivatives count where it `moves`, that is, where its inputs depend on the parameters.
    """
    if not moves:
        return False, _is_elementwise(jaxpr, eqn, order=0)
    if eqn.primitive.name != "custom_jvp_call":
        return _is_ruled(jaxpr, eqn), _is_elementwise(jaxpr, eqn, ORDERS)
    rule = _consistent_rule(jaxpr, eqn)
    if rule is None:
        return True, False
    return False, _is_elementwise_under(eqn, rule, ORDERS)


def loses_rules(eqn: Any) -> bool:
    """Whether an equation is a scan that loses custom rules when it is differentiated twice.

    Inside of a scan JAX computes the value that a rule returns without any rules. Where this value
    is computed by functions with rules, the scan is not the loop that it looks like. The functions
    of JAX itself do not count: their rules are the derivatives of their values.
    """
    if eqn.primitive.name != "scan":
        return False
    steps = [pair for body in inner_jaxprs(eqn) for pair in all_equations(body)]
    return any(has_rule(x) and not is_from_jax(x) and _calls_rules(body, x) for body, x in steps)


def is_from_jax(eqn: Any) -> bool:
    """Whether an operation with a custom rule is a function of JAX itself."""
    body, _ = open_jaxpr(eqn.params["call_jaxpr"])
    return _JAX in str(body.debug_info.func_src_info)


def _calls_rules(jaxpr: Any, eqn: Any) -> bool:
    """Whether the value that a custom rule returns is computed by functions with custom rules."""
    body = _value_of_rule(jaxpr, eqn)
    return body is None or any(has_rule(step) for _, step in all_equations(body))


def _value_of_rule(jaxpr: Any, eqn: Any) -> Any:
    """The jaxpr of the value that a custom rule returns; None without a reverse derivative."""
    fn, inputs, floats = _of_floats(jaxpr, eqn)

    def pull(inputs: Any, points: Any) -> Any:
        value, back = jax.vjp(lambda *x: fn(inputs, *x), *points)
        return value, back(value)

    closed = _try(pull, inputs, [inputs[i] for i in floats])
    return closed and _only(closed.jaxpr, len(eqn.outvars))


def _try(fn: Callable[..., Any], *inputs: Any) -> Any:
    """The jaxpr of a function; None where JAX has no such derivative."""
    try:
        closed = jax.make_jaxpr(fn)(*inputs)
    except Exception as error:
        known = isinstance(error, TypeError | ValueError | NotImplementedError)
        if known and not isinstance(error, jax.errors.UnexpectedTracerError):
            return None
        raise ClosedOver from error
    if any(isinstance(value, Tracer) for value in closed.consts):
        raise ClosedOver
    return closed


def _is_ruled(jaxpr: Any, eqn: Any) -> bool:
    """Whether a custom rule contradicts itself or can only be run in reverse, here or inside."""
    name = eqn.primitive.name
    if name == "custom_jvp_call":
        return _consistent_rule(jaxpr, eqn) is None
    if has_rule(eqn):
        _value_of_rule(jaxpr, eqn)  # raises `ClosedOver` where it cannot be run
        return True
    return loses_rules(eqn) or any(
        _is_ruled(body, step) for body in inner_jaxprs(eqn) for step in body.eqns
    )


def _consistent_rule(jaxpr: Any, eqn: Any) -> Any:
    """The jaxpr of (inputs, tangents) -> tangents by the rule of a `custom_jvp`.

    None unless the rule returns the value of the operation, and this value has, by the rules inside
    of the rule, the tangents that are returned with it.
    """
    fn, inputs, floats = _of_floats(jaxpr, eqn)

    def twice(inputs: Any, tangents: Any) -> Any:
        points = tuple(inputs[i] for i in floats)
        rule = lambda *points: jax.jvp(lambda *x: fn(inputs, *x), points, tangents)
        value, slope = rule(*points)
        again = jax.jvp(lambda *points: rule(*points)[0], points, tangents)[1]
        return slope, value, again, fn(inputs, *points)

    closed = _try(twice, inputs, tuple(inputs[i] for i in floats))
    if closed is None:
        return None
    table: Table = {}
    found = number_outputs(closed.jaxpr, closed.consts, number_inputs(closed.jaxpr, table), table)
    if found[: len(found) // 2] != found[len(found) // 2 :]:
        return None
    rule = _only(closed.jaxpr, len(eqn.outvars))
    # What the rule calls is differentiated once more, which a reverse rule cannot be forward.
    names = [step.primitive.name for _, step in all_equations(rule)]
    return None if any(name.startswith("custom_vjp_call") for name in names) else rule


def _of_floats(jaxpr: Any, eqn: Any) -> tuple[Callable[..., Any], list[Any], list[int]]:
    """An equation as `fn(inputs, *floats)`, with its inputs' shapes, and which of them are real."""
    inputs = [jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype) for atom in eqn.invars]
    floats = [i for i, x in enumerate(inputs) if jnp.issubdtype(x.dtype, jnp.floating)]
    apply = as_function(jaxpr, eqn)

    def fn(inputs: Any, *points: Any) -> Any:
        full = list(inputs)
        for i, point in zip(floats, points, strict=True):
            full[i] = point
        return apply(*full)

    return fn, inputs, floats


def _is_elementwise(jaxpr: Any, eqn: Any, order: int) -> bool:
    """Whether each entry of the result depends on the same entry of each input alone."""
    name = eqn.primitive.name
    if len(eqn.outvars) != 1:
        return False
    if name in CALLS:
        body, _ = open_jaxpr(eqn.params.get("jaxpr", eqn.params.get("call_jaxpr")))
        return _all_elementwise(body, order)
    if name == "custom_jvp_call":
        rule = _consistent_rule(jaxpr, eqn) if order else None
        return (not order or rule is not None) and _is_elementwise_under(eqn, rule, order)
    return TABLE.get(name, UNKNOWN).elementwise


def _is_elementwise_under(eqn: Any, rule: Any, order: int) -> bool:
    """The same of a `custom_jvp` with this rule: of its value, and of as many derivatives."""
    body, _ = open_jaxpr(eqn.params["call_jaxpr"])
    is_value = len(eqn.outvars) == 1 and _all_elementwise(body, order=0)
    return is_value and (not order or _all_elementwise(rule, order - 1))


def _all_elementwise(jaxpr: Any, order: int) -> bool:
    """The same of every step from the inputs of a jaxpr to its results."""
    moving = set(jaxpr.invars)
    for eqn in jaxpr.eqns:
        if moving.intersection(_variables(eqn.invars)):
            if not _is_elementwise(jaxpr, eqn, order):
                return False
            moving.update(eqn.outvars)
    return True


def _only(jaxpr: Any, count: int) -> Any:
    """A jaxpr with the first of its results alone, and the equations that they depend on."""
    outvars = jaxpr.outvars[:count]
    wanted, used = _variables(outvars), []
    for eqn in reversed(jaxpr.eqns):
        if wanted.intersection(eqn.outvars):
            wanted |= _variables(eqn.invars)
            used.append(eqn)
    return jaxpr.replace(outvars=outvars, eqns=used[::-1])


def _variables(atoms: Any) -> set[Any]:
    return {atom for atom in atoms if not isinstance(atom, core.Literal)}
