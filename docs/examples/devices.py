"""Examples spread over devices: they stay where they are, and only sums are exchanged."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import sapsel_jax as sap


def loss_fn(params, example):
    x, y = example
    logits = jnp.tanh(x @ params["hidden"]) @ params["output"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)


mesh = jax.make_mesh((jax.device_count(),), ("examples",), axis_types=(AxisType.Auto,))
over_examples = NamedSharding(mesh, PartitionSpec("examples"))
everywhere = NamedSharding(mesh, PartitionSpec())

rng = np.random.default_rng(0)
data = (rng.normal(size=(64, 8)).astype(np.float32), rng.integers(0, 4, 64))
params = {
    "hidden": rng.normal(size=(8, 16)).astype(np.float32),
    "output": rng.normal(size=(16, 4)).astype(np.float32),
}


@jax.jit
def sharpest(params, data):
    diagonal = sap.exact_diagonal(loss_fn, microbatch=32)(params, data)
    return diagonal, sap.select_top_count(sap.score_sharpest(diagonal), 12)


spread = sharpest(jax.device_put(params, everywhere), jax.device_put(data, over_examples))
alone = sharpest(params, data)
same = all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), spread[1], alone[1])))
print(f"{mesh.size} devices and one select the same 12 entries: {same}")
