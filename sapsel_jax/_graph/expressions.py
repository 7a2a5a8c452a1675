"""Whether two results of a jaxpr are the same expression of its inputs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend import core

from sapsel_jax._graph.equations import CALLS, open_jaxpr

VALUES = {*CALLS, "custom_jvp_call"}
"""Operations whose value is that of the jaxpr that they hold."""

Table = dict[Any, int]
"""A number for every expression. The same expression, met again, has the same number."""


def number_inputs(jaxpr: Any, table: Table) -> list[int]:
    """The numbers of the inputs of a jaxpr."""
    return [_number(table, "input", i, str(var.aval)) for i, var in enumerate(jaxpr.invars)]


def number_outputs(
    jaxpr: Any, consts: Sequence[Any], inputs: Sequence[int], table: Table
) -> list[int]:
    """The numbers of the results of a jaxpr whose inputs have these numbers."""
    known = dict(zip(jaxpr.invars, inputs, strict=True))
    known.update((v, _constant(table, c)) for v, c in zip(jaxpr.constvars, consts, strict=True))

    def read(atom: Any) -> int:
        if isinstance(atom, core.Literal):
            aval: Any = atom.aval
            return _constant(table, np.asarray(atom.val, aval.dtype))
        return known[atom]

    for eqn in jaxpr.eqns:
        name, ins = eqn.primitive.name, [read(atom) for atom in eqn.invars]
        body = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr")) if name in VALUES else None
        if body is not None:
            outs = number_outputs(*open_jaxpr(body), ins, table)
        else:
            params = tuple((key, _param(value, table)) for key, value in sorted(eqn.params.items()))
            outs = [_number(table, name, params, *ins, i) for i in range(len(eqn.outvars))]
        known.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _number(table: Table, *key: Any) -> int:
    return table.setdefault(key, len(table))


def _constant(table: Table, value: Any) -> int:
    if isinstance(value, np.ndarray):
        return _number(table, "literal", str(value.dtype), value.shape, value.tobytes())
    return _number(table, "constant", id(value))


def _param(value: Any, table: Table) -> Any:
    """A parameter of an operation as something that can be compared."""
    if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
        jaxpr, consts = open_jaxpr(value)
        return tuple(number_outputs(jaxpr, consts, number_inputs(jaxpr, table), table))
    if isinstance(value, list | tuple):
        return type(value), tuple(_param(item, table) for item in value)
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value
