"""`python -m benchmarks selection`: what selection, packed steps and masks cost at scale."""

import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich import box
from rich.console import Console
from rich.table import Table

import sapsel_jax as sap
from benchmarks.errors import check_at_least, check_share

NUM_LEAVES = 10
NUM_COLUMNS = 1000


@dataclass(frozen=True)
class Selection:
    """Time selection against sorting, packed against dense steps, and saving a mask."""

    entries: int = 100_000_000
    """Number of scores, split evenly over 10 leaves of 1,000 columns."""
    fraction: float = 0.01
    """Share of the entries to select."""
    repeats: int = 5
    """Timed runs of each contender, in turn; sorting a vector takes a third of them."""
    seeds: int = 1
    """Independent draws of the scores."""
    output: Path | None = None
    """Folder for the results; None is results/selection."""
    quick: bool = False
    """Run on 5 million entries."""

    def run(self) -> None:
        """Measures everything and prints a table."""
        console = Console()
        with console.status("Measuring") as status:
            rows = list(self.measure(lambda words: status.update(words)))
        console.print(_table(rows))

    def measure(self, report: Callable[[str], None]) -> Iterator[dict[str, Any]]:
        """One row per contender and seed; `report` is told what is being measured."""
        check_at_least("entries", self.entries, NUM_LEAVES * NUM_COLUMNS)
        check_share("fraction", self.fraction)
        check_at_least("repeats", self.repeats, 1)
        check_at_least("seeds", self.seeds, 1)
        num_rows = (5_000_000 if self.quick else self.entries) // (NUM_LEAVES * NUM_COLUMNS)
        for seed in range(self.seeds):
            keys = jax.random.split(jax.random.key(seed), NUM_LEAVES)
            scores = [jax.random.normal(key, (num_rows, NUM_COLUMNS)) for key in keys]
            parts = (self._selectors, self._steps, self._files)
            for part in parts:
                for row in part(scores, report):
                    yield {"seed": seed, "entries": num_rows * NUM_LEAVES * NUM_COLUMNS} | row

    def _selectors(self, scores: list[jax.Array], report: Callable[[str], None]) -> Any:
        """Selection on the leaves beside sorting the same numbers as one vector."""
        vector = jnp.concatenate([leaf.ravel() for leaf in scores])
        count = round(self.fraction * vector.size)
        plain = np.array(vector)
        select = _compiled(lambda s: sap.select_top_fraction(s, self.fraction), scores)
        sort = _compiled(jnp.sort, vector)
        top_k = _compiled(lambda v: jax.lax.top_k(v, count), vector)
        seconds = _in_turn(
            {
                "select_top_fraction": lambda: select(scores),
                "jnp.sort": lambda: sort(vector),
                "lax.top_k": lambda: top_k(vector),
                "np.partition": lambda: np.partition(plain, plain.size - count),
            },
            {"jnp.sort": -(-self.repeats // 3), "lax.top_k": -(-self.repeats // 3)},
            self.repeats,
            report,
        )
        extra = {
            "select_top_fraction": _extra_bytes(select),
            "jnp.sort": _extra_bytes(sort),
            "lax.top_k": _extra_bytes(top_k),
            "np.partition": plain.nbytes,
        }
        for method, runs in seconds.items():
            yield _row("select", method, runs, extra[method] / plain.nbytes, "of the scores")

    def _steps(self, params: list[jax.Array], report: Callable[[str], None]) -> Any:
        """An Adam step on the selected entries with dense and with packed state."""
        mask = _compiled(lambda s: sap.select_top_fraction(s, self.fraction), params)(params)
        count = int(sap.mask_count(mask))
        wrappers = {
            "selective(adam)": sap.selective,
            "selective_packed(adam)": functools.partial(sap.selective_packed, count=count),
        }

        def step(wrap: Callable[..., Any], params: Any, mask: Any, state: Any) -> Any:
            # The parameters stand in for gradients.
            updates, state = wrap(optax.adam(1e-3), mask).update(params, state, params)
            return optax.apply_updates(params, updates), state

        works, shares = {}, {}
        num_bytes = sum(leaf.nbytes for leaf in params)
        for method, wrap in wrappers.items():
            state = jax.jit(lambda p, m, wrap=wrap: wrap(optax.adam(1e-3), m).init(p))(params, mask)
            compiled = _compiled(functools.partial(step, wrap), params, mask, state)
            works[method] = functools.partial(compiled, params, mask, state)
            shares[method] = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / num_bytes
        for method, runs in _in_turn(works, {}, self.repeats, report).items():
            yield _row("step", method, runs, shares[method], "of the parameters, as state")

    def _files(self, scores: list[jax.Array], report: Callable[[str], None]) -> Any:
        """A mask to disk and back."""
        mask = sap.select_top_fraction(scores, self.fraction)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "mask")
            works = {
                "save_mask": lambda: sap.save_mask(path, mask),
                "load_mask": lambda: sap.load_mask(path, scores),
            }
            for method, runs in _in_turn(works, {}, 1, report).items():
                share = path.stat().st_size / (sum(leaf.nbytes for leaf in scores))
                yield _row("file", method, runs, share, "of the scores, on disk")


def _compiled(fn: Callable[..., Any], *args: Any) -> Any:
    return jax.jit(fn).lower(*args).compile()


def _extra_bytes(compiled: Any) -> int:
    memory = compiled.memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes


def _in_turn(
    works: dict[str, Callable[[], Any]],
    fewer: dict[str, int],
    repeats: int,
    report: Callable[[str], None],
) -> dict[str, list[float]]:
    """Seconds of each run, the contenders one after the other in every round."""
    seconds: dict[str, list[float]] = {method: [] for method in works}
    for repeat in range(repeats):
        for method, work in works.items():
            if repeat < fewer.get(method, repeats):
                report(f"{method}, run {repeat + 1}")
                start = time.perf_counter()
                jax.block_until_ready(work())
                seconds[method].append(time.perf_counter() - start)
    return seconds


def _row(task: str, method: str, seconds: list[float], share: float, of: str) -> dict[str, Any]:
    return {
        "task": task,
        "method": method,
        "seconds": float(np.median(seconds)),
        "runs": seconds,
        "memory": share,
        "memory_of": of,
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    """The medians, each over that of the first method of its task."""
    first = {row["task"]: row for row in reversed(rows)}
    table = Table(title=f"Selection, {rows[0]['entries']:,} entries", box=box.SIMPLE)
    for name in ("method", "seconds", "times the first", "memory", ""):
        table.add_column(name, justify="left" if name in ("method", "") else "right")
    for row in rows:
        ratio = row["seconds"] / first[row["task"]]["seconds"]
        cells = f"{row['seconds']:.3f}", f"{ratio:.2f}", f"{row['memory']:.3f}", row["memory_of"]
        table.add_row(row["method"], *cells)
    return table
