"""The same four small networks in flax linen, flax nnx, equinox, haiku and plain functions.

Each is `(loss_fn, params, batch, args)` with `args` passed to the loss behind the example: running
statistics, and whatever else a module library keeps beside its parameters.
"""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx
from networks import cross_entropy
from plain import (
    HEADS,
    TOKENS,
    VOCABULARY,
    WIDTH,
    images,
    plain_lenet,
    plain_mlp,
    plain_resnet,
    plain_transformer,
    sentences,
)


def perturbed(params):
    """Away from zeros and ones, where a wrong factor would not be seen."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    return tree.unflatten(
        [
            x + 0.3 * jax.random.normal(k, x.shape, x.dtype)
            for x, k in zip(leaves, keys, strict=True)
        ]
    )


class LinenMLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(jnp.tanh(nn.Dense(4)(x.reshape(-1))))


class LinenLeNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(3, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.avg_pool(nn.gelu(nn.Conv(2, (3, 3), padding="VALID")(x)), (1, 1))
        return nn.Dense(3)(nn.relu(nn.Dense(4)(x.reshape(-1))))


class LinenResNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        norm = lambda: nn.BatchNorm(use_running_average=True)
        x = nn.relu(norm()(nn.Conv(3, (3, 3), use_bias=False)(x)))
        y = nn.silu(norm()(nn.Conv(3, (3, 3), use_bias=False)(x)))
        x = nn.relu(x + norm()(nn.Conv(3, (3, 3), use_bias=False)(y)))
        return nn.Dense(3)(x.mean((0, 1)))


class LinenTransformer(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCABULARY, WIDTH)(tokens)
        x = x + self.param("position", nn.initializers.normal(0.5), (TOKENS, WIDTH))
        x = x + nn.MultiHeadDotProductAttention(HEADS)(nn.LayerNorm()(x))
        x = x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(5)(nn.LayerNorm()(x))))
        return nn.Dense(3)(nn.LayerNorm()(x).mean(0))


def linen(module, batch):
    variables = module.init(jax.random.key(0), batch[0][0])
    params = perturbed(variables["params"])
    statistics = perturbed_statistics({k: v for k, v in variables.items() if k != "params"})

    def loss_fn(params, example, statistics):
        return cross_entropy(module.apply({"params": params, **statistics}, example[0]), example[1])

    return loss_fn, params, batch, (statistics,)


def perturbed_statistics(statistics):
    return jax.tree.map(lambda x: x + 0.1 * jnp.arange(x.size).reshape(x.shape), statistics)


class NnxMLP(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(72, 4, rngs=rngs)
        self.second = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x.reshape(-1))))


class NnxLeNet(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(2, 3, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(3, 2, (3, 3), padding="VALID", rngs=rngs)
        self.dense1 = nnx.Linear(2, 4, rngs=rngs)
        self.dense2 = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.conv1(x)), (2, 2), (2, 2))
        x = nnx.gelu(self.conv2(x)).reshape(-1)
        return self.dense2(nnx.relu(self.dense1(x)))


class NnxResNet(nnx.Module):
    def __init__(self, rngs):
        kwargs = {"use_bias": False, "rngs": rngs}
        self.convs = nnx.List([nnx.Conv(c, 3, (3, 3), **kwargs) for c in (2, 3, 3)])
        self.norms = nnx.List(
            [nnx.BatchNorm(3, use_running_average=True, rngs=rngs) for _ in range(3)]
        )
        self.head = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norms[0](self.convs[0](x)))
        y = nnx.silu(self.norms[1](self.convs[1](x)))
        x = nnx.relu(x + self.norms[2](self.convs[2](y)))
        return self.head(x.mean((0, 1)))


def attend(query, key, value, **_):
    """flax's own attention takes its softmax in float32, whatever the inputs."""
    scores = jnp.einsum("...qhd,...khd->...hqk", query, key) / query.shape[-1] ** 0.5
    return jnp.einsum("...hqk,...khd->...qhd", jax.nn.softmax(scores), value)


