"""Any optax optimizer on selected entries: clipping, weight decay and a schedule included."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sapsel_jax as sap

rng = np.random.default_rng(0)
true = rng.normal(size=20).astype(np.float32)
x = rng.normal(size=(200, 20)).astype(np.float32)
y = x @ true
params = {"w": true + np.float32(np.arange(20) < 5), "b": np.float32(0)}  # five entries are wrong


def mean_loss(params):
    return 0.5 * jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


@jax.jit
def select(params):
    return sap.select_top_count(sap.score_saliency(jax.grad(mean_loss)(params)), 5)


mask = select(params)
inner = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(optax.cosine_decay_schedule(0.1, 200), weight_decay=1e-4),
)
optimizer = sap.selective(inner, mask)  # outermost, so that nothing moves the other entries


@jax.jit
def train(params):
    def step(carry, _):
        updates, state = optimizer.update(jax.grad(mean_loss)(carry[0]), carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), length=200)[0][0]


result = train(params)
print(f"loss {mean_loss(params):.3f} before, {mean_loss(result):.3f} after")

# The same with moments for five entries only, where memory is short.
packed = sap.selective_packed(inner, mask, count=5)
