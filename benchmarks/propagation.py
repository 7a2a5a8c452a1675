"""What curvature propagation costs and how close it comes, on networks trained on digits.

Cost is in gradient equivalents: time over that of one gradient of the same mean loss on the same
batch, the two timed in turn.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from scipy.stats import rankdata

import sapsel_jax as sap
from benchmarks.data import load_dataset
from sapsel_jax import _blocks, _propagation

NUM_EXAMPLES = 512
NUM_KEYS = 8
ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh, "gelu": jax.nn.gelu}
TARGETS = {
    "relu mlp": (2.0, 0.18, 0.99),
    "tanh mlp": (2.5, 0.28, 0.97),
    "gelu mlp": (3.0, 0.30, 0.90),
    "relu cnn": (2.0, 0.15, 0.98),
    "gelu cnn": (3.0, 0.25, 0.96),
    "attention": (4.0, 0.40, 0.85),
}
"""At most this cost and error, at least this rank correlation, with one probe."""


class Trained(NamedTuple):
    """A network after training, and the examples that its curvature is measured on."""

    loss_fn: Callable[..., jax.Array]
    params: Any
    batch: Any


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """The loss of one example."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """LayerNorm over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    return (
        centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5) * scale + bias
    )


def _dense(key: jax.Array, *shape: int) -> jax.Array:
    return jax.random.normal(key, shape) / np.sqrt(np.prod(shape[:-1]))


def mlp(activation: str, sizes: tuple[int, ...] = (64, 40, 30, 10)) -> tuple[Any, Any]:
    """Dense layers; the size of the digits by default."""
    phi, keys = ACTIVATIONS[activation], jax.random.split(jax.random.key(0), len(sizes))
    params = [
        {"kernel": _dense(key, a, b), "bias": jnp.zeros(b)}
        for key, a, b in zip(keys, sizes, sizes[1:], strict=False)
    ]

    def loss_fn(params: Any, example: Any) -> jax.Array:
        x = example[0].reshape(-1)
        for i, layer in enumerate(params):
            x = x @ layer["kernel"] + layer["bias"]
            x = phi(x) if i < len(params) - 1 else x
        return cross_entropy(x, example[1])

    return loss_fn, params


