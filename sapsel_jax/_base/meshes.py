"""Calls with arrays on an Explicit mesh."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType


def placed_by_compiler(fn: Callable[..., Any], *, num_trees: int = 1) -> Callable[..., Any]:
    """The same function of `params, ...`, whose results lie like the parameters on any mesh.

    On an Explicit mesh JAX asks each operation where its result is to lie, and refuses some. Inside
    an estimator the compiler decides, as on an Auto mesh.

    Args:
      fn: returns something shaped like its first argument.
      num_trees: how many such, as a tuple if there are several.
    """

    @functools.wraps(fn)
    def run(params: Any, *rest: Any, **options: Any) -> Any:
        leaves, structure = jax.tree.flatten((params, rest, options))
        is_array = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
        arrays = [leaf for leaf, taken in zip(leaves, is_array, strict=True) if taken]
        if not any(map(_is_placed_explicitly, arrays)):
            return fn(params, *rest, **options)

        def call(arrays: list[jax.Array]) -> Any:
            given = iter(arrays)
            pairs = zip(leaves, is_array, strict=True)
            own = structure.unflatten([next(given) if taken else leaf for leaf, taken in pairs])
            return fn(own[0], *own[1], **own[2])

        places = jax.tree.map(_place, params)
        wanted = places if num_trees == 1 else (places,) * num_trees
        return jax.sharding.auto_axes(call, out_sharding=wanted)(arrays)

    return run


def _is_placed_explicitly(array: Any) -> bool:
    return isinstance(array, jax.Array) and AxisType.Explicit in _place(array).mesh.axis_types


def _place(array: Any) -> Any:
    return jax.typeof(array).sharding
