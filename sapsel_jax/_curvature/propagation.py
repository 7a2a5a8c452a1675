"""Curvature propagation: the whole Hessian diagonal estimated by one backward pass."""

import math
from collections.abc import Callable, Sequence, Set
from typing import Any

import jax
import jax.numpy as jnp

from sapsel_jax._base.examples import check_options
from sapsel_jax._base.losses import one_scalar
from sapsel_jax._base.precision import wide_dtype
from sapsel_jax._base.types import Batch, LossFn, Params
from sapsel_jax._curvature.blocks import RULES, Block, find_blocks, in_variables
from sapsel_jax._curvature.hutchinson import probe_records
from sapsel_jax._curvature.noise import Noise, Pair, Signs, draw, num_signs
from sapsel_jax._curvature.over_examples import check_reversible, read_loss
from sapsel_jax._curvature.probed import find_probed
from sapsel_jax._curvature.probes import check_probes
from sapsel_jax._graph.graph import Graph, Values
from sapsel_jax._graph.reach import varies
from sapsel_jax._graph.sites import Use
from sapsel_jax._passes.lifts import (
    Record,
    Structure,
    lift,
    records_of_uses,
)
from sapsel_jax._primitives.contraction import contract
from sapsel_jax._primitives.tangents import Label, Tangent

BUDGET = 2**24
"""Entries that the temporaries of one chunk of examples may hold: 64 MB in float32."""

PROBES_AT_ONCE = 4
"""They share the values and the adjoint of an example. On CPU it makes no difference for dense
networks; convolutions run in a loop, which one probe after the other needs, take longer."""


def propagated_diagonal(
    loss_fn: LossFn,
    *,
    num_probes: int = 1,
    microbatch: int | None = None,
    reduction: str = "mean",
    return_error: bool = False,
) -> Callable[..., Any]:
    """Estimates the Hessian diagonal of a loss over a batch by one backward pass.

    Beside the adjoint of each example's loss, the pass carries two random signals b₁ and b₂. Where
    an operation is not affine, it adds noise to both signals. The expected outer product of the two
    noises is the operation's own Hessian; the noise is independent for every example and block. So
    E[b₁ b₂ᵀ] is the Hessian of the loss in every variable. If a leaf enters by z = A w + ..., then
    (Aᵀ b₁) ⊙ (Aᵀ b₂) at z is an unbiased estimate of its diagonal. For tied and recurrent weights,
    and for leaves that enter non-linearly, the signals are carried to the leaf itself. In ReLU
    networks only the loss adds noise.

    Args:
      loss_fn: `loss_fn(params, example, *args) -> scalar`, the loss of one example.
      num_probes: how many such passes are averaged, at least 1. Four run at once; one after the
        other if `microbatch` is given.
      microbatch: how many examples are worked on at once, at least 1. Memory grows with it in
        proportion; the default is as many as fit into about 64 MB. The draws belong to the
        examples, so the result does not depend on it but for rounding.
      reduction: "mean" or "sum" over the examples.
      return_error: also return the standard error of each entry, from the spread between probes;
        needs `num_probes >= 2`.

    Returns:
      A function `(params, batch, key, *args, weights=None)` that returns a pytree shaped like
      `params`, in float32 or wider; with `return_error` a pair `(diagonal, standard_error)`.

    Raises:
      TypeError: if `params` holds anything but real floating-point arrays, or `loss_fn` returns
        anything but one real scalar.
      ValueError: if the batch is empty or its leaves differ in length, if `weights` has another
        shape, if a count is too small or `reduction` is unknown.
      NotImplementedError: if a `while` loop depends on the parameters, or JAX cannot differentiate
        `loss_fn` twice.

    Cost: measured on trained networks, for one probe, 1.4 to 1.7 gradient equivalents for
      multilayer perceptrons, 1.0 and 2.3 for small convolutional networks with ReLU and GELU, 1.7
      for a block of attention with LayerNorm, 4.0 for a ResNet of a million parameters, 3.1 for a
      transformer of 6 layers. It hardly grows with depth: 1.7 for 2 layers, 2.0 for 32.

    Source: J. Martens, I. Sutskever, K. Swersky, "Estimating the Hessian by Back-propagating
      Curvature" (2012), with two real signals for a complex one, and for any JAX function.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> def loss_fn(w, example):  # softmax regression is exact: no noise lies before its logits
      ...     x, label = example
      ...     return -jax.nn.log_softmax(x @ w)[label]
      >>> batch = (jnp.array([[1.0, 2.0]]), jnp.array([0]))
      >>> sap.propagated_diagonal(loss_fn)(jnp.zeros((2, 2)), batch, jax.random.key(0))
      Array([[0.25, 0.25],
             [1.  , 1.  ]], dtype=float32)
    """
    return propagated_by(
        RULES,
        loss_fn,
        num_probes=num_probes,
        microbatch=microbatch,
        reduction=reduction,
        return_error=return_error,
    )


