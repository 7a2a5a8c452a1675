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


def to_unlearn(removal=False, scale=1.0) -> Any:
    """The perceptron, its first examples as learned and corrected, and the corrected set."""
    loss_fn, params, (x, label) = mlp()
    x = x * scale
    original = (x[:3], label[:3])
    if removal:
        return loss_fn, (params, original, None, (x[3:], label[3:]))
    corrected = (x[:3], (label[:3] + 1) % 3)
    return loss_fn, (params, original, corrected, (x, jnp.append(corrected[1], label[3:])))


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


def gated_unit():
    """A gated unit, the gate's bias in both branches: 51 parameters."""
    keys = iter(jax.random.split(jax.random.key(2), 8))
    params = {
        "up": normal(next(keys), 4, 4),
        "gate": normal(next(keys), 4, 4) * 2,
        "bias": normal(next(keys), 4),
        "down": normal(next(keys), 4, 3),
        "out": normal(next(keys), 3),
    }

    def loss_fn(params, example):
        x, label = example
        hidden = (x @ params["up"] + params["bias"]) * jax.nn.silu(
            x @ params["gate"] + params["bias"]
        )
        return cross_entropy(hidden @ params["down"] + params["out"], label)

    return loss_fn, params, (normal(next(keys), 5, 4) * 3, jnp.array([0, 1, 2, 0, 1]))


def resnet_block():
    """Two convolutions with batch norm at fixed statistics, around them a shortcut."""
    keys = iter(jax.random.split(jax.random.key(3), 8))
    params = {
        "conv1": normal(next(keys), 3, 3, 2, 2) / 2,
        "scale1": jnp.array([1.1, 0.8]),
        "bias1": jnp.array([0.1, -0.2]),
        "conv2": normal(next(keys), 3, 3, 2, 2) / 2,
        "scale2": jnp.array([0.9, 1.2]),
        "bias2": jnp.array([0.0, 0.3]),
        "dense": normal(next(keys), 2, 3),
    }
    statistics = {"mean": jnp.array([0.2, -0.1]), "var": jnp.array([0.7, 1.4])}

    def convolve(x, kernel):
        names = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x[None], kernel, (1, 1), "SAME", dimension_numbers=names
        )

    def norm(x, scale, bias):
        return (x[0] - statistics["mean"]) / jnp.sqrt(statistics["var"] + 1e-5) * scale + bias

    def loss_fn(params, example):
        x, label = example
        y = jax.nn.silu(norm(convolve(x, params["conv1"]), params["scale1"], params["bias1"]))
        y = norm(convolve(y, params["conv2"]), params["scale2"], params["bias2"])
        pooled = jax.nn.silu(x + y).mean((0, 1))
        return cross_entropy(pooled @ params["dense"], label)

    return loss_fn, params, (normal(next(keys), 4, 4, 4, 2) * 2, jnp.array([0, 1, 2, 0]))


def attention_block():
    """Embedding, LayerNorm, two heads of attention, a dense layer: 5 tokens of 4 numbers."""
    keys = iter(jax.random.split(jax.random.key(4), 12))
    params = {
        "embed": normal(next(keys), 6, 4) * 2,
        "position": normal(next(keys), 5, 4),
        "scale": jnp.array([1.2, 0.8, 1.0, 0.9]),
        "bias": jnp.array([0.1, 0.0, -0.1, 0.2]),
        "query": normal(next(keys), 4, 4) * 1.5,
        "key": normal(next(keys), 4, 4) * 1.5,
        "value": normal(next(keys), 4, 4),
        "out": normal(next(keys), 4, 3),
    }

    def loss_fn(params, example):
        ids, label = example
        x = params["embed"][ids] + params["position"]
        centred = x - x.mean(-1, keepdims=True)
        x = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-3)
        x = x * params["scale"] + params["bias"]
        query, key, value = ((x @ params[k]).reshape(5, 2, 2) for k in ("query", "key", "value"))
        weights = jax.nn.softmax(jnp.einsum("ihd,jhd->hij", query, key))
        x = jnp.einsum("hij,jhd->ihd", weights, value).reshape(5, 4)
        return cross_entropy(x.mean(0) @ params["out"], label)

    ids = jax.random.randint(next(keys), (4, 5), 0, 6)
    return loss_fn, params, (ids, jnp.array([0, 1, 2, 0]))


def tied_weights():
    """One matrix as encoder and, transposed, as decoder."""
    keys = iter(jax.random.split(jax.random.key(5), 4))
    params = {"kernel": normal(next(keys), 4, 3), "bias": jnp.array([0.1, -0.3, 0.2])}

    def loss_fn(params, x):
        hidden = jnp.tanh(x @ params["kernel"] + params["bias"])
        return 0.5 * jnp.sum((hidden @ params["kernel"].T - x) ** 2)

    return loss_fn, params, normal(next(keys), 5, 4)


def recurrent(length=4):
    """A recurrent cell in `lax.scan`: its weights are used at every step."""
    keys = iter(jax.random.split(jax.random.key(6), 8))
    params = {
        "cell": normal(next(keys), 3, 3) / 2,
        "in": normal(next(keys), 2, 3) / 2,
        "out": normal(next(keys), 3, 3),
    }

    def loss_fn(params, example):
        xs, label = example
        step = lambda h, x: (jnp.tanh(h @ params["cell"] + x @ params["in"]), None)
        h, _ = jax.lax.scan(step, jnp.zeros(3, xs.dtype), xs)
        return cross_entropy(h @ params["out"], label)

    return loss_fn, params, (normal(next(keys), 4, length, 2), jnp.array([0, 1, 2, 0]))


def used_nonlinearly():
    """A kernel behind an exponential, a vector normalised to length 1, a penalty on the weights."""
    keys = iter(jax.random.split(jax.random.key(7), 4))
    params = {"log": normal(next(keys), 3, 3), "direction": jnp.array([0.5, -1.0, 2.0])}

    def loss_fn(params, example):
        x, label = example
        unit = params["direction"] / jnp.linalg.norm(params["direction"])
        penalty = 0.05 * sum(jnp.sum(leaf**2) for leaf in params.values())
        return cross_entropy(jnp.tanh(x @ jnp.exp(params["log"])) * unit, label) + penalty

    return loss_fn, params, (normal(next(keys), 5, 3), jnp.array([0, 1, 2, 0, 1]))
