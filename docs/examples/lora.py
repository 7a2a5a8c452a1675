"""LoRA: only the leaves of the adapters are parameters; the base model passes by `args`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sapsel_jax as sap


def init(key):
    keys = jax.random.split(key, 4)
    normal = jax.random.normal
    base = {"hidden": normal(keys[0], (8, 16)) / 3, "output": normal(keys[1], (16, 4)) / 4}
    down = {"hidden": normal(keys[2], (8, 2)), "output": normal(keys[3], (16, 2))}
    up = {"hidden": jnp.zeros((2, 16)), "output": jnp.zeros((2, 4))}
    return base, {"down": down, "up": up}


def model_fn(lora, x, base):
    adapt = lambda kernel, down, up: kernel + down @ up
    kernels = jax.tree.map(adapt, base, lora["down"], lora["up"])
    return jnp.tanh(x @ kernels["hidden"]) @ kernels["output"]


def loss_fn(lora, example, base):
    logits = model_fn(lora, example[0], base)
    return optax.softmax_cross_entropy_with_integer_labels(logits, example[1])


@jax.jit
def unlearn(lora, original, corrected, base):
    options = {"num_examples": 400, "args": (base,)}
    change = sap.gradient_change(loss_fn, lora, original, corrected, **options)
    mask = sap.select_top_count(sap.score_saliency(change), 12)
    return sap.first_order_update(
        loss_fn, lora, original, corrected, step_size=0.1, mask=mask, **options
    )


# Four classes around four centres. Of the first, 60 of 100 examples are labelled as the second.
rng = np.random.default_rng(0)
y = np.arange(400) % 4
x = (rng.normal(size=(4, 8))[y] + 0.5 * rng.normal(size=(400, 8))).astype(np.float32)
bad = np.arange(0, 240, 4)
wrong = y.copy()
wrong[bad] = 1

base, lora = init(jax.random.key(0))
# In place of your own training: 200 steps of 64 examples.
rows = rng.integers(0, 400, (200, 64))
before, _ = sap.iterative_update(
    loss_fn, lora, (x[rows], wrong[rows]), optimizer=optax.adam(0.01), args=(base,)
)

after = unlearn(before, (x[bad], wrong[bad]), (x[bad], y[bad]), base)
accuracies = [float(sap.audit.accuracy(model_fn(p, x, base), y)) for p in (before, after)]
print("accuracy before and after: {:.3f} {:.3f}".format(*accuracies))
