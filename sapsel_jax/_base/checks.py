"""Checks of arguments and trees, and their wording.

Only static facts are checked (types, structures, shapes, dtypes), so every check works on traced
arrays and on `jax.ShapeDtypeStruct`, and none is ever raised from a traced value.
"""

import math
import numbers
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr, tree_flatten_with_path

from sapsel_jax._base.bits import is_number

T = TypeVar("T")


def path_name(path: Any) -> str:
    """The key path of a leaf as text, `layer/kernel`; an array that is the whole tree has none."""
    return keystr(path, simple=True, separator="/")


def _where(path: Any) -> str:
    return f"leaf '{path_name(path)}'" if path else "the array"


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def check_fraction(name: str, value: Any) -> None:
    """A Python number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` must be a Python number; got {type(value).__name__}.")
    if not 0 <= float(value) <= 1:
        raise ValueError(f"`{name}` must lie in [0, 1]; got {value}.")


def check_integer(name: str, value: Any) -> None:
    """A Python integer."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"`{name}` must be a Python integer; got {type(value).__name__}.")


def check_count(name: str, value: Any, *, minimum: int) -> None:
    """A Python integer of at least `minimum`."""
    check_integer(name, value)
    if value < minimum:
        raise ValueError(f"`{name}` must be at least {minimum}; got {value}.")


def check_number(name: str, value: Any, *, minimum: float) -> None:
    """A finite number of at least `minimum`; traced numbers pass, their values cannot be seen."""
    number = _number(name, value)
    if number is not None and not (math.isfinite(number) and number >= minimum):
        raise ValueError(f"`{name}` must be finite and at least {minimum:g}; got {number:g}.")


def check_positive(name: str, value: Any) -> None:
    """A finite number above 0; traced numbers pass, their values cannot be seen."""
    number = _number(name, value)
    if number is not None and not (math.isfinite(number) and number > 0):
        raise ValueError(f"`{name}` must be finite and above 0; got {number:g}.")


def _number(name: str, value: Any) -> float | None:
    """The value of a real number, None where it is traced; no truth value, text or decimal."""
    if hasattr(value, "dtype"):
        if not _is_real(value.dtype) or jnp.shape(value) != ():
            raise TypeError(f"`{name}` must be a number; got {_kind(value)}.")
        return None if isinstance(value, Tracer) else float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"`{name}` must be a number; got {type(value).__name__}.")
    return float(value)


def _is_real(dtype: Any) -> bool:
    """Whether a number of this dtype can be reckoned with; floats of 8 bits are for storage."""
    if _unknown_dtype(dtype) is not None:
        return False
    is_float = jnp.issubdtype(dtype, jnp.floating)
    return jnp.finfo(dtype).bits >= 16 if is_float else jnp.issubdtype(dtype, jnp.integer)


def _unknown_dtype(dtype: Any) -> str | None:
    """How to get rid of a dtype that NumPy has and JAX has not; None where JAX has it."""
    if not isinstance(dtype, np.dtype) or dtype == jax.dtypes.float0 or is_number(dtype):
        return None
    if not dtype.isnative:
        return "`x.astype(x.dtype.newbyteorder('='))`"
    if dtype.kind in "fc":
        return f"`x.astype({'float' if dtype.kind == 'f' else 'complex'})`"
    return "an array of numbers"


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """One of a few words."""
    if value not in choices:
        allowed = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"`{name}` must be {allowed}; got {value!r}.")


def check_scalar(name: str, returned: Any, *, differentiable: bool = True) -> None:
    """One real scalar, as a function returned it; whole numbers only where none is differentiated.

    It is called while the function is traced, so that it costs no trace of its own.
    """
    if _is_scalar(returned, differentiable):
        return
    hint = ""
    if isinstance(returned, tuple | list | dict):
        hint = ": return the scalar alone"
        if isinstance(returned, tuple | list) and returned and _is_scalar(returned[0], True):
            hint += f", for instance by `lambda *args: {name}(*args)[0]`"
    raise TypeError(f"`{name}` must return one real scalar; it returned {_kind(returned)}{hint}.")


def _is_scalar(value: Any, differentiable: bool) -> bool:
    if not hasattr(value, "dtype"):
        return isinstance(value, float if differentiable else (float, int))
    kinds = (jnp.floating,) if differentiable else (jnp.floating, jnp.integer, jnp.bool_)
    return jnp.shape(value) == () and any(jnp.issubdtype(value.dtype, kind) for kind in kinds)


def _kind(value: Any) -> str:
    """What a value is, in a word or two."""
    if hasattr(value, "dtype"):
        dtype = "float0" if value.dtype == jax.dtypes.float0 else value.dtype
        return f"{dtype}{list(jnp.shape(value))}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"a value of type {type(value).__name__}"


def check_float_leaves(name: str, tree: Any) -> None:
    """A pytree whose leaves are real floating-point arrays."""
    for where, dtype in _leaf_dtypes(name, tree):
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"`{name}` must hold real floating-point arrays; {where} has dtype {dtype}."
            )


def check_bool_leaves(name: str, mask: Any) -> None:
    """A pytree of bool arrays."""
    for where, dtype in _leaf_dtypes(name, mask):
        if dtype != jnp.bool_:
            raise TypeError(f"`{name}` must hold bool arrays; {where} has dtype {dtype}.")


