"""What each rule of curvature propagation is worth: the same estimate with one rule taken away."""

import contextlib
import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import jax

from sapsel_jax._curvature import blocks as _blocks
from sapsel_jax._curvature import propagation as _propagation
from sapsel_jax._graph.graph import trace
from sapsel_jax._graph.sites import find_uses


def _general_for(rule: str) -> Callable[[], AbstractContextManager[Any]]:
    """Lets blocks of a rule take the general one."""
    make = _blocks._block

    def change(graph: Any, node: Any, reached: Any) -> _blocks.Block:
        block = make(graph, node, reached)
        return dataclasses.replace(block, rule="general") if block.rule == rule else block

    return lambda: mock.patch.object(_blocks, "_block", change)


WITHOUT: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "nothing": contextlib.nullcontext,
    "regions between dominators": lambda: mock.patch.object(_blocks, "_region", return_value=[]),
    "joining exp, sum and log or division": lambda: mock.patch.object(
        _blocks, "_join_exponentials", lambda graph, sites: list(graph.nodes)
    ),
    "the root of logsumexp": _general_for("logsumexp"),
    "the root of softmax": _general_for("softmax"),
    "the roots of elementwise blocks": _general_for("elementwise"),
    "the scales of products": _general_for("product"),
    "known diagonals of noise": lambda: mock.patch.object(
        _propagation.Signal, "alone", return_value=[]
    ),
}
"""What is taken away, and how."""


def matters(without: str, loss_fn: Callable[..., jax.Array], params: Any, batch: Any) -> bool:
    """Whether a network has blocks that the rule is about."""
    if without in ("nothing", "known diagonals of noise"):
        return True
    return _blocks_of(loss_fn, params, batch) != _blocks_of(loss_fn, params, batch, without)


def _blocks_of(
    loss_fn: Callable[..., jax.Array], params: Any, batch: Any, without: str = "nothing"
) -> list[tuple[str, str]]:
    graph = trace(loss_fn, params, jax.tree.map(lambda x: x[0], batch))
    sites = [use.site for use in find_uses(graph)]
    with WITHOUT[without]():
        _, blocks = _blocks.find_blocks(graph, sites)
    return [(block.node.name, block.rule) for block in blocks]
