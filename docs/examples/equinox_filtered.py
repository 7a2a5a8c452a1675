"""Equinox: the tree is filtered into arrays to train, and everything else."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import sapsel_jax as sap

model = eqx.nn.MLP(8, 4, width_size=16, depth=1, activation=jnp.tanh, key=jax.random.key(0))
# Either tree holds None where the other has a leaf: activations and sizes stay in `rest`.
params, rest = eqx.partition(model, eqx.is_inexact_array)


def loss_fn(params, example):
    logits = eqx.combine(params, rest)(example[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, example[1])


@jax.jit
def unlearn(params, original, corrected):
    change = sap.gradient_change(loss_fn, params, original, corrected, num_examples=400)
    mask = sap.select_top_count(sap.score_saliency(change), 12)
    return sap.first_order_update(
        loss_fn, params, original, corrected, step_size=1.0, mask=mask, num_examples=400
    )


# Four classes around four centres. Of the first, 60 of 100 examples are labelled as the second.
rng = np.random.default_rng(0)
y = np.arange(400) % 4
x = (rng.normal(size=(4, 8))[y] + 0.5 * rng.normal(size=(400, 8))).astype(np.float32)
bad = np.arange(0, 240, 4)
wrong = y.copy()
wrong[bad] = 1

# In place of your own training: 200 steps of 64 examples.
rows = rng.integers(0, 400, (200, 64))
before, _ = sap.iterative_update(
    loss_fn, params, (x[rows], wrong[rows]), optimizer=optax.adam(0.01)
)

after = unlearn(before, (x[bad], wrong[bad]), (x[bad], y[bad]))
models = [eqx.combine(p, rest) for p in (before, after)]
accuracies = [float(sap.audit.accuracy(jax.vmap(model)(x), y)) for model in models]
print("accuracy before and after: {:.3f} {:.3f}".format(*accuracies))
