import functools

import chex
import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
from networks import dense_diagonal, mean_loss

import sapsel_jax as sap
from benchmarks.tools.timing import temporary_bytes
from sapsel_jax._curvature.blocks import find_blocks
from sapsel_jax._curvature.probes import mean_of_probes
from sapsel_jax._graph.sites import find_uses
from sapsel_jax._graph.tracing import trace

pytestmark = pytest.mark.usefixtures("quick_compiler")
NUM_REPEATS = 2000
BOUND = 6.0
"""In standard errors. Were means exactly normal, one of the about 500 entries that are tested
would raise a false alarm once in a million runs, as one entry does once in 5e8."""

FAST = {
    "tanh mlp": networks.mlp,
    "gated unit": networks.gated_unit,
    "tied weights": networks.tied_weights,
    "used non-linearly": networks.used_nonlinearly,
}
SLOW = {
    "gelu mlp": lambda: networks.mlp(jax.nn.gelu),
    "silu mlp": lambda: networks.mlp(jax.nn.silu),
    "gelu cnn": networks.cnn,
    "relu cnn": lambda: networks.cnn(jax.nn.relu),
    "resnet block": networks.resnet_block,
    "attention block": networks.attention_block,
    "recurrent": networks.recurrent,
    "recurrent, not unrolled": lambda: networks.recurrent(40),
}


def as_float64(tree):
    is_float = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    return jax.tree.map(lambda x: x.astype(jnp.float64) if is_float(x) else x, tree)


def in_float64(network):
    loss_fn, *inputs = network()
    return loss_fn, *as_float64(inputs)


def as_numpy(tree):
    return jax.tree.map(np.asarray, tree)


def check_unbiased(network, num_repeats=NUM_REPEATS, **options):
    with jax.enable_x64(True):
        loss_fn, params, batch = in_float64(network)
        want = jax.jit(lambda p: dense_diagonal(lambda q: mean_loss(loss_fn, q, batch), p))(params)
        estimate = sap.propagated_diagonal(loss_fn, **options)
        keys = jax.random.split(jax.random.key(11), num_repeats)
        run = jax.jit(jax.vmap(estimate, (None, None, 0)))
        values, want = as_numpy((run(params, batch, keys), want))
    mean = jax.tree.map(lambda v: v.mean(0), values)
    error = jax.tree.map(lambda v: v.std(0, ddof=1) / num_repeats**0.5, values)
    for m, e, w in zip(*map(jax.tree.leaves, (mean, error, want)), strict=True):
        np.testing.assert_array_less(abs(m - w), BOUND * e + 1e-9)
    # Bounds that nothing could pass by would prove nothing.
    norm = lambda tree: np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(tree)))
    assert norm(error) < 0.15 * norm(want)


@pytest.mark.parametrize("network", FAST.values(), ids=FAST)
def test_unbiased(network):
    check_unbiased(network)


@pytest.mark.slow
@pytest.mark.parametrize("network", SLOW.values(), ids=SLOW)
def test_unbiased_for_larger_networks(network):
    check_unbiased(network, 4000)


def test_relu_networks_are_the_gauss_newton_matrix_sampled_at_the_logits():
    """Beyond the logits nothing is random: mean and variance are those of (Jᵀ R r)², R Rᵀ = H."""
    with jax.enable_x64(True):
        loss_fn, params, batch = in_float64(lambda: networks.mlp(jax.nn.relu))
        one = jax.tree.map(lambda x: x[:1], batch)
        keys = jax.random.split(jax.random.key(0), 4000)
        run = jax.jit(jax.vmap(lambda k: sap.propagated_diagonal(loss_fn)(params, one, k)))
        got = run(keys)["dense1"]["kernel"]

        def logits_of(kernel):
            hidden = jax.nn.relu(batch[0][0] @ kernel + params["dense1"]["bias"])
            logits = hidden @ params["dense2"]["kernel"] + params["dense2"]["bias"]
            return params["scale"] * logits

        kernel = params["dense1"]["kernel"]
        p = jax.nn.softmax(logits_of(kernel))
        root = jnp.linalg.cholesky(jnp.diag(p)[:2, :2] - jnp.outer(p, p)[:2, :2])
        root = jnp.concatenate([root, -root.sum(0, keepdims=True)])
        signs = 2.0 * jnp.array([[1, 1], [1, 0], [0, 1], [0, 0]]) - 1
        jacobian = jax.jacobian(logits_of)(kernel)
        want = jnp.einsum("cij,ck,sk->sij", jacobian, root, signs) ** 2
        got, want = as_numpy((got, want))
    spread = got.std(0) / 4000**0.5
    np.testing.assert_array_less(abs(got.mean(0) - want.mean(0)), BOUND * spread + 1e-12)
    np.testing.assert_allclose(got.std(0), want.std(0), rtol=0.05, atol=1e-12)


