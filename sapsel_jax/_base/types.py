"""The few types that every other module speaks of.

JAX has no static type for a pytree, so these are names for the reader: what is passed where.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax

Params: TypeAlias = Any
"""Pytree of floating-point arrays: what the loss is differentiated in."""

Batch: TypeAlias = Any
"""Pytree of arrays whose leading axis runs over examples."""

Example: TypeAlias = Any
"""One example: a batch without its leading axis."""

Diagonal: TypeAlias = Any
"""Pytree shaped like the parameters, float32 or wider: one second derivative per entry."""

Scores: TypeAlias = Any
"""Pytree shaped like the parameters; larger is selected sooner, NaN and -inf never."""

Mask: TypeAlias = Any
"""Pytree of bool arrays shaped like the parameters; True means selected for editing."""

LossFn: TypeAlias = Callable[..., jax.Array]
"""`loss_fn(params, example, *args) -> scalar`, the loss of one example."""
