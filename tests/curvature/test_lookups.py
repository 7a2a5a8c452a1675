"""Rows of a table that are looked up: every diagonal, for ids repeated, negative, out of range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import dense_diagonal

import sapsel_jax as sap

pytestmark = pytest.mark.usefixtures("quick_compiler")
NUM_KEYS = 4000


def every_diagonal(model_fn, output_loss_fn):
    """The Hessian diagonals of a model that is linear in its parameters, as one program.

    Those that are estimated are means over many keys, each with six standard errors; beside them
    stands the gradient's square, the Fisher diagonal.
    """
    loss_fn = lambda p, e: output_loss_fn(model_fn(p, e), e)
    keys = jax.random.split(jax.random.key(3), NUM_KEYS)
    estimated = {
        "propagated": sap.propagated_diagonal(loss_fn),
        "hutchinson": sap.hutchinson_diagonal(loss_fn),
        "sampled": sap.sampled_gauss_newton_diagonal(model_fn, output_loss_fn),
    }

    @jax.jit
    def run(params, batch):
        found = {
            "exact": sap.exact_diagonal(loss_fn)(params, batch),
            "gauss_newton": sap.gauss_newton_diagonal(model_fn, output_loss_fn)(params, batch),
        }
        found = {name: (value, 1e-4) for name, value in found.items()}
        for name, estimate in estimated.items():
            values = jax.vmap(lambda k, f=estimate: f(params, batch, k))(keys)
            error = values.std(0) / NUM_KEYS**0.5
            found[name] = values.mean(0), 6 * error + 1e-4
        return found, sap.empirical_fisher_diagonal(loss_fn)(params, batch)

    return run


def oracle(loss_fn):
    """The dense Hessian's diagonal, and the mean square of the gradient."""

    @jax.jit
    def run(params, batch):
        mean = lambda p: jnp.mean(jax.vmap(lambda e: loss_fn(p, e))(batch))
        gradients = jax.vmap(lambda e: jax.grad(loss_fn)(params, e))(batch)
        return dense_diagonal(mean, params), jnp.mean(gradients**2, 0)

    return run


@pytest.mark.slow
def test_different_ids_that_are_clipped_to_one_row():
    table, ids = jnp.array([[1.0], [2.0]]), jnp.array([[2, 3]])
    model_fn = lambda t, i: jnp.take(t, i, axis=0, mode="clip")
    found, fisher = every_diagonal(model_fn, lambda y, _: jnp.sum(y) ** 2)(table, ids)
    for name, (value, bound) in found.items():
        np.testing.assert_array_less(abs(value - jnp.array([[0], [8]])), bound, err_msg=name)
    np.testing.assert_allclose(fisher[:, 0], [0, 256])


TABLE = jnp.arange(6.0).reshape(3, 2) / 5
IDS = {
    "in range": [[0, 2, 1], [1, 0, 2]],
    "repeated": [[1, 1, 0], [2, 2, 2]],
    "negative": [[-1, 2, -3], [-2, 1, 0]],
    "out of range": [[3, 4, -4], [2, 7, -5]],
}
READS = {
    **{m: lambda t, i, m=m: jnp.take(t, i, 0, mode=m, fill_value=0.3) for m in ("clip", "fill")},
    "wrap": lambda t, i: jnp.take(t, i, 0, mode="wrap"),
    "index": lambda t, i: t[i],
    "at clip": lambda t, i: t.at[i].get(mode="clip"),
    "of a transpose": lambda t, i: jnp.take(2 * t.T, i, 1, mode="clip"),
    "twice": lambda t, i: t[i] + jnp.take(t, i + 1, 0, mode="clip"),
    "along": lambda t, i: jnp.take_along_axis(t, i[:, None] * jnp.ones(2, int), 0, mode="clip"),
}


def bent(y, _):
    return jnp.sum(jnp.tanh(y)) ** 2 + jnp.sum(y[0]) ** 3


@pytest.mark.slow
@pytest.mark.parametrize("read", ["clip", "fill"])
def test_exact_for_ids_out_of_range(read):
    loss_fn = lambda t, i: bent(READS[read](t, i), i)
    ids = jnp.array(IDS["out of range"])
    want = dense_diagonal(lambda t: jnp.mean(jax.vmap(lambda i: loss_fn(t, i))(ids)), TABLE)
    np.testing.assert_allclose(sap.exact_diagonal(loss_fn)(TABLE, ids), want, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("read", READS)
def test_every_diagonal_of_rows_looked_up(read):
    run = every_diagonal(READS[read], bent)
    judge = oracle(lambda t, i: bent(READS[read](t, i), i))
    for kind, ids in IDS.items():
        if read in ("index", "twice") and kind == "out of range":
            continue  # without a mode ids are promised to be in range
        found, fisher = run(TABLE, jnp.array(ids))
        want, squares = judge(TABLE, jnp.array(ids))
        for name, (value, bound) in found.items():
            np.testing.assert_array_less(abs(value - want), bound, err_msg=f"{name}, {kind}")
        np.testing.assert_allclose(fisher, squares, rtol=1e-5, err_msg=kind)


# Slow since the fast tests compile by an emitter that counts rows in the dtype of the ids.
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8])
def test_narrow_ids_of_a_long_table(dtype):
    # The last row's number does not fit into the ids' dtype.
    table, ids = jnp.linspace(0, 1, 300)[:, None], jnp.array([[120, 120, 7]], dtype)
    loss_fn = lambda t, i: jnp.sum(jnp.take(t, i, 0, mode="clip")) ** 2
    got = sap.exact_diagonal(loss_fn)(table, ids)[:, 0]
    np.testing.assert_allclose(got[jnp.array([7, 120])], [2, 8])
    assert jnp.count_nonzero(got) == 2


@pytest.mark.slow
@pytest.mark.parametrize("ids", [[3, 4], [5, 5]])
def test_ids_that_break_the_promise_have_no_gradient_as_in_jax(ids):
    loss_fn = lambda t, i: jnp.sum(t[i]) ** 2
    batch = jnp.array([ids, [0, 0]])
    gradient = jax.vmap(lambda i: jax.grad(loss_fn)(TABLE, i))(batch)
    got = sap.empirical_fisher_diagonal(loss_fn)(TABLE, batch)
    np.testing.assert_allclose(got, jnp.mean(gradient**2, 0))
    fixed = lambda t, _: loss_fn(t, batch[0])
    np.testing.assert_array_equal(sap.exact_diagonal(fixed)(TABLE, jnp.zeros(2)), 0)
