"""Curvature propagation: the whole Hessian diagonal estimated by one backward pass."""

import dataclasses
from collections.abc import Callable, Sequence
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
from sapsel_jax._blocks import Block, find_blocks
from sapsel_jax._checks import check_count, check_float_leaves
from sapsel_jax._exact import _sum_of_chunk
from sapsel_jax._graph import Graph, Values, restrict, trace
from sapsel_jax._hutchinson import _mean_of_probes
from sapsel_jax._lifts import Record, Structure, add_up, lift, record
from sapsel_jax._noise import Noise, Signs, draw, sizes_of
from sapsel_jax._routes import BUDGET, Plan, choose
from sapsel_jax._sites import Use
from sapsel_jax._tangents import contract
from sapsel_jax._types import Batch, Diagonal, LossFn, Params

EXACT_WORK = 0.0


def propagated_diagonal(
    loss_fn: LossFn,
    *,
    num_probes: int = 1,
    microbatch: int | None = None,
    reduction: str = "mean",
    return_error: bool = False,
) -> Callable[..., Any]:
    check_count("num_probes", num_probes, minimum=1)
    if return_error and num_probes < 2:
        raise ValueError(f"`return_error` needs `num_probes` of at least 2; got {num_probes}.")
    check_options(microbatch, reduction)

    def diagonal(
        params: Params, batch: Batch, key: jax.Array, *args: Any, weights: Any = None
    ) -> Any:
        check_float_leaves("params", params)
        num_examples = count_examples(batch, weights)
        leaves, tree = jax.tree.flatten(params)
        leaves = [jnp.asarray(leaf) for leaf in leaves]
        first = jax.tree.map(lambda x: x[0], batch)
        graph = trace(lambda p, example: loss_fn(p, example, *args), params, first)
        plan = choose(graph)
        propagation = plan_propagation(graph, plan)
        at_once = microbatch or propagation.examples_at_once

        def one_probe(probe: jax.Array) -> Diagonal:
            def chunk_sum(chunk: Any) -> Any:
                examples, indices, w = chunk
                own = lambda i: jax.random.fold_in(jax.random.fold_in(key, i), probe)
                return propagation.sum_of_chunk(leaves, examples, jax.vmap(own)(indices), w)

            examples = (batch, jnp.arange(num_examples), weights)
            total = sum_over_examples(chunk_sum, examples, num_examples, at_once)
            return reduce_sum(total, num_examples, weights, reduction)

        return jax.tree.map(lambda x: x, _unflatten(tree, _mean_of_probes(one_probe, num_probes, return_error), return_error))

    return diagonal


def _unflatten(tree, result, pair):
    return tuple(map(tree.unflatten, result)) if pair else tree.unflatten(result)


def plan_propagation(graph: Graph, plan: Plan) -> "Propagation":
    exact = [t for t in plan.tasks if not t.varying or t.work <= EXACT_WORK * plan.gradient_work]
    uses = [use for task in plan.tasks if task not in exact for use in task.uses]
    blocked, blocks = find_blocks(graph, [use.site for use in uses])
    return Propagation(
        graph, dataclasses.replace(plan, tasks=tuple(exact)), uses, blocked, blocks
    )


