"""Steps of an optimizer over batches: against NumPy, with retained examples, past bad steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import mean_loss
from trees import changed_bits

import sapsel_jax as sap

RNG = np.random.default_rng(0)
W, MASK = RNG.normal(size=4), np.array([True, False, True, False])
X, Y = RNG.normal(size=(3, 7, 4)), RNG.normal(size=(3, 7))  # three steps of seven examples
RETAINED = RNG.normal(size=(3, 2, 4)), RNG.normal(size=(3, 2))


def squared_error(w, example):
    x, y = example
    return 0.5 * (jnp.vdot(w, x) - y) ** 2


def momentum(batches, usable=(True, True, True)):
    """The same in NumPy, on the selected entries, as if unusable steps had not come."""
    w, velocity, losses = W.copy(), np.zeros(4), []
    for x, y, use in zip(*batches, usable, strict=True):
        errors = x @ w - y
        losses.append(0.5 * np.mean(errors**2))
        if use:
            velocity = 0.9 * velocity + MASK * (errors @ x) / len(y)
            w = w - 0.1 * velocity
    return w, losses


def run(batches, **options):
    options = {"optimizer": optax.sgd(0.1, momentum=0.9), "mask": jnp.asarray(MASK)} | options
    params = options.pop("params", jnp.asarray(W, jnp.float32))
    return sap.iterative_update(squared_error, params, as_float32(batches), **options)


def as_float32(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def test_it_is_momentum_on_the_selected_entries():
    want, want_losses = momentum((X, Y))
    got, losses = run((X, Y))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(losses, want_losses, rtol=1e-5)


def test_without_a_mask_it_is_the_optimizer_alone():
    optimizer = optax.adam(0.05)

    def by_hand(params, batches):
        state = optimizer.init(params)
        for i in range(3):
            batch = jax.tree.map(lambda x, i=i: x[i], batches)
            gradient = jax.grad(lambda p, batch=batch: mean_loss(squared_error, p, batch))(params)
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params

    want = jax.jit(by_hand)(*as_float32((W, (X, Y))))
    got, _ = jax.jit(lambda b: run(b, optimizer=optimizer, mask=None))((X, Y))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_retained_examples_are_mixed_into_every_batch():
    mixed = tuple(np.concatenate(pair, axis=1) for pair in zip((X, Y), RETAINED, strict=True))
    want, want_losses = momentum(mixed)
    got, losses = run((X, Y), retained=as_float32(RETAINED))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(losses, want_losses, rtol=1e-5)
    alone, _ = momentum((X, Y))
    assert np.abs(want - alone).max() > 0.01


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["batches", "retained"])
def test_a_step_that_is_not_finite_is_as_if_it_had_not_come(where, bad):
    y, (retained_x, retained_y) = Y.copy(), RETAINED
    retained_y = retained_y.copy()
    (y if where == "batches" else retained_y)[1, 0] = bad
    mixed = np.concatenate([X, retained_x], axis=1), np.concatenate([y, retained_y], axis=1)
    want, want_losses = momentum(mixed, usable=(True, False, True))
    got, losses = run((X, y), retained=as_float32((retained_x, retained_y)))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(losses, want_losses, rtol=1e-5)  # the bad loss stands as it was


def test_where_no_step_is_finite_or_nothing_is_selected_every_bit_stays():
    start = jnp.asarray([-0.0, 1e-40, 0.5, -1.0], jnp.float32)
    for batches, mask in (((X, Y * np.nan), MASK), ((X, Y), np.zeros(4, bool))):
        got, _ = run(batches, params=start, mask=jnp.asarray(mask))
        assert not changed_bits(start, got).any()


@pytest.mark.parametrize(
    ("changes", "kind", "error"),
    [
        ({"batches": (X[0], Y[0])}, ValueError, "`batches` must have a leading axis"),
        ({"batches": (X[:0], Y[:0])}, ValueError, "`batches` is empty;"),
        ({"batches": (X[:, :0], Y[:, :0])}, ValueError, "`batches` is empty;"),
        (
            {"batches": (X, Y[:, :5])},
            ValueError,
            "`batches` must have one number of examples; '0' has 7 and '1' has 5.",
        ),
        ({"params": jnp.arange(4)}, TypeError, "`params` must hold real"),
        (
            {"mask": jnp.ones(3, bool)},
            ValueError,
            "`mask` and `params` must have the same shapes",
        ),
        (
            {"mask": jnp.ones(4)},
            TypeError,
            "`mask` must hold bool arrays; the array has dtype float32.",
        ),
        ({"retained": as_float32((X[:, :0], Y[:, :0]))}, ValueError, "`retained` is empty;"),
        (
            {"retained": as_float32((X[:2], Y[:2]))},
            ValueError,
            r"`retained` and `batches` must have the same shapes; at '0' they are float32\[2, 4\] "
            r"and float32\[3, 4\].",
        ),
        (
            {"retained": as_float32((X[..., :2], Y))},
            ValueError,
            r"`retained` and `batches` must have the same shapes; at '0' they are float32\[3, 2\] "
            r"and float32\[3, 4\].",
        ),
        (
            {"retained": {"x": jnp.ones((3, 1, 4))}},
            ValueError,
            "`retained` and `batches` must have the same structure; they first differ at 'x'",
        ),
    ],
)
def test_bad_arguments(changes, kind, error):
    with pytest.raises(kind, match=error):
        run(changes.pop("batches", (X, Y)), **changes)
