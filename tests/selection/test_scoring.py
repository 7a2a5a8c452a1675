from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from refusals import refuses
from trees import NUM_ENTRIES, flat, random_tree, tree_of

import sapsel_jax as sap

BAD = {0: np.nan, 7: np.inf, 17: -np.inf}


def pair():
    """Two trees, the first with numbers that are not finite."""
    first = np.random.default_rng(0).standard_normal(NUM_ENTRIES)
    first[list(BAD)] = list(BAD.values())
    return tree_of(first), random_tree(1)


def relu(h):
    return np.maximum(h, 0)


# Each score beside its formula in float64 NumPy, on (x, y) = pair().
SCORES = {
    "sharpest": (lambda x, y: sap.score_sharpest(x), lambda x, y: x),
    "flattest": (
        lambda x, y: sap.score_flattest(x, floor=0.3),
        lambda x, y: np.where(np.isfinite(x) & (x <= 0.3), -np.inf, -x),
    ),
    "saliency": (lambda x, y: sap.score_saliency(x), lambda x, y: abs(x)),
    "magnitude": (lambda x, y: sap.score_magnitude(x), lambda x, y: abs(x)),
    "decrease": (
        lambda x, y: sap.score_decrease(x, y, damping=0.5),
        lambda x, y: x**2 / (2 * (relu(y) + 0.5)),
    ),
    "newton_step": (
        lambda x, y: sap.score_newton_step(x, y, damping=0.5),
        lambda x, y: abs(x) / (relu(y) + 0.5),
    ),
    "brain_damage": (lambda x, y: sap.score_brain_damage(x, y), lambda x, y: 0.5 * y * x**2),
    "change": (lambda x, y: sap.score_change(x, y, y), lambda x, y: 0.5 * y * (y - x) ** 2),
    "fisher_ratio": (
        lambda x, y: sap.score_fisher_ratio(x, jax.tree.map(abs, y), damping=0.5),
        lambda x, y: x / (abs(y) + 0.5),
    ),
}


@pytest.mark.parametrize("name", SCORES)
def test_scores_are_their_formulas_and_nan_where_a_number_is_not_finite(name):
    score, formula = SCORES[name]
    x, y = pair()
    got = jax.jit(score)(x, y)
    chex.assert_trees_all_close(got, score(x, y), rtol=1e-6)
    want = formula(flat(x), flat(y))
    want[list(BAD)] = np.nan
    np.testing.assert_allclose(flat(got), want, rtol=1e-5)
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {np.dtype(np.float32)}
    assert jax.tree.map(np.shape, got) == jax.tree.map(np.shape, x)


def test_float64_stays_float64():
    with jax.enable_x64(True):
        x = jnp.asarray([1.0 + 1e-12, 2.0])
        for score, _ in SCORES.values():
            assert score(x, x).dtype == jnp.float64
        assert sap.score_sharpest(x)[0] == 1.0 + 1e-12


def test_a_quotient_by_nothing_is_never_selected():
    zero, one = jnp.zeros(2), jnp.ones(2)
    for score in (
        sap.score_decrease(one, zero, damping=0.0),
        sap.score_newton_step(zero, -one, damping=0.0),
        sap.score_fisher_ratio(one, zero, damping=0.0),
    ):
        assert not sap.select_top_count(score, 2).any()


def test_damping_and_floor_may_be_traced():
    x = jnp.asarray([1.0, 4.0])
    got = jax.jit(lambda d: sap.score_decrease(x, x, damping=d))(1.0)
    np.testing.assert_allclose(got, sap.score_decrease(x, x, damping=1.0))
    got = jax.jit(lambda f: sap.score_flattest(x, floor=f))(2.0)
    np.testing.assert_allclose(got, [-np.inf, -4.0])


def test_some_scores_do_not_see_a_rescaling_that_keeps_the_function():
    # One layer doubled and the next halved: g and H scale as 1/c and 1/c², θ as c.
    rng = np.random.default_rng(2)
    theta, g, h = rng.standard_normal((3, 40)).astype(np.float32)
    c = np.repeat(np.array([2.0, 0.5], np.float32), 20)
    np.testing.assert_array_equal(
        sap.score_brain_damage(theta, h), sap.score_brain_damage(theta * c, h / c**2)
    )
    np.testing.assert_allclose(
        sap.score_change(theta, g, h), sap.score_change(theta * c, g * c, h / c**2), rtol=1e-5
    )
    h = abs(h)
    np.testing.assert_allclose(
        sap.score_decrease(g, h, damping=0.0),
        sap.score_decrease(g / c, h / c**2, damping=0.0),
        rtol=1e-6,
    )
    assert not np.array_equal(
        sap.select_top_count(sap.score_sharpest(h), 10),
        sap.select_top_count(sap.score_sharpest(h / c**2), 10),
    )


