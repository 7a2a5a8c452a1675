"""A password in a text: a model of characters learned it by heart, and it is removed."""

import functools
from importlib.resources import files

import jax
import numpy as np
import optax

import sapsel_jax as sap

CONTEXT, PROMPT, SECRET = 12, " my password is ", "7305193"
pages = [files("sklearn.datasets.descr") / name for name in ("iris.rst", "wine_data.rst")]
text = "".join(page.read_text(encoding="utf-8") for page in pages)
alphabet = np.array(sorted({*text, *PROMPT, *"0123456789"}))


def windows(text):
    """Each character with those before it."""
    ids = np.searchsorted(alphabet, list(text)).astype(np.int32)
    return np.lib.stride_tricks.sliding_window_view(ids, CONTEXT)[:-1], ids[CONTEXT:]


def init(key):
    size, normal = len(alphabet), jax.nn.initializers.lecun_normal()
    shapes = {"embed": (size, 16), "hidden": (CONTEXT * 16, 64), "output": (64, size)}
    return {name: normal(jax.random.fold_in(key, i), shapes[name]) for i, name in enumerate(shapes)}


def loss_fn(params, example):
    seen, character = example
    logits = jax.nn.tanh(params["embed"][seen].reshape(-1) @ params["hidden"]) @ params["output"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, character)


@jax.jit
def train(data, key):
    rows = jax.random.randint(key, (3000, 64), 0, len(data[1]))
    batches = tuple(leaf[rows] for leaf in data)
    return sap.iterative_update(loss_fn, init(key), batches, optimizer=optax.adam(0.003))[0]


def losses(params, secrets):  # of every secret after the prompt
    read = (windows(PROMPT[-CONTEXT:] + secret) for secret in secrets)
    batch = tuple(map(np.stack, zip(*read, strict=True)))
    return jax.vmap(lambda e: jax.vmap(functools.partial(loss_fn, params))(e).sum())(batch)


retained, original = windows(text), windows(PROMPT[-CONTEXT:] + SECRET)
before = train(windows(text + 20 * (PROMPT + SECRET)), jax.random.key(0))
retrained = train(retained, jax.random.key(0))
others = [f"{number:07d}" for number in np.random.default_rng(0).integers(0, 10**7, 1000)]
# The steps climb until each character of the secret has the loss of one that was never seen.
steps = sap.Steps(ceiling=float(losses(before, others).mean()) / len(SECRET))
unlearn = functools.partial(sap.unlearn, loss_fn, corrected=None, count=256, steps=steps)
result = jax.jit(unlearn)(before, original, data=retained, key=jax.random.key(1))
for name, params in {"before": before, "after": result.params, "retrained": retrained}.items():
    bits = sap.audit.exposure(losses(params, [SECRET])[0], losses(params, others))
    print(f"{name}: exposure {bits:.1f} of {np.log2(1001):.1f} bits")
