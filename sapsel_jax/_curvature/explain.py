"""Says how each leaf's diagonal will be computed, at what cost, and why; computes no numbers."""

import dataclasses
from typing import Any

from sapsel_jax._base.checks import check_arrays, check_float_leaves, named_leaves
from sapsel_jax._base.columns import aligned
from sapsel_jax._base.losses import one_scalar
from sapsel_jax._base.types import Example, LossFn, Params
from sapsel_jax._curvature.propagation import describe
from sapsel_jax._curvature.routes import Routes, Task, choose
from sapsel_jax._graph.graph import Graph
from sapsel_jax._graph.sites import Use
from sapsel_jax._graph.tracing import trace
from sapsel_jax._passes.lifts import Structure, find_structures


@dataclasses.dataclass(frozen=True)
class PlannedUse:
    """How one use of one leaf is to be computed.

    Attributes:
      path: the leaf, such as `layer/kernel`.
      shape: of the leaf.
      site: the operation at which it enters the loss, and the shape of what comes out.
      cut: the shape of the small variable whose Hessian stands for what follows; empty without.
      route: the way to the diagonal.
      products: how many tangents are pushed, rows pulled or Hessian-vector products taken for it.
      cost: in gradient equivalents, without the shared cost.
      propagated: how `propagated_diagonal` estimates it in its one pass: "exact" if no noise
        reaches it, else "at the site", or "at the leaf" if the leaf has no site; "refused" with the
        reason.
      reason: why the leaf has no site; empty where it has one.
    """

    path: str
    shape: tuple[int, ...]
    site: str
    cut: str
    route: str
    products: int
    cost: float
    propagated: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """How `exact_diagonal` will compute each leaf, and how `propagated_diagonal` estimates it.

    `str(plan)` is a table.

    Attributes:
      uses: one `PlannedUse` for each place where a leaf enters the loss.
      shared_cost: the cost that all uses share, in gradient equivalents: values, adjoints, small
        Hessians, rows pulled back.
      cost: the total, in gradient equivalents: an estimate from counted operations.
    """

    uses: tuple[PlannedUse, ...]
    shared_cost: float
    cost: float

    def __str__(self) -> str:
        """A table with a line per use, one for what is shared and one for all."""
        left = ("leaf", "shape", "site", "cut", "route")
        cells: list[tuple[str, ...]] = [
            (*left, "products", "cost", "propagated", "no site because"),
        ]
        for use in self.uses:
            left = (use.path, _shape_text(use.shape), use.site, use.cut, use.route)
            numbers = (str(use.products), f"{use.cost:.2f}")
            cells.append((*left, *numbers, use.propagated, use.reason))
        cells.append(("shared", *[""] * 5, f"{self.shared_cost:.2f}", "", ""))
        cells.append(("total", *[""] * 5, f"{self.cost:.2f}", "", ""))
        return aligned(cells, right=(5, 6))


def explain(loss_fn: LossFn, params: Params, example: Example, *args: Any) -> Plan:
    """Explains how `exact_diagonal` will compute each leaf, and what that will cost.

    The work of every route is counted from the shapes of the operations; each leaf takes the route
    with the least work. A cost is that work divided by the work of one gradient.

    Args:
      loss_fn: `loss_fn(params, example, *args) -> scalar`, the loss of one example.
      params: pytree of floating-point arrays, or of `jax.ShapeDtypeStruct`.
      example: ONE example, without the leading axis of a batch, or its shapes.
      *args: further arguments of `loss_fn`, passed through as they are.

    Returns:
      A `Plan`. `print(plan)` shows a table: for each leaf the site, the cut, the route, the number
      of products, the cost in gradient equivalents, how `propagated_diagonal` estimates it, and why
      it has no site if it has none.

    Raises:
      TypeError: if `params` holds anything but real floating-point arrays, or `loss_fn` returns
        anything but one real scalar.

    Cost: no gradient, no numbers are computed; a second or two for a network of a hundred
      operations.

    Source: as `exact_diagonal`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> def loss_fn(params, x):
      ...     hidden = jnp.tanh(x @ params["a"] + params["b"])
      ...     return jnp.sum((hidden @ params["tied"] @ params["tied"]) ** 2)
      >>> params = {"a": jnp.ones((9, 4)), "b": jnp.ones(4), "tied": jnp.ones((4, 4))}
      >>> print(sap.explain(loss_fn, params, jnp.ones(9)))
      leaf    shape  site                cut  route                  products  cost  propagated ...
      a       [9 4]  dot_general -> [4]       tangents at the site          4  ...   at the site
      b       [4]    add -> [4]               tangents at the site          4  ...   at the site
      tied    [4 4]  itself                   tangents at the leaf         16  ...   at the leaf ...
      shared  ...
      total   ...
    """
    check_float_leaves("params", params)
    check_arrays("example", example, keys=True)
    loss = one_scalar(loss_fn)
    of_one = lambda p, e: loss(p, e, *args)
    looped = trace(of_one, params, example, loops=True)
    has_loops = any(node.loop for node in looped.nodes)
    graph, structures = find_structures(trace(of_one, params, example) if has_loops else looped)
    routes = choose(graph, structures)
    names = [name for name, _ in named_leaves(params)]
    propagated = _propagated(graph, structures, looped if has_loops else None)
    uses = []
    for leaf, name in enumerate(names):
        found = [(u, task) for task in routes.tasks for u in task.uses if u.leaf == leaf]
        uses += [_planned(graph, routes, name, use, task, propagated[use]) for use, task in found]
        if not found:
            shape = graph.shape(graph.leaves[leaf])
            uses.append(PlannedUse(name, shape, "none", "", "zero", 0, 0.0, "zero", ""))
    total = (routes.shared_work + sum(task.work for task in routes.tasks)) / routes.gradient_work
    return Plan(tuple(uses), routes.shared_work / routes.gradient_work, total)


def _propagated(
    graph: Graph, structures: dict[Use, Structure], looped: Graph | None
) -> dict[Use, str]:
    """How one pass estimates each use, or why it refuses; by leaf where it takes loops as loops."""
    try:
        if looped is None:
            return describe(graph, structures)
        found: dict[int, list[str]] = {}
        for use, text in describe(*find_structures(looped)).items():
            found.setdefault(use.leaf, []).append(text)
        return {use: ", ".join(sorted(set(found[use.leaf]))) for use in structures}
    except NotImplementedError:
        return dict.fromkeys(structures, "refused: while")


def _planned(
    graph: Graph, routes: Routes, name: str, use: Use, task: Task, propagated: str
) -> PlannedUse:
    site = "itself"
    if use.entry is not None:
        entered_by = use.entry.params.get("for", use.entry.name)
        site = f"{entered_by} -> {_shape_text(graph.shape(use.site))}"
    last = task.cut if task.wide is None else task.wide.var
    cut = "" if last is None else _shape_text(graph.shape(last))
    where = "at the leaf" if use.reason or not task.shared else "at the site"
    products = task.num_entries
    if task.way == "rows":
        assert task.cut is not None
        route, products = "rows from the cut", graph.size(task.cut)
    elif task.way == "products":
        route = f"Hessian products {where}"
    else:
        route = f"tangents {where}"
    cost = task.work / len(task.uses) / routes.gradient_work
    shape = graph.shape(graph.leaves[use.leaf])
    return PlannedUse(name, shape, site, cut, route, products, cost, propagated, use.reason)


def _shape_text(shape: tuple[int, ...]) -> str:
    return f"[{' '.join(map(str, shape))}]"
