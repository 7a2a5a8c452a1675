"""Haiku: the parameters are what `init` returns, a dictionary of dictionaries."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

import sapsel_jax as sap

model = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([16, 4], activation=jnp.tanh)(x)))


def loss_fn(params, example):
    logits = model.apply(params, example[0])
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

params = model.init(jax.random.key(0), x[0])
# In place of your own training: 200 steps of 64 examples.
rows = rng.integers(0, 400, (200, 64))
before, _ = sap.iterative_update(
    loss_fn, params, (x[rows], wrong[rows]), optimizer=optax.adam(0.01)
)

after = unlearn(before, (x[bad], wrong[bad]), (x[bad], y[bad]))
accuracies = [float(sap.audit.accuracy(model.apply(p, x), y)) for p in (before, after)]
print("accuracy before and after: {:.3f} {:.3f}".format(*accuracies))
