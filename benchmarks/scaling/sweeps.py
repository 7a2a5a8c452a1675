"""What is made larger, step by step, and what is timed and weighed at every size."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import sapsel_jax as sap
from benchmarks.learning.plain import dense_layers, functions, mean_of, random_params
from benchmarks.scaling import transformer
from benchmarks.tools.timing import compiled

FRACTION = 0.01
"""The share of the entries that is selected, stepped on and patched."""


class Problem(NamedTuple):
    """A network and what its curvature is measured on."""

    loss_fn: Callable[[Any, Any], jax.Array]
    params: Any
    batch: Any


class Sweep(NamedTuple):
    """A quantity that grows while all others stay.

    Attributes:
      sizes: its values.
      make: the problem of a size.
      operations: what is measured.
      about: the network and what stays, in words.
    """

    sizes: tuple[int, ...]
    make: Callable[[int], Problem]
    operations: tuple[str, ...]
    about: str


class Work(NamedTuple):
    """Something to run, and the compiled program it is, if it is one."""

    run: Callable[[], Any]
    program: Any | None


def dense(sizes: tuple[int, ...], num_examples: int) -> Problem:
    """Dense layers with GELU on random inputs and labels."""
    keys = jax.random.split(jax.random.key(1), 2)
    inputs = jax.random.normal(keys[0], (num_examples, sizes[0]))
    labels = jax.random.randint(keys[1], (num_examples,), 0, sizes[-1])
    layers = dense_layers(len(sizes) - 1, "gelu")
    params = random_params(itertools.pairwise(sizes))
    return Problem(functions(layers)[1], params, (inputs, labels))


def attention(length: int) -> Problem:
    """A transformer of two blocks on two random texts."""
    size = transformer.Size(blocks=2, width=64, heads=4, vocabulary=128, length=length)
    texts = jax.random.randint(jax.random.key(1), (2, 2, length), 0, size.vocabulary)
    return Problem(transformer.loss_of(size), transformer.random_params(size), tuple(texts))


ESTIMATES = ("gradient", "propagated")
EXACT = (*ESTIMATES, "exact")
ALL = (*ESTIMATES, "select", "step", "patch")
SWEEPS: dict[str, Sweep] = {
    "parameters": Sweep(
        (10**4, 10**5, 10**6, 10**7, 10**8),
        lambda n: dense((round((n / 2) ** 0.5),) * 3 + (10,), 8),
        ALL,
        "dense layers of one width, 10 classes, 8 examples",
    ),
    "examples": Sweep(
        (16, 64, 256, 1024, 4096),
        lambda n: dense((64, 128, 128, 10), n),
        EXACT,
        "dense layers of 64, 128 and 128 inputs, 10 classes",
    ),
    "classes": Sweep(
        (10, 32, 100, 316, 1000),
        lambda n: dense((64, 128, 128, n), 64),
        EXACT,
        "dense layers of 64, 128 and 128 inputs, 64 examples",
    ),
    "depth": Sweep(
        (2, 4, 8, 16, 32),
        lambda n: dense((64,) * n + (10,), 64),
        ESTIMATES,
        "dense layers of 64 inputs, 10 classes, 64 examples",
    ),
    "sequence length": Sweep(
        (16, 32, 64, 128, 256, 512),
        attention,
        ESTIMATES,
        "a transformer of 2 blocks of width 64 with 4 heads, 2 texts",
    ),
}


def works(problem: Problem, names: tuple[str, ...]) -> dict[str, Work]:
    """The operations of these names, compiled."""
    return {name: OPERATIONS[name](problem) for name in names}


def _program(fn: Callable[..., Any], *args: Any) -> Work:
    program = compiled(fn, *args)[0]
    return Work(functools.partial(program, *args), program)


def _patch(problem: Problem) -> Work:
    """Collects changed entries and writes them into the old parameters, on the host."""
    mask = jax.jit(_select)(problem.params)
    after = jax.tree.map(lambda x, m: jnp.where(m, x + 1, x), problem.params, mask)

    def run() -> Any:
        return sap.apply_patch(problem.params, sap.make_patch(problem.params, after))

    return Work(run, None)


def _select(params: Any) -> Any:
    return sap.select_top_fraction(jax.tree.map(jnp.abs, params), FRACTION)


def _step(problem: Problem) -> Work:
    """A step of adam on the selected entries; the parameters stand in for gradients."""
    params, mask = problem.params, jax.jit(_select)(problem.params)
    state = sap.selective(optax.adam(1e-3), mask).init(params)

    def step(params: Any, state: Any, mask: Any) -> Any:
        updates, state = sap.selective(optax.adam(1e-3), mask).update(params, state, params)
        return optax.apply_updates(params, updates), state

    return _program(step, params, state, mask)


OPERATIONS: dict[str, Callable[[Problem], Work]] = {
    "gradient": lambda p: _program(jax.grad(mean_of(p.loss_fn)), p.params, p.batch),
    "propagated": lambda p: _program(
        sap.propagated_diagonal(p.loss_fn), p.params, p.batch, jax.random.key(0)
    ),
    "exact": lambda p: _program(sap.exact_diagonal(p.loss_fn), p.params, p.batch),
    "select": lambda p: _program(_select, p.params),
    "step": _step,
    "patch": _patch,
}