def propagated_by(
    rules: Set[str],
    loss_fn: LossFn,
    *,
    num_probes: int = 1,
    microbatch: int | None = None,
    reduction: str = "mean",
    return_error: bool = False,
) -> Callable[..., Any]:
    """`propagated_diagonal` with some of its rules alone."""
    check_probes(num_probes, return_error)
    check_options(microbatch, reduction)

    def diagonal(
        params: Params, batch: Batch, key: jax.Array, *args: Any, weights: Any = None
    ) -> Any:
        loss = read_loss(one_scalar(loss_fn), params, batch, args, weights)
        probes_at_once = 1 if microbatch else min(PROBES_AT_ONCE, num_probes)
        entries = probes_at_once * _entries(loss.graph, loss.structures)
        return loss.estimate(
            _plan(loss.graph, loss.structures, rules),
            lambda some, *inputs: [record for one in some for record in one.records(*inputs)],
            loss.at_once(microbatch, entries, BUDGET),
            reduction,
            key,
            num_probes,
            return_error=return_error,
            probes_at_once=probes_at_once,
        )

    return diagonal


def _entries(graph: Graph, structures: dict[Use, Structure]) -> int:
    """How many entries the temporaries of one example have."""
    entries = 4 * sum(graph.size(var) for node in graph.nodes for var in node.outs)
    for found in structures.values():
        entries += math.prod(found.tangent.value.shape)
        if not found.is_diagonal:
            entries += 2 * math.prod(label.size for label in found.order)
    return entries


def _plan(
    graph: Graph, structures: dict[Use, Structure], rules: Set[str] = RULES
) -> list["Propagation | Products"]:
    """One pass for sites whose curvature varies between examples, one for the others.

    Sites that act through ruled operations have products of their own. Signals are for symmetric
    Hessians, and a pass back through a rule need not be the transpose of the way there.
    """
    passes: list[Propagation | Products] = []
    for varying in (True, False):
        some = {u: shape for u, shape in structures.items() if varies(graph, u.site) == varying}
        ruled = {u: some[u] for u in some if any(n.ruled for n in graph.after([u.site]))}
        uses = tuple(use for use in some if use not in ruled)
        if ruled:
            passes.append(Products(graph, ruled, varying))
        if uses:
            blocked, blocks = find_blocks(graph, [use.site for use in uses], rules)
            passes.append(
                Propagation(blocked, blocks, uses, structures, varying, "diagonals" in rules)
            )
    return passes


def describe(graph: Graph, structures: dict[Use, Structure]) -> dict[Use, str]:
    """How each use is estimated: "exact", from signals "at the site" or "at the leaf" itself.

    It is exact where all that arrives is noise whose diagonal is known, as at the logits.
    """
    found = {}
    for one in _plan(graph, structures):
        estimated = one.estimated()
        for use in one.uses:
            if use.site not in estimated and structures[use].is_diagonal:
                found[use] = "exact"
            else:
                found[use] = "at the leaf" if use.reason else "at the site"
    return found


class Products:
    """Hessian-vector products with random signs, one for each site."""

    def __init__(self, graph: Graph, structures: dict[Use, Structure], varying: bool) -> None:
        """Takes the uses whose sites the products are for."""
        self.graph, self.varying = graph, varying
        self.probed = find_probed(graph, structures)
        self.uses = tuple(use for one in self.probed for use in one.uses)

    def records(self, leaves: list[jax.Array], example: Any, key: jax.Array) -> list[Record]:
        """What one example says of each use."""
        return probe_records(self.graph, self.probed, leaves, example, key)

    def estimated(self) -> set[int]:
        """The variables whose curvature is estimated."""
        return {one.site for one in self.probed}


