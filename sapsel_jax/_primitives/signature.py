"""What the rules of a primitive are given."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Signature:
    """An operation without its variables.

    Attributes:
      params: its parameters, as in the jaxpr.
      shapes: of its inputs.
      out: the shape of its first output.
    """

    params: dict[str, Any]
    shapes: tuple[Shape, ...]
    out: Shape


Kept = list[int | None]
"""For each axis of an input the axis of the output that it is kept apart on, or None."""

AxesRule = Callable[[Signature, int, Sequence[bool]], Kept]
"""`(signature, position of an input, which of its axes are asked for) -> axes kept`."""
