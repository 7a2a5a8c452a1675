"""A per-example loss as a flat list of operations: what depends on what."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sapsel_jax._primitives.signature import Signature
from sapsel_jax._primitives.table import TABLE, UNKNOWN, Primitive

Values = dict[int, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One operation: variables in, variables out, and the function between them."""

    name: str
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    apply: Callable[..., Sequence[Any]]
    params: dict[str, Any]
    elementwise: bool = False
    """Every entry of the output depends on the same entry of each input alone, or on a scalar."""
    ruled: bool = False
    """A custom rule inside may contradict itself, so that nothing is known of its derivatives."""
    loop: "Loop | None" = None
    """The steps of a scan that is taken as a loop."""

    @property
    def facts(self) -> Primitive:
        """What is known of the primitive."""
        return TABLE.get(self.name, UNKNOWN)


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A scalar function of leaves and one example, in an order that can be evaluated."""

    nodes: Sequence[Node]
    avals: Sequence[Any]
    """Shape and dtype of every variable."""
    leaves: tuple[int, ...]
    example: tuple[int, ...]
    constants: Values
    outputs: tuple[int, ...]
    sources: Sequence[int]
    """For every variable, the leaves it depends on differentiably, as bits."""
    varying: Sequence[bool]
    """For every variable, whether it depends on the example."""
    goes_on: bool = False
    """Something unknown, such as the next step of a loop, follows the outputs."""

    def evaluate(self, leaves: Sequence[Any], example: Any) -> Values:
        """The values of all variables."""
        values = dict(self.constants)
        values.update(zip(self.leaves, leaves, strict=True))
        values.update(zip(self.example, jax.tree.leaves(example), strict=True))
        return run(self.nodes, values)

    @functools.cached_property
    def consumers(self) -> list[list[Node]]:
        """For every variable, the operations that read it, in order."""
        readers: list[list[Node]] = [[] for _ in self.avals]
        for node in self.nodes:
            for var in dict.fromkeys(node.ins):
                readers[var].append(node)
        return readers

    def shape(self, var: int) -> tuple[int, ...]:
        """The shape of a variable."""
        return self.avals[var].shape

    def signature(self, node: Node) -> Signature:
        """The parameters and shapes of an operation."""
        shapes = tuple(self.shape(var) for var in node.ins)
        return Signature(node.params, shapes, self.shape(node.outs[0]))

    def size(self, var: int) -> int:
        """The number of entries of a variable."""
        return self.avals[var].size

    def is_float(self, var: int) -> bool:
        """Whether a variable holds real floating-point numbers."""
        return jnp.issubdtype(self.avals[var].dtype, jnp.floating)

    def after(self, sources: Iterable[int]) -> list[Node]:
        """The operations that variables reach differentiably, in order."""
        reached = set(sources)
        nodes = []
        for node in self.nodes:
            if any(var in reached for var in node.ins):
                outs = [var for var in node.outs if self.sources[var]]
                if outs:
                    reached.update(outs)
                    nodes.append(node)
        return nodes

    def before(self, targets: Iterable[int], nodes: Sequence[Node]) -> list[Node]:
        """Those of `nodes` that variables depend on, in order."""
        wanted = set(targets)
        kept = []
        for node in reversed(nodes):
            if wanted.intersection(node.outs):
                wanted.update(node.ins)
                kept.append(node)
        return kept[::-1]

    def cuts(self, source: int) -> list[int]:
        """The variables that everything `source` does to the output passes through, in order."""
        nodes = self.after([source])
        last_use = {var: i for i, node in enumerate(nodes) for var in node.ins}
        for var in self.outputs:
            last_use[var] = len(nodes)
        alive, found = {source}, []
        for i, node in enumerate(nodes):
            alive.update(var for var in node.outs if self.sources[var] and var in last_use)
            alive = {var for var in alive if last_use.get(var, -1) > i}
            if len(alive) == 1:
                found.extend(alive)
        return list(dict.fromkeys(var for var in found if var not in self.outputs))


@dataclasses.dataclass(frozen=True, eq=False)
class Loop:
    """A scan as the graph of one step, which reads constants, what is carried, and slices.

    The operation whose loop it is gives what is carried at last, what is stacked, and, with a
    leading axis of steps, what each step was given to carry.

    Attributes:
      body: the graph of a step; its outputs are what is carried on and what is stacked.
      inputs: the variables of the body that a step is given.
      num_consts: how many of them are the same in every step; they come first.
      num_carry: how many are carried from step to step; they come next.
      length: the number of steps.
      reverse: the last step is the first one done.
    """

    body: Graph
    inputs: tuple[int, ...]
    num_consts: int
    num_carry: int
    length: int
    reverse: bool

    @property
    def carry(self) -> range:
        """The places of what is carried among the inputs."""
        return range(self.num_consts, self.num_consts + self.num_carry)

    @property
    def stacked(self) -> range:
        """The places among the inputs of what each step gets a slice of."""
        return range(self.num_consts + self.num_carry, len(self.inputs))

    def run(self, *inputs: Any) -> list[Any]:
        """All steps: what is carried at last, what is stacked, what each step was given."""
        given = list(inputs)

        def step(carry: list[Any], slices: list[Any]) -> tuple[list[Any], Any]:
            known = self.step([*given[: self.num_consts], *carry, *slices])
            outs = [known[var] for var in self.body.outputs]
            return outs[: self.num_carry], (outs[self.num_carry :], carry)

        start, slices = ([given[i] for i in places] for places in (self.carry, self.stacked))
        last, (stacks, carries) = jax.lax.scan(
            step, start, slices, length=self.length, reverse=self.reverse
        )
        return [*last, *stacks, *carries]

    def step(self, inputs: Sequence[Any]) -> Values:
        """The values of all variables of one step."""
        known = dict(self.body.constants)
        known.update(zip(self.inputs, inputs, strict=True))
        return run(self.body.nodes, known)


def run(nodes: Iterable[Node], values: Values) -> Values:
    """Adds the values of the operations' outputs to `values`."""
    for node in nodes:
        outs = node.apply(*(values[var] for var in node.ins))
        values.update(zip(node.outs, outs, strict=True))
    return values


def restrict(
    node: Node, positions: Sequence[int], inputs: Sequence[Any]
) -> Callable[..., list[Any]]:
    """An operation as a function of its inputs at some positions, without integer results."""

    def fn(*moving: Any) -> list[Any]:
        full = list(inputs)
        for i, value in zip(positions, moving, strict=True):
            full[i] = value
        return [y for y in node.apply(*full) if jnp.issubdtype(y.dtype, jnp.floating)]

    return fn


def tail(graph: Graph, var: int, values: Values) -> Callable[[Any], Any]:
    """The output as a function of one variable, everything that it does not reach held fixed."""
    nodes = graph.after([var])

    def output(value: Any) -> Any:
        return run(nodes, {**values, var: value})[graph.outputs[0]]

    return output
