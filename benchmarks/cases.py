"""The networks that curvature is timed on, in plain JAX, with the data they see."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.data import is_prepared, load_dataset
from benchmarks.models import build_model, max_pool
from benchmarks.training import RECIPES, num_steps, train


class Case(NamedTuple):
    """A loss of one example, where it is differentiated, and on what."""

    name: str
    loss_fn: Callable[..., jax.Array]
    params: Any
    batch: Any


def mlp(sizes: Sequence[int], activation: Callable[[jax.Array], jax.Array], examples: int) -> Case:
    """Dense layers with random weights on random inputs."""
    keys = jax.random.split(jax.random.key(0), len(sizes) + 1)
    params = [
        {"kernel": jax.random.normal(key, shape) / shape[0] ** 0.5, "bias": jnp.zeros(shape[1])}
        for key, shape in zip(keys, itertools.pairwise(sizes), strict=False)
    ]

    def loss_fn(params: Any, example: Any) -> jax.Array:
        x, label = example
        for i, layer in enumerate(params):
            x = x @ layer["kernel"] + layer["bias"]
            x = activation(x) if i < len(params) - 1 else x
        return optax.softmax_cross_entropy_with_integer_labels(x, label)

    inputs = jax.random.normal(keys[-2], (examples, sizes[0]))
    labels = jax.random.randint(keys[-1], (examples,), 0, sizes[-1])
    name = f"{activation.__name__} MLP {'-'.join(map(str, sizes))}, {examples:,} examples"
    return Case(name, loss_fn, params, (inputs, labels))


def cnn(padding: str, activation: Callable[[jax.Array], jax.Array], examples: int) -> Case:
    """Two 5×5 convolutions with pooling and two dense layers, on random 28×28 images."""
    keys = jax.random.split(jax.random.key(0), 6)
    side = 4 if padding == "VALID" else 7
    shapes = [(5, 5, 1, 8), (5, 5, 8, 16), (side * side * 16, 32), (32, 10)]
    params = [
        {
            "kernel": jax.random.normal(key, shape) / np.prod(shape[:-1]) ** 0.5,
            "bias": jnp.zeros(shape[-1]),
        }
        for key, shape in zip(keys, shapes, strict=False)
    ]

    def loss_fn(params: Any, example: Any) -> jax.Array:
        image, label = example
        x = image[None]
        for layer in params[:2]:
            x = jax.lax.conv_general_dilated(
                x, layer["kernel"], (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = max_pool(activation(x + layer["bias"]))
        x = activation(x.reshape(-1) @ params[2]["kernel"] + params[2]["bias"])
        logits = x @ params[3]["kernel"] + params[3]["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, label)

    images = jax.random.uniform(keys[4], (examples, 28, 28, 1))
    labels = jax.random.randint(keys[5], (examples,), 0, 10)
    name = f"{activation.__name__} CNN {padding}, {examples} examples"
    return Case(name, loss_fn, params, (images, labels))


def trained_mlp(data_dir: str | None) -> Case:
    """The MLP of the benchmarks, trained on 20,000 digits of MNIST, on 2,000 of them."""
    dataset = load_dataset("mnist", data_dir=data_dir, seed=0, train_examples=20_000)
    model = build_model("mlp", dataset="mnist", image_shape=(28, 28, 1), num_classes=10)
    recipe = RECIPES["mnist", "mlp"]._replace(epochs=5)
    ids = np.arange(len(dataset.train.labels))
    params = train(model, recipe, dataset.train, ids, num_steps(recipe, len(ids)), seed=0)
    some = dataset.train.take(ids[:2_000])
    batch = {
        "image": jnp.asarray(some.images),
        "label": jnp.asarray(some.labels),
        "weight": jnp.ones(2_000),
    }
    return Case("relu MLP 784-128-128-10 trained on MNIST", model.loss, params, batch)


def speed_cases(data_dir: str | None, quick: bool) -> list[Callable[[], Case]]:
    """The cases of the speed benchmark, each made when it is its turn."""
    relu, gelu, tanh = jax.nn.relu, jax.nn.gelu, jnp.tanh
    cases: list[Callable[[], Case]] = [
        lambda: mlp((784, 32, 10), tanh, 1_024),
        lambda: mlp((784, 32, 10), relu, 1_024),
        lambda: mlp((784, 64, 32, 10), tanh, 1_024),
    ]
    if is_prepared("mnist", data_dir):
        cases.append(lambda: trained_mlp(data_dir))
    else:
        cases.append(lambda: mlp((784, 128, 128, 10), relu, 2_000))
    if not quick:
        for activation, padding, examples in [
            (relu, "VALID", 64),
            (relu, "VALID", 256),
            (relu, "SAME", 64),
            (relu, "SAME", 256),
            (gelu, "VALID", 64),
            (gelu, "SAME", 64),
        ]:
            cases.append(
                lambda a=activation, p=padding, n=examples: cnn(p, a, n)  # type: ignore[misc]
            )
    return cases
