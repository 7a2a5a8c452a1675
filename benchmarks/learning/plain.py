"""Networks as chains of layers, in plain JAX: what can be rebuilt by peers that know layers only.

Parameters are one dict of `kernel` and `bias` for each layer that has any.
"""

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.learning.models import max_pool

ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh, "gelu": jax.nn.gelu}


def has_weights(layer: str) -> bool:
    """Whether a layer has a kernel and a bias: `dense`, `conv VALID` and `conv SAME`."""
    return layer.startswith(("dense", "conv"))


def linear(layer: str, kernel: jax.Array, x: jax.Array) -> jax.Array:
    """The linear part of a layer with weights, for one example."""
    if layer == "dense":
        return x @ kernel
    return convolve(x, kernel, layer.removeprefix("conv "))


def convolve(x: jax.Array, kernel: jax.Array, padding: str, stride: int = 1) -> jax.Array:
    """Convolves one image, height × width × channels."""
    names = ("NHWC", "HWIO", "NHWC")
    window = (stride, stride)
    return jax.lax.conv_general_dilated(x[None], kernel, window, padding, dimension_numbers=names)[
        0
    ]


def plain(layer: str, x: jax.Array) -> jax.Array:
    """A layer without weights, for one example: an activation, `pool` or `flatten`."""
    if layer == "pool":
        return max_pool(x[None])[0]
    return x.reshape(-1) if layer == "flatten" else ACTIVATIONS[layer](x)


def cross_entropy(logits: jax.Array, example: Any) -> jax.Array:
    """The loss of one example, a pair of input and label."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, example[1])


@functools.cache
def functions(layers: tuple[str, ...]) -> tuple[Callable[..., jax.Array], ...]:
    """Model, loss and mean loss, made once, so that what is compiled for them is kept."""

    def model_fn(params: Any, example: Any) -> jax.Array:
        x, weights = example[0], iter(params)
        for layer in layers:
            if has_weights(layer):
                of_layer = next(weights)
                x = linear(layer, of_layer["kernel"], x) + of_layer["bias"]
            else:
                x = plain(layer, x)
        return x

    def loss_fn(params: Any, example: Any) -> jax.Array:
        return cross_entropy(model_fn(params, example), example)

    return model_fn, loss_fn, mean_of(loss_fn)


def mean_of(loss_fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The mean over a batch of the loss of one example."""
    return lambda params, batch: jnp.mean(jax.vmap(lambda example: loss_fn(params, example))(batch))


def dense_layers(count: int, activation: str) -> tuple[str, ...]:
    """So many dense layers, with activations between them."""
    return tuple(itertools.chain(*[("dense", activation)] * count))[:-1]


def normal(key: jax.Array, *shape: int) -> jax.Array:
    """A kernel of normal entries over the root of the number of its inputs."""
    return jax.random.normal(key, shape) / np.prod(shape[:-1]) ** 0.5


def random_params(shapes: Iterable[tuple[int, ...]], seed: int = 0) -> list[dict[str, jax.Array]]:
    """Normal kernels over the root of their inputs, and biases of zero."""
    shapes = list(shapes)
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [
        {"kernel": normal(key, *shape), "bias": jnp.zeros(shape[-1])}
        for key, shape in zip(keys, shapes, strict=True)
    ]


def fit(
    mean_loss: Callable[..., jax.Array], params: Any, storage: Any, batches: Iterable[np.ndarray]
) -> Any:
    """Trains by adam at a rate of 0.003, step by step.

    The steps are not one compiled loop: on CPU, convolutions in a loop run on one core and slowly.

    Args:
      mean_loss: `mean_loss(params, batch)`.
      params: where to start.
      storage: a pytree of arrays with a leading axis over examples.
      batches: indices of the examples of each step.
    """
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params: Any, optimizer_state: Any, batch: Any) -> Any:
        gradient = jax.grad(mean_loss)(params, batch)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state)
        return optax.apply_updates(params, updates), optimizer_state

    optimizer_state = optimizer.init(params)
    for ids in batches:
        batch = jax.tree.map(lambda x, ids=ids: x[ids], storage)
        params, optimizer_state = step(params, optimizer_state, batch)
    return params
