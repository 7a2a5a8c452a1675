"""Networks in plain JAX, each as (loss_fn, params), and those that are trained on digits.

What curvature is measured on: every activation and block that the estimators treat differently.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.learning.data import load_dataset
from benchmarks.learning.plain import (
    convolve,
    cross_entropy,
    dense_layers,
    fit,
    functions,
    mean_of,
    normal,
    random_params,
)
from benchmarks.learning.training import shuffled_batches


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """LayerNorm over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    return (
        centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5) * scale + bias
    )


def mlp(activation: str, sizes: Sequence[int]) -> tuple[Any, Any]:
    """Dense layers."""
    layers = ("flatten", *dense_layers(len(sizes) - 1, activation))
    return functions(layers)[1], random_params(itertools.pairwise(sizes))


def stack(num_layers: int, size: int, width: int) -> tuple[Any, Any]:
    """Residual tanh layers in one scan, each scaled down by the root of their number."""
    keys = jax.random.split(jax.random.key(4), num_layers + 2)
    params = {
        "first": normal(keys[0], size, width),
        "kernels": jnp.stack([normal(key, width, width) for key in keys[2:]]),
        "biases": jnp.zeros((num_layers, width)),
        "head": normal(keys[1], width, 10),
    }

    def loss_fn(params: Any, example: Any) -> jax.Array:
        def layer(hidden: jax.Array, weights: Any) -> tuple[jax.Array, None]:
            kernel, bias = weights
            return hidden + jnp.tanh(hidden @ kernel + bias) / np.sqrt(num_layers), None

        hidden = jnp.tanh(example[0].reshape(-1) @ params["first"])
        hidden, _ = jax.lax.scan(layer, hidden, (params["kernels"], params["biases"]))
        return cross_entropy(hidden @ params["head"], example)

    return loss_fn, params


def cnn(activation: str, side: int) -> tuple[Any, Any]:
    """Two convolutions with 2×2 max pooling, and a dense layer, for square images."""
    block = ("conv SAME", activation, "pool")
    shapes = [(3, 3, 1, 8), (3, 3, 8, 16), (side * side, 10)]
    return functions((*block, *block, "flatten", "dense"))[1], random_params(shapes, seed=1)


