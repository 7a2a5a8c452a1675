"""Unlearning a transformer that is nowhere in memory: compiled from shapes and places alone."""

import math
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import sapsel_jax as sap
from benchmarks.learning.plain import mean_of
from benchmarks.scaling.transformer import (
    COLUMNS,
    ROWS,
    Leaf,
    Size,
    loss_of,
    num_entries,
    on_leaves,
)

LARGE = Size(blocks=24, width=2048, heads=16, vocabulary=32_000, length=512)
SMALL = Size(blocks=2, width=64, heads=4, vocabulary=128, length=32)
FEWER_BLOCKS = (2, 8)
"""Of networks that are otherwise the same."""
MESH = (2, 4)
NUM_TEXTS = 8
MICROBATCH = 2
"""One text at a time on each row of the mesh."""
FRACTION = 0.01
COMPILER_OPTIONS: Any = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_disable_hlo_passes": "tree_reduction_rewriter",
}
"""The program is never run. The first two spare the machine code its optimisation; what is laid out
in memory is decided before. The last one leaves out what only the backend for processors does, and
for which it keeps an array for each sum."""
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


class Part(NamedTuple):
    """A function to compile, the shapes of its arguments, and those that its results replace."""

    fn: Callable[..., Any]
    arguments: tuple[Any, ...]
    reused: tuple[int, ...] = ()


def parts(size: Size) -> dict[str, Part]:
    """What is compiled: each part of unlearning alone, and all of them as one program."""
    mesh = jax.make_mesh(MESH, (ROWS, COLUMNS), axis_types=(AxisType.Auto,) * 2)
    params = on_leaves(lambda leaf: _shape(mesh, leaf), size)
    mask = jax.tree.map(lambda x: x.update(dtype=jnp.bool_), params)
    texts = _shape(mesh, Leaf((NUM_TEXTS, size.length), PartitionSpec(ROWS)), jnp.int32)
    batch, key = (texts, texts), jax.eval_shape(lambda: jax.random.key(0))
    count: Any = _shape(mesh, Leaf((), PartitionSpec()), jnp.int32)
    state = (optax.ScaleByAdamState(count, params, params), optax.EmptyState())
    loss_fn = loss_of(size)

    def placed(tree: Any) -> Any:
        """As the parameters: where nothing says so, the compiler is free to gather a result."""
        constrain = jax.lax.with_sharding_constraint
        return jax.tree.map(lambda x, p: constrain(x, p.sharding), tree, params)

    def gradient(params: Any, batch: Any) -> Any:
        return placed(jax.grad(mean_of(loss_fn))(params, batch))

    def propagation(params: Any, batch: Any, key: Any) -> Any:
        return placed(sap.propagated_diagonal(loss_fn, microbatch=MICROBATCH)(params, batch, key))

    def selection(scores: Any) -> Any:
        return sap.select_top_fraction(scores, FRACTION)

    def step(params: Any, state: Any, gradient: Any, mask: Any) -> Any:
        updates, state = sap.selective(optax.adam(1e-4), mask).update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    def whole(params: Any, state: Any, batch: Any, key: Any) -> Any:
        mask = selection(propagation(params, batch, key))
        return step(params, state, gradient(params, batch), mask)

    return {
        "gradient": Part(gradient, (params, batch)),
        "selection": Part(selection, (params,)),
        "selective adam step": Part(step, (params, state, params, mask), (0, 1)),
        "propagation": Part(propagation, (params, batch, key)),
        "all in one program": Part(whole, (params, state, batch, key), (0, 1)),
    }


def measure(size: Size, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """One row for each part of these names, as soon as it is compiled."""
    all_parts = parts(size)
    for name in names:
        part = all_parts[name]
        start = time.perf_counter()
        lowered = jax.jit(part.fn, donate_argnums=part.reused).lower(*part.arguments)
        traced = time.perf_counter()
        program = lowered.compile(compiler_options=COMPILER_OPTIONS)
        compiled = time.perf_counter()
        memory: Any = program.memory_analysis()
        fresh = [x for i, x in enumerate(part.arguments) if i not in part.reused]
        results = jax.eval_shape(part.fn, *part.arguments)
        held = _bytes(results) + (_bytes(fresh) if part.reused else _bytes(part.arguments))
        yield {
            "blocks": size.blocks,
            "part": name,
            "entries": num_entries(size),
            "devices": math.prod(MESH),
            "argument_bytes": memory.argument_size_in_bytes,
            "result_bytes": memory.output_size_in_bytes,
            "reused_bytes": memory.alias_size_in_bytes,
            "temporary_bytes": memory.temp_size_in_bytes,
            "ideal_bytes": -(-held // math.prod(MESH)),
            "trace_seconds": traced - start,
            "compile_seconds": compiled - traced,
            "collectives": collectives(program),
        }


def collectives(program: Any) -> list[str]:
    """The kinds of exchange between devices in a compiled program."""
    text = str(program.as_text())
    return [kind for kind in COLLECTIVES if re.search(rf"\b{kind}(-start)?\(", text)]


def _shape(mesh: Mesh, leaf: Leaf, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=NamedSharding(mesh, leaf.place))


def _bytes(tree: Any) -> int:
    """Of all devices together; random keys, which are a few words, left out."""
    leaves = [x for x in jax.tree.leaves(tree) if not jnp.issubdtype(x.dtype, jax.dtypes.extended)]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
