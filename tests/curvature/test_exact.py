"""Exact diagonals against dense Hessians in float64: what a loss may be made of."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from modules import NETWORKS
from networks import (
    as_float64,
    cnn,
    conv,
    cross_entropy,
    dense_diagonal,
    mean_loss,
    relative_error,
)

import sapsel_jax as sap
from sapsel_jax._curvature import routes as _routes
from sapsel_jax._graph.tracing import MAX_UNROLL

pytestmark = pytest.mark.usefixtures("quick_compiler")
TOLERANCE = 1e-9


def check(loss_fn, params, batch, args=(), **options):
    """Compares with the oracle in float64; returns the plan."""
    with jax.enable_x64(True):
        params, batch, args = as_float64(params), as_float64(batch), as_float64(args)
        oracle = lambda p, b, a: dense_diagonal(lambda q: mean_loss(loss_fn, q, b, *a), p)
        want = jax.jit(oracle)(params, batch, args)
        exact = lambda p, b, a: sap.exact_diagonal(loss_fn, **options)(p, b, *a)
        got = jax.jit(exact)(params, batch, args)
        assert relative_error(got, want) <= TOLERANCE
        assert max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(want)) > 1e-3
        return sap.explain(loss_fn, params, jax.tree.map(lambda x: x[0], batch), *args)


def reasons(plan):
    return {use.path: use.reason for use in plan.uses if use.reason}


FAST = {"plain-mlp"}


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS]
)
def test_every_leaf_of_networks_of_any_library_has_a_site(name):
    loss_fn, params, batch, args = NETWORKS[name]()
    plan = check(loss_fn, params, batch, args)
    assert reasons(plan) == {}
    assert all(use.route != "zero" for use in plan.uses)
    assert len({use.path for use in plan.uses}) == len(jax.tree.leaves(params))


def random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape) / 2


def labelled(*shape, seed=9):
    return random(seed, 3, *shape), jnp.arange(3)


def dense_net(activation):
    """Two layers with a penalty inside the loss, 3-4-3."""

    def loss_fn(p, example):
        hidden = activation(example[0] @ p["w"] + p["b"])
        penalty = 0.1 * jnp.sum(p["w"] ** 2) + 0.2 * jnp.vdot(p["v"], p["v"])
        return cross_entropy(hidden @ p["v"], example[1]) + penalty

    return loss_fn, {"w": random(1, 3, 4), "b": random(2, 4), "v": random(3, 4, 3)}, labelled(3)


def image_net(operation, kernel_shape=(2, 2, 2, 4), activation=jnp.tanh):
    """A convolution by `operation(image, kernel)` on 5×5×2 images, then a dense layer."""
    out = jax.eval_shape(operation, jnp.zeros((5, 5, 2)), jnp.zeros(kernel_shape)).size

    def loss_fn(p, example):
        hidden = activation(operation(example[0], p["kernel"])).reshape(-1)
        return cross_entropy(hidden @ p["v"], example[1])

    return loss_fn, {"kernel": random(1, *kernel_shape), "v": random(2, out, 3)}, labelled(5, 5, 2)


def pooled(window_fn):
    return image_net(lambda x, k: window_fn(conv(x, k)))


def max_window(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (2, 2, 1), (2, 2, 1), "VALID")


def mean_window(x):
    return lax.reduce_window(x, 0.0, lax.add, (2, 2, 1), (1, 2, 1), "SAME") / 4


def gated(p, example):
    x, label = example
    hidden = jax.nn.silu(x @ p["gate"]) * (x @ p["up"])
    return cross_entropy(hidden @ p["down"], label)


def tower(p, example):
    """Layers stacked in a scan, weights cast before it."""
    step = lambda h, layer: (jnp.tanh(h @ layer["w"] + layer["b"]), None)
    return cross_entropy(lax.scan(jax.checkpoint(step), example[0], p)[0], example[1])


LOSSES = {
    "relu": lambda: dense_net(jax.nn.relu),
    "leaky relu": lambda: dense_net(jax.nn.leaky_relu),
    "tanh": lambda: dense_net(jnp.tanh),
    "gelu": lambda: dense_net(lambda x: jax.nn.gelu(x, approximate=False)),
    "silu": lambda: dense_net(jax.nn.silu),
    "softmax inside": lambda: dense_net(jax.nn.softmax),
    "strided": lambda: image_net(lambda x, k: conv(x, k, strides=(2, 1))),
    "padded": lambda: image_net(lambda x, k: conv(x, k, padding=((1, 0), (2, 1)))),
    "dilated": lambda: image_net(lambda x, k: conv(x, k, dilation=(2, 3))),
    "grouped": lambda: image_net(lambda x, k: conv(x, k, groups=2), (2, 2, 1, 4)),
    "depthwise relu": lambda: image_net(
        lambda x, k: conv(x, k, strides=(2, 2), groups=2), (3, 3, 1, 2), jax.nn.relu
    ),
    "max pooling": lambda: pooled(max_window),
    "average pooling": lambda: pooled(mean_window),
    "gated": lambda: (
        gated,
        {"gate": random(1, 3, 4), "up": random(2, 3, 4), "down": random(3, 4, 3)},
        labelled(3),
    ),
    "stacked": lambda: (tower, {"w": random(1, 3, 3, 3), "b": random(2, 3, 3)}, labelled(3)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_exact_through_activations_convolutions_pooling_and_penalties(name):
    assert reasons(check(*LOSSES[name]())) == {}


@jax.custom_vjp
def reversed_only(x):
    return jnp.sin(x)


reversed_only.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x),))


@jax.custom_jvp
def tripled(x, w):
    """A layer whose derivative rule says three times what its value does."""
    return jnp.tanh(x @ w)


@tripled.defjvp
def _tripled_jvp(primals, tangents):
    (x, w), (dx, dw) = primals, tangents
    return tripled(x, w), 3 * (1 - jnp.tanh(x @ w) ** 2) * (dx @ w + x @ dw)


def recurrent(length):
    def loss_fn(w, x):
        step = lambda h, t: (jnp.tanh(h @ w + t * x), None)
        return jnp.sum(lax.scan(step, x, jnp.linspace(0, 1, length))[0])

    return loss_fn


SQUARE = lambda: random(1, 3, 3)
ODD_LOSSES = {
    # name: (loss, parameters, the reason given)
    "tied, linear after": (lambda w, x: jnp.sum(x @ w @ w), SQUARE, "2 uses meet in dot_general"),
    "tied": (
        lambda w, x: jnp.sum(jnp.tanh(jnp.tanh(x @ w) @ w)),
        SQUARE,
        "2 uses meet in dot_general",
    ),
    "recurrent": (recurrent(3), SQUARE, "uses meet in dot_general"),
    "long scan": (recurrent(40), SQUARE, ""),
    "two terms": (lambda w, x: jnp.sum(jnp.tanh(x @ w)) + jnp.sum(jnp.sin(x**2 @ w)), SQUARE, ""),
    "norm penalty": (
        lambda w, x: x[0] * (jnp.sum(jnp.tanh(x @ w)) + jnp.linalg.norm(w)),
        SQUARE,
        "",
    ),
    "normalised weight": (
        lambda w, x: jnp.sum(jnp.tanh(x @ (w / jnp.linalg.norm(w, axis=0)))),
        SQUARE,
        "2 uses meet in div",
    ),
    "low rank": (
        lambda p, x: jnp.sum(jnp.tanh(x @ (p[0] @ p[1]))),
        lambda: (random(1, 3, 2), random(2, 2, 3)),
        "",
    ),
    "branches": (
        lambda w, x: lax.cond(x[0] > 0, lambda w: jnp.sum(jnp.tanh(x @ w)), jnp.linalg.norm, w),
        SQUARE,
        "",
    ),
    "repeated rows": (
        lambda w, x: jnp.sum(jnp.tanh(w[jnp.array([1, 2, 1])] @ x)),
        SQUARE,
        "",
    ),
    "rows by example": (
        lambda w, x: jnp.sum(jnp.tanh(w[jnp.argsort(x)[:2]].T @ x[:2])),
        SQUARE,
        "",
    ),
    "reverse rule": (lambda w, x: jnp.sum(reversed_only(x @ w) ** 2), SQUARE, ""),
    "scalar": (lambda w, x: jnp.sum(jnp.tanh(x * w)), lambda: jnp.asarray(0.7), ""),
    "unused": (
        lambda p, x: jnp.sum(jnp.tanh(x @ p[0])),
        lambda: (random(1, 3, 3), random(2, 2)),
        "",
    ),
    "constant example": (lambda w, x: jnp.sum(w**4) + 0 * x[0], SQUARE, ""),
}


@pytest.mark.parametrize("name", ODD_LOSSES)
def test_exact_where_leaves_are_used_in_other_ways(name):
    loss_fn, params, reason = ODD_LOSSES[name]
    plan = check(loss_fn, params(), random(9, 4, 3), microbatch=3)
    found = "".join(reasons(plan).values())
    assert (reason in found) if reason else found == ""


@pytest.mark.slow
def test_custom_rules_stay_in_force():
    # The oracle is the derivative of the gradient that the rule defines, not of the value.
    w, x = random(1, 3, 3), random(9, 4, 3)
    loss_fn = lambda w, x: jnp.sum(tripled(x, w))
    mean = lambda w: mean_loss(loss_fn, w, x)
    want = dense_diagonal(mean, w)
    got = sap.exact_diagonal(loss_fn)(w, x)
    assert relative_error(got, want) < 1e-5
    plain = dense_diagonal(lambda w: jnp.mean(jnp.sum(jnp.tanh(x @ w), -1)), w)
    assert relative_error(got, plain) > 0.5


def test_a_fallback_is_for_its_leaf_alone():
    def loss_fn(p, x):
        return jnp.sum(jnp.tanh(jnp.tanh(x @ p["tied"]) @ p["tied"] @ p["free"]))

    plan = check(loss_fn, {"tied": SQUARE(), "free": random(2, 3, 2)}, random(9, 4, 3))
    assert list(reasons(plan)) == ["tied"]


def test_the_networks_of_these_tests_take_every_route():
    routes = set()
    for loss_fn, params, batch in [
        *(LOSSES[name]() for name in ("max pooling", "gelu", "strided")),
        cnn(jax.nn.relu),
        (ODD_LOSSES["reverse rule"][0], SQUARE(), random(9, 4, 3)),
    ]:
        plan = sap.explain(loss_fn, params, jax.tree.map(lambda x: x[0], batch))
        routes |= {use.route for use in plan.uses}
    assert routes >= {
        "rows from the cut",
        "tangents at the site",
        "tangents at the leaf",
        "Hessian products at the site",
    }


@pytest.mark.parametrize("name", ["tanh", "strided", "stacked", "softmax inside"])
def test_directions_in_chunks_give_the_same(name, monkeypatch):
    loss_fn, params, batch = LOSSES[name]()
    whole = jax.jit(sap.exact_diagonal(loss_fn))(params, batch)
    monkeypatch.setattr(_routes, "MOST", 20)
    monkeypatch.setattr(_routes, "MAX_CUT", 0)
    parts = jax.jit(sap.exact_diagonal(loss_fn))(params, batch)
    assert relative_error(parts, whole) < 1e-5


def test_a_scan_is_unrolled_up_to_the_stated_length():
    plan = sap.explain(recurrent(MAX_UNROLL + 1), SQUARE(), random(9, 3))
    assert [use.site for use in plan.uses] == ["scan -> [3 3]"]
    assert len(sap.explain(tower, *tower_of(MAX_UNROLL)).uses) == 2 * MAX_UNROLL


def tower_of(num_layers):
    params = {"w": random(1, num_layers, 3, 3), "b": random(2, num_layers, 3)}
    return params, (random(9, 3), jnp.asarray(1))