def test_random_scores_are_uniform_and_follow_the_key():
    params = {"a": jnp.zeros((100, 50), jnp.bfloat16), "b": jnp.zeros((0, 2)), "c": jnp.zeros(5000)}
    scores = sap.score_random(params, jax.random.key(0))
    values = flat(scores)
    assert values.min() >= 0
    assert values.max() < 1
    # Of 10,000 uniform numbers the mean has a standard error of 0.0029.
    assert abs(values.mean() - 0.5) < 5 * 0.0029
    assert not np.array_equal(values[:5000], values[5000:])
    chex.assert_trees_all_equal(scores, sap.score_random(params, jax.random.key(0)))
    assert not np.array_equal(values, flat(sap.score_random(params, jax.random.key(1))))
    assert scores["a"].dtype == jnp.float32


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_numbers_give_the_same_scores_with_the_same_sharding(axis_type):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    x = np.random.default_rng(0).standard_normal((16, 3)).astype(np.float32)
    placed = jax.device_put(x, NamedSharding(mesh, P("data")))

    def every(x):
        random = sap.score_random(x, jax.random.key(0))
        return [*(score(x, x) for score, _ in SCORES.values()), random]

    with jax.set_mesh(mesh):
        got = jax.jit(every)(placed)
    chex.assert_trees_all_close(got, jax.jit(every)(x), rtol=1e-6)
    for score in got:
        assert score.sharding.is_equivalent_to(placed.sharding, 2)


ONE = {"a": jnp.ones(2)}
WHOLE = {"a": jnp.ones(2, int)}
OTHER = {"b": jnp.ones(2)}
REAL = "must hold real floating-point arrays; leaf 'a' has dtype int32."
TEXT: Any = "x"
DIFFER = "must have the same structure; they first differ at 'a' against 'b'."


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sap.score_sharpest(WHOLE), TypeError, f"`diagonal` {REAL}"),
        (lambda: sap.score_flattest(WHOLE, floor=0), TypeError, f"`diagonal` {REAL}"),
        (
            lambda: sap.score_flattest(ONE, floor=-1.0),
            ValueError,
            "`floor` must be finite and at least 0; got -1.",
        ),
        (
            lambda: sap.score_flattest(ONE, floor=TEXT),
            TypeError,
            "`floor` must be a number; got str.",
        ),
        (lambda: sap.score_saliency(WHOLE), TypeError, f"`gradient` {REAL}"),
        (lambda: sap.score_magnitude(WHOLE), TypeError, f"`params` {REAL}"),
        (lambda: sap.score_random(WHOLE, jax.random.key(0)), TypeError, f"`params` {REAL}"),
        (lambda: sap.score_decrease(WHOLE, ONE, damping=1), TypeError, f"`gradient` {REAL}"),
        (
            lambda: sap.score_decrease(ONE, OTHER, damping=1),
            ValueError,
            f"`gradient` and `diagonal` {DIFFER}",
        ),
        (
            lambda: sap.score_decrease(ONE, ONE, damping=-1),
            ValueError,
            "`damping` must be finite and at least 0; got -1.",
        ),
        (lambda: sap.score_newton_step(ONE, WHOLE, damping=1), TypeError, f"`diagonal` {REAL}"),
        (
            lambda: sap.score_newton_step(ONE, OTHER, damping=1),
            ValueError,
            f"`gradient` and `diagonal` {DIFFER}",
        ),
        (
            lambda: sap.score_newton_step(ONE, ONE, damping=float("inf")),
            ValueError,
            "`damping` must be finite and at least 0; got inf.",
        ),
        (
            lambda: sap.score_brain_damage(ONE, OTHER),
            ValueError,
            f"`params` and `diagonal` {DIFFER}",
        ),
        (
            lambda: sap.score_brain_damage(ONE, {"a": jnp.ones(3)}),
            ValueError,
            "`params` and `diagonal` must have the same shapes; at 'a' they are float32[2] and "
            "float32[3].",
        ),
        (lambda: sap.score_brain_damage(WHOLE, ONE), TypeError, f"`params` {REAL}"),
        (
            lambda: sap.score_fisher_ratio(ONE, OTHER, damping=1),
            ValueError,
            f"`forget_fisher` and `data_fisher` {DIFFER}",
        ),
        (lambda: sap.score_fisher_ratio(ONE, WHOLE, damping=1), TypeError, f"`data_fisher` {REAL}"),
        (
            lambda: sap.score_fisher_ratio(ONE, ONE, damping=-2),
            ValueError,
            "`damping` must be finite and at least 0; got -2.",
        ),
    ],
)
def test_bad_arguments_are_told_in_one_sentence(call, error, message):
    refuses(call, error, message)
