"""Flax Linen with dropout: each example brings the key of its own dropout."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

import sapsel_jax as sap


class Network(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic):
        x = nn.Dropout(0.2)(nn.tanh(nn.Dense(16)(x)), deterministic)
        return nn.Dense(4)(x)


model = Network()


def loss_fn(params, example):
    x, y, key = example
    logits: Any = model.apply({"params": params}, x, False, rngs={"dropout": key})
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)


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

params = model.init(jax.random.key(0), x[0], True)["params"]
keys = jax.random.split(jax.random.key(1), (200, 64))
# In place of your own training: 200 steps of 64 examples.
rows = rng.integers(0, 400, (200, 64))
before, _ = sap.iterative_update(
    loss_fn, params, (x[rows], wrong[rows], keys), optimizer=optax.adam(0.01)
)

# The same keys for both, so that their dropout cancels where nothing was corrected.
after = unlearn(before, (x[bad], wrong[bad], keys[0, :60]), (x[bad], y[bad], keys[0, :60]))
logits = [model.apply({"params": p}, x, True) for p in (before, after)]
accuracies = [float(sap.audit.accuracy(each, y)) for each in logits]
print("accuracy before and after: {:.3f} {:.3f}".format(*accuracies))
