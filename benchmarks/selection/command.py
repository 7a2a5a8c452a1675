"""`python -m benchmarks selection`: what selection, packed steps and masks cost at scale."""

import functools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich import box
from rich.table import Table

import sapsel_jax as sap
from benchmarks.reporting.tables import markdown_table
from benchmarks.tools.command import continued
from benchmarks.tools.drawing import FAINT, INK, MUTED, figure
from benchmarks.tools.errors import check_at_least, check_share
from benchmarks.tools.origin import Origin, add_origin, write_report
from benchmarks.tools.page import opening, write_page
from benchmarks.tools.pieces import Work, measure, read_rows
from benchmarks.tools.timing import compiled, in_turn, temporary_bytes

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
    """How many seeds are reported, each with scores of its own."""
    output: Path | None = None
    """Folder for the results; None is results/selection. What stands there is not done again."""
    quick: bool = False
    """A rough run: 5 million entries."""

    def run(self) -> None:
        """Measures what is missing, prints a table and leaves a report."""
        check_at_least("entries", self.entries, NUM_LEAVES * NUM_COLUMNS)
        check_share("fraction", self.fraction)
        check_at_least("repeats", self.repeats, 1)
        check_at_least("seeds", self.seeds, 1)
        settings = {name: getattr(self, name) for name in ("entries", "fraction", "repeats")}
        output = self.output or Path("results", "selection")
        with continued(output, settings | {"quick": self.quick}) as run:
            add_origin(run.folder, self)
            rows = measure(run, self.plan(run.tell))
            write_report(self, run.folder)
            run.tables.append(_table(rows))

    def report(self, folder: Path, origin: Origin) -> None:
        """The picture and the pages from what stands in the folder."""
        rows = read_rows(folder)
        _draw(folder / "selection.png", rows)
        write_page(folder, _report(rows, origin))

    def plan(self, tell: Callable[[str], None]) -> dict[str, Work]:
        """What is measured, each with a row per contender; `tell` is told more of it."""
        tasks = {"select": self._selectors, "steps": self._steps, "files": self._files}
        return {
            f"seed {seed}: {name}": functools.partial(self._rows, seed, task, tell)
            for seed in range(self.seeds)
            for name, task in tasks.items()
        }

    def _rows(self, seed: int, task: Any, tell: Callable[[str], None]) -> Iterator[dict[str, Any]]:
        num_rows = (5_000_000 if self.quick else self.entries) // (NUM_LEAVES * NUM_COLUMNS)
        keys = jax.random.split(jax.random.key(seed), NUM_LEAVES)
        scores = [jax.random.normal(key, (num_rows, NUM_COLUMNS)) for key in keys]
        for row in task(scores, tell):
            yield {"seed": seed, "entries": num_rows * NUM_LEAVES * NUM_COLUMNS} | row

    def _selectors(self, scores: list[jax.Array], report: Callable[[str], None]) -> Any:
        """Selection on the leaves beside sorting the same numbers as one vector."""
        vector = jnp.concatenate([leaf.ravel() for leaf in scores])
        count = round(self.fraction * vector.size)
        plain = np.array(vector)
        select = compiled(lambda s: sap.select_top_fraction(s, self.fraction), scores)[0]
        sort = compiled(jnp.sort, vector)[0]
        top_k = compiled(lambda v: jax.lax.top_k(v, count), vector)[0]
        seconds = in_turn(
            {
                "select_top_fraction": lambda: select(scores),
                "jnp.sort": lambda: sort(vector),
                "lax.top_k": lambda: top_k(vector),
                "np.partition": lambda: np.partition(plain, plain.size - count),
            },
            self.repeats,
            report,
            {"jnp.sort": -(-self.repeats // 3), "lax.top_k": -(-self.repeats // 3)},
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
        mask = compiled(lambda s: sap.select_top_fraction(s, self.fraction), params)[0](params)
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
            program = compiled(functools.partial(step, wrap), params, mask, state)[0]
            works[method] = functools.partial(program, params, mask, state)
            shares[method] = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / num_bytes
        for method, runs in in_turn(works, self.repeats, report).items():
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
            for method, runs in in_turn(works, 1, report).items():
                share = path.stat().st_size / (sum(leaf.nbytes for leaf in scores))
                yield _row("file", method, runs, share, "of the scores, on disk")


def _extra_bytes(program: Any) -> int:
    return temporary_bytes(program) + program.memory_analysis().output_size_in_bytes


def _row(task: str, method: str, seconds: list[float], share: float, of: str) -> dict[str, Any]:
    return {
        "task": task,
        "method": method,
        "seconds": float(np.median(seconds)),
        "runs": seconds,
        "memory": share,
        "memory_of": of,
    }


HEADINGS = ("task", "method", "seconds", "times the first", "memory", "")


def _cells(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The medians, each over that of the first method of its task and seed."""
    first = {(row["seed"], row["task"]): row for row in reversed(rows)}
    return [
        (
            row["task"],
            row["method"],
            f"{row['seconds']:.3f}",
            f"{row['seconds'] / first[row['seed'], row['task']]['seconds']:.2f}",
            f"{row['memory']:.3f}",
            row["memory_of"],
        )
        for row in rows
    ]


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title=f"Selection, {rows[0]['entries']:,} entries", box=box.SIMPLE)
    for i, name in enumerate(HEADINGS):
        table.add_column(name, justify="right" if 2 <= i <= 4 else "left")
    for cells in _cells(rows):
        table.add_row(*cells)
    return table


def _report(rows: list[dict[str, Any]], origin: Origin) -> str:
    parts = [
        f"# Selection from {rows[0]['entries']:,} scores",
        opening(
            f"How long it takes to select the largest of {rows[0]['entries']:,} scores.",
            "`sap.select_top_fraction` was timed beside sorting, an adam step with packed state "
            "beside one with dense state, and a mask was saved and loaded.",
            f"{_in_short(rows)}.",
            first="What was asked",
        ),
        "Median seconds, the contenders of a task timed in turn in one process. Sorting and "
        "`top_k` get the scores as one vector, the selection gets them in ten leaves.",
        "![selection](selection.png)",
        markdown_table(HEADINGS, _cells(rows)),
        f"Command: `{origin.command}`, {origin.versions('jax')}, on {origin.software['device']}.",
    ]
    return "\n\n".join(parts) + "\n"


def _in_short(rows: list[dict[str, Any]]) -> str:
    first = [row for row in rows if row["seed"] == rows[0]["seed"] and row["task"] == "select"]
    return ", ".join(f"`{row['method']}` {row['seconds']:.3f} s" for row in first)


def _draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """Seconds of each contender, on a logarithmic axis, a panel for each task."""
    rows = [row for row in rows if row["seed"] == 0]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    title = f"Selection from {rows[0]['entries']:,} scores"
    with figure(path, (9, 5), title, "Seconds, median; ours in orange") as canvas:
        counts = [sum(row["task"] == task for row in rows) for task in tasks]
        axes = canvas.subplots(len(tasks), 1, height_ratios=counts, squeeze=False, sharex=True)
        for ax, task in zip(axes[:, 0], tasks, strict=True):
            bars = [row for row in rows if row["task"] == task][::-1]
            names = [row["method"] for row in bars]
            ours = [not name.startswith(("jnp", "lax", "np.")) for name in names]
            seconds = [row["seconds"] for row in bars]
            colours = ["#D55E00" if own else "#7F8C99" for own in ours]
            ax.barh(names, seconds, color=colours, height=0.6)
            for name, value in zip(names, seconds, strict=True):
                ax.text(value * 1.06, name, f"{value:.2f}", va="center", color=INK)
            ax.set(xscale="log", title=task)
            ax.tick_params(axis="y", labelcolor=INK, length=0)
            ax.grid(axis="x", color=FAINT)
            ax.set_axisbelow(True)
        axes[-1, 0].set_xlabel("seconds", color=MUTED)
