"""A backward pass of curvature propagation through the steps of a loop."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from sapsel_jax._base.precision import wide_dtype
from sapsel_jax._curvature.noise import Noise, Pair, Signs
from sapsel_jax._curvature.signals import Signal, add, common_sign
from sapsel_jax._graph.graph import Values
from sapsel_jax._graph.sites import Use
from sapsel_jax._passes.lifts import Record, Structure

if TYPE_CHECKING:
    from sapsel_jax._curvature.blocks import Block
    from sapsel_jax._curvature.propagation_pass import Propagation


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Gathered:
    """All that has come back to one variable, in arrays whose number does not change.

    Attributes:
      adjoint: of the loss; None where none is needed.
      pulled: the two signals, or the first one alone where a common sign makes the second of it.
      alone: the same of the noise whose products with all else have no expectation.
      diagonal: what is known of the diagonal of its outer product.
    """

    adjoint: jax.Array | None
    pulled: tuple[jax.Array, ...]
    alone: tuple[jax.Array, ...]
    diagonal: jax.Array


class LoopPass:
    """A loop whose steps are done in the opposite order, each with a pass of its own inside."""

    def __init__(
        self,
        block: "Block",
        structures: dict[Use, Structure],
        rules: Any,
        make: "Callable[..., Propagation]",
    ) -> None:
        """Takes a loop, the uses inside of its step, and the class of the pass for a step."""
        assert block.node.loop is not None
        self.node, self.loop, self.uses = block.node, block.node.loop, tuple(structures)
        self.needs_adjoints = False
        body, inputs = self.loop.body, self.loop.inputs
        places = {i for i, var in enumerate(self.node.ins) if var in block.moving}
        while True:  # until what signals reach in one step is known to be reached in the next
            self.places = sorted(places)
            moving = [inputs[i] for i in self.places]
            self.inner = make(body, structures, rules, inputs=moving)
            carried = zip(self.loop.carry, body.outputs, strict=False)
            places |= {i for i, v in carried if v in self.inner.reached and body.sources[v]}
            if len(places) == len(self.places):
                break
        self.loop = dataclasses.replace(self.loop, body=self.inner.graph)
        self.num_words = self.loop.length * self.inner.num_words

    def need_adjoints(self, needed: bool) -> bool:
        """Whether adjoints are needed after the loop; `needed` is whether they are before it."""
        self.needs_adjoints = needed or self.inner.adds_noise
        moving = [self.loop.inputs[i] for i in self.places]
        self.inner.find_bends(moving if self.needs_adjoints else ())
        return self.needs_adjoints

    def propagate(
        self, values: Values, adjoints: Values, signals: dict[int, Signal], signs: Signs
    ) -> list[Record]:
        """Adds what comes back through all steps; returns the records of the uses inside.

        Each record has a leading axis of steps.
        """
        loop, num_outs = self.loop, len(self.loop.body.outputs)
        given = [values[var] for var in self.node.ins]
        outs, carries = self.node.outs[:num_outs], self.node.outs[num_outs:]
        pairs = [pair for v in outs if v in signals for pair in signals[v].pairs()]
        # Where the steps add nothing, one sign may still make the second signal of the first.
        sign = None if self.inner.adds_noise else common_sign(pairs)
        kept = [i in self.places for i in loop.carry] + [True] * (num_outs - loop.num_carry)
        after = [
            self._gather(v, values[v], adjoints, signals, sign) if keep else None
            for v, keep in zip(outs, kept, strict=True)
        ]
        consts = [i for i in self.places if i < loop.num_consts]
        total = {i: self._gather(-1, given[i], {}, {}, sign) for i in consts}
        words = signs.take_words(self.num_words).reshape(loop.length, -1)

        def step(state: Any, of_step: Any) -> Any:
            carried, total = state
            slices, carry, stacked, words = of_step
            known = loop.step([*given[: loop.num_consts], *carry, *slices])
            back: Values = {}
            found: dict[int, Signal] = {}
            for var, one in zip(loop.body.outputs, [*carried, *stacked], strict=True):
                _add(var, one, back, found, sign)
            records = self.inner.propagate(known, back, found, Signs(words))
            come = {
                i: self._gather(loop.inputs[i], known[loop.inputs[i]], back, found, sign)
                for i in self.places
            }
            total = jax.tree.map(jnp.add, total, {i: come[i] for i in consts})
            at_slices = {i: come[i] for i in loop.stacked if i in come}
            return ([come.get(i) for i in loop.carry], total), (at_slices, records)

        (carried, total), (at_slices, records) = jax.lax.scan(
            step,
            (after[: loop.num_carry], total),
            (
                [given[i] for i in loop.stacked],
                [values[v] for v in carries],
                after[loop.num_carry :],
                words,
            ),
            length=loop.length,
            reverse=not loop.reverse,
        )
        results = {**total, **at_slices, **dict(zip(loop.carry, carried, strict=True))}
        for i in self.places:
            _add(self.node.ins[i], results[i], adjoints, signals, sign)
        return records

    def _gather(
        self,
        var: int,
        value: jax.Array,
        adjoints: Values,
        signals: dict[int, Signal],
        sign: jax.Array | None,
    ) -> Gathered | None:
        """What has come to a variable; None for integers."""
        if not jnp.issubdtype(value.dtype, jnp.floating):
            return None
        zero = jnp.zeros(value.shape, wide_dtype(value.dtype))
        signal = signals.get(var, Signal())
        alone = signal.alone()

        def total(pairs: list[Pair]) -> tuple[jax.Array, ...]:
            if not pairs:
                return (zero,) if sign is not None else (zero, zero)
            pair = add(pairs)
            return (pair.first,) if sign is not None else pair.both()

        return Gathered(
            adjoints.get(var, jnp.zeros_like(value)) if self.needs_adjoints else None,
            total(signal.pairs(without=alone)),
            total([one.pair for one in alone]),
            sum((one.diagonal for one in alone if one.diagonal is not None), zero),
        )


def _add(
    var: int,
    one: Gathered | None,
    adjoints: Values,
    signals: dict[int, Signal],
    sign: jax.Array | None,
) -> None:
    """Adds to what has come to a variable."""
    if one is None:
        return
    if one.adjoint is not None:
        adjoints[var] = adjoints[var] + one.adjoint if var in adjoints else one.adjoint
    signal = signals.setdefault(var, Signal())
    pair = lambda arrays: Pair(*arrays) if len(arrays) > 1 else Pair(arrays[0], None, sign)
    signal.pulled.append(pair(one.pulled))
    signal.noise.append(Noise(pair(one.alone), one.diagonal, exact=False))
