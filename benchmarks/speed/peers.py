"""Other libraries' ways to a Hessian diagonal, in JAX: the extra `peers` has those not at hand."""

import importlib
import warnings
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from benchmarks.learning.plain import has_weights, plain
from benchmarks.speed.cases import Case
from benchmarks.speed.contenders import (
    GAUSS_NEWTON_NOTE,
    Contender,
    gauss_newton_is_hessian,
    has_gauss_newton,
)

SMALL = 4_000
"""Parameters of a dense network up to which a whole Hessian is built."""


class Unavailable(Exception):
    """A peer cannot run here; its text is the reason."""


def jax_peers(case: Case) -> tuple[list[Contender], list[str]]:
    """The peers that can run on a case, and why others cannot."""
    found: list[Contender] = []
    skipped = []
    for name, make in PEERS.items():
        try:
            found += make(case)
        except Unavailable as error:
            skipped.append(f"{name}: {error}")
    return found, skipped


def _import(module: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise Unavailable(f'not installed (`{name}`; `pip install -e ".[peers]"`).') from error


def _check_small(case: Case) -> None:
    if case.num_entries > SMALL or case.is_convolutional:
        raise Unavailable(
            "builds a product for every parameter at once; it runs on dense networks of up to "
            f"{SMALL:,} parameters."
        )


def dense_hessian(case: Case) -> list[Contender]:
    """The diagonal of the whole matrix by `jax.hessian`."""
    _check_small(case)

    def diagonal(params: Any, batch: Any, key: jax.Array) -> Any:
        flat, unravel = ravel_pytree(params)
        return unravel(jnp.diag(jax.hessian(lambda x: case.mean_loss(unravel(x), batch))(flat)))

    return [Contender("jax.hessian", "jax", "exact", diagonal)]


def optax_hessian_diag(case: Case) -> list[Contender]:
    """optax's function, deprecated since 0.2.7."""
    second_order = _import("optax.second_order")
    if not hasattr(second_order, "hessian_diag"):
        raise Unavailable(f"removed from optax {optax.__version__}.")
    _check_small(case)

    def diagonal(params: Any, batch: Any, key: jax.Array) -> Any:
        loss = lambda p, inputs, targets: case.mean_loss(p, (inputs, targets))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return ravel_pytree(params)[1](second_order.hessian_diag(loss, params, *batch))

    return [Contender("hessian_diag", "optax", "exact", diagonal)]


def matfree_diagonal(case: Case) -> list[Contender]:
    """Hutchinson's estimator in the space of the parameters."""
    stochtrace = _import("matfree.stochtrace")

    def diagonal(params: Any, batch: Any, key: jax.Array) -> Any:
        gradient = jax.grad(lambda p: case.mean_loss(p, batch))
        product = lambda v: jax.jvp(gradient, (params,), (v,))[1]
        sampler = stochtrace.sampler_signs(params, num=1)
        estimate = stochtrace.estimator_monte_carlo(stochtrace.monte_carlo_diagonal(), sampler)
        return estimate(product, key)

    return [Contender("Hutchinson", "matfree", "unbiased", diagonal)]


def traceax_diagonal(case: Case) -> list[Contender]:
    """traceax, once it estimates diagonals."""
    _import("traceax")
    raise Unavailable("estimates traces; it has no diagonal.")


def kfac_jax_diagonal(case: Case) -> list[Contender]:
    """The Gauss-Newton diagonal by kfac-jax's diagonal blocks, its exact mode."""
    if not has_gauss_newton(case):
        raise Unavailable(GAUSS_NEWTON_NOTE)
    kfac = _import("kfac_jax")
    matcher = _import("kfac_jax._src.tag_graph_matcher")

    def registered_loss(params: Any, batch: Any) -> jax.Array:
        logits = _apply_to_batch(case.layers, params, batch[0])
        kfac.register_softmax_cross_entropy_loss(logits, batch[1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    def diagonal(params: Any, batch: Any, key: jax.Array) -> Any:
        estimator = kfac.BlockDiagonalCurvature(
            registered_loss,
            layer_tag_to_block_ctor={"dense": kfac.DenseDiagonal, "conv2d": kfac.Conv2DDiagonal},
        )
        args = (params, batch)
        with warnings.catch_warnings(), mock.patch.object(matcher, "eval_jaxpr_eqn", _bind):
            warnings.simplefilter("ignore", DeprecationWarning)
            state = estimator.init(key, args, (), (), cache_eigenvalues=False)
            state = estimator.update_curvature_matrix_estimate(
                state, 0.0, 1.0, 0.0, len(batch[1]), key, args, "ggn_exact"
            )
        blocks = [tuple(f.value for f in s.diagonal_factors) for s in state.blocks_states]
        return estimator.blocks_vectors_to_params_vector(blocks)

    kind = "exact" if gauss_newton_is_hessian(case) else "biased"
    return [Contender("Gauss-Newton", "kfac-jax", kind, diagonal)]


def _bind(equation: Any, values: list[Any]) -> list[Any]:
    """An equation of a jaxpr evaluated.

    kfac-jax 0.0.8 expects two results of `get_bind_params`, which is one since jax 0.10.
    """
    primitive = equation.primitive
    output = primitive.bind(*values, **primitive.get_bind_params(equation.params))
    return output if primitive.multiple_results else [output]


def _apply_to_batch(layers: tuple[str, ...], params: Any, x: jax.Array) -> jax.Array:
    """The network without `vmap`: kfac-jax finds layers by the batched operations they trace to."""
    weights = iter(params)
    for layer in layers:
        if layer == "dense":
            of_layer = next(weights)
            x = x @ of_layer["kernel"] + of_layer["bias"]
        elif has_weights(layer):
            of_layer = next(weights)
            names = ("NHWC", "HWIO", "NHWC")
            padding = layer.removeprefix("conv ")
            x = jax.lax.conv_general_dilated(
                x, of_layer["kernel"], (1, 1), padding, dimension_numbers=names
            )
            x = x + of_layer["bias"]
        else:
            x = jax.vmap(lambda one, layer=layer: plain(layer, one))(x)
    return x


PEERS = {
    "jax.hessian": dense_hessian,
    "optax hessian_diag": optax_hessian_diag,
    "matfree": matfree_diagonal,
    "traceax": traceax_diagonal,
    "kfac-jax": kfac_jax_diagonal,
}