def shifted(x):
    return x - jax.lax.stop_gradient(x.max())


CROSS_ENTROPIES = {
    "optax": optax.softmax_cross_entropy_with_integer_labels,
    "one-hot": lambda x, y: optax.softmax_cross_entropy(x, jax.nn.one_hot(y, 4)),
    "log_softmax": lambda x, y: -jax.nn.log_softmax(x)[y],
    "logsumexp": lambda x, y: jax.nn.logsumexp(x) - x[y],
    "by hand": lambda x, y: jnp.log(jnp.exp(shifted(x)).sum()) - shifted(x)[y],
}


@pytest.mark.slow
@pytest.mark.parametrize("cross_entropy", CROSS_ENTROPIES.values(), ids=CROSS_ENTROPIES)
def test_cross_entropy_is_exact_at_the_last_layer_however_it_was_written(cross_entropy):
    loss_fn = lambda w, example: cross_entropy(example[0] @ w, example[1])
    batch = (networks.normal(jax.random.key(0), 5, 3) * 4, jnp.array([0, 1, 2, 3, 0]))
    params = networks.normal(jax.random.key(1), 3, 4)
    got = jax.jit(sap.propagated_diagonal(loss_fn))(params, batch, jax.random.key(2))
    want = dense_diagonal(lambda p: mean_loss(loss_fn, p, batch), params)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


def layer_norm(x):
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)


def softmax_by_hand(x):
    e = jnp.exp(x - jax.lax.stop_gradient(x.max(-1, keepdims=True)))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    ("fn", "rules"),
    [
        (jax.nn.gelu, ["elementwise"]),
        (jax.nn.silu, ["elementwise"]),
        (jax.nn.relu, []),
        (jax.nn.softmax, ["softmax"]),
        (softmax_by_hand, ["softmax"]),
        (jax.nn.log_softmax, ["logsumexp"]),
        (layer_norm, ["general"]),
        (lambda x: x + jnp.tanh(x), ["elementwise"]),
    ],
)
def test_functions_written_in_parts_are_one_block(fn, rules):
    loss_fn = lambda w, x: jnp.vdot(jnp.arange(12.0).reshape(3, 4), fn(x @ w))
    graph = trace(loss_fn, jnp.ones((2, 4)), jnp.ones((3, 2)))
    graph, uses = find_uses(graph)
    _, blocks = find_blocks(graph, [use.site for use in uses])
    found = [block for block in blocks if block.noisy]
    assert [block.rule for block in found] == rules
    if fn is layer_norm:
        assert found[0].rows == (0,)


@functools.cache
def tanh_mlp():
    loss_fn, params, batch = networks.mlp()
    return loss_fn, params, batch, jax.random.key(5)


def test_jit_equals_eager():
    loss_fn = lambda w, x: jnp.vdot(jnp.tanh(x @ w), x[:2])
    inputs = jnp.ones((3, 2)) / 3, networks.normal(jax.random.key(0), 4, 3), jax.random.key(1)
    diagonal = sap.propagated_diagonal(loss_fn)
    chex.assert_trees_all_close(jax.jit(diagonal)(*inputs), diagonal(*inputs), rtol=2e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("network", [networks.mlp, networks.cnn], ids=["mlp", "cnn"])
def test_microbatch_does_not_change_the_result(network):
    loss_fn, params, batch = network()
    key, weights = jax.random.key(5), jnp.arange(len(batch[1]), dtype=jnp.float32)
    run = lambda **options: jax.jit(sap.propagated_diagonal(loss_fn, num_probes=2, **options))(
        params, batch, key, weights=weights
    )
    chex.assert_trees_all_close(run(microbatch=3), run(), rtol=2e-5, atol=1e-6)


def test_dense_layers_hold_no_weight_gradient_of_each_example():
    loss_fn = lambda p, x: jnp.sum(jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) ** 2)
    kernel, batch = jnp.ones((64, 64)), jnp.ones((512, 64))
    run = jax.jit(sap.propagated_diagonal(loss_fn))
    program = run.lower({"a": kernel, "b": kernel}, batch, jax.random.key(0)).compile()
    assert temporary_bytes(program) < 4 * len(batch) * kernel.size / 2


