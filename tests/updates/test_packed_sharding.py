"""Packed state on several devices: each ranks its own entries, and only counts are gathered."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import sapsel_jax as sap

COUNT = 300
SPECS = {"a": P("data", "model"), "b": P(None, None, "model"), "c": P("model")}
SHAPES = {"a": (64, 512), "b": (2, 16, 256), "c": (512,)}


def init(params, mask):
    return sap.selective_packed(optax.adam(0.1), mask, COUNT).init(params)


def gathered(compiled):
    """The number of entries of every array that is gathered."""
    found = re.findall(r"\w\[([\d,]*)\]\S* all-gather(?:-start)?\(", compiled.as_text())
    return [int(np.prod([int(n) for n in shape.split(",")])) for shape in found]


@pytest.mark.slow
def test_no_leaf_is_gathered_and_every_device_does_its_share():
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in SHAPES.items()}
    mask = jax.tree.map(lambda x: x > 2.4, params)
    assert 200 < int(sap.mask_count(mask)) < COUNT + 200
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    places = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    spread = jax.device_put(params, places), jax.device_put(mask, places)
    programs: Any = [jax.jit(init).lower(*some).compile() for some in ((params, mask), spread)]
    one, many = programs
    assert max(gathered(many)) <= max(leaf.size for leaf in params.values()) / 32
    assert many.cost_analysis()["flops"] < 0.4 * one.cost_analysis()["flops"]
    for a, b in zip(
        jax.tree.leaves(one(params, mask)), jax.tree.leaves(many(*spread)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3, 64), (2, 130)])
@pytest.mark.parametrize("count", [20, pytest.param(400, marks=pytest.mark.slow)])
def test_entries_are_ranked_in_leaf_order(shape, count):
    mask = np.random.default_rng(1).random(shape) < 0.5
    transform = sap.selective_packed(optax.sgd(0.1), mask, count)
    state: Any = transform.init(np.zeros(shape, np.float32))
    want = np.flatnonzero(mask)[:count]
    np.testing.assert_array_equal(state.positions[: len(want)], want)
    assert int(state.num_left_out) == max(0, mask.sum() - count)


def test_a_tree_may_have_more_than_32_bits_of_entries():
    params = [jax.ShapeDtypeStruct((2**16, 2**14), jnp.float32)] * 5  # 5 · 2³⁰ entries
    mask = [jax.ShapeDtypeStruct(leaf.shape, bool) for leaf in params]

    def step(params, mask):
        transform = sap.selective_packed(optax.adam(0.1), mask, 1000)
        return transform.update(params, transform.init(params), params)[0]

    exported = jax.export.export(jax.jit(step), platforms=["tpu"])(params, mask)
    assert [leaf.shape for leaf in exported.out_avals] == [leaf.shape for leaf in params]
