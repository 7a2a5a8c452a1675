"""What a propagated diagonal refuses, and in which words."""

import jax
import jax.numpy as jnp
import networks
import pytest

import sapsel_jax as sap


def test_while_loops_are_refused():
    def loss_fn(w, x):
        return jax.lax.while_loop(lambda h: h.sum() < 9, lambda h: 2 * h + 1, w * x).sum()

    keyed = {sap.propagated_diagonal, sap.hutchinson_diagonal}
    for make in (*keyed, sap.exact_diagonal, sap.empirical_fisher_diagonal):
        key = (jax.random.key(0),) if make in keyed else ()
        with pytest.raises(NotImplementedError, match="has a `while` loop that depends on the"):
            make(loss_fn)(jnp.ones(2), jnp.ones((3, 2)), *key)
    (use,) = sap.explain(loss_fn, jnp.ones(2), jnp.ones(2)).uses
    assert use.propagated == "refused: while"


@pytest.mark.parametrize(
    ("options", "kind", "error"),
    [
        ({"num_probes": 0}, ValueError, "`num_probes` must be at least 1; got 0."),
        ({"num_probes": 1.5}, TypeError, "`num_probes` must be a Python integer; got float."),
        ({"microbatch": 0}, ValueError, "`microbatch` must be at least 1; got 0."),
        ({"reduction": "max"}, ValueError, "`reduction` must be 'mean' or 'sum'; got 'max'."),
        (
            {"return_error": True},
            ValueError,
            "`return_error` needs `num_probes` of at least 2; got 1.",
        ),
    ],
)
def test_bad_options_are_refused_when_the_function_is_made(options, kind, error):
    with pytest.raises(kind, match=error):
        sap.propagated_diagonal(networks.mlp()[0], **options)


def test_bad_parameters_and_weights_are_refused():
    loss_fn, params, batch = networks.mlp()
    key = jax.random.key(5)
    diagonal = sap.propagated_diagonal(loss_fn)
    with pytest.raises(TypeError, match="leaf 'n' has dtype int32"):
        diagonal({"n": jnp.arange(3)}, batch, key)
    with pytest.raises(ValueError, match=r"`weights` must hold one number per example, shape"):
        diagonal(params, batch, key, weights=jnp.ones(2))
    with pytest.raises(ValueError, match="`batch` is empty"):
        diagonal(params, jax.tree.map(lambda x: x[:0], batch), key)