class NnxTransformer(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.position = nnx.Param(jax.random.normal(rngs.params(), (TOKENS, WIDTH)))
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(3)])
        self.attention = nnx.MultiHeadAttention(
            HEADS, WIDTH, decode=False, attention_fn=attend, rngs=rngs
        )
        self.up = nnx.Linear(WIDTH, 5, rngs=rngs)
        self.down = nnx.Linear(5, WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 3, rngs=rngs)

    def __call__(self, tokens):
        # Its own look-up casts to float32, whatever the table.
        x = self.embed.embedding[...][tokens] + self.position[...]
        x = x + self.attention(self.norms[0](x))
        x = x + self.down(nnx.gelu(self.up(self.norms[1](x))))
        return self.head(self.norms[2](x).mean(0))


def with_nnx(create, batch):
    model = create(nnx.Rngs(0))
    structure, params, rest = nnx.split(model, nnx.Param, ...)
    params, rest = perturbed(nnx.to_pure_dict(params)), nnx.to_pure_dict(rest)
    is_float = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    rest = jax.tree.map(lambda x: x + 0.1 * jnp.arange(x.size) if is_float(x) else x, rest)

    def loss_fn(params, example, rest):
        return cross_entropy(nnx.merge(structure, params, rest)(example[0]), example[1])

    return loss_fn, params, batch, (rest,)


class EqxMLP(eqx.Module):
    layers: list

    def __init__(self, key):
        keys = jax.random.split(key, 2)
        self.layers = [eqx.nn.Linear(72, 4, key=keys[0]), eqx.nn.Linear(4, 3, key=keys[1])]

    def __call__(self, x):
        return self.layers[1](jnp.tanh(self.layers[0](x.reshape(-1))))


class EqxLeNet(eqx.Module):
    layers: list

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        self.layers = [
            eqx.nn.Conv2d(2, 3, 3, padding=1, key=keys[0]),
            eqx.nn.Conv2d(3, 2, 3, key=keys[1]),
            eqx.nn.Linear(2, 4, key=keys[2]),
            eqx.nn.Linear(4, 3, key=keys[3]),
        ]

    def __call__(self, x):
        x = eqx.nn.MaxPool2d(2, 2)(jax.nn.relu(self.layers[0](x.transpose(2, 0, 1))))
        x = jax.nn.gelu(self.layers[1](x)).reshape(-1)
        return self.layers[3](jax.nn.relu(self.layers[2](x)))


class EqxResNet(eqx.Module):
    convs: list
    scales: list
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        conv = lambda c, k: eqx.nn.Conv2d(c, 3, 3, padding=1, use_bias=False, key=k)
        self.convs = [conv(c, k) for c, k in zip((2, 3, 3), keys[:3], strict=True)]
        self.scales = [(jnp.ones((3, 1, 1)), jnp.zeros((3, 1, 1))) for _ in range(3)]
        self.head = eqx.nn.Linear(3, 3, key=keys[3])

    def __call__(self, x, statistics):
        def norm(i, x):
            (mean, variance), (scale, bias) = statistics[i], self.scales[i]
            return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * scale + bias

        x = jax.nn.relu(norm(0, self.convs[0](x.transpose(2, 0, 1))))
        y = jax.nn.silu(norm(1, self.convs[1](x)))
        x = jax.nn.relu(x + norm(2, self.convs[2](y)))
        return self.head(x.mean((1, 2)))


class EqxTransformer(eqx.Module):
    embed: eqx.nn.Embedding
    position: jax.Array
    norms: list
    attention: eqx.nn.MultiheadAttention
    layers: list

    def __init__(self, key):
        keys = jax.random.split(key, 6)
        self.embed = eqx.nn.Embedding(VOCABULARY, WIDTH, key=keys[0])
        self.position = jax.random.normal(keys[1], (TOKENS, WIDTH))
        self.norms = [eqx.nn.LayerNorm(WIDTH) for _ in range(3)]
        self.attention = eqx.nn.MultiheadAttention(HEADS, WIDTH, key=keys[2])
        shapes = ((WIDTH, 5), (5, WIDTH), (WIDTH, 3))
        self.layers = [eqx.nn.Linear(*s, key=k) for s, k in zip(shapes, keys[3:], strict=True)]

    def __call__(self, tokens):
        up, down, head = self.layers
        x = jax.vmap(self.embed)(tokens) + self.position
        y = jax.vmap(self.norms[0])(x)
        x = x + self.attention(y, y, y)
        x = x + jax.vmap(lambda t: down(jax.nn.gelu(up(self.norms[1](t)))))(x)
        return head(jax.vmap(self.norms[2])(x).mean(0))


