"""One backward pass of curvature propagation, planned before there are numbers."""

from collections.abc import Iterable, Sequence, Set
from typing import Any

import jax
import jax.numpy as jnp

from sapsel_jax._base.precision import wide_dtype
from sapsel_jax._curvature.blocks import Block, find_blocks, in_variables
from sapsel_jax._curvature.loop_pass import LoopPass
from sapsel_jax._curvature.noise import Noise, Pair, Signs, draw, num_words
from sapsel_jax._curvature.over_examples import check_reversible
from sapsel_jax._curvature.signals import Signal, add, common_sign
from sapsel_jax._graph.graph import Graph, Values
from sapsel_jax._graph.sites import Use
from sapsel_jax._passes.lifts import Record, Structure, lift, records_of_uses


class Propagation:
    """A backward pass through the blocks of a graph, or through those of a step of a loop."""

    def __init__(
        self,
        graph: Graph,
        structures: dict[Use, Structure],
        rules: Set[str],
        *,
        varying: bool = True,
        inputs: Sequence[int] = (),
    ) -> None:
        """Takes the uses whose sites signals are for, and what is known beside the general rule.

        They are for `inputs` of a step, too, which earlier steps may reach together.
        """
        check_reversible(graph)
        self.uses, self.structures, self.varying = tuple(structures), structures, varying
        self.diagonals = "diagonals" in rules
        moved = [var for use in structures for var in use.sites if graph.sources[var]]
        sites = [*moved, *inputs]
        self.graph, self.blocks = find_blocks(graph, sites, rules, inputs)
        self.loops = {
            block: LoopPass(block, self._inside(block), rules, Propagation)
            for block in self.blocks
            if block.node.loop is not None
        }
        self.adds_noise = any(
            block.noisy or (block in self.loops and self.loops[block].inner.adds_noise)
            for block in self.blocks
        )
        self.reached = {*sites, *(v for block in self.blocks for v in block.node.outs)}
        """The variables that signals may come to."""
        self.num_words = sum(
            num_words(self.graph.size(var)) for block in self.blocks for var in block.noisy
        ) + sum(loop.num_words for loop in self.loops.values())
        self.bends: set[int] = set()
        """The variables whose adjoints the noise of earlier blocks depends on."""
        self.find_bends()

    def _inside(self, block: Block) -> dict[Use, Structure]:
        """The uses in the step of a loop, and their structures."""
        outs = block.node.outs
        found = {use: use.inner for use in self.uses if use.site in outs and use.inner is not None}
        return {inner: self.structures[use] for use, inner in found.items()}

    def find_bends(self, start: Iterable[int] = ()) -> None:
        """Finds which adjoints are needed, if those at `start` are."""
        self.bends = set(start)
        for block in self.blocks:
            needed = bool(self.bends.intersection(block.moving))
            if block in self.loops:
                needed = self.loops[block].need_adjoints(needed)
            if block.noisy or needed:
                self.bends.update(block.node.outs)

    def records(self, leaves: list[jax.Array], example: Any, key: jax.Array) -> list[Record]:
        """What one example says of each use."""
        values = self.graph.evaluate(leaves, example)
        return self.propagate(values, self._adjoint(values), {}, self._signs(key))

    def _adjoint(self, values: Values) -> Values:
        output = self.graph.outputs[0]
        return {output: jnp.ones_like(values[output])}

    def _signs(self, key: jax.Array) -> Signs:
        return Signs(jax.random.bits(key, (self.num_words,), jnp.uint32))

    def estimated(self) -> set[int]:
        """The variables whose signals hold something random, from shapes alone."""
        specs = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in self.graph.avals]
        inputs = ([specs[var] for var in some] for some in (self.graph.leaves, self.graph.example))
        found: set[int] = set()

        def propagate(leaves: Any, example: Any, key: jax.Array) -> None:
            values, signals = self.graph.evaluate(leaves, example), {}
            self.propagate(values, self._adjoint(values), signals, self._signs(key))
            found.update(var for var, signal in signals.items() if not signal.exact())

        jax.eval_shape(propagate, *inputs, jax.random.key(0))
        return found

    def propagate(
        self, values: Values, adjoints: Values, signals: dict[int, Signal], signs: Signs
    ) -> list[Record]:
        """Carries adjoints and signals at the outputs back, and adds noise on the way.

        Those of all other variables are added to the ones that are given. Returns a record for
        each use.
        """
        found: dict[Use, Record] = {}
        for block in reversed(self.blocks):
            if block in self.loops:
                loop = self.loops[block]
                records = loop.propagate(values, adjoints, signals, signs)
                found.update(zip(loop.uses, records, strict=True))
                continue
            outs = [v for v in block.node.outs if self.graph.is_float(v)]
            zero = lambda var: jnp.zeros_like(values[var])
            if block.carries and outs[0] in signals:
                # As it is, and so with the diagonal of its Hessian, for sites that come before.
                before = signals.setdefault(block.moving[0], Signal())
                before.noise += signals[outs[0]].alone()
            if block.noisy:
                given = [adjoints[v] if v in adjoints else zero(v) for v in outs]
                noise = draw(block, values, given, signs)
                if not self.diagonals:
                    noise = [Noise(one.pair, None, False) for one in noise]
            else:
                noise = []
            self._pull(block, outs, values, adjoints, signals)
            for var, one in zip(block.noisy, noise, strict=True):
                signals.setdefault(var, Signal()).noise.append(one)
        return [
            found[use.inner] if use.inner is not None else self._record(use, values, signals)
            for use in self.uses
        ]

    def _record(self, use: Use, values: Values, signals: dict[int, Signal]) -> Record:
        signal, value = signals.get(use.site, Signal()), values[use.site]
        is_diagonal = self.structures[use].is_diagonal
        if is_diagonal:
            result = signal.curvature(value.shape, wide_dtype(value.dtype))
        else:
            tangent, order = lift(self.graph, use, values)
            result = signal.along(tangent, order, wide_dtype(value.dtype))
        (record,) = records_of_uses(self.graph, (use,), is_diagonal, values, result)
        return record

    def _pull(
        self,
        block: Block,
        outs: list[int],
        values: Values,
        adjoints: Values,
        signals: dict[int, "Signal"],
    ) -> None:
        """Adds what comes back through a block to the adjoints and signals of its inputs."""
        rows: list[Values] = []
        has_adjoint = bool(self.bends.intersection(block.moving))
        if has_adjoint:
            rows.append(adjoints)
        found = {
            var: signals[var].pairs(signals[var].alone() if block.carries else ())
            for var in outs
            if var in signals
        }
        pairs = {var: add(some) for var, some in found.items() if some}
        sign = common_sign(list(pairs.values()))
        if pairs:
            rows.append({var: pair.first for var, pair in pairs.items()})
            if sign is None:
                rows.append({var: pair.both()[1] for var, pair in pairs.items()})
        if not rows:
            return
        points = [values[var] for var in block.moving]
        back = jax.vjp(in_variables(block.node, block.moving, values), *points)[1]
        zero = lambda var: jnp.zeros_like(values[var])
        given = [
            [row[var].astype(values[var].dtype) if var in row else zero(var) for var in outs]
            for row in rows
        ]
        if block.node.facts.pulls_singly or block.node.name == "region":
            results = [list(arrays) for arrays in zip(*map(back, given), strict=True)]
        else:
            stacked = jax.vmap(back)([jnp.stack(row) for row in zip(*given, strict=True)])
            results = [list(array) for array in stacked]
        for var, arrays in zip(block.moving, results, strict=True):
            if has_adjoint:
                adjoint = arrays.pop(0)
                adjoints[var] = adjoints[var] + adjoint if var in adjoints else adjoint
            if pairs:
                pair = Pair(arrays[0], None, sign) if sign is not None else Pair(*arrays)
                signals.setdefault(var, Signal()).pulled.append(pair)
