"""The networks that curvature is timed on, as chains of layers, with the data they see."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.learning.data import Dataset, is_prepared, load_dataset
from benchmarks.learning.models import build_model
from benchmarks.learning.plain import dense_layers, fit, functions, has_weights, random_params
from benchmarks.learning.training import RECIPES, num_steps, train

NUM_CLASSES = 10


class Case(NamedTuple):
    """A chain of layers, where its loss is differentiated, and on what.

    Being a chain, it can be rebuilt by peers that know layers only. Parameters are one dict of
    `kernel` and `bias` for each layer that has any; the batch is a pair of inputs and labels.
    """

    name: str
    layers: tuple[str, ...]
    params: list[dict[str, jax.Array]]
    batch: tuple[jax.Array, jax.Array]
    trained: bool = False
    full: bool = True
    """Whether every contender runs, or the main ones only."""

    @property
    def model_fn(self) -> Callable[..., jax.Array]:
        """`model_fn(params, example) -> logits`."""
        return functions(self.layers)[0]

    @property
    def loss_fn(self) -> Callable[..., jax.Array]:
        """`loss_fn(params, example) -> scalar`; the same object for the same layers."""
        return functions(self.layers)[1]

    @property
    def mean_loss(self) -> Callable[..., jax.Array]:
        """`mean_loss(params, batch) -> scalar`."""
        return functions(self.layers)[2]

    @property
    def num_entries(self) -> int:
        """How many parameters there are."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    @property
    def is_convolutional(self) -> bool:
        """Whether weights are shared between positions."""
        return any(has_weights(layer) and layer != "dense" for layer in self.layers)


def mlp(sizes: Sequence[int], activation: str, examples: int) -> Case:
    """Dense layers with random weights on random inputs."""
    keys = jax.random.split(jax.random.key(1))
    inputs = jax.random.normal(keys[0], (examples, sizes[0]))
    labels = jax.random.randint(keys[1], (examples,), 0, sizes[-1])
    return Case(
        f"{activation} MLP {_join(sizes)}, {examples:,} examples",
        dense_layers(len(sizes) - 1, activation),
        random_params(itertools.pairwise(sizes)),
        (inputs, labels),
    )


def cnn(padding: str, activation: str, examples: int, full: bool = True) -> Case:
    """Two 5×5 convolutions with pooling and two dense layers, on random 28×28 images."""
    side = 4 if padding == "VALID" else 7
    block = (f"conv {padding}", activation, "pool")
    keys = jax.random.split(jax.random.key(1))
    images = jax.random.uniform(keys[0], (examples, 28, 28, 1))
    labels = jax.random.randint(keys[1], (examples,), 0, NUM_CLASSES)
    return Case(
        f"{activation} CNN {padding}, {examples} examples",
        (*block, *block, "flatten", *dense_layers(2, activation)),
        random_params([(5, 5, 1, 8), (5, 5, 8, 16), (side * side * 16, 32), (32, NUM_CLASSES)]),
        (images, labels),
        full=full,
    )


def trained_mnist(data_dir: str | None) -> Case:
    """The MLP of the benchmarks, trained on 20,000 digits of MNIST, on 2,000 of them."""
    dataset = load_dataset("mnist", data_dir=data_dir, seed=0, train_examples=20_000)
    model = build_model("mlp", dataset="mnist", image_shape=(28, 28, 1), num_classes=10)
    recipe = RECIPES["mnist", "mlp"]._replace(epochs=5)
    ids = np.arange(len(dataset.train.labels))
    params = train(model, recipe, dataset.train, ids, num_steps(recipe, len(ids)), seed=0)
    layers = [params[f"dense{i}"] for i in (1, 2, 3)]
    inputs = jnp.asarray(dataset.train.images[:2_000]).reshape(2_000, -1)
    batch = (inputs, jnp.asarray(dataset.train.labels[:2_000]))
    name = "relu MLP 784-128-128-10 trained on MNIST, 2,000 examples"
    return Case(name, dense_layers(3, "relu"), layers, batch, trained=True)


def trained_digits(kind: str, activation: str, examples: int = 512, steps: int = 150) -> Case:
    """A small network after full-batch adam on scikit-learn's digits."""
    if kind == "MLP":
        layers = dense_layers(3, activation)
        shapes: list[tuple[int, ...]] = [(64, 32), (32, 24), (24, NUM_CLASSES)]
    else:
        block = ("conv SAME", activation, "pool")
        layers = (*block, *block, "flatten", "dense")
        shapes = [(3, 3, 1, 8), (3, 3, 8, 16), (64, NUM_CLASSES)]
    dataset: Dataset = load_dataset("digits", seed=0)
    images = jnp.asarray(dataset.train.images)
    inputs = images.reshape(len(images), -1) if kind == "MLP" else images
    batch = (inputs, jnp.asarray(dataset.train.labels))
    everything = np.arange(len(images))
    params = fit(functions(layers)[2], random_params(shapes), batch, [everything] * steps)
    sizes = f" {_join([64, 32, 24, NUM_CLASSES])}" if kind == "MLP" else ""
    name = f"{activation} {kind}{sizes} trained on digits, {examples} examples"
    return Case(name, layers, params, jax.tree.map(lambda x: x[:examples], batch), trained=True)


def speed_cases(
    data_dir: str | None, quick: bool
) -> tuple[list[functools.partial[Case]], list[str]]:
    """The cases of the speed benchmark, each made when it is its turn, and what is left out."""
    cases: list[functools.partial[Case]] = [
        functools.partial(trained_digits, "MLP", "tanh"),
        functools.partial(trained_digits, "MLP", "gelu"),
        functools.partial(mlp, (784, 32, 10), "tanh", 1_024),
        functools.partial(mlp, (784, 32, 10), "relu", 1_024),
        functools.partial(mlp, (784, 64, 32, 10), "tanh", 1_024),
    ]
    skipped = []
    if is_prepared("mnist", data_dir):
        cases.append(functools.partial(trained_mnist, data_dir=data_dir))
    else:
        skipped.append(
            "relu MLP 784-128-128-10 trained on MNIST: MNIST is not prepared; set `--data-dir` or "
            "TFDS_DATA_DIR to where tensorflow-datasets keeps it."
        )
    if quick:
        skipped.append("Convolutional networks: `--quick` leaves them out.")
        return cases, skipped
    cases.append(functools.partial(trained_digits, "CNN", "relu"))
    cases.append(functools.partial(trained_digits, "CNN", "gelu"))
    for activation, padding, examples in itertools.product(
        ("relu", "gelu"), ("VALID", "SAME"), (64, 256)
    ):
        full = padding == "VALID" and examples == 64
        cases.append(functools.partial(cnn, padding, activation, examples, full))
    return cases, skipped


def _join(sizes: Sequence[int]) -> str:
    return "-".join(map(str, sizes))
