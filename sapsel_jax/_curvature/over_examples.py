"""From what single examples say of the uses of leaves to a diagonal over a batch."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from sapsel_jax._base.checks import check_float_leaves
from sapsel_jax._base.examples import count_examples, reduce_sum, sum_over_examples
from sapsel_jax._base.precision import wide_dtype
from sapsel_jax._base.types import Batch, Params
from sapsel_jax._graph.graph import Graph, trace
from sapsel_jax._graph.sites import Use
from sapsel_jax._passes.lifts import Record, Structure, add_up


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


def read_loss(
    fn: Callable[..., Any], params: Params, batch: Batch, args: Sequence[Any], weights: Any
) -> tuple[Graph, list[jax.Array], int]:
    """Checks the arguments; returns the graph, the leaves and the number of examples."""
    check_float_leaves("params", params)
    num_examples = count_examples(batch, weights)
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(params)]
    first = jax.tree.map(lambda x: x[0], batch)
    return trace(lambda p, example: fn(p, example, *args), params, first), leaves, num_examples


def sum_records(
    graph: Graph,
    structures: dict[Use, Structure],
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
    everything = jnp.asarray([num_examples]) if weights is None else weights.sum(keepdims=True)
    varying = [job for job in jobs if job.varying]
    fixed = [job for job in jobs if not job.varying]
    for some, batch, w in ((varying, examples, weights), (fixed, first, everything)):
        if not some:
            continue
        records = jax.vmap(lambda example, some=some: records_of(some, leaves, example))(batch)
        uses = [use for job in some for use in job.uses]
        for use, one in zip(uses, records, strict=True):
            part = add_up(graph, use, structures[use], one, w)
            total[use.leaf] += part.astype(total[use.leaf].dtype)
    return total


def over_batch(
    chunk_sum: Callable[[Any, Any], list[jax.Array]],
    examples: Any,
    weights: Any,
    params: Params,
    num_examples: int,
    microbatch: int,
    reduction: str,
) -> Params:
    """Sums chunks of at most `microbatch` examples into a tree shaped like the parameters."""
    if weights is not None:
        weights = jnp.asarray(weights)
    total = sum_over_examples(
        lambda chunk: chunk_sum(*chunk), (examples, weights), num_examples, microbatch
    )
    tree = jax.tree.structure(params)
    return tree.unflatten(reduce_sum(total, num_examples, weights, reduction))
