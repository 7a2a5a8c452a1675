"""What the updates say about bad arguments."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import sapsel_jax as sap

KEY = jax.random.key(0)
X, Y = jnp.ones((3, 5)), jnp.arange(3.0)
EMPTY = (X[:0], Y[:0])
TEXT: Any = "a"
HALF: Any = 1.5


def squared_error(w, example):
    x, y = example
    return 0.5 * (jnp.vdot(w["w"], x) - y) ** 2


def arguments(changes):
    """The loss, the parameters and the batches; what is left of the changes goes by name."""
    given = {
        "params": {"w": jnp.ones(5)},
        "original": (X, Y),
        "corrected": (X, -Y),
        "data": (X, -Y),
    }
    return [squared_error, *(changes.pop(name, value) for name, value in given.items())]


def first_order(**changes):
    *batches, _ = arguments(changes)
    return sap.first_order_update(*batches, **({"step_size": 0.1} | changes))


def gradient_change(**changes):
    *batches, _ = arguments(changes)
    return sap.gradient_change(*batches, **changes)


def second_order(**changes):
    return sap.second_order_update(*arguments(changes), **({"damping": 1.0} | changes))


def unlearn(**changes):
    return sap.unlearn(*arguments(changes), key=KEY, **changes)


def iteration(**changes):
    given = {"num_steps": 1, "batch_size": 2} | changes
    return sap.with_iteration(optimizer=optax.sgd(1.0), key=KEY, **given)


def message_of(call, kind):
    with pytest.raises(kind) as raised:
        call()
    return str(raised.value)


MASKED = (first_order, second_order)
UNMASKED = (gradient_change, unlearn)


@pytest.mark.parametrize("update", [*MASKED, *UNMASKED])
@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        (
            {"params": {"w": jnp.arange(5)}},
            TypeError,
            "`params` must hold real floating-point arrays; leaf 'w' has dtype int32.",
        ),
        (
            {"params": {"w": jnp.ones(5, jnp.complex64)}},
            TypeError,
            "`params` must hold real floating-point arrays; leaf 'w' has dtype complex64.",
        ),
        (
            {"original": EMPTY},
            ValueError,
            "`original` is empty; it must hold at least one example.",
        ),
        (
            {"original": (X, Y[:2])},
            ValueError,
            "`original` must have one number of examples; '0' has 3 and '1' has 2.",
        ),
        (
            {"corrected": EMPTY},
            ValueError,
            "`corrected` and `original` must have the same shapes; at '0' they are "
            "float32[0, 5] and float32[3, 5].",
        ),
        (
            {"corrected": {"x": X}},
            ValueError,
            "`corrected` and `original` must have the same structure; they first "
            "differ at 'x' against '0'.",
        ),
        ({"num_examples": 0}, ValueError, "`num_examples` must be at least 1; got 0."),
        ({"num_examples": 2.5}, TypeError, "`num_examples` must be a Python integer; got float."),
        ({"microbatch": 0}, ValueError, "`microbatch` must be at least 1; got 0."),
    ],
)
def test_bad_batches(update, changes, kind, message):
    assert message_of(lambda: update(**changes), kind) == message


@pytest.mark.parametrize("update", [second_order, unlearn])
@pytest.mark.parametrize("changes", [{}, {"num_examples": 9}])
def test_data_that_hold_no_example(update, changes):
    want = "`data` is empty; it must hold at least one example."
    assert message_of(lambda: update(data=EMPTY, **changes), ValueError) == want


@pytest.mark.parametrize("update", MASKED)
@pytest.mark.parametrize(
    ("mask", "kind", "message"),
    [
        (
            {"w": jnp.ones(5)},
            TypeError,
            "`mask` must hold bool arrays; leaf 'w' has dtype float32.",
        ),
        (
            {"w": jnp.ones(3, bool)},
            ValueError,
            "`mask` and `params` must have the same shapes; at 'w' they are bool[3] and "
            "float32[5].",
        ),
        (
            {"v": jnp.ones(5, bool)},
            ValueError,
            "`mask` and `params` must have the same structure; they first differ at 'v' against "
            "'w'.",
        ),
    ],
)
def test_masks_that_do_not_fit(update, mask, kind, message):
    assert message_of(lambda: update(mask=mask), kind) == message


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: first_order(step_size=-1.0),
            "`step_size` must be finite and at least 0; got -1.",
        ),
        (
            lambda: sap.with_first_order(step_size=float("nan")),
            "`step_size` must be finite and at least 0; got nan.",
        ),
        (lambda: second_order(damping=0), "`damping` must be finite and above 0; got 0."),
        (lambda: second_order(damping=-1.5), "`damping` must be finite and above 0; got -1.5."),
        (
            lambda: second_order(damping=float("nan")),
            "`damping` must be finite and above 0; got nan.",
        ),
        (lambda: second_order(num_steps=0), "`num_steps` must be at least 1; got 0."),
        (lambda: second_order(num_selected=-1), "`num_selected` must be at least 0; got -1."),
        (
            lambda: second_order(model_fn=len),
            "`model_fn` and `output_loss_fn` must be given together.",
        ),
        (
            lambda: second_order(output_loss_fn=len),
            "`model_fn` and `output_loss_fn` must be given together.",
        ),
        (
            lambda: second_order(penalty_fn=len),
            "`penalty_fn` must be given with `model_fn` and `output_loss_fn`.",
        ),
        (
            lambda: sap.conjugate_gradient(tolerance=0),
            "`tolerance` must be finite and above 0; got 0.",
        ),
        (
            lambda: sap.conjugate_gradient(max_iterations=0),
            "`max_iterations` must be at least 1; got 0.",
        ),
        (lambda: sap.lissa(scale=-1.0), "`scale` must be finite and above 0; got -1."),
        (lambda: sap.lissa(tolerance=0.0), "`tolerance` must be finite and above 0; got 0."),
        (lambda: sap.lissa(num_iterations=0), "`num_iterations` must be at least 1; got 0."),
        (lambda: sap.lissa(batch_size=3), "`batch_size` and `key` must be given together."),
        (lambda: sap.lissa(key=KEY), "`batch_size` and `key` must be given together."),
        (lambda: sap.lissa(batch_size=0, key=KEY), "`batch_size` must be at least 1; got 0."),
        (lambda: sap.dense_solver(count=0), "`count` must be at least 1; got 0."),
        (lambda: sap.dense_solver(tolerance=0), "`tolerance` must be finite and above 0; got 0."),
        (
            lambda: sap.diagonal_solver(tolerance=-1.0),
            "`tolerance` must be finite and above 0; got -1.",
        ),
        (lambda: iteration(num_steps=0), "`num_steps` must be at least 1; got 0."),
        (lambda: iteration(batch_size=0), "`batch_size` must be at least 2; got 0."),
        (lambda: iteration(batch_size=3), "`batch_size` must be even; got 3."),
        (lambda: unlearn(fraction=1.4), "`fraction` must lie in [0, 1]; got 1.4."),
    ],
)
def test_numbers_out_of_range(call, message):
    assert message_of(call, ValueError) == message


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: first_order(step_size=TEXT), "`step_size` must be a number; got str."),
        (lambda: sap.with_first_order(step_size=TEXT), "`step_size` must be a number; got str."),
        (lambda: second_order(damping=TEXT), "`damping` must be a number; got str."),
        (lambda: second_order(num_steps=HALF), "`num_steps` must be a Python integer; got float."),
        (
            lambda: second_order(num_selected=HALF),
            "`num_selected` must be a Python integer; got float.",
        ),
        (
            lambda: sap.conjugate_gradient(tolerance=TEXT),
            "`tolerance` must be a number; got str.",
        ),
        (
            lambda: sap.conjugate_gradient(max_iterations=HALF),
            "`max_iterations` must be a Python integer; got float.",
        ),
        (lambda: sap.lissa(scale=TEXT), "`scale` must be a number; got str."),
        (lambda: sap.lissa(tolerance=TEXT), "`tolerance` must be a number; got str."),
        (
            lambda: sap.lissa(num_iterations=HALF),
            "`num_iterations` must be a Python integer; got float.",
        ),
        (
            lambda: sap.lissa(batch_size=HALF, key=KEY),
            "`batch_size` must be a Python integer; got float.",
        ),
        (lambda: sap.dense_solver(count=HALF), "`count` must be a Python integer; got float."),
        (lambda: sap.dense_solver(tolerance=TEXT), "`tolerance` must be a number; got str."),
        (lambda: sap.diagonal_solver(tolerance=TEXT), "`tolerance` must be a number; got str."),
        (lambda: iteration(num_steps=HALF), "`num_steps` must be a Python integer; got float."),
        (lambda: iteration(batch_size=HALF), "`batch_size` must be a Python integer; got float."),
        (lambda: unlearn(fraction=TEXT), "`fraction` must be a Python number; got str."),
    ],
)
def test_numbers_that_are_none(call, message):
    assert message_of(call, TypeError) == message