def cnn(activation: str) -> tuple[Any, Any]:
    """Two convolutions with 2×2 max pooling, and a dense layer."""
    phi, keys = ACTIVATIONS[activation], jax.random.split(jax.random.key(1), 3)
    params = {
        "conv1": {"kernel": _dense(keys[0], 3, 3, 1, 8), "bias": jnp.zeros(8)},
        "conv2": {"kernel": _dense(keys[1], 3, 3, 8, 16), "bias": jnp.zeros(16)},
        "dense": {"kernel": _dense(keys[2], 64, 10), "bias": jnp.zeros(10)},
    }

    def convolve(x: jax.Array, layer: Any) -> jax.Array:
        names = ("NHWC", "HWIO", "NHWC")
        out = jax.lax.conv_general_dilated(
            x[None], layer["kernel"], (1, 1), "SAME", dimension_numbers=names
        )
        x = phi(out[0] + layer["bias"])
        height, width, channels = x.shape
        return x.reshape(height // 2, 2, width // 2, 2, channels).max((1, 3))

    def loss_fn(params: Any, example: Any) -> jax.Array:
        x = convolve(convolve(example[0], params["conv1"]), params["conv2"])
        logits = x.reshape(-1) @ params["dense"]["kernel"] + params["dense"]["bias"]
        return cross_entropy(logits, example[1])

    return loss_fn, params


def transformer(
    num_layers: int = 1, tokens: tuple[int, int] = (8, 8), width: int = 16, heads: int = 1
) -> tuple[Any, Any]:
    """Attention blocks with LayerNorm before each part, over the rows of an image."""
    keys = iter(jax.random.split(jax.random.key(2), 8 * num_layers + 3))
    norm = lambda: {"scale": jnp.ones(width), "bias": jnp.zeros(width)}
    params = {
        "embed": _dense(next(keys), tokens[1], width),
        "position": 0.3 * _dense(next(keys), tokens[0], width) * np.sqrt(tokens[0]),
        "blocks": [
            {
                "norm1": norm(),
                "query": _dense(next(keys), width, width),
                "key": _dense(next(keys), width, width),
                "value": _dense(next(keys), width, width),
                "out": _dense(next(keys), width, width),
                "norm2": norm(),
                "up": {
                    "kernel": _dense(next(keys), width, 2 * width),
                    "bias": jnp.zeros(2 * width),
                },
                "down": _dense(next(keys), 2 * width, width),
            }
            for _ in range(num_layers)
        ],
        "norm": norm(),
        "head": {"kernel": _dense(next(keys), width, 10), "bias": jnp.zeros(10)},
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
        return cross_entropy(pooled @ params["head"]["kernel"] + params["head"]["bias"], example[1])

    return loss_fn, params


def resnet(widths: tuple[int, ...] = (32, 64, 128), blocks_per_stage: int = 3) -> tuple[Any, Any]:
    """A ResNet for 32×32×3 with batch norm at fixed statistics: about a million parameters."""
    keys = iter(jax.random.split(jax.random.key(3), 100))

    def conv(size: int, depth: int, width: int) -> Any:
        return {
            "kernel": _dense(next(keys), size, size, depth, width) * np.sqrt(2),
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
    params["head"] = {"kernel": _dense(next(keys), depth, 10), "bias": jnp.zeros(10)}

    def apply(x: jax.Array, layer: Any, stride: int = 1) -> jax.Array:
        names = ("NHWC", "HWIO", "NHWC")
        out = jax.lax.conv_general_dilated(
            x[None], layer["kernel"], (stride, stride), "SAME", dimension_numbers=names
        )
        return (out[0] - 0.1) / 1.1 * layer["scale"] + layer["bias"]

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
        return cross_entropy(pooled @ params["head"]["kernel"] + params["head"]["bias"], example[1])

    return loss_fn, params


NETWORKS = {
    "relu mlp": lambda: mlp("relu"),
    "tanh mlp": lambda: mlp("tanh"),
    "gelu mlp": lambda: mlp("gelu"),
    "relu cnn": lambda: cnn("relu"),
    "gelu cnn": lambda: cnn("gelu"),
    "attention": transformer,
}


@functools.cache
def trained(name: str, steps: int = 150) -> Trained:
    """A network after full-batch adam on all digits."""
    loss_fn, params = NETWORKS[name]()
    dataset = load_dataset("digits", seed=0)
    parts = (dataset.train, dataset.validation, dataset.test)
    images = np.concatenate([part.images for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    mean = lambda p, b: jnp.mean(jax.vmap(loss_fn, (None, 0))(p, b))
    optimizer = optax.adam(3e-3)

    @jax.jit
    def train(params: Any, batch: Any) -> Any:
        def step(state: Any, _: None) -> Any:
            params, optimizer_state = state
            updates, optimizer_state = optimizer.update(
                jax.grad(mean)(params, batch), optimizer_state
            )
            return (optax.apply_updates(params, updates), optimizer_state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), None, steps)[0][0]

    batch = (jnp.asarray(images), jnp.asarray(labels))
    params = train(params, batch)
    return Trained(loss_fn, params, jax.tree.map(lambda x: x[:NUM_EXAMPLES], batch))


@functools.cache
def exact(name: str) -> np.ndarray:
    """The exact diagonal of a trained network, in float64."""
    loss_fn, *inputs = trained(name)
    with jax.enable_x64(True):
        wide = lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x
        params, batch = jax.tree.map(wide, inputs)
        return flat(jax.jit(sap.exact_diagonal(loss_fn))(params, batch))


def flat(tree: Any) -> np.ndarray:
    """All entries of a tree as one vector."""
    return np.asarray(ravel_pytree(tree)[0])


def gradient_equivalents(
    fn: Callable[..., Any], loss_fn: Any, params: Any, batch: Any, *rest: Any, seconds: float = 2.0
) -> float:
    """The cost of a compiled function of (params, batch, ...), against one gradient."""
    gradient = jax.jit(jax.grad(lambda p, b: jnp.mean(jax.vmap(loss_fn, (None, 0))(p, b))))
    calls = [lambda: gradient(params, batch), lambda: fn(params, batch, *rest)]
    times: list[list[float]] = [[], []]
    for call in calls:
        jax.block_until_ready(call())
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[1]) < 5:
        for call, measured in zip(calls, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(call())
            measured.append(time.perf_counter() - start)
    return float(np.median(times[1]) / np.median(times[0]))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, ties sharing their mean rank."""
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def quality(want: np.ndarray, estimates: list[np.ndarray]) -> dict[str, float]:
    """Error, rank correlation and overlap of the top 5 %, averaged over estimates."""
    top = len(want) // 20
    best = set(np.argsort(-want)[:top])
    return {
        "error": float(
            np.mean([np.linalg.norm(e - want) for e in estimates]) / np.linalg.norm(want)
        ),
        "rank_correlation": float(np.mean([rank_correlation(e, want) for e in estimates])),
        "top_overlap": float(
            np.mean([len(best & set(np.argsort(-e)[:top])) / top for e in estimates])
        ),
    }


def run(names: tuple[str, ...] = tuple(NETWORKS), **options: Any) -> list[dict[str, Any]]:
    """One row for each network trained on digits: cost and quality of one probe."""
    rows = []
    for name in names:
        loss_fn, params, batch = trained(name)
        estimate = jax.jit(sap.propagated_diagonal(loss_fn, **options))
        estimates = [flat(estimate(params, batch, jax.random.key(i))) for i in range(NUM_KEYS)]
        cost = gradient_equivalents(estimate, loss_fn, params, batch, jax.random.key(0))
        rows.append({"network": name, "cost": cost, **quality(exact(name), estimates)})
    return rows


def run_large(seconds: float = 60.0) -> list[dict[str, Any]]:
    """Cost and peak memory of one probe on a ResNet of a million parameters and a transformer."""
    sizes = {
        "resnet": (resnet(), (32, 32, 3), 32),
        "transformer": (transformer(6, (32, 96), 128, heads=4), (32, 32, 3), 32),
    }
    rows = []
    for name, ((loss_fn, params), shape, num_examples) in sizes.items():
        keys = jax.random.split(jax.random.key(0), 2)
        labels = jax.random.randint(keys[1], (num_examples,), 0, 10)
        batch = (jax.random.uniform(keys[0], (num_examples, *shape)), labels)
        estimate = jax.jit(sap.propagated_diagonal(loss_fn))
        memory = estimate.lower(params, batch, keys[0]).compile().memory_analysis()
        cost = gradient_equivalents(estimate, loss_fn, params, batch, keys[0], seconds=seconds)
        num_parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
        megabytes = None if memory is None else memory.temp_size_in_bytes / 2**20
        rows.append(
            {"network": name, "parameters": num_parameters, "cost": cost, "megabytes": megabytes}
        )
    return rows


def run_depth(depths: tuple[int, ...] = (2, 4, 8, 16, 32), width: int = 32) -> list[dict[str, Any]]:
    """Cost of one probe against depth, for tanh networks of one width."""
    rows = []
    for depth in depths:
        loss_fn, params = mlp("tanh", (64, *[width] * (depth - 1), 10))
        images, labels = load_dataset("digits", seed=0).train
        batch = (jnp.asarray(images[:NUM_EXAMPLES]), jnp.asarray(labels[:NUM_EXAMPLES]))
        row: dict[str, Any] = {"layers": depth}
        for name in ("propagated_diagonal", "hutchinson_diagonal"):
            estimate = jax.jit(getattr(sap, name)(loss_fn))
            row[name] = gradient_equivalents(estimate, loss_fn, params, batch, jax.random.key(0))
        rows.append(row)
    return rows


def run_rules(
    names: tuple[str, ...] = ("relu mlp", "gelu mlp", "attention"),
) -> list[dict[str, Any]]:
    """The error of one probe without each rule in turn: what the rule is worth."""
    rows = []
    for rule in ("all rules", *ABLATIONS):
        row: dict[str, Any] = {"without": rule}
        for name in names:
            loss_fn, params, batch = trained(name)
            with ABLATIONS.get(rule, contextlib.nullcontext)():
                estimate = jax.jit(sap.propagated_diagonal(loss_fn))
                estimates = [
                    flat(estimate(params, batch, jax.random.key(i))) for i in range(NUM_KEYS)
                ]
            row[name] = quality(exact(name), estimates)["error"]
        rows.append(row)
    return rows


def _general_for(*rules: str) -> Callable[[], Any]:
    """Lets these blocks take the general rule."""

    def change(graph: Any, node: Any, reached: Any) -> Any:
        block = make(graph, node, reached)
        return dataclasses.replace(block, rule="general") if block.rule in rules else block

    make = _blocks._block
    return lambda: mock.patch.object(_blocks, "_block", change)


ABLATIONS = {
    "regions found by the graph": lambda: mock.patch.object(_blocks, "_region", return_value=[]),
    "joining exp, sum, log or division": lambda: mock.patch.object(
        _blocks, "_join_exponentials", lambda graph, sites: list(graph.nodes)
    ),
    "root of logsumexp": _general_for("logsumexp"),
    "root of softmax": _general_for("softmax"),
    "roots of elementwise blocks": _general_for("elementwise"),
    "scales of products": _general_for("product"),
    "known diagonals of noise": lambda: mock.patch.object(
        _propagation.Signal, "alone", return_value=[]
    ),
}
"""What is taken away, and how."""
