"""The equations of a jaxpr as functions."""

from collections.abc import Callable, Sequence
from typing import Any

from jax.extend import core

from sapsel_jax._primitives.signature import Signature
from sapsel_jax._primitives.table import TABLE, UNKNOWN

CALLS = {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"}


def open_jaxpr(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """A jaxpr and its constants, closed or not."""
    return (jaxpr.jaxpr, jaxpr.consts) if isinstance(jaxpr, core.ClosedJaxpr) else (jaxpr, ())


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


def is_elementwise(eqn: Any) -> bool:
    """Whether every entry of the result depends on the same entry of each input alone."""
    name = eqn.primitive.name
    if len(eqn.outvars) != 1:
        return False
    if name in CALLS or name == "custom_jvp_call":
        body, _ = open_jaxpr(eqn.params.get("jaxpr", eqn.params.get("call_jaxpr")))
        return all(is_elementwise(inner) for inner in body.eqns)
    return TABLE.get(name, UNKNOWN).elementwise
