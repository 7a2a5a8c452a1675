"""Selection by units: whole ones, and as much of each."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refuses
from trees import flat, top_oracle

import sapsel_jax as sap

SHAPES = {
    "conv": (2, 2, 2, 4),
    "dense/bias": (3,),
    "dense/kernel": (5, 3),
    "empty": (0, 3),
    "scale": (),
}
NUM_ENTRIES = 32 + 3 + 15 + 0 + 1
FRACTIONS = (0, 0.02, 0.5, 1)
VALUES = hnp.arrays(
    np.float32, NUM_ENTRIES, elements=st.sampled_from([-1.0, 0.0, 1.0, 2.0, 3.0, np.nan, -np.inf])
)


def layer(path, leaf):
    return path.rpartition("/")[0] or path


def tree_of(values):
    sizes = np.cumsum([int(np.prod(shape)) for shape in SHAPES.values()])[:-1]
    parts = zip(SHAPES.items(), np.split(values, sizes), strict=True)
    return {name: part.reshape(shape) for (name, shape), part in parts}


def units_of(joined):
    """For every unit the flat places of its entries, in leaf order."""
    places = tree_of(np.arange(NUM_ENTRIES))
    slices = {
        name: [place.ravel()] if place.ndim == 0 else [*np.moveaxis(place, -1, 0)]
        for name, place in places.items()
    }
    if joined:
        kernel, bias = slices.pop("dense/kernel"), slices.pop("dense/bias")
        slices["dense"] = [np.append(b, k) for k, b in zip(kernel, bias, strict=True)]
    return [np.sort(unit.ravel()) for units in slices.values() for unit in units if unit.size]


def rounds_oracle(values, fraction, joined):
    """Every unit's best, then every unit's second, ...; in the last round the best of all."""
    wanted = round(fraction * NUM_ENTRIES)
    mask = np.zeros(NUM_ENTRIES, bool)
    scores = np.where(np.isnan(values), -np.inf, values)
    queues = [unit[np.argsort(-scores[unit], kind="stable")] for unit in units_of(joined)]
    while wanted:
        fronts = [queue[0] for queue in queues if len(queue)]
        queues = [queue[1:] for queue in queues]
        if len(fronts) > wanted:
            fronts = sorted(fronts, key=lambda place: (-scores[place], place))[:wanted]
        mask[fronts] = True
        wanted -= len(fronts)
    return mask & (scores > -np.inf)


@jax.jit
def select_fractions(scores):
    return [
        (
            sap.select_top_fraction_per_unit(scores, fraction),
            sap.select_top_fraction_per_unit(scores, fraction, groups=layer),
        )
        for fraction in FRACTIONS
    ]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(VALUES)
def test_every_unit_gives_as_many(values):
    for fraction, masks in zip(FRACTIONS, select_fractions(tree_of(values)), strict=True):
        for joined, mask in enumerate(masks):
            np.testing.assert_array_equal(flat(mask), rounds_oracle(values, fraction, joined))


def test_per_unit_in_other_dtypes_on_other_axes_and_without_jit():
    scores = np.random.default_rng(2).permutation(24).reshape(6, 4)
    ranks = np.argsort(np.argsort(-scores, axis=0), axis=0)
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        got = sap.select_top_fraction_per_unit(jnp.asarray(scores, dtype), 0.5)
        np.testing.assert_array_equal(got, ranks < 3)
        first = sap.select_top_fraction_per_unit(jnp.asarray(scores.T, dtype), 0.5, axis=0)
        np.testing.assert_array_equal(first, ranks.T < 3)


def test_units_are_ranked_by_the_mean_over_their_group():
    rng = np.random.default_rng(1)
    scores = {
        "conv": {"kernel": rng.standard_normal((3, 3, 2, 4)), "bias": rng.standard_normal(4)},
        "dense": {"kernel": rng.standard_normal((4, 5)), "bias": rng.standard_normal(5)},
        "scale": np.float64(9.0),
    }
    scores = jax.tree.map(np.float32, scores)
    layer = lambda path, leaf: path.rpartition("/")[0]
    means = [
        (scores["conv"]["kernel"].sum((0, 1, 2)) + scores["conv"]["bias"]) / 19,
        (scores["dense"]["kernel"].sum(0) + scores["dense"]["bias"]) / 5,
        scores["scale"][None],
    ]
    want = np.split(top_oracle(means, 4), [4, 9])
    got = jax.jit(lambda s: sap.select_top_units(s, 0.4, groups=layer))(scores)
    np.testing.assert_array_equal(got["conv"]["bias"], want[0])
    np.testing.assert_array_equal(got["conv"]["kernel"], np.broadcast_to(want[0], (3, 3, 2, 4)))
    np.testing.assert_array_equal(got["dense"]["kernel"], np.broadcast_to(want[1], (4, 5)))
    assert bool(got["scale"]) == want[2][0]
    # Outputs first, as in equinox, and every leaf for itself.
    kernel = scores["dense"]["kernel"].T
    first = sap.select_top_units({"kernel": kernel}, 0.4, axis=0)["kernel"]
    np.testing.assert_array_equal(first[:, 0], top_oracle(kernel.mean(1), 2))
    np.testing.assert_array_equal(first, first[:, :1] & np.ones((5, 4), bool))


def test_a_unit_with_an_entry_that_is_never_selected_is_never_selected():
    scores = jnp.asarray([[1.0, jnp.nan, 3.0, 4.0], [1.0, 9.0, -jnp.inf, jnp.inf]])
    mask = sap.select_top_units(scores.astype(jnp.bfloat16), 1.0)
    np.testing.assert_array_equal(mask, [[True, False, False, True]] * 2)


@pytest.mark.parametrize("select", [sap.select_top_units, sap.select_top_fraction_per_unit])
@pytest.mark.parametrize(
    ("scores", "fraction", "options", "error", "message"),
    [
        (jnp.ones(2), 2, {}, ValueError, "`fraction` must lie in [0, 1]; got 2."),
        (
            jnp.ones(2),
            0.5,
            {"axis": 1.0},
            TypeError,
            "`axis` must be a Python integer; got float.",
        ),
        (
            {"a": jnp.ones(2)},
            0.5,
            {"axis": 1},
            ValueError,
            "`axis` must lie in [-1, 0] for leaf 'a' of shape [2]; got 1.",
        ),
        (
            [jnp.ones(2), jnp.ones(3)],
            0.5,
            {"groups": lambda path, leaf: "all"},
            ValueError,
            "`groups` must join leaves with the same number of units; '0' has 2 and '1' has 3.",
        ),
        (
            {"a": jnp.ones(2, int)},
            0.5,
            {},
            TypeError,
            "`scores` must hold real floating-point arrays; leaf 'a' has dtype int32.",
        ),
    ],
)
def test_bad_arguments_are_told_in_one_sentence(select, scores, fraction, options, error, message):
    refuses(lambda: select(scores, fraction, **options), error, message)
