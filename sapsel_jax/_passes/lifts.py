"""Between a use's site and its leaf, and from examples to their sum.

With z = A w + ... at the site, every diagonal here is a quadratic form in the columns of A. Where
each entry of the leaf moves one entry of the site, curvature at the site is enough: Σ A² d. Those
sums over examples are matrix products and never stand in memory example by example.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sapsel_jax._base.fusion import unfused
from sapsel_jax._base.precision import wide_dtype
from sapsel_jax._graph.graph import Graph, Values
from sapsel_jax._graph.sites import Use, find_uses
from sapsel_jax._passes.forward import spread
from sapsel_jax._primitives.lookups import rows_read
from sapsel_jax._primitives.tangents import (
    Label,
    Tangent,
    arrange,
    labels_of,
    multiplied,
    unit_tangents,
)


def lift(graph: Graph, use: Use, values: Values) -> tuple[Tangent, tuple[Label, ...]]:
    """The tangents of a use's site along the unit vectors of its root.

    Returns:
      The tangents, and the labels in the order of the root's axes. For rows that are looked up,
      the directions are those of the rows found: a label for the places and one per axis of a row;
      where places hold the same row the first stands for all of them.
    """
    if use.gather is not None:
        tangent, labels = _lift_rows(graph, use, values)
        tangents, path = {use.gather.outs[0]: tangent}, use.path[1:]
    else:
        var = use.root
        tangent = unit_tangents(graph.shape(var), graph.avals[var].dtype)
        tangents, path, labels = {var: tangent}, use.path, labels_of(tangent)
    spread(graph, path, values, tangents)
    return multiplied(tangents[use.site]), labels


def _lift_rows(graph: Graph, use: Use, values: Values) -> tuple[Tangent, tuple[Label, ...]]:
    assert use.gather is not None
    out = use.gather.outs[0]
    shape, row = graph.shape(out), graph.shape(use.root)[1:]
    rank = len(shape) - len(row)
    ids = values[use.gather.ins[1]].reshape(-1)
    rows = rows_read(graph.signature(use.gather), ids)
    same = (rows[:, None] == rows[None, :]) & (rows >= 0)[None, :]
    first = jnp.argmax(same, axis=1) == jnp.arange(len(ids))
    moves = (same & first[:, None]).astype(wide_dtype(graph.avals[out].dtype))
    place = Label(len(ids))
    labels = tuple(Label(size) for size in row)
    value = moves.reshape(len(ids), *shape[:rank], *(1,) * len(row))
    tied = ((),) * rank + tuple((label,) for label in labels)
    return Tangent(value, (place,), tied), (place, *labels)


def lower(graph: Graph, use: Use, result: jax.Array, ids: jax.Array | None) -> jax.Array:
    """From numbers for each direction of a use to numbers for each entry of the leaf.

    `result` has an axis per label; where rows were looked up also one over examples before them,
    and `ids` says which rows those were.
    """
    dtype = result.dtype
    shape = graph.shape(graph.leaves[use.leaf])

    def move(leaf: jax.Array) -> jax.Array:
        known = {graph.leaves[use.leaf]: leaf}
        for node in use.prefix:
            if node.facts.passes:  # the sum stays in the dtype that it is kept in
                known[node.outs[0]] = known[node.ins[0]]
            else:
                known.update(zip(node.outs, node.apply(known[node.ins[0]]), strict=True))
        root = known[use.root]
        if use.gather is None:
            return root
        gather = use.gather
        return jax.vmap(lambda places: gather.apply(root, places)[0])(ids)

    moved, back = jax.vjp(move, jnp.zeros(shape, dtype))
    return back(result.reshape(moved.shape))[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Structure:
    """What of a lift does not depend on values."""

    tangent: Tangent
    """The tangents of the site, with a shape for a value."""
    order: tuple[Label, ...]
    is_diagonal: bool
    """Each entry of the leaf moves one entry of the site, so that its diagonal is enough."""


def structure(graph: Graph, use: Use) -> Structure:
    """The structure of a use's lift."""
    kept: list[Any] = []
    needed = [use.root, *(var for node in use.path for var in node.ins)]
    avals = {var: graph.avals[var] for var in needed}
    specs = {var: jax.ShapeDtypeStruct(aval.shape, aval.dtype) for var, aval in avals.items()}

    def trace(values: Values) -> None:
        tangent, order = lift(graph, use, values)
        value = jax.ShapeDtypeStruct(tangent.value.shape, tangent.value.dtype)
        kept.extend([dataclasses.replace(tangent, value=value), order])

    jax.eval_shape(trace, specs)
    tangent, order = kept
    axes = zip(tangent.tied, graph.shape(use.site), strict=True)
    is_diagonal = all(labels or size == 1 for labels, size in axes)
    return Structure(tangent, order, is_diagonal)


