"""The equations of a jaxpr as functions."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.extend import core

from sapsel_jax._primitives.signature import Signature
from sapsel_jax._primitives.table import TABLE, UNKNOWN

CALLS = {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"}


def open_jaxpr(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """A jaxpr and its constants, closed or not."""
    return (jaxpr.jaxpr, jaxpr.consts) if isinstance(jaxpr, core.ClosedJaxpr) else (jaxpr, ())


def inner_jaxprs(eqn: Any) -> Iterator[Any]:
    """The jaxprs among the parameters of an equation."""
    is_jaxpr = lambda value: isinstance(value, core.ClosedJaxpr | core.Jaxpr)
    for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_jaxpr):
        if is_jaxpr(value):
            yield open_jaxpr(value)[0]


def all_equations(jaxpr: Any) -> Iterator[tuple[Any, Any]]:
    """The equations of a jaxpr and of those that they hold, each with the jaxpr that it stands in.

    What operations with custom rules hold is left out, as their rules take its place.
    """
    for eqn in jaxpr.eqns:
        yield jaxpr, eqn
        if not has_rule(eqn):
            for body in inner_jaxprs(eqn):
                yield from all_equations(body)


def has_rule(eqn: Any) -> bool:
    """Whether an equation has a custom derivative rule."""
    return eqn.primitive.name.startswith(("custom_jvp_call", "custom_vjp_call"))


def as_function(jaxpr: Any, eqn: Any) -> Callable[..., Sequence[Any]]:
    """The operation of an equation as a function, custom derivative rules included."""
    facts = TABLE.get(eqn.primitive.name, UNKNOWN)
    shapes = tuple(atom.aval.shape for atom in eqn.invars)
    if facts.run is not None:
        better = facts.run(Signature(eqn.params, shapes, eqn.outvars[0].aval.shape))
        if better is not None:
            return better
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


def broadcasts_to(shapes: Sequence[tuple[int, ...]], shape: tuple[int, ...]) -> bool:
    """Whether all are scalars or, axis by axis, of length 1 or that of `shape`."""
    return all(
        not s or (len(s) == len(shape) and all(a in (1, b) for a, b in zip(s, shape, strict=True)))
        for s in shapes
    )
