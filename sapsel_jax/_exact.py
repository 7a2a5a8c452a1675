"""Exact Hessian diagonals of a loss over a batch, by the routes that `_routes` chooses."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sapsel_jax._accumulate import (
    check_options,
    count_examples,
    reduce_sum,
    sum_over_examples,
    wide_dtype,
)
from sapsel_jax._adjoints import pull
from sapsel_jax._basis import diagonal_by_products
from sapsel_jax._checks import check_float_leaves
from sapsel_jax._graph import Graph, Values, tail, trace
from sapsel_jax._lifts import Record, add_up, lift, record
from sapsel_jax._push import spread
from sapsel_jax._routes import Plan, Task, choose, examples_at_once, needed_before
from sapsel_jax._tangents import Label, Tangent, contract, dense, labels_of, unit_tangents
from sapsel_jax._types import Batch, Diagonal, LossFn, Params


def exact_diagonal(
    loss_fn: LossFn, *, microbatch: int | None = None, reduction: str = "mean"
) -> Callable[..., Diagonal]:
    """The exact diagonal of the Hessian of a loss over a batch.

    Entry i is Σₙ wₙ ∂²ℓ(θ, xₙ)/∂θᵢ² / Σₙ wₙ, or without the division for `reduction="sum"`.

    Args:
      loss_fn: `loss_fn(params, example, *args) -> scalar`, the loss of one example.
      microbatch: how many examples are worked on at once, at least 1; the default is all of them.
        Memory grows with it in proportion; the result does not depend on it but for rounding.
      reduction: "mean" or "sum" over the examples.

    Returns:
      A function `(params, batch, *args, weights=None)` that returns a pytree shaped like `params`,
      in float32 or wider. `batch` holds the examples along the leading axis of every leaf, `args`
      are passed through as they are, `weights` has shape (examples,).

    Raises:
      TypeError: if `params` holds anything but real floating-point arrays.
      ValueError: if the batch is empty or its leaves differ in length, if `weights` has another
        shape, if `microbatch` is below 1 or `reduction` is unknown.

    Cost: one Hessian-vector product per parameter: about 2 to 4 gradient equivalents each.

    Source: the quantity that parameters are selected by in Malekmohammadi, Lee, Xiong,
      "Sharpness-Aware Parameter Selection for Machine Unlearning" (arXiv 2504.06398).

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> def loss_fn(w, example):  # half the squared error: second derivatives are x²
      ...     x, y = example
      ...     return 0.5 * (jnp.vdot(w, x) - y) ** 2
      >>> batch = (jnp.array([[1.0, 2.0], [3.0, 0.0]]), jnp.array([1.0, 0.0]))
      >>> sap.exact_diagonal(loss_fn)(jnp.zeros(2), batch)
      Array([5., 2.], dtype=float32)
    """
    check_options(microbatch, reduction)

    def diagonal(params: Params, batch: Batch, *args: Any, weights: Any = None) -> Diagonal:
        check_float_leaves("params", params)
        num_examples = count_examples(batch, weights)
        leaves, tree = jax.tree.flatten(params)
        leaves = [jnp.asarray(leaf) for leaf in leaves]
        first = jax.tree.map(lambda x: x[0], batch)
        graph = trace(lambda p, example: loss_fn(p, example, *args), params, first)
        plan = choose(graph)

        def chunk_sum(chunk: Any) -> list[jax.Array]:
            examples, w = chunk
            return _sum_of_chunk(graph, plan, leaves, examples, w)

        total = sum_over_examples(
            chunk_sum,
            (batch, weights),
            num_examples,
            microbatch or examples_at_once(plan),
        )
        return tree.unflatten(reduce_sum(total, num_examples, weights, reduction))

    return diagonal


def _sum_of_chunk(
    graph: Graph, plan: Plan, leaves: list[jax.Array], examples: Any, weights: jax.Array | None
) -> list[jax.Array]:
    """The weighted sum over examples of the diagonal of each leaf."""
    num_examples = jax.tree.leaves(examples)[0].shape[0]
    varying = [task for task in plan.tasks if task.varying]
    fixed = [task for task in plan.tasks if not task.varying]
    total = [jnp.zeros(leaf.shape, wide_dtype(leaf.dtype)) for leaf in leaves]
    for tasks, batch, w in (
        (varying, examples, weights),
        (
            fixed,
            jax.tree.map(lambda x: x[:1], examples),
            jnp.asarray([num_examples]) if weights is None else weights.sum(keepdims=True),
        ),
    ):
        if tasks:
            records = jax.vmap(lambda e, tasks=tasks: _records(graph, tasks, leaves, e))(batch)
            uses = [use for task in tasks for use in task.uses]
            for use, one in zip(uses, records, strict=True):
                part = add_up(graph, use, plan.structures[use], one, w)
                total[use.leaf] += part.astype(total[use.leaf].dtype)
    return total


def _records(
    graph: Graph, tasks: list[Task], leaves: list[jax.Array], example: Any
) -> list[Record]:
    """The curvature of one example for every use of some tasks."""
    values = graph.evaluate(leaves, example)
    (output,) = graph.outputs
    sites = [task.site for task in tasks]
    after = graph.after(sites)
    adjoints = pull(graph, after, values, {output: jnp.ones_like(values[output])}, sites)
    cuts = {}
    for cut in {task.cut: None for task in tasks if task.cut is not None}:
        sources = [task.site for task in tasks if task.cut == cut and task.way == "rows"]
        cuts[cut] = _Cut(graph, values, cut, sources)
    records = []
    for task in tasks:
        if task.shared:
            start = unit_tangents(graph.shape(task.site), graph.avals[task.site].dtype)
            order = labels_of(start)
        else:
            start, order = lift(graph, task.uses[0], values)
        result = _curvature(graph, task, values, adjoints, cuts, start, order)
        for use in task.uses:
            moves = lift(graph, use, values)[0].value if task.shared else None
            records.append(record(graph, use, values, result, moves))
    return records


class _Cut:
    """The Hessian of the output in a small variable, and the rows pulled back from it."""

    def __init__(self, graph: Graph, values: Values, var: int, sources: list[int]) -> None:
        size, value = graph.size(var), values[var]
        output = tail(graph, var, values)
        flat = lambda x: output(x.reshape(value.shape))
        self.hessian = jax.hessian(flat)(value.reshape(-1)).astype(wide_dtype(value.dtype))
        self.rows: Values = {}
        if sources:
            unit = jnp.eye(size, dtype=value.dtype).reshape(size, *value.shape)
            between = graph.before([var], graph.after(sources))
            self.rows = pull(graph, between, values, {var: unit}, sources, rows=True)


def _curvature(
    graph: Graph,
    task: Task,
    values: Values,
    adjoints: Values,
    cuts: dict[int, _Cut],
    start: Tangent,
    order: tuple[Label, ...],
) -> jax.Array:
    """The second derivative along every direction of a task, with an axis per label."""
    site, cut = task.site, task.cut
    sizes = [label.size for label in order]
    after = graph.after([site])
    if task.way == "products":
        directions = None if task.shared else dense(start, graph.shape(site), order)
        output = tail(graph, site, values)
        return diagonal_by_products(output, values[site], directions).reshape(sizes)
    nodes = after if cut is None else graph.before([cut], after)
    if task.way == "rows":
        nodes = needed_before(graph, site, nodes)
    tangents = {site: start}
    total = spread(graph, nodes, values, tangents, adjoints, order)
    total = jnp.broadcast_to(total, sizes)
    if cut is None:
        return total
    hessian = cuts[cut].hessian
    if task.way == "forward":
        moves = dense(tangents[cut], graph.shape(cut), order)
        moves = moves.reshape(*sizes, len(hessian))
        return total + jnp.sum((moves @ hessian) * moves, -1)
    rows = cuts[cut].rows[site]
    if task.shared:
        rows = rows.reshape(len(hessian), *sizes)
    else:
        rows = contract([start], rows, order, num_rows=1)
    return total + jnp.sum(jnp.tensordot(hessian, rows, 1) * rows, 0)
