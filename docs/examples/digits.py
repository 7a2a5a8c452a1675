"""What the guides share: digits of scikit-learn, a small network, and how it is trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import sapsel_jax as sap

images, labels = load_digits(return_X_y=True)
images = (images / 16).reshape(-1, 8, 8).astype(np.float32)
train_images, test_images = images[:1200], images[1200:]
train_labels, test_labels = labels[:1200], labels[1200:]


def init(key):
    first, second = jax.random.split(key)
    return {
        "hidden": {"kernel": jax.random.normal(first, (64, 32)) / 8, "bias": jnp.zeros(32)},
        "output": {"kernel": jax.random.normal(second, (32, 10)) / 6, "bias": jnp.zeros(10)},
    }


def model_fn(params, images):
    x = images.reshape(*images.shape[:-2], 64)
    x = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return x @ params["output"]["kernel"] + params["output"]["bias"]


def loss_fn(params, example):
    image, label = example
    return optax.softmax_cross_entropy_with_integer_labels(model_fn(params, image), label)


@jax.jit
def train(data, key):
    """In place of your own training: 1,500 steps of 64 examples."""
    rows = jax.random.randint(key, (1500, 64), 0, len(data[0]))
    batches = jax.tree.map(lambda leaf: leaf[rows], data)
    return sap.iterative_update(loss_fn, init(key), batches, optimizer=optax.adam(0.003))[0]


# The loss and the number of entries are fixed, so that the whole call can be compiled.
unlearn = jax.jit(functools.partial(sap.unlearn, loss_fn, count=24))
accuracy = lambda params, images, labels: float(
    sap.audit.accuracy(model_fn(params, images), labels)
)
