"""A network of plain functions: one step on 12 entries unlearns false labels."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sapsel_jax as sap


def init(key):
    first, second = jax.random.split(key)
    return {
        "hidden": {"kernel": jax.random.normal(first, (8, 16)) / 3, "bias": jnp.zeros(16)},
        "output": {"kernel": jax.random.normal(second, (16, 4)) / 4, "bias": jnp.zeros(4)},
    }


def model_fn(params, x):
    hidden, output = params["hidden"], params["output"]
    return jnp.tanh(x @ hidden["kernel"] + hidden["bias"]) @ output["kernel"] + output["bias"]


def loss_fn(params, example):  # of one example: there is no axis over examples
    x, y = example
    return optax.softmax_cross_entropy_with_integer_labels(model_fn(params, x), y)


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
    loss_fn, init(jax.random.key(0)), (x[rows], wrong[rows]), optimizer=optax.adam(0.01)
)

after = unlearn(before, (x[bad], wrong[bad]), (x[bad], y[bad]))
accuracies = [float(sap.audit.accuracy(model_fn(p, x), y)) for p in (before, after)]
print("accuracy before and after: {:.3f} {:.3f}".format(*accuracies))
