"""`python -m benchmarks speed`: what a Hessian diagonal costs, and how near the truth it is."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from rich import box
from rich.table import Table

import sapsel_jax as sap
from benchmarks.cases import Case, speed_cases
from benchmarks.drawing import FAINT, INK, MUTED, figure
from benchmarks.errors import UsageError, check_at_least
from benchmarks.output import result_folder, write_jsonl
from benchmarks.page import write_page
from benchmarks.settings import command_line
from benchmarks.tables import markdown_table, wide_console
from benchmarks.timing import compiled, in_turn, temporary_bytes

CHECKED = 12
"""Entries of each leaf that are checked against a Hessian-vector product in float64."""
BASIS_ENTRIES = 64
"""Entries that basis vectors are timed on; the time for all of them is in proportion."""
TOLERANCE = 1e-3
"""An exact diagonal that is further from the oracle than this, relatively, is not timed."""
COLOURS = {
    "exact": "#D55E00",
    "site probe": "#0072B2",
    "propagated": "#009E73",
    "basis vectors": "#7F8C99",
}
BESIDE = {"exact": 9, "site probe": -9, "propagated": 9, "basis vectors": 9}
"""How far above its mark a figure stands, in points."""


@dataclass(frozen=True)
class Speed:
    """Time every way to a Hessian diagonal beside one gradient, checked against float64."""

    repeats: int = 9
    """Timed runs of each contender, in turn."""
    seeds: int = 3
    """Draws that the error of an estimate is averaged over."""
    data_dir: str | None = None
    """Where tensorflow-datasets keeps prepared MNIST, for the trained network; None is its
    default, or TFDS_DATA_DIR. Without it that network has random weights."""
    output: Path | None = None
    """Folder for the results; None is results/speed."""
    quick: bool = False
    """Dense networks only, three runs each."""

    def run(self) -> None:
        """Measures everything, prints a table and leaves a folder."""
        check_at_least("repeats", self.repeats, 1)
        check_at_least("seeds", self.seeds, 1)
        console = wide_console()
        output = self.output or Path("results", "speed")
        with result_folder(output) as folder:
            with console.status("Measuring") as status:
                rows = list(self.measure(lambda words: status.update(words)))
            write_jsonl(folder / "results.jsonl", rows)
            _draw(folder / "speed.png", rows)
            write_page(folder, _report(rows))
        console.print(_table(rows))
        console.print(f"Report: {output / 'report.html'}", highlight=False, soft_wrap=True)

    def measure(self, report: Callable[[str], None]) -> Iterator[dict[str, Any]]:
        """One row for each network and method."""
        for make in speed_cases(self.data_dir, self.quick):
            yield from self._measure_case(make(), report)

    def _measure_case(self, case: Case, report: Callable[[str], None]) -> Iterator[dict[str, Any]]:
        say = lambda words: report(f"{case.name}: {words}")
        say("compiling")
        params, batch, key = case.params, case.batch, jax.random.key(0)
        gradient, _ = compiled(jax.grad(lambda p, b: _mean(case.loss_fn, p, b)), params, batch)
        exact, exact_seconds = compiled(sap.exact_diagonal(case.loss_fn), params, batch)
        probe, probe_seconds = compiled(sap.hutchinson_diagonal(case.loss_fn), params, batch, key)
        passing, passing_seconds = compiled(
            sap.propagated_diagonal(case.loss_fn), params, batch, key
        )
        num_entries = sum(leaf.size for leaf in jax.tree.leaves(params))
        basis, basis_seconds = compiled(
            lambda p, b: _some_entries(case.loss_fn, p, b), params, batch
        )
        say("checking")
        diagonal = exact(params, batch)
        error = oracle_error(case, diagonal)
        if not error < TOLERANCE:
            raise UsageError(
                f"`exact_diagonal` is off by {error:.1e} on {case.name}; its time would mean "
                "nothing, so nothing was written."
            )
        keys = [jax.random.key(seed) for seed in range(self.seeds)]
        draws = [probe(params, batch, each) for each in keys]
        passes = [passing(params, batch, each) for each in keys]
        works = {
            "gradient": lambda: gradient(params, batch),
            "exact": lambda: exact(params, batch),
            "site probe": lambda: probe(params, batch, key),
            "propagated": lambda: passing(params, batch, key),
            "basis vectors": lambda: basis(params, batch),
        }
        repeats = min(self.repeats, 3) if self.quick else self.repeats
        seconds = in_turn(works, repeats, say, {"basis vectors": min(3, repeats)})
        medians = {name: float(np.median(runs)) for name, runs in seconds.items()}
        medians["basis vectors"] *= num_entries / min(BASIS_ENTRIES, num_entries)
        first = jax.tree.map(lambda x: x[0], batch)
        details = {
            "exact": (exact, exact_seconds, error, sap.explain(case.loss_fn, params, first).cost),
            "site probe": (probe, probe_seconds, _distance(draws, diagonal), math.nan),
            "propagated": (passing, passing_seconds, _distance(passes, diagonal), math.nan),
            "basis vectors": (basis, basis_seconds, error, math.nan),
        }
        for method, (program, compile_seconds, method_error, estimated) in details.items():
            yield {
                "network": case.name,
                "entries": num_entries,
                "method": method,
                "gradient_equivalents": medians[method] / medians["gradient"],
                "estimated": None if math.isnan(estimated) else estimated,
                "seconds": medians[method],
                "gradient_seconds": medians["gradient"],
                "error": method_error,
                "temporary_megabytes": temporary_bytes(program) / 2**20,
                "compile_seconds": compile_seconds,
                "runs": seconds[method],
                "device": jax.devices()[0].device_kind,
            }


def _mean(loss_fn: Callable[..., jax.Array], params: Any, batch: Any) -> jax.Array:
    return jnp.mean(jax.vmap(lambda example: loss_fn(params, example))(batch))


def _some_entries(loss_fn: Callable[..., jax.Array], params: Any, batch: Any) -> jax.Array:
    """Entries of the diagonal by basis vectors, spread evenly over all."""
    flat, unravel = ravel_pytree(params)
    places = jnp.linspace(0, flat.size - 1, min(BASIS_ENTRIES, flat.size)).astype(jnp.int32)
    return _entries(lambda x: _mean(loss_fn, unravel(x), batch), flat, places)


def _entries(fn: Callable[[jax.Array], jax.Array], flat: jax.Array, places: Any) -> jax.Array:
    gradient = jax.grad(fn)

    def entry(place: jax.Array) -> jax.Array:
        unit = jnp.zeros_like(flat).at[place].set(1)
        return jax.jvp(gradient, (flat,), (unit,))[1][place]

    return jax.lax.map(entry, places, batch_size=min(4, len(places)))


def oracle_error(case: Case, diagonal: Any) -> float:
    """The largest difference on random entries of every leaf, over the largest of them.

    The oracle is one Hessian-vector product per entry in float64.
    """
    rng = np.random.default_rng(0)
    places, start = [], 0
    for leaf in jax.tree.leaves(case.params):
        count = min(CHECKED, leaf.size)
        places.append(start + rng.choice(leaf.size, count, replace=False))
        start += leaf.size
    chosen = np.sort(np.concatenate(places))
    got = np.asarray(ravel_pytree(diagonal)[0], np.float64)[chosen]
    with jax.enable_x64(True):
        wide = lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x
        params, batch = jax.tree.map(wide, (case.params, case.batch))
        flat, unravel = ravel_pytree(params)

        @jax.jit
        def oracle(flat: jax.Array, batch: Any) -> jax.Array:
            fn = lambda x: _mean(case.loss_fn, unravel(x), batch)
            return _entries(fn, flat, jnp.asarray(chosen))

        want = np.asarray(oracle(flat, batch))
    return float(np.abs(got - want).max() / np.abs(want).max())


def _distance(draws: list[Any], diagonal: Any) -> float:
    """The mean over draws of their distance to the exact diagonal, over its length."""
    exact = np.asarray(ravel_pytree(diagonal)[0])
    found = [np.asarray(ravel_pytree(draw)[0]) for draw in draws]
    return float(np.mean([np.linalg.norm(x - exact) for x in found]) / np.linalg.norm(exact))


HEADINGS = (
    "network",
    "entries",
    "method",
    "gradient equivalents",
    "estimated",
    "seconds",
    "error",
    "temporaries, MB",
    "compiled in, s",
)


def _cells(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (
            row["network"],
            f"{row['entries']:,}",
            row["method"],
            f"{row['gradient_equivalents']:,.1f}",
            "" if row["estimated"] is None else f"{row['estimated']:.1f}",
            f"{row['seconds']:.4f}",
            f"{row['error']:.1e}",
            f"{row['temporary_megabytes']:.0f}",
            f"{row['compile_seconds']:.1f}",
        )
        for row in rows
    ]


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Hessian diagonals", box=box.SIMPLE)
    for name in HEADINGS:
        table.add_column(name, justify="left" if name in ("network", "method") else "right")
    for cells in _cells(rows):
        table.add_row(*cells)
    return table


def _report(rows: list[dict[str, Any]]) -> str:
    parts = [
        "# What a Hessian diagonal costs",
        "One gradient equivalent is the time of one compiled gradient of the same mean loss on the "
        "same batch. All are timed in turn in one process, after compilation; medians. `estimated` "
        "is what `explain` says before anything is computed.",
        "![speed](speed.png)",
        markdown_table(HEADINGS, _cells(rows)),
        "The error of `exact` is the largest difference to Hessian-vector products in float64 on "
        f"{CHECKED} random entries of each leaf, over the largest of those. The error of an "
        "estimate is its distance to the exact diagonal over that one's length. Basis vectors were "
        f"timed on {BASIS_ENTRIES} entries and scaled to all.",
        f"Command: `{command_line()}`, jax {jax.__version__}, on {rows[0]['device']}.",
    ]
    return "\n\n".join(parts) + "\n"


def _draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """A line for each network, a mark for each method, on a logarithmic axis of cost."""
    networks = list(dict.fromkeys(row["network"] for row in rows))[::-1]
    subtitle = "Gradient equivalents; 1 is the gradient of the same loss on the same batch"
    with figure(path, (10, 1.9 + 0.42 * len(networks)), "A Hessian diagonal", subtitle) as canvas:
        ax = canvas.subplots()
        for row in rows:
            height = networks.index(row["network"])
            cost, colour = row["gradient_equivalents"], COLOURS[row["method"]]
            ax.plot(cost, height, "o", color=colour, markersize=8)
            ax.annotate(
                f"{cost:,.1f}" if cost < 100 else f"{cost:,.0f}",
                (cost, height),
                (0, BESIDE[row["method"]]),
                textcoords="offset points",
                ha="center",
                va="center",
                fontsize=9,
                color=colour,
            )
        for method, colour in COLOURS.items():
            ax.plot([], [], "o", color=colour, label=method)
        ax.axvline(1, color=MUTED, linewidth=1)
        ax.set_xscale("log")
        ax.set_yticks(range(len(networks)), networks)
        ax.set_ylim(-0.6, len(networks) - 0.4)
        ax.tick_params(axis="y", labelcolor=INK, length=0)
        ax.grid(axis="x", color=FAINT)
        ax.set_axisbelow(True)
        ax.set_xlabel("gradient equivalents", color=MUTED)
        canvas.legend(loc="outside lower center", ncols=len(COLOURS), frameon=False)
