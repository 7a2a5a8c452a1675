"""Seconds measured side by side, and what compiled programs hold."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


def compiled(fn: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """`fn` compiled for these arguments, and the seconds that took."""
    start = time.perf_counter()
    program = jax.jit(fn).lower(*args).compile()
    return program, time.perf_counter() - start


def temporary_bytes(program: Any) -> int:
    """What a compiled program holds beside its arguments and results."""
    return program.memory_analysis().temp_size_in_bytes


def in_turn(
    works: Mapping[str, Callable[[], Any]],
    repeats: int,
    report: Callable[[str], None],
    fewer: Mapping[str, int] | None = None,
    most_seconds: float = math.inf,
    turn_seconds: float = 0.0,
) -> dict[str, list[float]]:
    """Seconds of each run, the contenders one after the other in every round.

    `fewer` names contenders that run less often, and one that has run for `most_seconds` in all is
    not run again. A quick one runs again and again until its turn has taken `turn_seconds`; the
    mean counts as one run. `report` is told what is being measured.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats):
        for name, work in works.items():
            if repeat < (fewer or {}).get(name, repeats) and sum(seconds[name]) < most_seconds:
                report(f"{name}, run {repeat + 1}")
                seconds[name].append(_turn(work, turn_seconds))
    return seconds


def _turn(work: Callable[[], Any], least: float) -> float:
    count, start, passed = 0, time.perf_counter(), 0.0
    while not count or passed < least:
        jax.block_until_ready(work())
        count, passed = count + 1, time.perf_counter() - start
    return passed / count


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` returns once it is computed, and the seconds that took."""
    start = time.perf_counter()
    result = jax.block_until_ready(work())
    return result, time.perf_counter() - start
