"""Layers of other libraries: exact against the dense diagonal, propagated against exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layers import LAYERS
from networks import as_float64, dense_diagonal, mean_loss, relative_error

import sapsel_jax as sap

pytestmark = pytest.mark.usefixtures("quick_compiler")

TOLERANCES = {"nnx-attention": 1e-5}
"""For what reckons in float32 inside, whatever it is given."""


def of_layer(name):
    """A loss that bends behind the layer, its parameters, and examples."""
    apply, params, inputs = LAYERS[name]()

    def loss_fn(params, x):
        outputs = jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(apply(params, x))])
        return jax.nn.logsumexp(outputs) + 0.1 * jnp.sum(outputs**2)

    return loss_fn, params, inputs


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_other_libraries(name):
    with jax.enable_x64(True):
        loss_fn, *given = of_layer(name)
        params, inputs = as_float64(given)
        oracle = lambda p, b: dense_diagonal(lambda q: mean_loss(loss_fn, q, b), p)
        want = jax.jit(oracle)(params, inputs)
        got = jax.jit(sap.exact_diagonal(loss_fn))(params, inputs)
        tolerance = TOLERANCES.get(name, 1e-9)
        assert relative_error(got, want) < tolerance
        estimate = sap.propagated_diagonal(loss_fn, num_probes=100, return_error=True)
        found, error = jax.jit(estimate)(params, inputs, jax.random.key(0))
        found, error, want = jax.tree.map(np.asarray, (found, error, want))
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want))
    assert largest > 1e-3
    for v, e, w in zip(*map(jax.tree.leaves, (found, error, want)), strict=True):
        np.testing.assert_array_less(abs(v - w), 6 * e + tolerance * largest)  # standard errors
