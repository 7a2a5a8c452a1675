"""Selection on arrays spread over several devices, and lowered for other platforms."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from trees import collectives, equations

import sapsel_jax as sap

pytestmark = pytest.mark.usefixtures("quick_compiler")
SELECTORS = {
    "count": lambda s: sap.select_top_count(s, 2100),
    "per_leaf": lambda s: sap.select_top_fraction_per_leaf(s, 0.1),
    "units": lambda s: sap.select_top_units(s, 0.3),
    "per_unit": lambda s: sap.select_top_fraction_per_unit(s, 0.3),
    "like": lambda s: sap.select_like(jax.tree.map(lambda x: x > 0.3, s), jax.random.key(0)),
}


def every_selector(scores):
    return [select(scores) for select in SELECTORS.values()]


SPECS = {
    "by_rows": [P("data"), P("data"), P("data")],
    "by_both": [P("data", "model"), P("model"), P(None, None, "model", "data")],
    "by_pairs": [P(("data", "model")), P(None), P(None, "data", None, "model")],
}


def spread(specs, axis_type):
    rng = np.random.default_rng(0)
    scores = [
        rng.integers(0, 5, (16, 8)).astype(np.float32),  # ties
        rng.standard_normal(16).astype(np.float16),
        rng.standard_normal((4, 4, 8, 16)).astype(np.float32),
    ]
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type, axis_type))
    placed = [jax.device_put(s, NamedSharding(mesh, p)) for s, p in zip(scores, specs, strict=True)]
    return scores, placed, mesh


@functools.cache
def unsharded(select):
    scores, _, _ = spread(SPECS["by_rows"], AxisType.Auto)
    return jax.jit(select)(scores)


def check_sharded(select, specs, axis_type):
    _, placed, mesh = spread(specs, axis_type)
    with jax.set_mesh(mesh):
        compiled = jax.jit(select).lower(placed).compile()
        got = compiled(placed)
    chex.assert_trees_all_equal(got, unsharded(select))
    assert collectives(compiled) == {"all-reduce"}
    for mask, score in zip(got, placed, strict=True):
        assert mask.sharding.is_equivalent_to(score.sharding, score.ndim)


def few(scores):
    return sap.select_top_count(scores, 20)


@pytest.mark.parametrize(
    ("axis_type", "layout"),
    [(AxisType.Auto, "by_both"), (AxisType.Explicit, "by_pairs")],
)
def test_sharded_scores_give_the_same_mask_with_the_same_sharding(axis_type, layout):
    check_sharded(few, SPECS[layout], axis_type)


# Half of all triples, so that every pair of selector, layout and kind of axis is among them.
TYPES = (AxisType.Auto, AxisType.Explicit)
TRIPLES = [
    (name, layout, TYPES[(i + j) % 2])
    for (i, name), (j, layout) in itertools.product(enumerate(SELECTORS), enumerate(SPECS))
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layout", "axis_type"), TRIPLES)
def test_every_selector_keeps_masks_and_sharding(name, layout, axis_type):
    check_sharded(SELECTORS[name], SPECS[layout], axis_type)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_selectors_lower_for_other_platforms(platform):
    scores = [jax.ShapeDtypeStruct((64, 32), jnp.float32), jax.ShapeDtypeStruct((), jnp.bfloat16)]
    exported = jax.export.export(jax.jit(every_selector), platforms=[platform])(scores)
    assert exported.platforms == (platform,)


def test_nothing_of_a_leafs_size_is_sorted_joined_or_reshaped():
    scores = {"a": jnp.zeros((64, 32)), "b": jnp.zeros((3, 3, 8, 16)), "c": jnp.zeros(100)}
    moving = {"sort", "top_k", "approx_top_k", "gather", "scatter", "scatter-add"}
    sizes = {"concatenate": 0, "cumsum": 0, "reshape": 0, "transpose": 0}
    seen = set()
    for equation in equations(jax.make_jaxpr(every_selector)(scores).jaxpr):
        name = equation.primitive.name
        seen.add(name)
        assert name not in moving
        if name in sizes:
            sizes[name] = max(sizes[name], *(v.aval.size for v in equation.outvars))
    assert {"while", "reduce", "bitcast_convert_type"} <= seen
    assert (
        max(sizes.values()) <= 100
    )  # counts and means of units; those of a vector are its entries
