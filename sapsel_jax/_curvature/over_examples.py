"""From what single examples say of the uses of leaves to a diagonal over a batch.

Every diagonal of a loss has this skeleton: the loss is read once, as a graph; some jobs are done
for each example; their records are summed, chunk by chunk.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from sapsel_jax._base.checks import check_float_leaves
from sapsel_jax._base.examples import count_examples, even_chunk, reduce_sum, sum_over_examples
from sapsel_jax._base.precision import wide_dtype
from sapsel_jax._base.types import Batch, Diagonal, Params
from sapsel_jax._curvature.probes import mean_of_probes
from sapsel_jax._graph.graph import Graph
from sapsel_jax._graph.sites import Use
from sapsel_jax._graph.tracing import trace
from sapsel_jax._passes.lifts import Record, Structure, add_up, find_structures

BUDGET = 2**22
"""Entries that the temporaries of one chunk of examples should hold: 16 MB in float32."""


class Job(Protocol):
    """Something that is computed for some uses."""

    @property
    def uses(self) -> tuple[Use, ...]:
        """Which uses."""
        ...

    @property
    def varying(self) -> bool:
        """Whether it differs between examples."""
        ...


Records = Callable[[Sequence[Any], list[jax.Array], Any], list[Record]]
"""`(jobs, leaves, example) -> one record for each use of each job`."""

KeyedRecords = Callable[[Sequence[Any], list[jax.Array], Any, jax.Array], list[Record]]
"""`(jobs, leaves, example, key)`, with a key for this example and probe alone."""


@dataclasses.dataclass(frozen=True, eq=False)
class BatchLoss:
    """The loss of one example as a graph, and the batch to sum over.

    Attributes:
      graph: of the loss of one example.
      structures: of all uses of the leaves in the graph.
      params: the parameters.
      batch: the examples, along the leading axis of every leaf.
      weights: of the examples, if there are any.
      num_examples: their number.
    """

    graph: Graph
    structures: dict[Use, Structure]
    params: Params
    batch: Batch
    weights: jax.Array | None
    num_examples: int

    def at_once(self, microbatch: int | None, entries: float, budget: int = BUDGET) -> int:
        """How many examples run at once: as many as are asked for, or as fit.

        Args:
          microbatch: how many are asked for, if a number is.
          entries: of the temporaries of one example.
          budget: how many entries these may have together.
        """
        most = max(1, int(budget / max(entries, 1)))
        return microbatch or even_chunk(self.num_examples, most)

    def diagonal(
        self,
        jobs: Sequence[Job],
        records_of: Records,
        at_once: int,
        reduction: str,
    ) -> Diagonal:
        """The sum of records, at most `at_once` examples at a time, shaped like the parameters."""
        leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(self.params)]
        total = sum_over_examples(
            lambda chunk: self._sum_records(jobs, records_of, leaves, *chunk),
            (self.batch, self.weights),
            self.num_examples,
            at_once,
        )
        tree = jax.tree.structure(self.params)
        return tree.unflatten(reduce_sum(total, self.num_examples, self.weights, reduction))

    def estimate(
        self,
        jobs: Sequence[Job],
        records_of: KeyedRecords,
        at_once: int,
        reduction: str,
        key: jax.Array,
        num_probes: int,
        *,
        return_error: bool = False,
        probes_at_once: int = 1,
    ) -> Any:
        """The mean of such sums over probes, whose draws belong to examples by their numbers."""
        numbered = dataclasses.replace(self, batch=(self.batch, jnp.arange(self.num_examples)))

        def one_probe(probe: jax.Array) -> Diagonal:
            def keyed(some: Sequence[Any], leaves: list[jax.Array], example: Any) -> list[Record]:
                own_key = jax.random.fold_in(jax.random.fold_in(key, example[1]), probe)
                return records_of(some, leaves, example[0], own_key)

            return numbered.diagonal(jobs, keyed, at_once, reduction)

        return mean_of_probes(one_probe, num_probes, return_error, probes_at_once)

    def _sum_records(
        self,
        jobs: Sequence[Job],
        records_of: Records,
        leaves: list[jax.Array],
        examples: Any,
        weights: Any,
    ) -> list[jax.Array]:
        """The weighted sum over examples, one array per leaf.

        Jobs that say the same of every example run on the first one alone.
        """
        num_examples = jax.tree.leaves(examples)[0].shape[0]
        total = [jnp.zeros(leaf.shape, wide_dtype(leaf.dtype)) for leaf in leaves]
        first = jax.tree.map(lambda x: x[:1], examples)
        # A linear model's penalty, say, has the same curvature for every example.
        everything = jnp.asarray([num_examples]) if weights is None else weights.sum(keepdims=True)
        varying = [job for job in jobs if job.varying]
        fixed = [job for job in jobs if not job.varying]
        for some, batch, w in ((varying, examples, weights), (fixed, first, everything)):
            if not some:
                continue
            records = jax.vmap(lambda example, some=some: records_of(some, leaves, example))(batch)
            uses = [use for job in some for use in job.uses]
            for use, one in zip(uses, records, strict=True):
                part = add_up(self.graph, use, self.structures[use], one, w)
                total[use.leaf] += part.astype(total[use.leaf].dtype)
        return total


def read_loss(
    fn: Callable[..., Any],
    params: Params,
    batch: Batch,
    args: Sequence[Any],
    weights: Any,
    *,
    additive: bool = True,
    reverse: bool = True,
    loops: bool = False,
) -> BatchLoss:
    """Checks the arguments and reads the loss of one example.

    `additive` is for `find_uses`, `loops` for `trace`; with `reverse` the loss must have a reverse
    derivative.
    """
    check_float_leaves("params", params)
    num_examples = count_examples(batch, weights)
    first = jax.tree.map(lambda x: x[0], batch)
    graph = trace(lambda p, example: fn(p, example, *args), params, first, loops=loops)
    if reverse:
        check_reversible(graph)
    weights = None if weights is None else jnp.asarray(weights)
    graph, structures = find_structures(graph, additive=additive)
    return BatchLoss(graph, structures, params, batch, weights, num_examples)


def check_reversible(graph: Graph) -> None:
    """Refuses what JAX has no reverse derivative of."""
    for node in graph.nodes:
        if node.loop is not None:
            check_reversible(node.loop.body)
        if node.name == "while" and any(graph.sources[var] for var in node.outs):
            raise NotImplementedError(
                "`loss_fn` has a `while` loop that depends on the parameters, which has no reverse "
                "derivative; write it as `jax.lax.scan` or `jax.lax.fori_loop` with fixed bounds."
            )
