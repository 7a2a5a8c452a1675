"""HesScale: a biased approximation of the Hessian diagonal by one backward pass.

Every layer hands down a diagonal in place of its Hessian and drops what lies beside it, so that a
diagonal h of the Hessian in a layer's output becomes, in its input,

    (W ∘ W)ᵀ h for z = W a + b,        h φ'(z)² + g φ''(z) for a = φ(z),

with g the gradient there. The weights get a² h, summed over positions where they are shared. At
the logits of softmax cross-entropy the diagonal is p − p².

Source: M. Elsayed, A. R. Mahmood, "HesScale: Scalable Computation of Hessian Diagonals"
(arXiv 2210.11639).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.learning.plain import ACTIVATIONS, has_weights, linear, plain
from benchmarks.speed.cases import Case


def hesscale_diagonal(case: Case) -> Callable[[Any, Any], Any]:
    """`diagonal(params, batch)` for the layers of a case: the mean over examples."""

    def diagonal(params: Any, batch: Any) -> Any:
        x, labels = batch
        inputs, weights = [], iter(params)
        for layer in case.layers:
            inputs.append(x)
            of_layer = next(weights) if has_weights(layer) else None
            x = _forward(layer, of_layer, x)
        probabilities = jax.nn.softmax(x)
        g = (probabilities - jax.nn.one_hot(labels, x.shape[-1])) / len(labels)
        h = (probabilities - probabilities**2) / len(labels)
        found, weights = [], reversed(params)
        for layer, x in zip(reversed(case.layers), reversed(inputs), strict=True):
            if has_weights(layer):
                kernel = next(weights)["kernel"]
                fn = lambda k, a, layer=layer: jax.vmap(lambda one: linear(layer, k, one))(a)
                bias = h.reshape(-1, h.shape[-1]).sum(0)
                pull = jax.vjp(lambda a, fn=fn, kernel=kernel: fn(kernel, a), x)[1]
                kernel_diagonal, h = jax.vjp(fn, kernel**2, x**2)[1](h)
                found.append({"kernel": kernel_diagonal, "bias": bias})
                (g,) = pull(g)
            elif layer in ACTIVATIONS:
                first, second = _derivatives(ACTIVATIONS[layer], x)
                h = h * first**2 + g * second
                g = g * first
            else:
                pull = jax.vjp(jax.vmap(lambda one, layer=layer: plain(layer, one)), x)[1]
                (g,), (h,) = pull(g), pull(h)
        return found[::-1]

    return diagonal


def _forward(layer: str, weights: Any, x: jax.Array) -> jax.Array:
    if weights is None:
        return jax.vmap(lambda one: plain(layer, one))(x)
    return jax.vmap(lambda one: linear(layer, weights["kernel"], one))(x) + weights["bias"]


def _derivatives(phi: Callable[[jax.Array], jax.Array], x: jax.Array) -> tuple[jax.Array, ...]:
    """First and second derivative of an elementwise function."""
    slope = lambda y: jax.jvp(phi, (y,), (jnp.ones_like(y),))[1]
    return jax.jvp(slope, (x,), (jnp.ones_like(x),))
