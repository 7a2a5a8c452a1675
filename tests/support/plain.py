"""Four small networks as plain functions, and the inputs that module libraries' take as well."""

from typing import Any

import jax
import jax.numpy as jnp
from networks import conv, cross_entropy, mean_pool, normal

NUM_EXAMPLES = 3
IMAGE = (6, 6, 2)
TOKENS, VOCABULARY, WIDTH, HEADS = 4, 7, 4, 2


def images():
    keys = jax.random.split(jax.random.key(7), 2)
    return (
        jax.random.normal(keys[0], (NUM_EXAMPLES, *IMAGE)),
        jax.random.randint(keys[1], (NUM_EXAMPLES,), 0, 3),
    )


def sentences():
    keys = jax.random.split(jax.random.key(8), 2)
    return (
        jax.random.randint(keys[0], (NUM_EXAMPLES, TOKENS), 0, VOCABULARY),
        jax.random.randint(keys[1], (NUM_EXAMPLES,), 0, 3),
    )


def plain_mlp():
    keys = jax.random.split(jax.random.key(0), 4)
    params = (normal(keys[0], 72, 4), normal(keys[1], 4), normal(keys[2], 4, 3), normal(keys[3], 3))

    def loss_fn(params, example):
        a, b, c, d = params
        return cross_entropy(jnp.tanh(example[0].reshape(-1) @ a + b) @ c + d, example[1])

    return loss_fn, params, images(), ()


def plain_lenet():
    keys = jax.random.split(jax.random.key(4), 4)
    shapes = ((3, 3, 2, 3), (3, 3, 3, 2), (2, 4), (4, 3))
    params = [normal(k, *s) for k, s in zip(keys, shapes, strict=True)]

    def loss_fn(params, example):
        x = jax.nn.relu(conv(example[0], params[0], padding="SAME"))
        x = x.reshape(3, 2, 3, 2, 3).max((1, 3))
        x = jax.nn.gelu(conv(x, params[1])).reshape(-1)
        return cross_entropy(jax.nn.relu(x @ params[2]) @ params[3], example[1])

    return loss_fn, params, images(), ()


def plain_resnet():
    keys = jax.random.split(jax.random.key(0), 5)
    params = {
        "stem": normal(keys[0], 3, 3, 2, 3),
        "convs": [normal(keys[1], 3, 3, 3, 3), normal(keys[2], 3, 3, 3, 3)],
        "norms": [(jnp.full(3, 1.2), jnp.full(3, 0.1)) for _ in range(3)],
        "head": normal(keys[3], 3, 3),
    }
    statistics = [(jnp.full(3, 0.1), jnp.full(3, 0.8)) for _ in range(3)]

    def loss_fn(params, example, statistics):
        def norm(i, x):
            (mean, variance), (scale, bias) = statistics[i], params["norms"][i]
            return (x - mean) / jnp.sqrt(variance + 1e-5) * scale + bias

        x = jax.nn.relu(norm(0, conv(example[0], params["stem"], padding="SAME")))
        y = jax.nn.silu(norm(1, conv(x, params["convs"][0], padding="SAME")))
        x = jax.nn.relu(x + norm(2, conv(y, params["convs"][1], padding="SAME")))
        return cross_entropy(mean_pool(x) @ params["head"], example[1])

    return loss_fn, params, images(), (statistics,)


def plain_transformer():
    keys = iter(jax.random.split(jax.random.key(0), 12))
    shapes = {
        "embed": (VOCABULARY, WIDTH),
        "position": (TOKENS, WIDTH),
        "query": (WIDTH, HEADS, 2),
        "key": (WIDTH, HEADS, 2),
        "value": (WIDTH, HEADS, 2),
        "out": (HEADS, 2, WIDTH),
        "up": (WIDTH, 5),
        "down": (5, WIDTH),
        "head": (WIDTH, 3),
    }
    params: dict[str, Any] = {name: normal(next(keys), *s) for name, s in shapes.items()}
    params["norms"] = [(jnp.full(WIDTH, 1.1), jnp.full(WIDTH, 0.1)) for _ in range(3)]

    def norm(x, scale, bias):
        x = x - x.mean(-1, keepdims=True)
        return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale + bias

    def loss_fn(p, example):
        x = p["embed"][example[0]] + p["position"]
        y = norm(x, *p["norms"][0])
        q, k, v = (jnp.einsum("td,dhe->the", y, p[name]) for name in ("query", "key", "value"))
        weights = jax.nn.softmax(jnp.einsum("the,she->hts", q, k) / 2**0.5)
        x = x + jnp.einsum("hts,she,hed->td", weights, v, p["out"])
        x = x + jax.nn.gelu(norm(x, *p["norms"][1]) @ p["up"]) @ p["down"]
        return cross_entropy(norm(x, *p["norms"][2]).mean(0) @ p["head"], example[1])

    return loss_fn, params, sentences(), ()
