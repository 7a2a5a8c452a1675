"""How a curvature is called that may or may not take a key."""

import inspect
from collections.abc import Callable
from inspect import Parameter
from typing import Any

import jax

from sapsel_jax._base.types import Batch, Diagonal, Params


def call_curvature(
    curvature: Callable[..., Diagonal],
    params: Params,
    batch: Batch,
    key: jax.Array,
    args: tuple[Any, ...],
) -> Diagonal:
    """Calls `curvature(params, batch, key, *args)`, without the key where it has no place for one.

    The place is the third positional parameter: where it must be filled and is not needed for
    `args`, or where it is named `key`. A keyword that must be given and is named `key` is one, too.
    """
    try:
        signature = inspect.signature(curvature)
    except ValueError:  # some compiled functions show none
        return curvature(params, batch, *args)
    except TypeError:
        kind = type(curvature).__name__
        raise TypeError(f"`curvature` must be a function; got {kind}.") from None
    takes_key = _has_place(list(signature.parameters.values()), len(args))
    inputs = (params, batch, *([key] if takes_key else []), *args)
    own = signature.parameters.get("key")
    must_name = own is not None and own.kind is own.KEYWORD_ONLY and own.default is own.empty
    named = {"key": key} if must_name else {}
    try:
        signature.bind(*inputs, **named)
    except TypeError:
        given = f", here with {len(args)} of `args`" if args else ""
        raise TypeError(
            "`curvature` must take `(params, batch, key, *args)` or `(params, batch, *args)`"
            f"{given}; it takes `{_without_defaults(signature)}`."
        ) from None
    return curvature(*inputs, **named)


def _without_defaults(signature: inspect.Signature) -> inspect.Signature:
    """The names alone: a default may be a whole array."""
    empty = Parameter.empty
    names = [one.replace(default=empty, annotation=empty) for one in signature.parameters.values()]
    return inspect.Signature(names)


def _has_place(parameters: list[Parameter], num_args: int) -> bool:
    """Whether there is a third positional parameter for a key."""
    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    positional = [one for one in parameters if one.kind in kinds]
    if len(positional) < 3:
        return False
    required = sum(one.default is one.empty for one in positional)
    takes_more = any(one.kind is one.VAR_POSITIONAL for one in parameters)
    # Before `*args` the third is the key: `args` go behind it. Without, it may be one of them.
    if required >= 3 and (takes_more or required > 2 + num_args):
        return True
    return positional[2].name == "key"
