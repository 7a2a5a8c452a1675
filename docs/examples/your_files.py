"""What you have: a Flax model, a checkpoint of it, your arrays, and a list of bad rows."""

from pathlib import Path

import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from sklearn.datasets import load_digits


class Network(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 32, rngs=rngs)
        self.output = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x):
        return self.output(nnx.relu(self.hidden(x)))


@nnx.jit
def train_step(model, optimizer, x, y):
    loss = lambda model: optax.losses.softmax_cross_entropy_with_integer_labels(model(x), y).mean()
    optimizer.update(model, nnx.grad(loss)(model))


def write(folder):
    """Trains on labels of which a fifth is false, and writes the files that you would have."""
    folder = Path(folder).absolute()
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    bad_rows = np.arange(0, 1200, 5)
    trained_on = labels.copy()
    trained_on[bad_rows] = (labels[bad_rows] + 1) % 10
    model = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(0.01), wrt=nnx.Param)
    for _ in range(300):
        train_step(model, optimizer, images[:1200], trained_on[:1200])
    np.savez(folder / "data.npz", x=images, y=trained_on)
    np.savetxt(folder / "bad_rows.csv", np.c_[bad_rows, labels[bad_rows]], fmt="%d", delimiter=",")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "checkpoint", nnx.to_pure_dict(nnx.state(model)))