class Propagation:
    """One backward pass, planned before there are numbers."""

    def __init__(
        self,
        graph: Graph,
        blocks: list[Block],
        uses: tuple[Use, ...],
        structures: dict[Use, Structure],
        varying: bool,
        diagonals: bool,
    ) -> None:
        """Takes a graph of blocks, and the uses whose sites the signals are for."""
        check_reversible(graph)
        self.graph, self.blocks, self.uses = graph, blocks, uses
        self.structures, self.varying, self.diagonals = structures, varying, diagonals
        self.num_signs = num_signs(graph, blocks)
        self.bends: set[int] = set()
        """The variables whose adjoints the noise of earlier blocks depends on."""
        for block in blocks:
            if block.noisy or self.bends.intersection(block.moving):
                self.bends.update(block.node.outs)

    def records(self, leaves: list[jax.Array], example: Any, key: jax.Array) -> list[Record]:
        """What one example says of each use."""
        values = self.graph.evaluate(leaves, example)
        signals = self._propagate(values, Signs(key, self.num_signs))
        found = []
        for use in self.uses:
            signal, value = signals.get(use.site, Signal()), values[use.site]
            is_diagonal = self.structures[use].is_diagonal
            if is_diagonal:
                result = signal.curvature(value.shape, wide_dtype(value.dtype))
            else:
                tangent, order = lift(self.graph, use, values)
                result = signal.along(tangent, order, wide_dtype(value.dtype))
            found += records_of_uses(self.graph, (use,), is_diagonal, values, result)
        return found

    def estimated(self) -> set[int]:
        """The variables whose signals hold something random, from shapes alone."""
        specs = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in self.graph.avals]
        inputs = ([specs[var] for var in some] for some in (self.graph.leaves, self.graph.example))
        found: set[int] = set()

        def propagate(leaves: Any, example: Any, key: jax.Array) -> None:
            values = self.graph.evaluate(leaves, example)
            signals = self._propagate(values, Signs(key, self.num_signs))
            found.update(var for var, signal in signals.items() if not signal.exact())

        jax.eval_shape(propagate, *inputs, jax.random.key(0))
        return found

    def _propagate(self, values: Values, signs: Signs) -> dict[int, "Signal"]:
        """The signals at every variable that a site reaches."""
        output = self.graph.outputs[0]
        adjoints = {output: jnp.ones_like(values[output])}
        signals: dict[int, Signal] = {}
        for block in reversed(self.blocks):
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
        return signals

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
        pairs = {var: _add(some) for var, some in found.items() if some}
        sign = _common_sign(list(pairs.values()))
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


def _common_sign(pairs: Sequence[Pair]) -> jax.Array | None:
    """The sign that all second signals are the first ones times, if there is one."""
    signs = [pair.sign for pair in pairs]
    return signs[0] if signs and all(sign is signs[0] for sign in signs) else None


class Signal:
    """What reaches one variable: pairs pulled back to it, and noise that is added there."""

    def __init__(self) -> None:
        """Begins with nothing."""
        self.pulled: list[Pair] = []
        self.noise: list[Noise] = []

    def alone(self) -> list[Noise]:
        """The noise whose products with all else have no expectation."""
        return [one for one in self.noise if one.diagonal is not None]

    def exact(self) -> bool:
        """Whether all of it is noise whose diagonal is known."""
        return not self.pulled and all(one.exact for one in self.noise)

    def pairs(self, without: Sequence[Noise] = ()) -> list[Pair]:
        """All of it, but for some noise."""
        return [*self.pulled, *(one.pair for one in self.noise if one not in without)]

    def curvature(self, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """The diagonal at this variable, without the products that have no expectation."""
        total, alone = jnp.zeros(shape, dtype), self.alone()
        pairs = self.pairs(without=alone)
        if pairs:
            first, second = _add(pairs).both()
            total += first.astype(dtype) * second.astype(dtype)
        return total + sum(one.diagonal.astype(dtype) for one in alone if one.diagonal is not None)

    def along(self, tangent: Tangent, order: Sequence[Label], dtype: Any) -> jax.Array:
        """(Aᵀ b₁) ⊙ (Aᵀ b₂), with the columns of A the tangents of this variable."""
        if not self.pairs():
            return jnp.zeros([label.size for label in order], dtype)
        pair = _add(self.pairs())
        if pair.sign is not None:
            return pair.sign * contract([tangent], pair.first.astype(dtype), order) ** 2
        both = jnp.stack(pair.both()).astype(dtype)
        first, second = contract([tangent], both, order, num_rows=1)
        return first * second


def _add(pairs: Sequence[Pair]) -> Pair:
    sign = _common_sign(pairs)
    if sign is not None:
        return Pair(sum(pair.first for pair in pairs), None, sign)  # type: ignore[arg-type]
    first, second = zip(*(pair.both() for pair in pairs), strict=True)
    return Pair(sum(first), sum(second))  # type: ignore[arg-type]