def transformer(
    num_layers: int, tokens: tuple[int, int], width: int, heads: int
) -> tuple[Any, Any]:
    """Attention blocks with LayerNorm before each part; an image is cut into (number, size)."""
    keys = iter(jax.random.split(jax.random.key(2), 8 * num_layers + 3))
    norm = lambda: {"scale": jnp.ones(width), "bias": jnp.zeros(width)}
    params = {
        "embed": normal(next(keys), tokens[1], width),
        "position": 0.3 * normal(next(keys), tokens[0], width) * np.sqrt(tokens[0]),
        "blocks": [
            {
                "norm1": norm(),
                "query": normal(next(keys), width, width),
                "key": normal(next(keys), width, width),
                "value": normal(next(keys), width, width),
                "out": normal(next(keys), width, width),
                "norm2": norm(),
                "up": {
                    "kernel": normal(next(keys), width, 2 * width),
                    "bias": jnp.zeros(2 * width),
                },
                "down": normal(next(keys), 2 * width, width),
            }
            for _ in range(num_layers)
        ],
        "norm": norm(),
        "head": {"kernel": normal(next(keys), width, 10), "bias": jnp.zeros(10)},
    }

    def attend(x: jax.Array, block: Any) -> jax.Array:
        split = lambda name: (x @ block[name]).reshape(len(x), heads, -1)
        scores = jnp.einsum("ihd,jhd->hij", split("query"), split("key"))
        weights = jax.nn.softmax(scores / np.sqrt(width // heads))
        return jnp.einsum("hij,jhd->ihd", weights, split("value")).reshape(x.shape) @ block["out"]

    def loss_fn(params: Any, example: Any) -> jax.Array:
        x = example[0].reshape(tokens) @ params["embed"] + params["position"]
        for block in params["blocks"]:
            x = x + attend(layer_norm(x, **block["norm1"]), block)
            hidden = layer_norm(x, **block["norm2"]) @ block["up"]["kernel"] + block["up"]["bias"]
            x = x + jax.nn.gelu(hidden) @ block["down"]
        pooled = layer_norm(x, **params["norm"]).mean(0)
        return cross_entropy(pooled @ params["head"]["kernel"] + params["head"]["bias"], example)

    return loss_fn, params


def resnet(widths: tuple[int, ...] = (32, 64, 128), blocks_per_stage: int = 3) -> tuple[Any, Any]:
    """A ResNet for 32×32×3 with batch norm at fixed statistics: about a million parameters."""
    keys = iter(jax.random.split(jax.random.key(3), 100))

    def conv(size: int, depth: int, width: int) -> Any:
        return {
            "kernel": normal(next(keys), size, size, depth, width) * np.sqrt(2),
            "scale": jnp.ones(width),
            "bias": jnp.zeros(width),
        }

    params: dict[str, Any] = {"stem": conv(3, 3, widths[0]), "stages": []}
    depth = widths[0]
    for width in widths:
        stage = []
        for _ in range(blocks_per_stage):
            block = {"conv1": conv(3, depth, width), "conv2": conv(3, width, width)}
            if depth != width:
                block["shortcut"] = conv(1, depth, width)
            stage.append(block)
            depth = width
        params["stages"].append(stage)
    params["head"] = {"kernel": normal(next(keys), depth, 10), "bias": jnp.zeros(10)}

    def apply(x: jax.Array, layer: Any, stride: int = 1) -> jax.Array:
        x = convolve(x, layer["kernel"], "SAME", stride)
        return (x - 0.1) / 1.1 * layer["scale"] + layer["bias"]

    def loss_fn(params: Any, example: Any) -> jax.Array:
        x = jax.nn.relu(apply(example[0], params["stem"]))
        for stage in params["stages"]:
            for block in stage:
                stride = 2 if "shortcut" in block else 1
                y = jax.nn.relu(apply(x, block["conv1"], stride))
                y = apply(y, block["conv2"])
                x = apply(x, block["shortcut"], stride) if "shortcut" in block else x
                x = jax.nn.relu(0.5 * (x + y))
        pooled = x.mean((0, 1))
        return cross_entropy(pooled @ params["head"]["kernel"] + params["head"]["bias"], example)

    return loss_fn, params


class Trained(NamedTuple):
    """A network after training, and examples it was trained on."""

    loss_fn: Callable[..., jax.Array]
    params: Any
    examples: Any

    def take(self, count: int) -> Any:
        """The first examples as a batch."""
        return jax.tree.map(lambda x: x[:count], self.examples)


NETWORKS: dict[str, Callable[[int], tuple[Any, Any]]] = {
    "relu mlp": lambda side: mlp("relu", _sizes(side)),
    "tanh mlp": lambda side: mlp("tanh", _sizes(side)),
    "gelu mlp": lambda side: mlp("gelu", _sizes(side)),
    "relu cnn": lambda side: cnn("relu", side),
    "gelu cnn": lambda side: cnn("gelu", side),
    "attention": lambda side: transformer(1, (side, side), width=16, heads=1),
}
"""For square images of a side; attention runs over their rows."""


def _sizes(side: int) -> tuple[int, ...]:
    return (64, 40, 30, 10) if side == 8 else (side * side, 64, 32, 10)


class _Training(NamedTuple):
    examples: int
    batch_size: int
    steps: int


TRAINING = {"digits": _Training(1_797, 1_797, 150), "mnist": _Training(10_000, 256, 250)}


@functools.cache
def trained(name: str, dataset: str, data_dir: str | None) -> Trained:
    """A network after adam on all digits of scikit-learn, or on 10,000 of MNIST."""
    recipe = TRAINING[dataset]
    parts = load_dataset(dataset, data_dir=data_dir, seed=0)
    splits = (parts.train, parts.validation, parts.test) if dataset == "digits" else (parts.train,)
    images = np.concatenate([split.images for split in splits])[: recipe.examples]
    labels = np.concatenate([split.labels for split in splits])[: recipe.examples]
    loss_fn, params = NETWORKS[name](images.shape[1])
    ids = shuffled_batches(np.arange(len(labels)), recipe.steps, recipe.batch_size, seed=0)
    params = fit(mean_of(loss_fn), params, (images, labels), ids)
    return Trained(loss_fn, params, (jnp.asarray(images), jnp.asarray(labels)))
