"""Examples spread over devices: each device works on its own, whatever the size of a chunk."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import sapsel_jax as sap
from sapsel_jax._base.examples import even_chunk

NUM_DEVICES, NUM_EXAMPLES, MICROBATCH = 8, 512, 64
COLLECTIVES = ("all-gather", "all-to-all", "collective-permute", "collective-broadcast")


def model_fn(params, example):
    return jnp.tanh(example[0] @ params["in"]) @ params["out"]


def output_loss_fn(logits, example):
    return optax.softmax_cross_entropy_with_integer_labels(logits, example[1])


def loss_fn(params, example):
    return output_loss_fn(model_fn(params, example), example)


def inputs():
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "in": jax.random.normal(keys[0], (24, 16)) / 5,
        "out": jax.random.normal(keys[1], (16, 4)) / 4,
    }
    x = jax.random.normal(keys[2], (NUM_EXAMPLES, 24))
    return params, (x, jax.random.randint(keys[3], (NUM_EXAMPLES,), 0, 4))


def corrected(batch):
    return batch[0], (batch[1] + 1) % 4


KEY = jax.random.key(1)
WORKS = {
    "exact": lambda m: sap.exact_diagonal(loss_fn, microbatch=m),
    "hutchinson": lambda m: lambda p, b: sap.hutchinson_diagonal(loss_fn, microbatch=m)(p, b, KEY),
    "propagated": lambda m: lambda p, b: sap.propagated_diagonal(loss_fn, microbatch=m)(p, b, KEY),
    "gauss_newton": lambda m: sap.gauss_newton_diagonal(model_fn, output_loss_fn, microbatch=m),
    "sampled_gauss_newton": lambda m: (
        lambda p, b: sap.sampled_gauss_newton_diagonal(model_fn, output_loss_fn, microbatch=m)(
            p, b, KEY
        )
    ),
    "fisher": lambda m: sap.empirical_fisher_diagonal(loss_fn, microbatch=m),
    "first_order": lambda m: (
        lambda p, b: sap.first_order_update(
            loss_fn, p, b, corrected(b), step_size=0.1, microbatch=m
        )
    ),
    "second_order": lambda m: (
        lambda p, b: sap.second_order_update(
            loss_fn, p, b, corrected(b), b, damping=0.1, microbatch=m
        )
    ),
    "iterative": lambda _: (
        lambda p, b: sap.iterative_update(
            loss_fn, p, jax.tree.map(lambda x: jnp.stack([x, x]), b), optimizer=optax.sgd(0.1)
        )
    ),
}


def compiled(work, axis_type=None):
    """The compiled program, and what it returns, on one device or on a mesh of all."""
    params, batch = inputs()
    within = contextlib.nullcontext()
    if axis_type is not None:
        mesh = jax.make_mesh((NUM_DEVICES,), ("data",), axis_types=(axis_type,))
        place = lambda *axes: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        params, batch = jax.device_put(params, place()), jax.device_put(batch, place("data"))
        within = jax.set_mesh(mesh)
    with within:
        program = jax.jit(work).lower(params, batch).compile()
        return program, program(params, batch)


def num_operations(program):
    return program.cost_analysis()["flops"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("microbatch", "axis_type"),
    [(None, AxisType.Auto), (MICROBATCH, AxisType.Auto), (MICROBATCH, AxisType.Explicit)],
)
@pytest.mark.parametrize("name", WORKS)
def test_no_example_moves_and_every_device_does_its_share(name, microbatch, axis_type):
    work = WORKS[name](microbatch)
    (one, want), (many, got) = compiled(work), compiled(work, axis_type)
    text = str(many.as_text())
    for collective in COLLECTIVES:
        assert not re.search(rf"\b{collective}(-start)?\(", text)
    assert re.search(r"\ball-reduce(-start)?\(", text)
    # Each device has an eighth of the examples; sums over parameters and solvers are on all.
    assert num_operations(many) < 0.25 * num_operations(one)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_on_an_explicit_mesh_results_lie_like_the_parameters_and_errors_too():
    params, batch = inputs()
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    place = lambda *axes: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    places = {"in": place(None, "model"), "out": place("model")}
    spread = jax.device_put(params, places), jax.device_put(batch, place("data"))
    weights = np.linspace(0, 1, NUM_EXAMPLES, dtype=np.float32)
    estimate = sap.propagated_diagonal(loss_fn, num_probes=2, return_error=True)
    work = jax.jit(lambda p, b, w: estimate(p, b, KEY, weights=w))
    want = work(params, batch, weights)
    with jax.set_mesh(mesh):
        got = work(*spread, weights)
    for tree, alike in zip(got, want, strict=True):
        for name, leaf in tree.items():
            assert leaf.sharding.is_equivalent_to(places[name], 2)
            np.testing.assert_allclose(leaf, alike[name], rtol=1e-3, atol=1e-5)


def test_the_default_chunk_leaves_no_rest_where_it_can():
    assert even_chunk(1024, 53) == 32
    assert even_chunk(1000, 53) == 40  # of 40 and 50 the one that eight devices share
    assert even_chunk(997, 53) == 53
    assert even_chunk(20, 53) == 20
    assert even_chunk(7, 1) == 1
