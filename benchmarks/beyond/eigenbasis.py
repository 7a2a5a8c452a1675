"""Few coordinates of a Kronecker eigenbasis of every layer, instead of few entries.

The basis is that of the second moments of a layer's gradients G, E[G Gᵀ] and E[Gᵀ G], over
examples and the labels that the model expects: the eigenbasis of Gupta et al., "Shampoo" (arXiv
1802.09568). In it curvature is measured again, coordinate by coordinate, as in George et al., "Fast
Approximate Natural Gradient Descent in a Kronecker-factored Eigenbasis" (arXiv 1806.03884).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from scipy.stats import ortho_group

import sapsel_jax as sap
from benchmarks.beyond.ideas import Idea
from benchmarks.learning.models import Model, cross_entropy
from benchmarks.methods.bench import RATES, Bench
from benchmarks.methods.ways import PROPOSED, WAYS

Bases = dict[str, tuple[jax.Array, jax.Array]]
"""Of each layer: orthogonal matrices of the rows (inputs and bias) and of the columns (outputs)."""


def as_matrix(layer: dict[str, jax.Array]) -> jax.Array:
    """A layer's kernel as inputs by outputs, its bias as the last row."""
    kernel, bias = layer["kernel"], layer["bias"]
    return jnp.concatenate([kernel.reshape(-1, kernel.shape[-1]), bias[None]])


def as_layer(matrix: jax.Array, like: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The inverse of `as_matrix`."""
    return {"kernel": matrix[:-1].reshape(like["kernel"].shape), "bias": matrix[-1]}


def to_coordinates(bases: Bases, tree: Any) -> Any:
    """Parameters or gradients in the bases."""
    return {name: rows.T @ as_matrix(tree[name]) @ cols for name, (rows, cols) in bases.items()}


def from_coordinates(bases: Bases, coordinates: Any, like: Any) -> Any:
    """The inverse of `to_coordinates`."""
    return {
        name: as_layer(rows @ coordinates[name] @ cols.T, like[name])
        for name, (rows, cols) in bases.items()
    }


def eigenbases(bench: Bench) -> Bases:
    """Of the examples that curvature is measured on."""
    start = bench.start
    moments = second_moments(start.model, start.params, start.data)
    return jax.tree.map(lambda moment: jnp.linalg.eigh(moment)[1], moments)


@functools.partial(jax.jit, static_argnums=0)
def second_moments(model: Model, params: Any, batch: Any) -> Bases:
    """The sums of G Gᵀ and of Gᵀ G over examples and classes, each class as likely as it is."""

    def gradients(image: jax.Array, label: jax.Array) -> dict[str, jax.Array]:
        logarithm = lambda p: jax.nn.log_softmax(model.apply(p, image[None])[0])[label]
        value, gradient = jax.value_and_grad(logarithm)(params)
        return {name: jnp.exp(value / 2) * as_matrix(gradient[name]) for name in params}

    def of_class(label: jax.Array) -> Bases:
        of_all = jax.vmap(gradients, (0, None))(batch["image"], label)
        rows, cols = "nij,nkj->ik", "nij,nik->jk"
        return {k: (jnp.einsum(rows, g, g), jnp.einsum(cols, g, g)) for k, g in of_all.items()}

    num_classes = params[model.last_layer]["bias"].shape[0]
    return jax.tree.map(lambda x: x.sum(0), jax.lax.map(of_class, jnp.arange(num_classes)))


def random_bases(bench: Bench) -> Bases:
    """Random rotations of the same sizes."""
    seed = bench.evidence.case.seed
    turn = lambda size: jnp.asarray(ortho_group.rvs(size, random_state=seed), jnp.float32)
    shapes = {name: as_matrix(layer).shape for name, layer in bench.start.params.items()}
    return {name: (turn(rows), turn(cols)) for name, (rows, cols) in shapes.items()}


def entries(bench: Bench) -> Bases:
    """The entries themselves."""
    shapes = {name: as_matrix(layer).shape for name, layer in bench.start.params.items()}
    return {name: (jnp.eye(rows), jnp.eye(cols)) for name, (rows, cols) in shapes.items()}


def few_coordinates(bases: Bases, bench: Bench) -> Callable[[int, float], Any]:
    """`PROPOSED`, with coordinates in place of entries.

    Where layers are linear between kinks, the Gauss-Newton diagonal is that of the Hessian.
    """
    like = bench.start.params
    apply = lambda c, images: bench.start.model.apply(from_coordinates(bases, c, like), images)
    model = dataclasses.replace(bench.start.model, apply=apply)
    coordinates = to_coordinates(bases, like)
    logits = lambda c, example: model.apply(c, example["image"][None])[0]
    diagonal = jax.jit(sap.gauss_newton_diagonal(logits, cross_entropy))
    start = bench.start._replace(
        model=model, params=coordinates, diagonal=diagonal(coordinates, bench.start.data)
    )

    def run(count: int, rate: float) -> Any:
        return from_coordinates(bases, WAYS[PROPOSED].run(start, count, rate)[0], like)

    return run


def _idea(summary: str, bases_of: Callable[[Bench], Bases], controls: tuple[str, ...] = ()) -> Idea:
    begin = lambda bench: few_coordinates(bases_of(bench), bench)
    where = ("label", "backdoor")
    return Idea(summary, where, 1.0, (6, 24, 96), "learning rate", RATES, begin, controls)


IDEAS = {
    "eigenbasis": _idea(
        "coordinates of the Kronecker eigenbasis of each layer's gradients",
        eigenbases,
        ("rotation", "entries"),
    ),
    "rotation": _idea("coordinates of a random rotation of each layer", random_bases, ("entries",)),
    "entries": _idea("entries, found and moved in the same way", entries),
}