def find_structures(graph: Graph, *, additive: bool = True) -> tuple[Graph, dict[Use, Structure]]:
    """Every use of every leaf with the structure of its lift, and the graph that they lie in."""
    graph, uses = find_uses(graph, additive=additive)
    return graph, {use: _structure_of(graph, use) for use in uses}


def _structure_of(graph: Graph, use: Use) -> Structure:
    if use.inner is not None:
        return _structure_of(use.loop.body, use.inner)
    return structure(graph, use)


def by_site(structures: dict[Use, Structure]) -> list[tuple[Use, ...]]:
    """Uses of which curvature at the site is enough, by site; the others one by one."""
    groups: dict[int, list[Use]] = {}
    alone = []
    for use, found in structures.items():
        if found.is_diagonal:
            groups.setdefault(use.site, []).append(use)
        else:
            alone.append((use,))
    return [*map(tuple, groups.values()), *alone]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """What one example, or with a leading axis a batch of them, says of one use.

    Attributes:
      result: with `moves`, curvature at the site, shaped like it; without, curvature for each
        direction of the use, with an axis per label.
      moves: the value of the tangents of the site.
      ids: which rows were looked up.
    """

    result: jax.Array
    moves: jax.Array | None
    ids: jax.Array | None


def records_of_uses(
    graph: Graph, uses: Sequence[Use], is_diagonal: bool, values: Values, result: jax.Array
) -> list[Record]:
    """The records of one example for uses that share a result.

    With `is_diagonal` that is the diagonal of the curvature at their site, else the curvature along
    the directions of the only use.
    """
    records = []
    for use in uses:
        moves = lift(graph, use, values)[0].value if is_diagonal else None
        ids = None if use.gather is None else values[use.gather.ins[1]]
        records.append(Record(result, moves, ids))
    return records


def add_up(
    graph: Graph, use: Use, shape: Structure, records: Record, weights: jax.Array | None
) -> jax.Array:
    """The weighted sum over examples of the records of one use, shaped like its leaf."""
    if use.inner is not None:  # records have an axis of steps behind that of examples
        body, inner = use.loop.body, use.inner
        of_step = lambda one: add_up(body, inner, shape, one, weights)
        return lower(graph, use, jax.vmap(of_step, in_axes=1)(records), None)
    result = records.result
    if weights is not None:
        lead = weights.astype(result.dtype).reshape(-1, *(1,) * (result.ndim - 1))
        result = result * lead
    keep_examples = use.gather is not None
    if records.moves is not None:
        result = _square_and_multiply(shape, records.moves, result, keep_examples)
    elif not keep_examples:
        result = unfused(result).sum(0)
    return lower(graph, use, result, records.ids)


def _square_and_multiply(
    shape: Structure, moves: jax.Array, result: jax.Array, keep_examples: bool
) -> jax.Array:
    """Σₙ A² d for tangents that are tied along every axis of the site."""
    count, rank = len(shape.tangent.directions), len(shape.tangent.tied)
    sizes = moves.shape[1 + count :]
    letters = [chr(98 + i) for i in range(count + rank)]
    directions, axes = letters[:count], letters[count:]
    stored = [x for x, size in zip(axes, sizes, strict=True) if size != 1]
    # Axes along which nothing is stored are left to the product, so that no zeros are multiplied.
    squares = jnp.square(jnp.squeeze(moves, [1 + count + a for a in range(rank) if sizes[a] == 1]))
    tied = [x for x, labels in zip(axes, shape.tangent.tied, strict=True) if labels]
    out = ("a" if keep_examples else "") + "".join(directions + tied)
    spec = f"a{''.join(directions + stored)},a{''.join(axes)}->{out}"
    total = jnp.einsum(spec, squares, result)
    return arrange(total, labels_of(shape.tangent), shape.order, int(keep_examples))