class Propagation:
    """What of a propagation is known before any number."""

    def __init__(
        self, graph: Graph, exact: Plan, uses: list[Use], blocked: Graph, blocks: list[Block]
    ) -> None:
        self.original, self.exact, self.uses = graph, exact, uses
        self.graph, self.blocks = blocked, blocks
        self.structures: dict[Use, Structure] = exact.structures
        self.sizes = [size for block in blocks for size in sizes_of(blocked, block)]
        self.sites = set(use.site for use in uses)
        self.needs_adjoint = self._needs_adjoint()

    @property
    def examples_at_once(self) -> int:
        memory = 4 * sum(self.graph.size(v) for node in self.graph.nodes for v in node.outs)
        return max(1, int(BUDGET / memory))

    def _needs_adjoint(self) -> set[int]:
        """The variables whose adjoint some noise nearer to the parameters depends on."""
        needed: set[int] = set()
        for block in self.blocks:
            if block.noisy or any(block.node.ins[i] in needed for i in block.moving):
                needed.update(block.node.outs)
        return needed

    def sum_of_chunk(self, leaves, examples, keys, weights) -> list[jax.Array]:
        total = [jnp.zeros(leaf.shape, wide_dtype(leaf.dtype)) for leaf in leaves]
        if self.exact.tasks:
            total = _sum_of_chunk(self.original, self.exact, leaves, examples, weights)
        if self.uses:
            records = jax.vmap(lambda e, k: self.records(leaves, e, k))(examples, keys)
            for use, one in zip(self.uses, records, strict=True):
                part = add_up(self.graph, use, self.structures[use], one, weights)
                total[use.leaf] += part.astype(total[use.leaf].dtype)
        return total

    def records(self, leaves, example, key) -> list[Record]:
        graph = self.graph
        values = graph.evaluate(leaves, example)
        signals = self.pull(values, Signs(key, self.sizes))
        lifts: dict[Use, Any] = {}
        found = []
        for use in self.uses:
            one = signals.at.get(use.site)
            if one is None:
                one = _Signal()
            shape = graph.shape(use.site)
            tangent, order = lift(graph, use, values)
            if self.structures[use].is_diagonal:
                result = one.curvature(shape, wide_dtype(graph.avals[use.site].dtype))
                found.append(record(graph, use, values, result, tangent.value))
            else:
                result = one.contracted(tangent, order, shape, wide_dtype(graph.avals[use.site].dtype))
                found.append(record(graph, use, values, result))
        return found

    def pull(self, values: Values, signs: Signs) -> "_Signals":
        graph = self.graph
        (output,) = graph.outputs
        adjoints = {output: jnp.ones_like(values[output])}
        at: dict[int, _Signal] = {}
        for block in reversed(self.blocks):
            node = block.node
            inputs = [values[var] for var in node.ins]
            outs = [v for v in node.outs if jnp.issubdtype(graph.avals[v].dtype, jnp.floating)]
            if block.noisy:
                given = [adjoints.get(v, jnp.zeros_like(values[v])) for v in outs]
                noise = draw(graph, block, inputs, given, signs)
            else:
                noise = []
            self.pass_through(block, inputs, outs, values, adjoints, at)
            for i, n in zip(block.noisy, noise, strict=True):
                at.setdefault(node.ins[i], _Signal()).noise.append(n)
        return _Signals(at)

    def pass_through(self, block, inputs, outs, values, adjoints, at) -> None:
        graph, node = self.graph, block.node
        kinds: dict[str, list[Any]] = {}
        if any(node.ins[i] in self.needs_adjoint for i in block.moving):
            kinds["adjoint"] = [adjoints.get(v) for v in outs]
        signals = [at.get(v) for v in outs]
        if any(s is not None for s in signals):
            tied = all(s is None or s.sign() is not None for s in signals) and len(outs) == 1
            kinds["first"] = [s and s.total(0) for s in signals]
            if not tied:
                kinds["second"] = [s and s.total(1) for s in signals]
        if not kinds:
            return
        rows = [
            jnp.stack(
                [
                    jnp.zeros_like(values[v]) if row[j] is None else row[j].astype(values[v].dtype)
                    for row in kinds.values()
                ]
            )
            for j, v in enumerate(outs)
        ]
        fn = restrict(node, block.moving, inputs)
        back = jax.vjp(fn, *(inputs[i] for i in block.moving))[1]
        results = jax.vmap(back)(rows)
        for i, result in zip(block.moving, results, strict=True):
            var = node.ins[i]
            named = dict(zip(kinds, result, strict=True))
            if "adjoint" in named:
                adjoints[var] = adjoints[var] + named["adjoint"] if var in adjoints else named["adjoint"]
            if "first" in named:
                sign = None if "second" in named else signals[0].sign()
                at.setdefault(var, _Signal()).pulled.append((named["first"], named.get("second"), sign))


class _Signals:
    def __init__(self, at): self.at = at


class _Signal:
    """What reaches one variable: signals pulled back to it, and noise added there."""

    def __init__(self) -> None:
        self.pulled: list[Any] = []
        self.noise: list[Noise] = []

    def parts(self, with_noise=True):
        return self.pulled + ([(n.first, n.second, n.sign) for n in self.noise] if with_noise else [])

    def sign(self):
        parts = self.parts()
        if len(parts) == 1 and parts[0][1] is None:
            return parts[0][2]
        if parts and all(p[1] is None and p[2] is parts[0][2] for p in parts):
            return parts[0][2]
        return None

    def total(self, which, with_noise=True):
        parts = self.parts(with_noise)
        if not parts:
            return None
        return sum(p[0] if which == 0 else (p[1] if p[1] is not None else p[2] * p[0]) for p in parts)

    def curvature(self, shape, dtype):
        total = jnp.zeros(shape, dtype)
        if self.pulled:
            total += self.total(0, False).astype(dtype) * self.total(1, False).astype(dtype)
        for n in self.noise:
            total += n.product.astype(dtype)
        return total

    def contracted(self, tangent, order, shape, dtype):
        if not self.parts():
            return jnp.zeros([label.size for label in order], dtype)
        sign = self.sign()
        if sign is not None:
            return sign * contract([tangent], self.total(0).astype(dtype), order) ** 2
        both = jnp.stack([self.total(0), self.total(1)]).astype(dtype)
        first, second = contract([tangent], both, order, num_rows=1)
        return first * second
