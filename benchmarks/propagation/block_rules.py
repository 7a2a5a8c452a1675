"""What each rule of curvature propagation is worth: the same estimate with one rule taken away."""

from collections.abc import Callable
from typing import Any

import jax

from sapsel_jax._curvature.blocks import RULES, find_blocks
from sapsel_jax._curvature.propagation import propagated_by
from sapsel_jax._graph.sites import find_uses
from sapsel_jax._graph.tracing import trace

WITHOUT = {
    "nothing": "",
    "regions between dominators": "regions",
    "joining exp, sum and log or division": "exponentials",
    "the root of logsumexp": "logsumexp",
    "the root of softmax": "softmax",
    "the roots of elementwise blocks": "elementwise",
    "the scales of products": "product",
    "known diagonals of noise": "diagonals",
}
"""What is taken away, and what the library calls it."""


def propagated_without(without: str, loss_fn: Callable[..., jax.Array]) -> Callable[..., Any]:
    """`sap.propagated_diagonal` with one rule taken away."""
    return propagated_by(RULES - {WITHOUT[without]}, loss_fn)


def matters(without: str, loss_fn: Callable[..., jax.Array], params: Any, batch: Any) -> bool:
    """Whether a network has blocks that the rule is about."""
    if without in ("nothing", "known diagonals of noise"):
        return True
    return _blocks_of(loss_fn, params, batch) != _blocks_of(loss_fn, params, batch, without)


def _blocks_of(
    loss_fn: Callable[..., jax.Array], params: Any, batch: Any, without: str = "nothing"
) -> list[tuple[str, str]]:
    graph = trace(loss_fn, params, jax.tree.map(lambda x: x[0], batch))
    graph, uses = find_uses(graph)
    _, blocks = find_blocks(graph, [use.site for use in uses], RULES - {WITHOUT[without]})
    return [(block.node.name, block.rule) for block in blocks]
