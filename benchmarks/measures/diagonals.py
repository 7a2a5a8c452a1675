"""What an estimate of a diagonal costs, and how near it comes to the exact one."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.stats import spearmanr

from benchmarks.tools.timing import compiled, in_turn

FRACTIONS = (0.01, 0.05, 0.2)
"""The shares of the entries that masks select."""
MAX_ROUNDS = 200


def gradient_equivalents(
    loss_fn: Callable[..., jax.Array],
    params: Any,
    batch: Any,
    works: Mapping[str, Callable[[], Any]],
    seconds: float,
    say: Callable[[str], None],
) -> dict[str, float]:
    """The least time of each call over that of one gradient of the mean loss, all in turn.

    The least, as other work on the machine only ever adds to a time, and most to a short one.
    The rounds take about so many seconds, and are at least five; what takes longer than that by
    itself runs once.
    """
    mean = lambda p, b: jnp.mean(jax.vmap(loss_fn, (None, 0))(p, b))
    gradient, _ = compiled(jax.grad(mean), params, batch)
    works = {"gradient": lambda: gradient(params, batch), **works}
    once = {name: runs[0] for name, runs in in_turn(works, 1, say).items()}
    slow = {name: 1 for name, time in once.items() if time > seconds}
    quick = sum(time for name, time in once.items() if name not in slow)
    repeats = max(5, min(MAX_ROUNDS, int(seconds / max(quick, 1e-4))))
    runs = in_turn(works, repeats, say, slow if len(slow) < len(works) else None)
    return {name: min(times) / min(runs["gradient"]) for name, times in runs.items()}


def flat(tree: Any) -> np.ndarray:
    """All entries of a tree as one vector."""
    return np.asarray(ravel_pytree(tree)[0])


def relative_error(found: np.ndarray, truth: np.ndarray) -> float:
    """‖found − truth‖ / ‖truth‖."""
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def rank_correlation(found: np.ndarray, truth: np.ndarray) -> float:
    """Spearman's, ties sharing their mean rank."""
    correlation: Any = spearmanr(found, truth)
    return float(correlation.statistic)


def quality(exact: np.ndarray, draws: Iterable[np.ndarray]) -> dict[str, float]:
    """Distance to the exact diagonal over its length, and Spearman's rank correlation: means."""
    return {
        "error": float(np.mean([relative_error(draw, exact) for draw in draws])),
        "rank_correlation": float(np.mean([rank_correlation(draw, exact) for draw in draws])),
    }


def overlaps(exact: np.ndarray, draws: Iterable[np.ndarray]) -> dict[str, float]:
    """By fraction, the share of the entries with the largest curvature that estimates agree on."""
    best = _ranked(exact)
    found = [_ranked(draw) for draw in draws]
    shares = {}
    for fraction in FRACTIONS:
        top = round(fraction * len(exact))
        common = [np.intersect1d(best[:top], one[:top]).size / top for one in found]
        shares[str(fraction)] = float(np.mean(common))
    return shares


def captured(exact: np.ndarray, draws: Iterable[np.ndarray], fraction: float) -> float:
    """The curvature in a mask from an estimate over that in the mask of the same size that is best.

    Entries that change places near the edge of a mask hardly matter to it, unlike to an overlap.
    """
    top = round(fraction * len(exact))
    found = [exact[_ranked(draw)[:top]].sum() for draw in draws]
    return float(np.mean(found) / exact[_ranked(exact)[:top]].sum())


def _ranked(diagonal: np.ndarray) -> np.ndarray:
    """Places of the entries, the largest first, ties in order, as masks are selected."""
    return np.argsort(-diagonal, kind="stable")
