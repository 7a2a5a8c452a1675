"""The networks that learn, in nnx: a perceptron, a small convolutional and a residual network."""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from benchmarks.tools.errors import check_choice

MODELS = {
    "mlp": "dense layers with ReLU",
    "cnn": "two 3×3 convolutions with ReLU and 2×2 max pooling, and a dense layer",
    "convnet": "a 5×5 convolution of stride 2, two 3×3 ones with max pooling, a dense layer",
    "resnet": "a thin residual network: seven 3×3 convolutions with group normalisation",
}
MLP_WIDTHS = {"digits": (64, 32), "mnist": (128, 128), "cifar10": (256, 128)}
CNN_CHANNELS = {"digits": (8, 16), "mnist": (8, 16), "cifar10": (16, 32)}
CONVNET_CHANNELS = (32, 64, 128)
RESNET_CHANNELS = (16, 32, 64)
CEILING = 2.3
"""How far `bounded_loss` climbs: until the answer has a probability of one tenth."""
AT_ONCE = {"mlp": 8, "cnn": 1, "convnet": 1, "resnet": 1}
"""How many models train side by side; convolutions, each with kernels of its own, one by one."""


class MLP(nnx.Module):
    """Dense layers `dense1`, `dense2`, ... with ReLU between them."""

    def __init__(self, sizes: Sequence[int], *, rngs: nnx.Rngs):
        """Takes the input size, the widths of the hidden layers and the number of classes."""
        self.num_layers = len(sizes) - 1
        for i in range(self.num_layers):
            setattr(self, f"dense{i + 1}", nnx.Linear(sizes[i], sizes[i + 1], rngs=rngs))

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images (n, height, width, channels) to logits (n, classes)."""
        x = images.reshape(images.shape[0], -1)
        for i in range(1, self.num_layers + 1):
            x = getattr(self, f"dense{i}")(x)
            x = nnx.relu(x) if i < self.num_layers else x
        return x


class CNN(nnx.Module):
    """Convolutions `conv1`, `conv2` with ReLU and max pooling, then `dense1`."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        channels: tuple[int, int],
        num_classes: int,
        *,
        rngs: nnx.Rngs,
    ):
        """Takes the shape of an image, the channels of both convolutions, the number of classes."""
        height, width, depth = image_shape
        self.conv1 = convolution(depth, channels[0], rngs=rngs)
        self.conv2 = convolution(channels[0], channels[1], rngs=rngs)
        size = (height // 4) * (width // 4) * channels[1]
        self.dense1 = nnx.Linear(size, num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images (n, height, width, channels) to logits (n, classes)."""
        x = max_pool(nnx.relu(self.conv1(images)))
        x = max_pool(nnx.relu(self.conv2(x)))
        return self.dense1(x.reshape(x.shape[0], -1))


class ConvNet(nnx.Module):
    """Convolutions `conv1`, `conv2`, ... with ReLU, then `dense1`.

    Each halves the height and the width: the first one by its stride, the others by max pooling.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        channels: Sequence[int],
        num_classes: int,
        *,
        rngs: nnx.Rngs,
    ):
        """Takes the shape of an image, the channels of each layer, the number of classes."""
        height, width, depth = image_shape
        self.num_layers = len(channels)
        for i, (before, after) in enumerate(itertools.pairwise((depth, *channels)), 1):
            options: dict[str, Any] = {"size": 5, "stride": 2} if i == 1 else {}
            options["kernel_init"] = nnx.initializers.he_normal()
            setattr(self, f"conv{i}", convolution(before, after, rngs=rngs, **options))
        area = -(-height // 2) // 2 ** (self.num_layers - 1)
        area *= -(-width // 2) // 2 ** (self.num_layers - 1)
        self.dense1 = nnx.Linear(area * channels[-1], num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images (n, height, width, channels) to logits (n, classes)."""
        x = 4 * images - 2  # values of unit size
        for i in range(1, self.num_layers + 1):
            x = nnx.relu(getattr(self, f"conv{i}")(x))
            x = x if i == 1 else max_pool(x)
        return self.dense1(x.reshape(x.shape[0], -1))


class ResNet(nnx.Module):
    """A convolution `stem`, residual blocks `block1`, ... of falling size, then `dense1`."""

    def __init__(self, depth: int, channels: Sequence[int], num_classes: int, *, rngs: nnx.Rngs):
        """Takes the depth of an image, the channels of each block, the number of classes."""
        self.num_blocks = len(channels)
        self.stem = convolution(depth, channels[0], rngs=rngs)
        sizes = (channels[0], *channels)
        for i, (before, after) in enumerate(itertools.pairwise(sizes), 1):
            setattr(self, f"block{i}", Block(before, after, rngs=rngs))
        self.dense1 = nnx.Linear(channels[-1], num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images (n, height, width, channels) to logits (n, classes)."""
        x = self.stem(images)
        for i in range(1, self.num_blocks + 1):
            x = getattr(self, f"block{i}")(x)
        return self.dense1(nnx.relu(x).mean((1, 2)))


class Block(nnx.Module):
    """Two normalised convolutions beside a shortcut; half the size where the channels change.

    Source: K. He et al., "Identity Mappings in Deep Residual Networks" (2016), figure 4 (e), with
      the normalisation of Y. Wu, K. He, "Group Normalization" (2018).
    """

    def __init__(self, before: int, after: int, *, rngs: nnx.Rngs):
        """Takes the channels before and after the block."""
        stride = 1 if before == after else 2
        self.norm1 = nnx.GroupNorm(before, num_groups=8, rngs=rngs)
        self.conv1 = convolution(before, after, stride=stride, rngs=rngs)
        self.norm2 = nnx.GroupNorm(after, num_groups=8, rngs=rngs)
        self.conv2 = convolution(after, after, rngs=rngs)
        self.shortcut = (
            None if stride == 1 else convolution(before, after, size=1, stride=stride, rngs=rngs)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Activations of shape (n, height, width, channels) to such ones."""
        y = nnx.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        return shortcut + self.conv2(nnx.relu(self.norm2(self.conv1(y))))


def convolution(
    before: int, after: int, *, size: int = 3, stride: int = 1, rngs: nnx.Rngs, **options: Any
) -> nnx.Conv:
    """A convolution between so many channels, computed by `convolve`."""
    return nnx.Conv(
        before,
        after,
        (size, size),
        strides=(stride, stride),
        rngs=rngs,
        conv_general_dilated=convolve,
        **options,
    )


def convolve(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: str, **options: Any
) -> jax.Array:
    """A convolution as the product of patches with the kernel.

    XLA's CPU backend runs a convolution inside a loop twenty times slower than outside of one
    (jax-ml/jax issue 12868), and training is a loop.
    """
    return patches(x, kernel.shape[:2], strides, padding) @ kernel.reshape(-1, kernel.shape[-1])


def patches(x: jax.Array, size: Sequence[int], strides: Sequence[int], padding: str) -> jax.Array:
    """What a kernel of that size meets at each place, as one axis: height, width, channels."""
    pads = lax.padtype_to_pads(x.shape[1:3], size, strides, padding)
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    ends = [n - k for n, k in zip(padded.shape[1:3], size, strict=True)]
    windows = [
        padded[:, i : i + ends[0] + 1 : strides[0], j : j + ends[1] + 1 : strides[1]]
        for i in range(size[0])
        for j in range(size[1])
    ]
    return jnp.concatenate(windows, -1)


def max_pool(x: jax.Array) -> jax.Array:
    """2×2 max pooling as a reshape: second derivatives of `reduce_window` are very slow on CPU.

    An odd row or column at the end is left out.
    """
    n, height, width, channels = x.shape
    even = x[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))


class Watched(nnx.Module):
    """A layer that tells what its kernel is multiplied with."""

    def __init__(self, layer: nnx.Linear | nnx.Conv, note: Callable[[jax.Array], None]):
        """Takes the layer, and whom to tell."""
        self.layer, self.note = layer, note

    def __call__(self, x: jax.Array) -> jax.Array:
        """What the layer makes of it."""
        layer: Any = self.layer
        dense = isinstance(layer, nnx.Linear)
        self.note(x if dense else patches(x, layer.kernel_size, layer.strides, layer.padding))
        return layer(x)


@dataclass(frozen=True, eq=False)
class Model:
    """A network as pure functions of plain nested dicts, with paths such as `dense1/kernel`."""

    name: str
    description: str
    last_layer: str
    init: Callable[[int], Any]
    apply: Callable[[Any, jax.Array], jax.Array]
    layer_inputs: Callable[[Any, jax.Array], dict[str, jax.Array]]
    """What each kernel is multiplied with, by the layer's name; layers within blocks are left out.
    """

    def loss(self, params: Any, example: dict[str, jax.Array]) -> jax.Array:
        """Cross entropy of ONE example, times its weight.

        `example` holds an `image`, a `label` and a `weight`.
        """
        return cross_entropy(self.apply(params, example["image"][None])[0], example)

    def bounded_loss(self, params: Any, example: dict[str, jax.Array]) -> jax.Array:
        """The same, but where the weight is below 0 no more than that of `CEILING`.

        A step that climbs on an example then leaves it alone as soon as the model no longer
        answers as it was taught to, and the rest of the model with it.
        """
        loss = self.loss(params, example)
        return jnp.maximum(loss, -jnp.abs(example["weight"]) * CEILING)


def cross_entropy(logits: jax.Array, example: dict[str, jax.Array]) -> jax.Array:
    """Of the logits of ONE example, times its weight."""
    return -example["weight"] * jax.nn.log_softmax(logits)[example["label"]]


@functools.cache
def build_model(
    name: str, *, dataset: str, image_shape: tuple[int, int, int], num_classes: int
) -> Model:
    """The network of that name, in the size that suits the data set.

    The same object each time, so that what is compiled for it is compiled once.
    """
    check_choice("model", name, MODELS)
    height, width, depth = image_shape
    if name == "mlp":
        sizes = (height * width * depth, *MLP_WIDTHS[dataset], num_classes)
        description = f"MLP {'-'.join(map(str, sizes))}"
        last_layer = f"dense{len(sizes) - 1}"
        create = lambda seed: MLP(sizes, rngs=nnx.Rngs(seed))
    elif name == "convnet":
        channels = CONVNET_CHANNELS
        description = f"CNN with {', '.join(map(str, channels))} channels"
        last_layer = "dense1"
        create = lambda seed: ConvNet(image_shape, channels, num_classes, rngs=nnx.Rngs(seed))
    elif name == "resnet":
        channels = RESNET_CHANNELS
        description = f"residual network with {', '.join(map(str, channels))} channels"
        last_layer = "dense1"
        create = lambda seed: ResNet(depth, channels, num_classes, rngs=nnx.Rngs(seed))
    else:
        channels = CNN_CHANNELS[dataset]
        description = f"CNN with {channels[0]} and {channels[1]} channels"
        last_layer = "dense1"
        create = lambda seed: CNN(image_shape, channels, num_classes, rngs=nnx.Rngs(seed))

    structure, _ = nnx.split(nnx.eval_shape(lambda: create(0)), nnx.Param)

    def init(seed: int) -> Any:
        return nnx.to_pure_dict(nnx.state(create(seed), nnx.Param))

    def apply(params: Any, images: jax.Array) -> jax.Array:
        return nnx.merge(structure, params)(jnp.asarray(images))

    def layer_inputs(params: Any, images: jax.Array) -> dict[str, jax.Array]:
        network, inputs = nnx.merge(structure, params), {}
        for path, layer in list(vars(network).items()):
            if isinstance(layer, nnx.Linear | nnx.Conv):
                setattr(network, path, Watched(layer, functools.partial(inputs.__setitem__, path)))
        network(jnp.asarray(images))
        return inputs

    return Model(name, description, last_layer, init, apply, layer_inputs)