def check_arrays(name: str, tree: Any, *, keys: bool = False) -> None:
    """A pytree of arrays; of random keys only where `keys` says so."""
    for where, dtype in _leaf_dtypes(name, tree):
        if not keys and jnp.issubdtype(dtype, jax.dtypes.extended):
            raise TypeError(f"`{name}` must hold arrays of numbers; {where} has dtype {dtype}.")


def _leaf_dtypes(name: str, tree: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in tree_flatten_with_path(tree)[0]:
        try:
            dtype = _dtype(leaf)
        except TypeError:
            kind = type(leaf).__name__
            hint = ""
            if callable(leaf):  # as a layer's activation is
                hint = " Keep the arrays alone, of an equinox module by "
                hint += "`eqx.filter(module, eqx.is_inexact_array)`."
            raise TypeError(
                f"`{name}` must hold arrays only; {_where(path)} is a {kind}.{hint}"
            ) from None
        remedy = _unknown_dtype(dtype)
        if remedy is not None:
            raise TypeError(
                f"`{name}` must hold arrays of dtypes that JAX has; {_where(path)} has dtype "
                f"{dtype}: hand over {remedy}."
            )
        yield _where(path), dtype


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree, each with its path as text."""
    return [(path_name(path), leaf) for path, leaf in tree_flatten_with_path(tree)[0]]


def named_shapes(tree: Any) -> list[tuple[str, jax.ShapeDtypeStruct]]:
    """The shape and dtype of every leaf of a tree, each with its path as text."""
    return [
        (name, jax.ShapeDtypeStruct(jnp.shape(leaf), _dtype(leaf)))
        for name, leaf in named_leaves(tree)
    ]


def by_path(leaves: Sequence[tuple[str, T]]) -> list[tuple[str, T]]:
    """Named leaves in the order of their paths, whatever container they came from."""
    return sorted(leaves, key=lambda leaf: leaf[0])


def places_of(wanted: Sequence[str], paths: Sequence[str]) -> list[int]:
    """For each wanted path its place among `paths`, which are the same in another order."""
    where = by_path([(path, place) for place, path in enumerate(paths)])
    order = by_path([(path, place) for place, path in enumerate(wanted)])
    found = [0] * len(wanted)
    for (_, place), (_, want) in zip(where, order, strict=True):
        found[want] = place
    return found


def check_same_tree(name: str, tree: Any, like_name: str, like: Any) -> None:
    """Two pytrees of one structure, leaf by leaf of one shape."""
    check_same_leaves(name, named_shapes(tree), like_name, named_shapes(like))
    if jax.tree.structure(tree) != jax.tree.structure(like):
        raise ValueError(
            f"`{name}` and `{like_name}` must have the same structure; their containers differ."
        )


def check_same_leaves(
    name: str,
    leaves: list[tuple[str, jax.ShapeDtypeStruct]],
    like_name: str,
    like_leaves: list[tuple[str, jax.ShapeDtypeStruct]],
) -> None:
    """Two lists of leaves with the same paths and shapes."""
    for (path, leaf), (like_path, like_leaf) in zip(leaves, like_leaves, strict=False):
        if path != like_path:
            raise ValueError(
                f"`{name}` and `{like_name}` must have the same structure; they first differ at "
                f"'{path}' against '{like_path}'."
            )
        if leaf.shape != like_leaf.shape:
            raise ValueError(
                f"`{name}` and `{like_name}` must have the same shapes; at '{path}' they are "
                f"{leaf.dtype}{list(leaf.shape)} and {like_leaf.dtype}{list(like_leaf.shape)}."
            )
    if len(leaves) != len(like_leaves):
        longer, rest = (
            (name, leaves[len(like_leaves) :])
            if len(leaves) > len(like_leaves)
            else (like_name, like_leaves[len(leaves) :])
        )
        raise ValueError(
            f"`{name}` and `{like_name}` must have the same structure; only `{longer}` has "
            f"'{rest[0][0]}'."
        )


def check_mask(name: str, mask: Any, like_name: str, like: Any) -> None:
    """A pytree of bool arrays with the structure and the shapes of `like`."""
    check_bool_leaves(name, mask)
    check_same_tree(name, mask, like_name, like)


def batch_size(name: str, batch: Any) -> int:
    """The number of examples: the length of every leaf's leading axis, at least 1."""
    check_arrays(name, batch, keys=True)
    leaves = tree_flatten_with_path(batch)[0]
    if not leaves:
        raise ValueError(f"`{name}` holds no array, so it has no examples.")
    first_path, first = leaves[0]
    for path, leaf in leaves:
        if jnp.ndim(leaf) == 0:
            raise ValueError(
                f"`{name}` must have a leading axis over examples; {_where(path)} is a scalar."
            )
        if jnp.shape(leaf)[0] != jnp.shape(first)[0]:
            raise ValueError(
                f"`{name}` must have one number of examples; '{path_name(first_path)}' has "
                f"{jnp.shape(first)[0]} and '{path_name(path)}' has {jnp.shape(leaf)[0]}."
            )
    if jnp.shape(first)[0] == 0:
        raise ValueError(f"`{name}` is empty; it must hold at least one example.")
    return jnp.shape(first)[0]
