"""Sites as they are probed: two vectors at each stand for its Hessian in expectation."""

import dataclasses
from collections.abc import Sequence

import jax

from sapsel_jax._base.precision import wide_dtype
from sapsel_jax._graph.graph import Graph, Values
from sapsel_jax._graph.reach import varies
from sapsel_jax._graph.sites import Use
from sapsel_jax._passes.lifts import Structure, by_site, lift
from sapsel_jax._primitives.contraction import contract


@dataclasses.dataclass(frozen=True, eq=False)
class Probed:
    """A site and the uses that its probes serve.

    Attributes:
      number: which draw is its own.
      site: the variable.
      uses: all for which the diagonal at the site is enough, or one that needs more.
      is_diagonal: which of both.
      varying: whether its curvature differs between examples.
    """

    number: int
    site: int
    uses: tuple[Use, ...]
    is_diagonal: bool
    varying: bool


def find_probed(graph: Graph, structures: dict[Use, Structure]) -> list[Probed]:
    """The sites, each with its uses."""
    return [
        Probed(
            number, uses[0].site, uses, structures[uses[0]].is_diagonal, varies(graph, uses[0].site)
        )
        for number, uses in enumerate(by_site(structures))
    ]


def entries_of(graph: Graph, probed: Sequence[Probed]) -> int:
    """How many entries the temporaries of one example have."""
    entries = 4 * sum(graph.size(var) for node in graph.nodes for var in node.outs)
    for one in probed:
        if not one.is_diagonal:
            entries += 2 * graph.size(one.uses[0].root)
    return entries


def pair(graph: Graph, one: Probed, values: Values, a: jax.Array, b: jax.Array) -> jax.Array:
    """(Aᵀa) ⊙ (Aᵀb) for two vectors at a site; a ⊙ b where the site's diagonal is enough."""
    dtype = wide_dtype(a.dtype)
    a, b = a.astype(dtype), b.astype(dtype)
    if one.is_diagonal:
        return a * b
    start, order = lift(graph, one.uses[0], values)
    return contract([start], a, order) * contract([start], b, order)
