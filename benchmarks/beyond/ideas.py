"""What an idea is."""

from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.methods.bench import Bench


class Idea(NamedTuple):
    """A way to unlearn that is no choice of entries alone, or the control of one."""

    summary: str
    scenarios: tuple[str, ...]
    """Where it is tried."""
    known: float
    """The share of the poisoned examples that is known."""
    sizes: tuple[int, ...]
    """How much it may change, in its own units; (0,) where it says so itself."""
    tuned: str
    """What the number that is tuned means."""
    trials: tuple[float, ...]
    begin: Callable[[Bench], Callable[[int, float], Any]]
    """Does what no number changes; what it returns makes parameters of a size and a value."""
    controls: tuple[str, ...] = ()
    """What it has to beat; nothing for what is only compared with."""
    judged_by: str = "recovery"
    """The figure by which it has to: `recovery` of the forget measure, `relearning` of it."""


def by_way(way: str) -> Callable[[Bench], Callable[[int, float], Any]]:
    """What `sparsity` calls by that name, as an idea to compare with."""
    return lambda bench: lambda count, rate: bench.run(way, count, rate, None)[0]