def with_equinox(module, batch, *args):
    params, static = eqx.partition(module(jax.random.key(0)), eqx.is_inexact_array)

    def loss_fn(params, example, *args):
        return cross_entropy(eqx.combine(params, static)(example[0], *args), example[1])

    return loss_fn, perturbed(params), batch, args


def haiku_mlp(x, is_training):
    return hk.Linear(3)(jnp.tanh(hk.Linear(4)(x.reshape(-1))))


def haiku_lenet(x, is_training):
    x = hk.max_pool(jax.nn.relu(hk.Conv2D(3, 3)(x)), (2, 2, 1), (2, 2, 1), "VALID")
    x = jax.nn.gelu(hk.Conv2D(2, 3, padding="VALID")(x)).reshape(-1)
    return hk.Linear(3)(jax.nn.relu(hk.Linear(4)(x)))


def haiku_resnet(x, is_training):
    norm = lambda y: hk.BatchNorm(True, True, 0.9)(y, is_training)
    x = jax.nn.relu(norm(hk.Conv2D(3, 3, with_bias=False)(x[None])))
    y = jax.nn.silu(norm(hk.Conv2D(3, 3, with_bias=False)(x)))
    x = jax.nn.relu(x + norm(hk.Conv2D(3, 3, with_bias=False)(y)))
    return hk.Linear(3)(x[0].mean((0, 1)))


def haiku_transformer(tokens, is_training):
    norm = lambda y: hk.LayerNorm(-1, True, True)(y)
    x = hk.Embed(VOCABULARY, WIDTH)(tokens)
    x = x + hk.get_parameter("position", (TOKENS, WIDTH), init=hk.initializers.RandomNormal())
    y = norm(x)
    attention = hk.MultiHeadAttention(
        HEADS, WIDTH // HEADS, w_init=hk.initializers.VarianceScaling(), model_size=WIDTH
    )
    x = x + attention(y, y, y)
    x = x + hk.Linear(WIDTH)(jax.nn.gelu(hk.Linear(5)(norm(x))))
    return hk.Linear(3)(norm(x).mean(0))


def with_haiku(forward, batch):
    transformed = hk.transform_with_state(forward)
    params, state = transformed.init(jax.random.key(0), batch[0][0], True)

    def loss_fn(params, example, state):
        logits, _ = transformed.apply(params, state, None, example[0], False)
        return cross_entropy(logits, example[1])

    return loss_fn, perturbed(params), batch, (perturbed_statistics(state),)


EQX_STATISTICS = [(jnp.full((3, 1, 1), 0.1), jnp.full((3, 1, 1), 0.8)) for _ in range(3)]

NETWORKS = {
    "linen-mlp": lambda: linen(LinenMLP(), images()),
    "linen-lenet": lambda: linen(LinenLeNet(), images()),
    "linen-resnet": lambda: linen(LinenResNet(), images()),
    "linen-transformer": lambda: linen(LinenTransformer(), sentences()),
    "nnx-mlp": lambda: with_nnx(NnxMLP, images()),
    "nnx-lenet": lambda: with_nnx(NnxLeNet, images()),
    "nnx-resnet": lambda: with_nnx(NnxResNet, images()),
    "nnx-transformer": lambda: with_nnx(NnxTransformer, sentences()),
    "equinox-mlp": lambda: with_equinox(EqxMLP, images()),
    "equinox-lenet": lambda: with_equinox(EqxLeNet, images()),
    "equinox-resnet": lambda: with_equinox(EqxResNet, images(), EQX_STATISTICS),
    "equinox-transformer": lambda: with_equinox(EqxTransformer, sentences()),
    "haiku-mlp": lambda: with_haiku(haiku_mlp, images()),
    "haiku-lenet": lambda: with_haiku(haiku_lenet, images()),
    "haiku-resnet": lambda: with_haiku(haiku_resnet, images()),
    "haiku-transformer": lambda: with_haiku(haiku_transformer, sentences()),
    "plain-mlp": plain_mlp,
    "plain-lenet": plain_lenet,
    "plain-resnet": plain_resnet,
    "plain-transformer": plain_transformer,
}
