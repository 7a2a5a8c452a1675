"""Curvature propagation: the whole Hessian diagonal estimated by one backward pass."""

import math
from collections.abc import Callable, Set
from typing import Any

import jax

from sapsel_jax._base.examples import check_options
from sapsel_jax._base.losses import one_scalar
from sapsel_jax._base.meshes import placed_by_compiler
from sapsel_jax._base.types import Batch, LossFn, Params
from sapsel_jax._curvature.blocks import RULES
from sapsel_jax._curvature.hutchinson import probe_records
from sapsel_jax._curvature.over_examples import read_loss
from sapsel_jax._curvature.probed import find_probed
from sapsel_jax._curvature.probes import check_probes
from sapsel_jax._curvature.propagation_pass import Propagation
from sapsel_jax._graph.graph import Graph
from sapsel_jax._graph.reach import varies
from sapsel_jax._graph.sites import Use
from sapsel_jax._passes.lifts import Record, Structure

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
    networks only the loss adds noise. A scan over four steps or more stays a loop, so that programs
    do not grow with the number of layers in it.

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
      transformer of 6 layers. It hardly grows with depth: 1.7 for 2 layers, 2.0 for 32; 2.0 for 8
      layers in a scan, 2.4 for 128.

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
        loss = read_loss(one_scalar(loss_fn), params, batch, args, weights, loops=True)
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

    return placed_by_compiler(diagonal, num_trees=1 + return_error)


def _entries(graph: Graph, structures: dict[Use, Structure]) -> int:
    """How many entries the temporaries of one example have."""
    entries = _variables(graph)
    for use, found in structures.items():
        own = math.prod(found.tangent.value.shape)
        if not found.is_diagonal:
            own += 2 * math.prod(label.size for label in found.order)
        while use.inner is not None:  # a record for every step
            own, use = own * use.loop.length, use.inner
        entries += own
    return entries


def _variables(graph: Graph) -> int:
    entries = 4 * sum(graph.size(var) for node in graph.nodes for var in node.outs)
    return entries + sum(_variables(node.loop.body) for node in graph.nodes if node.loop)


def _plan(
    graph: Graph, structures: dict[Use, Structure], rules: Set[str] = RULES
) -> list["Propagation | Products"]:
    """One pass for sites whose curvature varies between examples, one for the others.

    Sites that act through ruled operations have products of their own. Signals are for symmetric
    Hessians, and a pass back through a rule need not be the transpose of the way there.
    """
    passes: list[Propagation | Products] = []
    for varying in (True, False):
        differs = {use: any(varies(graph, site) for site in use.sites) for use in structures}
        some = {use: shape for use, shape in structures.items() if differs[use] == varying}
        ruled = {u: some[u] for u in some if any(n.ruled for n in graph.after([u.site]))}
        others = {use: some[use] for use in some if use not in ruled}
        if ruled:
            passes.append(Products(graph, ruled, varying))
        if others:
            passes.append(Propagation(graph, others, rules, varying=varying))
    return passes


def describe(graph: Graph, structures: dict[Use, Structure]) -> dict[Use, str]:
    """How each use is estimated: "exact", from signals "at the site" or "at the leaf" itself.

    It is exact where all that arrives is noise whose diagonal is known, as at the logits.
    """
    found = {}
    for one in _plan(graph, structures):
        estimated = one.estimated()
        for use in one.uses:
            exact = use.site not in estimated and structures[use].is_diagonal
            if exact and use.inner is None:
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
