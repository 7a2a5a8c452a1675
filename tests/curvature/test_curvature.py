from typing import cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import cnn, dense_diagonal, mean_loss, mlp

import sapsel_jax as sap


def as_float64(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, tree)


def estimators():
    """Every per-example diagonal in one calling form, with the same key."""
    key = jax.random.key(3)

    def keyed(make, **fixed):
        def estimator(loss_fn, **options):
            diagonal = make(loss_fn, **fixed, **options)
            return lambda params, batch, *args, **rest: diagonal(params, batch, key, *args, **rest)

        return estimator

    def through_outputs(make):
        # The loss is the output, so that J² is what Gauss-Newton comes to.
        return lambda loss_fn, **options: make(loss_fn, lambda y, e: 0.5 * y**2, **options)

    return {
        "exact": sap.exact_diagonal,
        "hutchinson": keyed(sap.hutchinson_diagonal, num_probes=2),
        "fisher": sap.empirical_fisher_diagonal,
        "gauss_newton": through_outputs(sap.gauss_newton_diagonal),
        "sampled": through_outputs(keyed_through(sap.sampled_gauss_newton_diagonal, key)),
    }


def keyed_through(make, key):
    def estimator(model_fn, output_loss_fn, **options):
        diagonal = make(model_fn, output_loss_fn, **options)
        return lambda params, batch, *args, **rest: diagonal(params, batch, key, *args, **rest)

    return estimator


@pytest.fixture(
    params=[
        "exact",
        "hutchinson",
        "fisher",
        pytest.param("gauss_newton", marks=pytest.mark.slow),
        pytest.param("sampled", marks=pytest.mark.slow),
    ]
)
def estimator(request):
    return estimators()[request.param]


@pytest.fixture(params=["exact", "hutchinson"])
def hessian_estimator(request):
    return estimators()[request.param]


@pytest.mark.parametrize(
    "network", [pytest.param(mlp, id="mlp"), pytest.param(cnn, id="cnn", marks=pytest.mark.slow)]
)
def test_exact_diagonals_equal_the_dense_hessian_in_float64(network):
    with jax.enable_x64(True):
        loss_fn, *inputs = network()
        params, batch = as_float64(inputs)

        def fn(p):
            return mean_loss(loss_fn, p, batch)

        want = jax.jit(lambda p: dense_diagonal(fn, p))(params)
        chunked = jax.jit(sap.basis_diagonal(fn, chunk=7))(params)
        chex.assert_trees_all_close(chunked, want, atol=1e-12)
        got = jax.jit(sap.exact_diagonal(loss_fn))(params, batch)
        chex.assert_trees_all_close(got, want, atol=1e-12)
        chex.assert_trees_all_equal_shapes_and_dtypes(got, params)


@pytest.mark.slow
@pytest.mark.parametrize("network", [mlp, cnn], ids=["mlp", "cnn"])
def test_estimates_are_unbiased_within_their_standard_error(network):
    # 6 standard errors over at most 91 entries: a false alarm in under 1 of 5 million draws.
    loss_fn, params, batch = network()
    want = jax.jit(sap.exact_diagonal(loss_fn))(params, batch)
    estimate = jax.jit(sap.hutchinson_diagonal(loss_fn, num_probes=400, return_error=True))
    diagonal, error = estimate(params, batch, jax.random.key(0))
    by_parameters, spread = _repeat(
        lambda key: sap.probe_diagonal(lambda p: mean_loss(loss_fn, p, batch), num_probes=4)(
            params, key
        ),
        100,
    )
    for value, bound in [(diagonal, error), (by_parameters, spread)]:
        assert max(float(e.max()) for e in jax.tree.leaves(bound) if e.size) > 0
        jax.tree.map(
            lambda v, b, w: np.testing.assert_array_less(abs(v - w), 6 * b + 1e-6),
            value,
            bound,
            want,
        )


def _repeat(estimate, num_repeats):
    """Mean and its standard error over independent keys."""
    values = jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(1), num_repeats))
    mean = jax.tree.map(lambda v: v.mean(0), values)
    return mean, jax.tree.map(lambda v: v.std(0, ddof=1) / num_repeats**0.5, values)


