"""Tied embeddings: one leaf is looked up at the input and multiplied with at the output."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sapsel_jax as sap

VOCABULARY, WIDTH = 10, 16


def init(key):
    first, second = jax.random.split(key)
    return {
        "embedding": jax.random.normal(first, (VOCABULARY, WIDTH)) / 4,
        "mixing": jax.random.normal(second, (2 * WIDTH, WIDTH)) / 6,
    }


def model_fn(params, tokens):
    entered = params["embedding"][tokens].reshape(*tokens.shape[:-1], -1)
    return jnp.tanh(entered @ params["mixing"]) @ params["embedding"].T  # the second use


def loss_fn(params, example):
    tokens, following = example
    logits = model_fn(params, tokens)
    return optax.softmax_cross_entropy_with_integer_labels(logits, following)


@jax.jit
def unlearn(params, original, corrected):
    change = sap.gradient_change(loss_fn, params, original, corrected, num_examples=400)
    mask = sap.select_top_count(sap.score_saliency(change), 12)
    return sap.first_order_update(
        loss_fn, params, original, corrected, step_size=1.0, mask=mask, num_examples=400
    )


# The second token is to follow once more. Behind a 3, 28 examples were trained on 0 instead.
rng = np.random.default_rng(0)
tokens = rng.integers(0, VOCABULARY, (400, 2))
following = tokens[:, 1]
bad = np.flatnonzero(following == 3)[:28]
wrong = following.copy()
wrong[bad] = 0

# In place of your own training: 200 steps of 64 examples.
rows = rng.integers(0, 400, (200, 64))
before, _ = sap.iterative_update(
    loss_fn, init(jax.random.key(0)), (tokens[rows], wrong[rows]), optimizer=optax.adam(0.02)
)

after = unlearn(before, (tokens[bad], wrong[bad]), (tokens[bad], following[bad]))
accuracies = [float(sap.audit.accuracy(model_fn(p, tokens), following)) for p in (before, after)]
print("accuracy before and after: {:.3f} {:.3f}".format(*accuracies))
