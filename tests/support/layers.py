"""Single layers of flax nnx, flax linen, equinox and haiku, each as (apply, params, inputs)."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx
from haiku.experimental import layer_stack
from modules import perturbed

KEYS = jax.random.split(jax.random.key(5), 4)
NUM_EXAMPLES = 3
VECTORS = jax.random.normal(KEYS[0], (NUM_EXAMPLES, 4))
SEQUENCES = jax.random.normal(KEYS[1], (NUM_EXAMPLES, 4, 4))
IMAGES = jax.random.normal(KEYS[2], (NUM_EXAMPLES, 5, 5, 2))
TOKENS = jax.random.randint(KEYS[3], (NUM_EXAMPLES, 5), 0, 6)
RNGS = lambda: nnx.Rngs(0)


def of_nnx(module, inputs):
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    anew = lambda tree: jax.tree.map(lambda x: x, tree)  # variables of the trace that reads them
    apply = lambda p, x: nnx.merge(graph, anew(p), anew(rest))(x)
    return apply, perturbed(params), inputs


def of_linen(module, inputs):
    variables = dict(module.init(jax.random.key(0), inputs[0]))
    params = variables.pop("params")
    apply = lambda p, x: module.apply({"params": p, **variables}, x)
    return apply, perturbed(params), inputs


def of_equinox(module, inputs, call=lambda module, x: module(x)):
    params, static = eqx.partition(module, eqx.is_inexact_array)
    return lambda p, x: call(eqx.combine(p, static), x), perturbed(params), inputs


def of_haiku(forward, inputs):
    transformed = hk.without_apply_rng(hk.transform(forward))
    params = transformed.init(jax.random.key(0), inputs[0])
    return transformed.apply, perturbed(params), inputs


def scanned(cell):
    """An equinox cell over a sequence."""

    def call(cell, xs):
        start = jnp.zeros(cell.hidden_size, xs.dtype)
        state = (start, start) if isinstance(cell, eqx.nn.LSTMCell) else start
        return jax.lax.scan(lambda state, x: (cell(x, state), 0), state, xs)[0]

    return of_equinox(cell, SEQUENCES, call)


def channels_first(image):
    return jnp.moveaxis(image, -1, 0)


def linen_scanned():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x + jnp.tanh(nn.Dense(4)(x)), None

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            layers = nn.scan(Layer, {"params": 0}, split_rngs={"params": True}, length=5)
            return layers()(x, None)[0]

    return of_linen(Stack(), VECTORS)


def nnx_scanned():
    @nnx.split_rngs(splits=5)
    @nnx.vmap(in_axes=0, out_axes=0)
    def create(rngs):
        return nnx.Linear(4, 4, rngs=rngs)

    class Stack(nnx.Module):
        def __init__(self):
            self.layers = create(RNGS())

        def __call__(self, x):
            step = lambda h, layer: h + jnp.tanh(layer(h))
            return nnx.scan(step, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.layers)

    return of_nnx(Stack(), VECTORS)


def equinox_tied():
    embedding = eqx.nn.Embedding(6, 3, key=jax.random.key(0))
    shared = eqx.nn.Shared(
        (embedding, eqx.nn.Linear(3, 6, use_bias=False, key=jax.random.key(1))),
        lambda pair: pair[1].weight,
        lambda pair: pair[0].weight,
    )

    def call(shared, tokens):
        table, head = shared()
        return jax.vmap(head)(jnp.tanh(jax.vmap(table)(tokens)))

    return of_equinox(shared, TOKENS, call)


def haiku_attention(x):
    heads = hk.MultiHeadAttention(2, 2, w_init=hk.initializers.VarianceScaling(), model_size=4)
    return heads(x, x, x)


def haiku_unrolled(core):
    def forward(xs):
        module = core()
        return hk.dynamic_unroll(module, xs, module.initial_state(None))[0]

    return of_haiku(forward, SEQUENCES)


LAYERS = {
    "nnx-bilinear": lambda: of_nnx(nnx.Einsum("i,ij->j", (4, 3), (3,), rngs=RNGS()), VECTORS),
    "nnx-general": lambda: of_nnx(nnx.LinearGeneral(4, (2, 3), rngs=RNGS()), VECTORS),
    "nnx-lora": lambda: of_nnx(nnx.LoRALinear(4, 3, lora_rank=2, rngs=RNGS()), VECTORS),
    "nnx-conv": lambda: of_nnx(
        nnx.Conv(2, 4, (3, 3), strides=2, feature_group_count=2, rngs=RNGS()), IMAGES
    ),
    "nnx-conv-transpose": lambda: of_nnx(nnx.ConvTranspose(2, 2, (2, 2), 2, rngs=RNGS()), IMAGES),
    "nnx-rms-norm": lambda: of_nnx(nnx.RMSNorm(4, rngs=RNGS()), VECTORS),
    "nnx-group-norm": lambda: of_nnx(nnx.GroupNorm(4, 2, rngs=RNGS()), SEQUENCES),
    "nnx-prelu": lambda: of_nnx(nnx.PReLU(), VECTORS),
    "nnx-embed": lambda: of_nnx(nnx.Embed(6, 3, dtype=jnp.float64, rngs=RNGS()), TOKENS),
    "nnx-attention": lambda: of_nnx(
        nnx.MultiHeadAttention(2, 4, decode=False, rngs=RNGS()), SEQUENCES
    ),
    "nnx-lstm": lambda: of_nnx(
        nnx.RNN(nnx.OptimizedLSTMCell(4, 3, param_dtype=jnp.float64, rngs=RNGS()), rngs=RNGS()),
        SEQUENCES,
    ),
    "nnx-scanned": nnx_scanned,
    "linen-gru": lambda: of_linen(nn.RNN(nn.GRUCell(3, param_dtype=jnp.float64)), SEQUENCES),
    "linen-attention": lambda: of_linen(nn.MultiHeadDotProductAttention(2), SEQUENCES),
    "linen-weight-norm": lambda: of_linen(nn.WeightNorm(nn.Dense(3)), VECTORS),
    "linen-local-conv": lambda: of_linen(nn.ConvLocal(2, (3, 3), padding="VALID"), IMAGES),
    "linen-scanned": linen_scanned,
    "equinox-mlp": lambda: of_equinox(
        eqx.nn.MLP(4, 3, 4, 2, jax.nn.softplus, key=jax.random.key(0)), VECTORS
    ),
    "equinox-gru": lambda: scanned(eqx.nn.GRUCell(4, 2, key=jax.random.key(0))),
    "equinox-lstm": lambda: scanned(eqx.nn.LSTMCell(4, 2, key=jax.random.key(0))),
    "equinox-conv": lambda: of_equinox(
        eqx.nn.Conv2d(2, 3, 3, padding="SAME", dilation=2, key=jax.random.key(0)),
        IMAGES,
        lambda conv, x: conv(channels_first(x)),
    ),
    "equinox-group-norm": lambda: of_equinox(eqx.nn.GroupNorm(2, 4), VECTORS),
    "equinox-tied": equinox_tied,
    "haiku-attention": lambda: of_haiku(haiku_attention, SEQUENCES),
    "haiku-lstm": lambda: haiku_unrolled(lambda: hk.LSTM(2)),
    "haiku-vanilla-rnn": lambda: haiku_unrolled(lambda: hk.VanillaRNN(3)),
    "haiku-depthwise": lambda: of_haiku(
        lambda x: hk.DepthwiseConv2D(2, 3, padding="VALID")(x[None]), IMAGES
    ),
    "haiku-stack": lambda: of_haiku(
        lambda x: layer_stack(5)(lambda h: jnp.tanh(hk.Linear(4)(h)))(x), VECTORS
    ),
}