@pytest.mark.slow
def test_hutchinson_error_is_the_spread_between_probes_over_root_probes():
    loss_fn, params, batch = mlp()
    key, num_probes = jax.random.key(5), 6
    run = jax.jit(sap.hutchinson_diagonal(loss_fn, num_probes=num_probes, return_error=True))
    diagonal = run(params, batch, key)[0]
    alone = jax.jit(sap.hutchinson_diagonal(loss_fn, num_probes=num_probes))(params, batch, key)
    chex.assert_trees_all_close(diagonal, alone, rtol=1e-5, atol=1e-6)
    # The error must predict how far such estimates lie from the truth, over many keys.
    want = jax.jit(sap.exact_diagonal(loss_fn))(params, batch)
    keys = jax.random.split(jax.random.key(6), 300)
    values, errors = jax.jit(jax.vmap(lambda k: run(params, batch, k)))(keys)
    for v, e, w in zip(*map(jax.tree.leaves, (values, errors, want)), strict=True):
        actual, stated = ((v - w) ** 2).mean(0), (e**2).mean(0)
        np.testing.assert_allclose(stated, actual, rtol=0.5, atol=1e-6)


def test_probes_are_exact_where_the_hessian_is_diagonal():
    fn = lambda p: jnp.sum(p["a"] ** 4) + jnp.sum(jnp.sin(p["b"]))
    params = {"a": jnp.arange(3.0), "b": jnp.ones((2, 2))}
    want = {"a": 12 * params["a"] ** 2, "b": -jnp.sin(params["b"])}
    for estimate in (
        sap.basis_diagonal(fn)(params),
        sap.probe_diagonal(fn, num_probes=3, chunk=2)(params, jax.random.key(0)),
    ):
        chex.assert_trees_all_close(estimate, want, rtol=1e-6)


@pytest.mark.slow
def test_microbatch_does_not_change_the_result(estimator):
    loss_fn, params, batch = mlp()
    weights = jnp.arange(7.0)
    whole = jax.jit(estimator(loss_fn))(params, batch, weights=weights)
    for microbatch in (1, 3, 7, 100):
        parts = jax.jit(estimator(loss_fn, microbatch=microbatch))(params, batch, weights=weights)
        chex.assert_trees_all_close(parts, whole, rtol=2e-5, atol=1e-6)


def test_jit_equals_eager(estimator):
    loss_fn, params, batch = mlp()
    diagonal = estimator(loss_fn)
    chex.assert_trees_all_close(
        jax.jit(diagonal)(params, batch), diagonal(params, batch), rtol=2e-5, atol=1e-6
    )


@pytest.mark.slow
def test_weights_and_reduction(estimator):
    loss_fn, params, batch = mlp()
    weights = jnp.array([0.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    mean = jax.jit(estimator(loss_fn))(params, batch, weights=weights)
    total = jax.jit(estimator(loss_fn, reduction="sum"))(params, batch, weights=weights)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x / 3, total), mean, rtol=1e-5, atol=1e-6)
    everywhere = jax.jit(estimator(loss_fn))(params, batch)
    ones = jax.jit(estimator(loss_fn))(params, batch, weights=np.ones(7, int))
    chex.assert_trees_all_close(ones, everywhere, rtol=1e-5, atol=1e-6)


def test_weights_pick_examples():
    loss_fn, params, batch = mlp()
    weights = jnp.array([0.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    diagonal = jax.jit(sap.exact_diagonal(loss_fn))
    got = diagonal(params, batch, weights=weights)
    twice = jax.tree.map(lambda x: x[jnp.array([1, 1, 2])], batch)
    chex.assert_trees_all_close(got, diagonal(params, twice), rtol=1e-5, atol=1e-6)


def test_further_arguments_are_passed_through(hessian_estimator):
    def loss_fn(w, x, scale, offset):
        return scale["s"] * jnp.cosh(jnp.vdot(w, x)) + offset

    params, batch = jnp.array([0.1, 0.2]), jnp.eye(2)
    got = hessian_estimator(loss_fn)(params, batch, {"s": jnp.asarray(3.0)}, 1.0)
    np.testing.assert_allclose(got, 1.5 * np.cosh([0.1, 0.2]), rtol=1e-5)


@pytest.mark.slow
def test_batches_may_hold_integers_and_random_keys(hessian_estimator):
    def loss_fn(w, example):
        keep = jax.random.bernoulli(example["key"], 0.5, w.shape)
        return jnp.sum(jnp.where(keep, w**2, 0.0)) * example["count"]

    keys = jax.random.split(jax.random.key(0), 5)
    batch = {"key": keys, "count": jnp.arange(5)}
    kept = jax.vmap(lambda k: jax.random.bernoulli(k, 0.5, (4,)))(keys)
    want = (2.0 * kept * jnp.arange(5)[:, None]).mean(0)
    for options in ({}, {"microbatch": 2}):
        np.testing.assert_allclose(hessian_estimator(loss_fn, **options)(jnp.ones(4), batch), want)
    raw = {"key": jax.random.key_data(keys), "count": jnp.arange(5)}
    typed = lambda w, e: loss_fn(w, e | {"key": jax.random.wrap_key_data(e["key"])})
    np.testing.assert_allclose(hessian_estimator(typed)(jnp.ones(4), raw), want)


def test_low_precision_parameters_give_float32_diagonals(estimator):
    loss_fn, params, batch = mlp()
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    got = jax.jit(estimator(loss_fn))(low, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(jnp.float32)}
    back = jax.tree.map(lambda x: x.astype(jnp.float32), low)
    chex.assert_trees_all_close(got, jax.jit(estimator(loss_fn))(back, batch), atol=0.05)


def test_count_nonfinite_counts_by_leaf():
    tree = {"a": jnp.array([jnp.nan, 1.0, -jnp.inf]), "b": jnp.zeros((2, 2)), "c": jnp.zeros(0)}
    assert jax.tree.map(int, jax.jit(sap.count_nonfinite)(tree)) == {"a": 2, "b": 0, "c": 0}


def constant(params):
    return jnp.zeros(())


def square(w, x):
    return jnp.sum(w**2) * x


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"n": jnp.arange(3)}, "leaf 'n' has dtype int32."),
        ({"z": jnp.ones(2, jnp.complex64)}, "leaf 'z' has dtype complex64."),
        ({"a": "text"}, "leaf 'a' is a str."),
    ],
)
def test_parameters_must_be_real_floats(estimator, params, error):
    for call in (
        lambda: estimator(square)(params, jnp.ones(3)),
        lambda: sap.basis_diagonal(lambda p: jnp.zeros(()))(params),
        lambda: sap.probe_diagonal(lambda p: jnp.zeros(()), num_probes=1)(
            params, jax.random.key(0)
        ),
    ):
        with pytest.raises(TypeError, match=error):
            call()


