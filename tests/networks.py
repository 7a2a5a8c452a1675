"""Small networks in plain JAX, each as (loss_fn, params, batch), and the dense oracle."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree


def cross_entropy(logits, label):
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def normal(key, *shape):
    return jax.random.normal(key, shape) / jnp.sqrt(jnp.maximum(shape[0], 1))


def conv(image, kernel, strides=(1, 1), padding: Any = "VALID", dilation=(1, 1), groups=1):
    """A convolution of one image (height, width, channels)."""
    return jax.lax.conv_general_dilated(
        image[None],
        kernel,
        strides,
        padding,
        rhs_dilation=dilation,
        feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )[0]


def mean_pool(image):
    return image.mean((0, 1))


def mlp(activation=jnp.tanh):
    """5-4-3 with a scalar scale and an empty leaf: 40 parameters."""
    keys = iter(jax.random.split(jax.random.key(0), 8))
    params = {
        "dense1": {"kernel": normal(next(keys), 5, 4), "bias": normal(next(keys), 4)},
        "dense2": {"kernel": normal(next(keys), 4, 3), "bias": normal(next(keys), 3)},
        "scale": jnp.asarray(1.3),
        "unused": jnp.zeros((0, 2)),
    }

    def loss_fn(params, example):
        x, label = example
        hidden = activation(x @ params["dense1"]["kernel"] + params["dense1"]["bias"])
        logits = hidden @ params["dense2"]["kernel"] + params["dense2"]["bias"]
        return cross_entropy(params["scale"] * logits, label)

    batch = (normal(next(keys), 7, 5) * 3, jax.random.randint(next(keys), (7,), 0, 3))
    return loss_fn, params, batch


def cnn(activation=jax.nn.gelu):
    """Convolution, 2×2 max pooling in the reshape form, dense: 6×6 images, 91 parameters."""
    keys = iter(jax.random.split(jax.random.key(1), 8))
    params = {
        "conv": {"kernel": normal(next(keys), 3, 3, 1, 4) * 2, "bias": normal(next(keys), 4)},
        "dense": {"kernel": normal(next(keys), 16, 3), "bias": normal(next(keys), 3)},
    }

    def loss_fn(params, example):
        image, label = example
        hidden = jax.lax.conv_general_dilated(
            image[None],
            params["conv"]["kernel"],
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        hidden = activation(hidden + params["conv"]["bias"])
        pooled = hidden.reshape(2, 2, 2, 2, 4).max((1, 3)).reshape(-1)
        return cross_entropy(pooled @ params["dense"]["kernel"] + params["dense"]["bias"], label)

    batch = (normal(next(keys), 6, 6, 6, 1) * 4, jax.random.randint(next(keys), (6,), 0, 3))
    return loss_fn, params, batch


def mean_loss(loss_fn, params, batch, *args):
    return jnp.mean(jax.vmap(lambda example: loss_fn(params, example, *args))(batch))


def dense_diagonal(fn, params):
    """The diagonal of `jax.hessian` over all parameters at once."""
    flat, unravel = ravel_pytree(params)
    return unravel(jnp.diagonal(jax.hessian(lambda x: fn(unravel(x)))(flat)))


def as_float64(tree):
    is_float = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    return jax.tree.map(lambda x: x.astype(jnp.float64) if is_float(x) else x, tree)


def relative_error(got, want):
    """The largest difference over the largest entry, over all leaves."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    differences = [jnp.abs(a - b).max() for a, b in pairs if b.size]
    return max(differences) / max(jnp.abs(b).max() for b in jax.tree.leaves(want) if b.size)
