"""The second derivative of one example's loss along the directions of a task."""

import math
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp

from sapsel_jax._base.precision import wide_dtype
from sapsel_jax._curvature.basis import diagonal_by_products
from sapsel_jax._curvature.hessians import hessian
from sapsel_jax._curvature.routes import Task, rows_of_cuts
from sapsel_jax._curvature.wide_cuts import Blocks, WideCut
from sapsel_jax._graph.graph import Graph, Values, tail
from sapsel_jax._passes.backward import pull
from sapsel_jax._passes.forward import spread
from sapsel_jax._passes.lifts import Record, lift, records_of_uses
from sapsel_jax._primitives.contraction import contract
from sapsel_jax._primitives.tangents import (
    Label,
    Tangent,
    arrange,
    dense,
    factored,
    labels_of,
    unit_tangents,
)


class Cut:
    """The Hessian of the output in a small variable, and rows pulled back from it.

    Attributes:
      hessian: a matrix over the entries of the variable.
      rows: for each variable on the way the derivative of each entry of the cut, along the leading
        axis.
    """

    def __init__(self, graph: Graph, values: Values, var: int, sources: Sequence[int]) -> None:
        size, value = graph.size(var), values[var]
        output = tail(graph, var, values)
        flat = lambda x: output(x.reshape(value.shape))
        self.hessian = hessian(flat, value.reshape(-1)).astype(wide_dtype(value.dtype))
        self.rows: Values = {}
        if sources:
            unit = jnp.eye(size, dtype=value.dtype).reshape(size, *value.shape)
            between = graph.before([var], graph.after(sources))
            self.rows = pull(graph, between, values, {var: unit}, sources, rows=True)

    def along(self, rows: jax.Array) -> jax.Array:
        """Σ rows ⊙ (H rows) over the leading axis."""
        flat = rows.reshape(len(rows), -1)  # XLA's CPU backend sums slowly beside an axis of 1
        return jnp.sum((self.hessian @ flat) * flat, 0).reshape(rows.shape[1:])


def open_cuts(graph: Graph, values: Values, tasks: Iterable[Task]) -> dict[int, Cut]:
    """The cuts that some tasks go through."""
    return {cut: Cut(graph, values, cut, sites) for cut, sites in rows_of_cuts(tasks).items()}


def records_of_tasks(
    graph: Graph, tasks: Sequence[Task], values: Values, adjoints: Values | None
) -> list[Record]:
    """The curvature of one example for every use of some tasks; `adjoints` as in `curvature`."""
    cuts = open_cuts(graph, values, tasks)
    blocks = {}
    if adjoints is not None:
        # In the order of the tasks, so that the program is the same in every process.
        wide = dict.fromkeys(task.wide for task in tasks if task.wide is not None)
        blocks = {one: Blocks(graph, values, one, adjoints) for one in wide}
    records = []
    for task in tasks:
        result = curvature(graph, task, values, cuts, blocks, adjoints)
        records += records_of_uses(graph, task.uses, task.shared, values, result)
    return records


def curvature(
    graph: Graph,
    task: Task,
    values: Values,
    cuts: dict[int, Cut],
    blocks: dict[WideCut, Blocks],
    adjoints: Values | None,
) -> jax.Array:
    """The second derivative along every direction of a task.

    Args:
      graph: of the loss.
      task: where, and which way.
      values: of all variables.
      cuts: those of the task and of others.
      blocks: the Hessians in wide cuts, in the same way.
      adjoints: of the variables after the site; None leaves out all curvature before the cut.

    Returns:
      An array with an axis for each label: those of the site's axes, or those of the use.
    """
    # Uses that share a site begin with its unit vectors; their lifts are applied afterwards.
    if task.shared:
        start = unit_tangents(graph.shape(task.site), graph.avals[task.site].dtype)
        order = labels_of(start)
    else:
        start, order = lift(graph, task.uses[0], values)
    if task.way == "products":
        directions = None if task.shared else dense(start, graph.shape(task.site), order)
        output = tail(graph, task.site, values)
        along = diagonal_by_products(output, values[task.site], directions)
        return along.reshape([label.size for label in order])
    cut = None if task.cut is None else cuts[task.cut]
    wide = None if task.wide is None else blocks[task.wide]
    run = lambda start, order: _along(graph, task, values, cut, wide, adjoints, start, order)
    return run(start, order) if task.chunk is None else _in_chunks(graph, task, start, order, run)


def _along(
    graph: Graph,
    task: Task,
    values: Values,
    cut: Cut | None,
    wide: Blocks | None,
    adjoints: Values | None,
    start: Tangent,
    order: tuple[Label, ...],
) -> jax.Array:
    """What is met on the way to the cut, or to the end, and what follows the cut."""
    sizes = [label.size for label in order]
    # Before the cut an operation adds curvature where it bends. What follows the cut is in its
    # small Hessian, which the pushed tangents, or the rows, are multiplied with.
    tangents = {task.site: factored(start)}
    total = spread(graph, task.nodes, values, tangents, adjoints, order, task.ends)
    if wide is not None and task.wide is not None:
        moved = tangents[task.wide.var]
        total += wide.along(moved, order)
        if cut is not None:
            rows = contract([moved], cut.rows[task.wide.var], order, num_rows=1)
            total += cut.along(rows)
        return total
    if cut is None or task.cut is None:
        return jnp.broadcast_to(total, sizes)
    if task.way == "forward":
        moves = dense(tangents[task.cut], graph.shape(task.cut), order)
        moves = moves.reshape(*sizes, len(cut.hessian))
        return total + jnp.sum((moves @ cut.hessian) * moves, -1)
    rows = cut.rows[task.site]
    if task.shared:
        rows = rows.reshape(len(cut.hessian), *sizes)
    else:
        rows = contract([start], rows, order, num_rows=1)
    return total + cut.along(rows)


def _in_chunks(
    graph: Graph,
    task: Task,
    start: Tangent,
    order: tuple[Label, ...],
    run: Callable[[Tangent, tuple[Label, ...]], jax.Array],
) -> jax.Array:
    """Runs some directions at a time: of those stored one by one, or else along one tied axis."""
    shape = graph.shape(task.site)
    assert task.chunk is not None
    if start.directions:
        split, tied = start.directions, start.tied
        count = math.prod(label.size for label in split)
        rows = start.value.reshape(count, *start.value.shape[len(split) :])
        pick = lambda indices: rows[jnp.minimum(indices, count - 1)]
    else:
        axis = max(range(len(shape)), key=lambda a: math.prod(x.size for x in start.tied[a]))
        split, count = start.tied[axis], shape[axis]
        tied = (*start.tied[:axis], (), *start.tied[axis + 1 :])
        wide = [1] * (1 + len(shape))
        wide[1 + axis] = count
        places = jnp.arange(count).reshape(wide)
        pick = lambda indices: (
            start.value[None]
            * (places == indices.reshape(-1, *(1,) * len(shape))).astype(start.value.dtype)
        )
    others = tuple(label for labels in tied for label in labels)
    # Directions that are not split multiply every chunk, so that they narrow it.
    width = max(1, min(count, task.chunk // max(1, math.prod(x.size for x in others))))
    label = Label(width)

    def chunk(indices: jax.Array) -> jax.Array:
        return run(Tangent(pick(indices), (label,), tied), (label, *others))

    indices = jnp.arange(-(-count // width) * width).reshape(-1, width)
    results = jax.lax.map(chunk, indices)
    results = results.reshape(-1, *results.shape[2:])[:count]
    return arrange(results, (*split, *others), order)
