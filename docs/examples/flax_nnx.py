"""Flax NNX with BatchNorm: running statistics are split off and pass by `args`."""

import jax
import numpy as np
import optax
from flax import nnx
from optax.losses import softmax_cross_entropy_with_integer_labels as cross_entropy

import sapsel_jax as sap


class Network(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.output = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)

    def __call__(self, x):
        return self.output(nnx.tanh(self.norm(self.hidden(x))))


@nnx.jit
def train_step(model, optimizer, x, y):
    optimizer.update(model, nnx.grad(lambda model: cross_entropy(model(x), y).mean())(model))


# Four classes around four centres. Of the first, 60 of 100 examples are labelled as the second.
rng = np.random.default_rng(0)
y = np.arange(400) % 4
x = (rng.normal(size=(4, 8))[y] + 0.5 * rng.normal(size=(400, 8))).astype(np.float32)
bad = np.arange(0, 240, 4)
wrong = np.where(np.isin(np.arange(400), bad), 1, y)
model = Network(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adam(0.01), wrt=nnx.Param)
for _ in range(100):
    train_step(model, optimizer, x, wrong)

model.eval()  # BatchNorm by its running statistics, dropout off
structure, params, rest = nnx.split(model, nnx.Param, ...)
before = nnx.to_pure_dict(params)
loss_fn = lambda params, example, rest: cross_entropy(
    nnx.merge(structure, params, rest)(example[0]), example[1]
)


@jax.jit
def unlearn(params, original, corrected, rest):
    options = {"num_examples": 400, "args": (rest,)}
    change = sap.gradient_change(loss_fn, params, original, corrected, **options)
    mask = sap.select_top_count(sap.score_saliency(change), 12)
    return sap.first_order_update(
        loss_fn, params, original, corrected, step_size=1.0, mask=mask, **options
    )


accuracies = [float(sap.audit.accuracy(model(x), y))]
after = unlearn(before, (x[bad], wrong[bad]), (x[bad], y[bad]), rest)
nnx.update(model, after)
accuracies.append(float(sap.audit.accuracy(model(x), y)))
print("accuracy before and after: {:.3f} {:.3f}".format(*accuracies))
