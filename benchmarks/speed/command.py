"""`python -m benchmarks speed`: what a Hessian diagonal costs, and how near the truth it is."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.text import Text

from benchmarks.speed.cases import Case, speed_cases
from benchmarks.speed.contenders import Contender, own_contenders
from benchmarks.speed.oracle import Truth, find_truth, objection, quality, stacked
from benchmarks.speed.peers import jax_peers
from benchmarks.speed.plots import draw_errors, draw_speed
from benchmarks.speed.report import put_into_page, report, summary_table, terminal_table
from benchmarks.speed.torch_link import LIBRARIES, RECIPE, Answer, TorchPeers, torch_peers
from benchmarks.tools.command import Run, continued
from benchmarks.tools.errors import UsageError, check_at_least
from benchmarks.tools.origin import Origin, add_origin, write_report
from benchmarks.tools.page import write_page
from benchmarks.tools.pieces import Work, measure, read_rows
from benchmarks.tools.timing import compiled, in_turn, temporary_bytes

Row = dict[str, Any]
TURN_SECONDS = 0.02
"""Quick contenders run again and again for so long, in JAX as in PyTorch."""


@dataclass(frozen=True)
class Speed:
    """Time every way to a Hessian diagonal beside one gradient, checked against float64."""

    repeats: int = 9
    """Timed runs of each contender, in turn."""
    most_seconds: float = 1.5
    """A contender that has run for so long in all is not run again."""
    seeds: int = 16
    """How many seeds are reported: draws of each estimate that errors are averaged over; those of 4
    and 16 probes are of their means."""
    data_dir: str | None = None
    """Where tensorflow-datasets keeps prepared data; None is its default, or TFDS_DATA_DIR. Without
    MNIST there the network that is trained on it is left out."""
    torch_python: Path | None = None
    """The Python of an environment with the peers in PyTorch; without it they are left out. The
    report says how to make one."""
    docs: Path | None = None
    """A page whose table between `<!-- speed -->` and `<!-- /speed -->` becomes that of this
    run."""
    output: Path | None = None
    """Folder for the results; None is results/speed. What stands there is not done again."""
    quick: bool = False
    """A rough run: dense networks only, three runs and four draws each."""

    def run(self) -> None:
        """Measures what is missing, prints a table and leaves a report."""
        check_at_least("repeats", self.repeats, 1)
        check_at_least("seeds", self.seeds, 1)
        if not self.most_seconds > 0:
            raise UsageError(f"`most-seconds` must be positive; got {self.most_seconds:g}.")
        with continued(self.output or Path("results", "speed"), self._identity()) as run:
            add_origin(run.folder, self)
            rows, skipped = self._measure(run)
            write_report(self, run.folder)
            run.tables.append(terminal_table(rows))
            run.tables += [Text(f"Left out: {reason}") for reason in skipped]

    def report(self, folder: Path, origin: Origin) -> None:
        """Pictures and pages from what stands in the folder."""
        rows, skipped = _apart(read_rows(folder))
        draw_speed(folder / "speed.png", rows)
        draw_errors(folder / "errors.png", rows)
        write_page(folder, report(rows, skipped, origin))
        if self.docs is not None:
            put_into_page(self.docs, summary_table(rows))

    def _measure(self, run: Run) -> tuple[list[Row], list[str]]:
        """A row for each network and method, and what is left out."""
        makers, skipped = speed_cases(self.data_dir, self.quick)
        if self.torch_python is None:
            skipped.append(
                f"{', '.join(LIBRARIES)}: no `--torch-python`. Make one by `{RECIPE}` and pass "
                "`--torch-python venv-torch/bin/python`."
            )
        with torch_peers(
            self.torch_python,
            draws=self.num_draws,
            repeats=self.num_repeats,
            seconds=self.most_seconds,
            turn=TURN_SECONDS,
        ) as others:
            plan: dict[str, Work] = {"what is left out": lambda: map(_left_out, skipped)}
            for make in makers:
                words = [make.func.__name__.replace("_", " "), *map(str, make.args)]
                work = functools.partial(self._network, make, others, run.tell)
                plan[" ".join(words)] = work
            return _apart(measure(run, plan))

    def _network(
        self, make: Callable[[], Case], others: TorchPeers | None, say: Callable[[str], None]
    ) -> Iterator[Row]:
        """Every row of a network, the reasons for what is left out among them."""
        skipped: list[str] = []
        case = make()
        tell = lambda words: say(f"{case.name}: {words}")
        tell("the truth")
        truth = find_truth(case)
        yield from self._in_jax(case, truth, skipped, tell)
        if others is not None:
            tell("peers in PyTorch")
            yield from self._in_torch(case, truth, others, skipped)
        yield from map(_left_out, skipped)

    def _identity(self) -> dict[str, Any]:
        """What rows depend on."""
        names = ("repeats", "most_seconds", "seeds", "quick")
        own = {name: getattr(self, name) for name in names}
        return own | {"torch": self.torch_python is not None}

    @property
    def num_draws(self) -> int:
        """Of each estimate."""
        return min(self.seeds, 4) if self.quick else self.seeds

    @property
    def num_repeats(self) -> int:
        """Timed runs of each contender."""
        return min(self.repeats, 3) if self.quick else self.repeats

    def _in_jax(
        self, case: Case, truth: Truth, skipped: list[str], say: Callable[[str], None]
    ) -> Iterator[Row]:
        params, batch, key = case.params, case.batch, jax.random.key(0)
        contenders = own_contenders(case)
        if case.full:
            peers, reasons = jax_peers(case)
            contenders += peers
            skipped += [reason for reason in reasons if reason not in skipped]
        gradient, _ = compiled(jax.grad(case.mean_loss), params, batch)
        works = {"gradient": functools.partial(gradient, params, batch)}
        found: dict[str, tuple[Contender, Any, float, dict[str, Any]]] = {}
        for one in contenders:
            label = f"{one.library} {one.method}, {one.num_probes}"
            say(f"compiling {label}")
            program, seconds = compiled(one.fn, params, batch, key)
            say(f"checking {label}")
            draws = self._draws(case, one, program)
            want = truth.diagonal if one.places is None else truth.diagonal[one.places]
            if reason := objection(one.kind, draws, want):
                if one.library == "sapsel_jax":
                    raise UsageError(
                        f"`{one.method}` {reason} on {case.name}; its time would mean nothing, so "
                        "it is not written."
                    )
                skipped.append(f"{one.library} {one.method} on {case.name}: {reason}.")
                continue
            works[label] = functools.partial(program, params, batch, key)
            found[label] = (one, program, seconds, quality(draws, want, one.averages))
        runs = in_turn(
            works,
            self.num_repeats,
            say,
            most_seconds=self.most_seconds,
            turn_seconds=TURN_SECONDS,
        )
        for label, (one, program, seconds, result) in found.items():
            share, note = 1.0, ""
            if one.places is not None and len(one.places) < case.num_entries:
                share = case.num_entries / len(one.places)
                note = f"from {len(one.places)} of {case.num_entries:,} entries"
            yield {
                **_about(case, one._asdict()),
                **_costs(runs["gradient"], runs[label], share, one.num_probes, result),
                "estimated": one.estimated,
                "temporary_megabytes": temporary_bytes(program) / 2**20,
                "compile_seconds": seconds,
                "note": note,
                "framework": f"jax {jax.__version__}",
                "device": jax.devices()[0].device_kind,
            }

    def _draws(self, case: Case, one: Contender, program: Any) -> np.ndarray:
        count = self.num_draws if one.kind == "unbiased" else 1
        keys = [jax.random.key(seed) for seed in range(count)]
        return stacked([program(case.params, case.batch, key) for key in keys])

    def _in_torch(
        self, case: Case, truth: Truth, others: TorchPeers, skipped: list[str]
    ) -> Iterator[Row]:
        for answer in others.measure(case):
            name = f"{answer.row['library']} {answer.row['method']} on {case.name}"
            if answer.draws is None:
                skipped.append(f"{name}: {answer.row['failed']}.")
            elif reason := objection(answer.row["kind"], answer.draws, truth.diagonal):
                skipped.append(f"{name}: {reason}.")
            else:
                yield _row_of_answer(case, truth, answer, answer.draws)


def _left_out(reason: str) -> Row:
    """A reason as a row, so that it is kept beside the rows that there are."""
    return {"left_out": reason}


def _apart(rows: list[Row]) -> tuple[list[Row], list[str]]:
    """The rows of what was measured, and the reasons for what was not, each once."""
    reasons = dict.fromkeys(row["left_out"] for row in rows if "left_out" in row)
    return [row for row in rows if "left_out" not in row], list(reasons)


def _row_of_answer(case: Case, truth: Truth, answer: Answer, draws: np.ndarray) -> Row:
    row = answer.row
    result = quality(draws, truth.diagonal, row["averages"])
    return {
        **_about(case, row),
        **_costs(answer.gradient_runs, row["runs"], 1.0, row["num_probes"], result),
        "estimated": None,
        "temporary_megabytes": None,
        "compile_seconds": None,
        "note": "",
        "framework": answer.versions,
        "device": jax.devices()[0].device_kind,
    }


def _about(case: Case, contender: dict[str, Any]) -> Row:
    return {
        "network": case.name,
        "entries": case.num_entries,
        "trained": case.trained,
        **{name: contender[name] for name in ("method", "library", "kind", "num_probes")},
    }


def _costs(
    gradient_runs: list[float],
    runs: list[float],
    share: float,
    num_probes: int,
    result: dict[str, Any],
) -> Row:
    """Medians; a mean of so many draws costs as many times one."""
    gradient, seconds = float(np.median(gradient_runs)), float(np.median(runs)) * share
    return {
        "gradient_equivalents": seconds / gradient,
        "seconds": seconds,
        "gradient_seconds": gradient,
        "error": result["error"],
        "rank_correlation": result["rank_correlation"],
        "points": [
            {"probes": num_probes * n, "gradient_equivalents": n * seconds / gradient, "error": e}
            for n, e in result["errors"]
        ],
        "runs": runs,
    }