@pytest.mark.slow
def test_weights_and_reduction():
    loss_fn, params, batch, key = tanh_mlp()
    weights = jnp.array([0.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    mean = jax.jit(sap.propagated_diagonal(loss_fn))(params, batch, key, weights=weights)
    total = jax.jit(sap.propagated_diagonal(loss_fn, reduction="sum"))(
        params, batch, key, weights=weights
    )
    chex.assert_trees_all_close(jax.tree.map(lambda x: x / 3, total), mean, rtol=1e-5, atol=1e-6)
    # The draws belong to the examples: two of three examples alone are their share of the sum.
    alone = [
        jax.jit(sap.propagated_diagonal(loss_fn))(params, batch, key, weights=jnp.eye(7)[i])
        for i in (1, 2)
    ]
    parts = jax.tree.map(lambda a, b: 2 * a + b, *alone)
    chex.assert_trees_all_close(parts, total, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_error_is_the_spread_between_probes_over_root_probes():
    loss_fn = lambda w, x: jax.nn.logsumexp(jnp.tanh(x @ w))
    params, batch = networks.normal(jax.random.key(0), 3, 3), jnp.eye(3) * 2 - 1
    exact = dense_diagonal(lambda w: mean_loss(loss_fn, w, batch), params)
    keys = jax.random.split(jax.random.key(6), 400)
    run = lambda **options: jax.jit(
        jax.vmap(lambda k: sap.propagated_diagonal(loss_fn, **options)(params, batch, k))
    )(keys)
    diagonal, error = run(num_probes=4, return_error=True)
    errors = ((diagonal - exact) ** 2).mean(0)
    np.testing.assert_allclose((error**2).mean(0), errors, rtol=0.4, atol=1e-6)
    assert np.any(errors > 1e-4)
    # Four probes are worth a quarter of one in variance.
    np.testing.assert_allclose(4 * errors, ((run() - exact) ** 2).mean(0), 0.4, 1e-6)


@pytest.mark.parametrize(("num_probes", "at_once"), [(2, 1), (3, 4), (5, 4), (8, 4), (9, 4)])
def test_probes_at_once_have_the_mean_and_error_of_all(num_probes, at_once):
    values = networks.normal(jax.random.key(0), num_probes, 3)
    mean, error = mean_of_probes(lambda i: {"x": values[i]}, num_probes, True, at_once)
    np.testing.assert_allclose(mean["x"], values.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(error["x"], values.std(0, ddof=1) / num_probes**0.5, rtol=1e-5)


def test_penalties_are_exact():
    loss_fn = lambda w, x: 0.0 * x.sum() + jnp.sum(w**2) + jnp.sum(jnp.cosh(w))
    params = jnp.arange(3.0)
    got = sap.propagated_diagonal(loss_fn)(params, jnp.ones((4, 2)), jax.random.key(0))
    np.testing.assert_allclose(got, 2 + np.cosh(params), rtol=1e-6)


def test_further_arguments_are_passed_through():
    loss_fn = lambda w, x, scale, offset: scale["s"] * jnp.sum(jnp.cosh(w * x)) + offset
    params, batch = jnp.array([0.1, 0.2]), jnp.eye(2)
    run = sap.propagated_diagonal(loss_fn)
    got = run(params, batch, jax.random.key(0), {"s": jnp.asarray(3.0)}, 1.0)
    np.testing.assert_allclose(got, 1.5 * np.cosh([0.1, 0.2]), rtol=1e-5)


def test_raw_keys_and_scalar_and_empty_leaves():
    loss_fn, params, batch, key = tanh_mlp()
    diagonal = jax.jit(sap.propagated_diagonal(loss_fn))
    got = diagonal(params, batch, jax.random.key_data(key))
    chex.assert_trees_all_equal_shapes_and_dtypes(got, params)
    chex.assert_trees_all_close(got, diagonal(params, batch, key), rtol=2e-5, atol=1e-6)


def test_low_precision_parameters_give_float32_diagonals():
    loss_fn, params, batch, key = tanh_mlp()
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    got = jax.jit(sap.propagated_diagonal(loss_fn))(low, batch, key)
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(jnp.float32)}
    back = jax.tree.map(lambda x: x.astype(jnp.float32), low)
    want = jax.jit(sap.propagated_diagonal(loss_fn))(back, batch, key)
    chex.assert_trees_all_close(got, want, atol=0.1)


@jax.custom_vjp
def cubed(x):
    return x**3


@jax.custom_vjp
def slope_of_cubed(x):
    return 3 * x**2


@jax.custom_vjp
def cubed_twice_ruled(x):
    return x**3


cubed.defvjp(lambda x: (x**3, x), lambda x, g: (3 * x**2 * g,))
slope_of_cubed.defvjp(lambda x: (3 * x**2, x), lambda x, g: (6 * x * g,))
cubed_twice_ruled.defvjp(lambda x: (x**3, x), lambda x, g: (slope_of_cubed(x) * g,))

CONTROL = {
    "cond": lambda h: jax.lax.cond(h.sum() > 0, jnp.sin, jnp.tanh, h),
    "remat": jax.checkpoint(jnp.tanh),
    "custom_jvp": jax.nn.silu,
    "fori_loop": lambda h: jax.lax.fori_loop(0, 40, lambda _, x: x + 0.05 * jnp.sin(x), h),
    "custom_vjp": cubed,
    "custom_vjp inside a custom_vjp": cubed_twice_ruled,
}
PLAIN = dict.fromkeys((cubed, cubed_twice_ruled), lambda x: x**3)
"""The same functions without rules, for an oracle that runs forward."""


@pytest.mark.parametrize("fn", CONTROL.values(), ids=CONTROL)
def test_control_flow_and_custom_rules(fn):
    keys = jax.random.split(jax.random.key(3), 3)
    params = {"a": networks.normal(keys[0], 3, 3), "b": networks.normal(keys[1], 3, 2)}
    loss_of = lambda fn: lambda p, x: jnp.sum((fn(x @ p["a"]) @ p["b"]) ** 2)
    with jax.enable_x64(True):
        params, batch = as_float64((params, networks.normal(keys[2], 3, 3) * 2))
        oracle_loss = loss_of(PLAIN.get(fn, fn))
        want = jax.jit(sap.basis_diagonal(lambda p, b: mean_loss(oracle_loss, p, b)))
        keys = jax.random.split(jax.random.key(4), 2000)
        run = jax.jit(jax.vmap(sap.propagated_diagonal(loss_of(fn)), (None, None, 0)))
        values, want = as_numpy((run(params, batch, keys), want(params, batch)))
    for v, w in zip(jax.tree.leaves(values), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_less(abs(v.mean(0) - w), BOUND * v.std(0) / 2000**0.5 + 1e-9)


def test_explain_says_what_one_pass_does_for_each_leaf():
    def loss_fn(p, example):
        x, label = example
        hidden = jnp.tanh(x @ p["first"]) @ p["tied"] @ p["tied"]
        penalty = jnp.sum(p["first"] ** 2)
        return -jax.nn.log_softmax(hidden @ p["last"] + p["bias"])[label] + penalty

    shapes = {"first": (3, 2), "tied": (2, 2), "last": (2, 3), "bias": (3,), "unused": (2,)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    plan = sap.explain(loss_fn, params, (jnp.ones(3), 0))
    assert [(use.path, use.propagated) for use in plan.uses] == [
        ("bias", "exact"),
        ("first", "at the site"),
        ("first", "exact"),
        ("last", "exact"),
        ("tied", "at the leaf"),
        ("unused", "zero"),
    ]
    # What is said to be exact is so, whatever the key.
    batch = (networks.normal(jax.random.key(0), 4, 3), jnp.arange(4) % 3)
    diagonal = sap.propagated_diagonal(loss_fn)
    got, again = (jax.jit(diagonal)(params, batch, jax.random.key(i)) for i in range(2))
    chex.assert_trees_all_equal(*({k: x[k] for k in ("last", "bias")} for x in (got, again)))
    assert np.any(got["tied"] != again["tied"])


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_lowers_for_accelerators_without_callbacks(platform):
    loss_fn, *inputs = tanh_mlp()
    run = jax.jit(sap.propagated_diagonal(loss_fn, microbatch=3))
    assert jax.export.export(run, platforms=[platform])(*inputs).platforms == (platform,)