@pytest.mark.parametrize(
    ("batch", "options", "error"),
    [
        (jnp.ones((0, 2)), {}, "`batch` is empty; it must hold at least one example."),
        ((), {}, "`batch` holds no array, so it has no examples."),
        (jnp.ones(()), {}, "`batch` must have a leading axis over examples; the array is a scalar"),
        (
            {"x": jnp.ones(3), "y": jnp.ones(4)},
            {},
            "`batch` must have one number of examples; 'x' has 3 and 'y' has 4.",
        ),
        (
            jnp.ones(3),
            {"weights": jnp.ones(2)},
            r"`weights` must hold one number per example, shape \(3,\); got shape \(2,\).",
        ),
    ],
)
def test_bad_batches(estimator, batch, options, error):
    with pytest.raises(ValueError, match=error):
        estimator(square)(jnp.ones(2), batch, **options)


@pytest.mark.parametrize(
    ("make", "kind", "error"),
    [
        (lambda: sap.exact_diagonal(square, microbatch=0), ValueError, "`microbatch` must be at"),
        (
            lambda: sap.exact_diagonal(square, microbatch=cast(int, 2.0)),
            TypeError,
            "`microbatch` must be a Py",
        ),
        (
            lambda: sap.exact_diagonal(square, reduction="max"),
            ValueError,
            "`reduction` must be 'mean' or 'sum'; got 'max'.",
        ),
        (lambda: sap.hutchinson_diagonal(square, num_probes=0), ValueError, "`num_probes` must be"),
        (
            lambda: sap.hutchinson_diagonal(square, return_error=True),
            ValueError,
            "`return_error` needs `num_probes` of at least 2; got 1.",
        ),
        (
            lambda: sap.probe_diagonal(square, num_probes=True),
            TypeError,
            "Python integer; got bool",
        ),
        (lambda: sap.basis_diagonal(square, chunk=-1), ValueError, "at least 1; got -1."),
    ],
)
def test_bad_options_are_refused_when_the_function_is_made(make, kind, error):
    with pytest.raises(kind, match=error):
        make()


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_every_diagonal_lowers_for_accelerators(estimator, platform):
    loss_fn, params, batch = mlp()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (params, batch))
    jax.export.export(jax.jit(estimator(loss_fn, microbatch=3)), platforms=[platform])(*shapes)


def test_examples_over_eight_devices_give_the_same(estimator):
    loss_fn, params, batch = mlp()
    batch = jax.tree.map(lambda x: jnp.concatenate([x, x[:1]]), batch)
    whole = jax.jit(estimator(loss_fn))(params, batch)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    spread = jax.jit(estimator(loss_fn))(
        jax.device_put(params, everywhere), jax.device_put(batch, rows)
    )
    chex.assert_trees_all_close(spread, whole, rtol=2e-5, atol=1e-6)
