"""Averages over random probes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sapsel_jax._checks import check_count
from sapsel_jax._types import Diagonal


def check_probes(num_probes: int, return_error: bool) -> None:
    """Checks how many probes there are to be."""
    check_count("num_probes", num_probes, minimum=1)
    if return_error and num_probes < 2:
        raise ValueError(f"`return_error` needs `num_probes` of at least 2; got {num_probes}.")


def mean_of_probes(
    one_probe: Callable[[jax.Array], Diagonal], num_probes: int, return_error: bool
) -> Any:
    """Mean and standard error of the mean over probes, one probe at a time (Welford's update)."""
    if num_probes == 1:
        return one_probe(jnp.asarray(0))

    def step(state: Any, probe: jax.Array) -> Any:
        mean, squares = state
        value = one_probe(probe)
        delta = optax.tree.sub(value, mean)
        mean = optax.tree.add_scale(mean, 1 / (probe + 1), delta)
        squares = jax.tree.map(lambda s, d, v, m: s + d * (v - m), squares, delta, value, mean)
        return (mean, squares), None

    shapes = jax.eval_shape(one_probe, jnp.asarray(0))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (mean, squares), _ = jax.lax.scan(step, (zeros, zeros), jnp.arange(num_probes))
    if not return_error:
        return mean
    scale = 1 / (num_probes * (num_probes - 1))
    return mean, jax.tree.map(lambda s: jnp.sqrt(jnp.maximum(s, 0) * scale), squares)
