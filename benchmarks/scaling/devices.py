"""Examples spread over virtual devices: what is left for each, read from compiled programs."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import sapsel_jax as sap
from benchmarks.learning.plain import mean_of
from benchmarks.scaling.on_paper import collectives
from benchmarks.scaling.sweeps import dense
from benchmarks.tools.timing import compiled

NUM_EXAMPLES = 512
COUNTS = (1, 2, 4, 8)
OPERATIONS = ("gradient", "propagated", "exact")


def measure(names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """One row for each operation of these names and each number of devices."""
    loss_fn, params, batch = dense((64, 128, 128, 10), NUM_EXAMPLES)
    fns: dict[str, Any] = {
        "gradient": jax.grad(mean_of(loss_fn)),
        "propagated": lambda p, b: sap.propagated_diagonal(loss_fn)(p, b, jax.random.key(0)),
        "exact": sap.exact_diagonal(loss_fn),
    }
    for name in names:
        for count in COUNTS:
            mesh = Mesh(np.array(jax.devices()[:count]), ("examples",))
            everywhere, spread = (
                NamedSharding(mesh, PartitionSpec(*s)) for s in ((), mesh.axis_names)
            )
            placed = jax.device_put(params, everywhere), jax.device_put(batch, spread)
            program = compiled(fns[name], *placed)[0]
            memory = program.memory_analysis()
            yield {
                "operation": name,
                "devices": count,
                "floating_point_operations": program.cost_analysis()["flops"],
                "argument_bytes": memory.argument_size_in_bytes,
                "extra_bytes": memory.output_size_in_bytes + memory.temp_size_in_bytes,
                "collectives": collectives(program),
            }
