"""Averages over random probes."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sapsel_jax._base.checks import check_count
from sapsel_jax._base.types import Diagonal


def check_probes(num_probes: int, return_error: bool) -> None:
    """Checks how many probes there are to be."""
    check_count("num_probes", num_probes, minimum=1)
    if return_error and num_probes < 2:
        raise ValueError(f"`return_error` needs `num_probes` of at least 2; got {num_probes}.")


def mean_of_probes(
    one_probe: Callable[[jax.Array], Diagonal],
    num_probes: int,
    return_error: bool,
    at_once: int = 1,
) -> Any:
    """Mean and standard error of the mean over probes, so many at once (Welford's update)."""
    if num_probes == 1:
        return one_probe(jnp.asarray(0))

    # Welford's update: sums of squares would lose the spread where the mean is large.
    def add(state: Any, probes: jax.Array) -> Any:
        if len(probes) == 1:
            values = [one_probe(probes[0])]
        else:
            stacked = jax.vmap(one_probe)(probes)
            values = [jax.tree.map(operator.itemgetter(i), stacked) for i in range(len(probes))]
        for value, probe in zip(values, probes, strict=True):
            mean, squares = state
            delta = optax.tree.sub(value, mean)
            count = probe + 1  # in the dtype of each leaf, which may be narrower than its quotient
            mean = jax.tree.map(lambda m, d, n=count: m + d / n.astype(m.dtype), mean, delta)
            squares = jax.tree.map(lambda s, d, v, m: s + d * (v - m), squares, delta, value, mean)
            state = (mean, squares)
        return state

    shapes = jax.eval_shape(one_probe, jnp.asarray(0))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    state, probes = (zeros, zeros), jnp.arange(num_probes)
    num_groups, rest = divmod(num_probes, at_once)
    if num_groups > 1:
        groups = probes[: num_groups * at_once].reshape(num_groups, at_once)
        state, _ = jax.lax.scan(lambda s, some: (add(s, some), None), state, groups)
        probes = probes[num_probes - rest :]
    if len(probes):
        state = add(state, probes)
    mean, squares = state
    if not return_error:
        return mean
    scale = 1 / (num_probes * (num_probes - 1))
    return mean, jax.tree.map(lambda s: jnp.sqrt(jnp.maximum(s, 0) * scale), squares)
