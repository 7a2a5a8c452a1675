"""Functions of a vector with custom derivative rules, right ones and others."""

import jax
import jax.numpy as jnp


def with_jvp(value, slope, *, calls_itself):
    """`value` with `slope(x, t)` for a tangent, the rule's value by the function itself or not."""

    @jax.custom_jvp
    def fn(x):
        return value(x)

    def rule(primals, tangents):
        (x,), (t,) = primals, tangents
        return (fn if calls_itself else value)(x), slope(x, t)

    fn.defjvp(rule)
    return fn


def with_vjp(value, pullback, *, calls_itself=False):
    """`value` with `pullback(x, g)` for a cotangent."""

    @jax.custom_vjp
    def fn(x):
        return value(x)

    forward = lambda x: ((fn if calls_itself else value)(x), x)
    fn.defvjp(forward, lambda x, g: (pullback(x, g),))
    return fn


def two_inputs(calls_itself):
    """A product that is differentiated in its first factor alone."""

    @jax.custom_jvp
    def product(a, b):
        return a * b

    def rule(primals, tangents):
        a, b = primals
        return (product if calls_itself else jnp.multiply)(a, b), tangents[0] * b

    product.defjvp(rule)
    return lambda x: product(jnp.sin(x), x[::-1])


def centred(x):
    return x - x.mean()


def steep(x, t):
    return 3 * t / jnp.cosh(x) ** 2


def leaky(x, t):
    return jnp.where(abs(x) < 1, t, 0.1 * t)


SLOPES = {
    "mixes": (lambda x: x, lambda x, t: centred(t)),
    "mixes and bends": (jnp.tanh, lambda x, t: centred(t) * jnp.cos(x)),
    "mixes the bent": (jnp.tanh, lambda x, t: t * jnp.sin(centred(x))),
    "turns round": (jnp.sin, lambda x, t: t[::-1]),
    "mixes in its value alone": (lambda x: x - x.mean(), lambda x, t: t * jnp.cos(x)),
    "scales": (jnp.tanh, steep),
    "drops": (lambda x: x * jnp.sin(x), lambda x, t: jnp.zeros_like(t)),
    "turns the sign": (lambda x: x, lambda x, t: -t),
    "rounds": (lambda x: jnp.round(3 * x), lambda x, t: t),
    "rounds to a sign": (jnp.sign, leaky),
    "rounds and bends": (jnp.floor, lambda x, t: t / jnp.cosh(x) ** 2),
}
"""Values and their slopes; as these are diagonal or symmetric, or nearly so, also pullbacks."""


def ruled_functions():
    """All of them by name."""
    found = {}
    for name, (value, slope) in SLOPES.items():
        found[f"jvp {name}"] = with_jvp(value, slope, calls_itself=True)
        found[f"jvp {name}, by its value"] = with_jvp(value, slope, calls_itself=False)
        found[f"vjp {name}"] = with_vjp(value, slope)
    found["jvp of one factor"] = two_inputs(True)
    found["jvp of one factor, by its value"] = two_inputs(False)
    found["vjp clips"] = with_vjp(jnp.sin, lambda x, g: jnp.clip(g, -0.5, 0.5))
    found["vjp in jvp"] = with_jvp(
        found["vjp scales"], lambda x, t: t * jnp.cos(x), calls_itself=True
    )
    found["jvp in vjp"] = with_vjp(found["jvp rounds"], lambda x, g: g * found["jvp scales"](x))
    found["jvp in jvp"] = with_jvp(
        found["jvp mixes"], lambda x, t: t * found["jvp rounds"](x), calls_itself=False
    )
    return found


TWINS = {
    f"vjp {name}, calls itself": (
        with_vjp(value, slope, calls_itself=True),
        with_jvp(value, slope, calls_itself=True),
    )
    for name, (value, slope) in SLOPES.items()
    if name in ("scales", "rounds", "mixes", "turns the sign")
}
"""Functions that run in reverse only, and the same for an oracle that runs forward.

Their slopes are symmetric, so that pullback and slope are one function.
"""

WRAPPERS = {
    "plain": lambda f: f,
    "jit": jax.jit,
    "remat": jax.checkpoint,
    "vmap": lambda f: lambda x: jax.vmap(f)(jnp.stack([x, -x])).sum(0),
    "cond": lambda f: lambda x: jax.lax.cond(x.sum() > -9, f, jnp.cos, x),
    "scan": lambda f: lambda x: jax.lax.scan(lambda h, _: (f(h) + h, h), x, None, 2)[0],
    "long scan": lambda f: (
        lambda x: jax.lax.scan(lambda h, _: (0.1 * f(h) + 0.9 * h, None), x, None, 40)[0]
    ),
}
"""What a function may stand in."""
