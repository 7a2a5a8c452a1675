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
from benchmarks.tools.command import command_line, measured
from benchmarks.tools.errors import UsageError, check_at_least
from benchmarks.tools.folders import write_jsonl
from benchmarks.tools.page import write_page
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
    """Draws of each estimate: errors are averaged over them, and those of 4 and 16 probes are of
    their means."""
    data_dir: str | None = None
    """Where tensorflow-datasets keeps prepared MNIST, for the trained network; None is its
    default, or TFDS_DATA_DIR. Without it that network is left out."""
    torch_python: Path | None = None
    """The Python of an environment with the peers in PyTorch; without it they are left out. The
    report says how to make one."""
    output: Path | None = None
    """Folder for the results; None is results/speed."""
    docs: Path | None = None
    """A page whose table between `<!-- speed -->` and `<!-- /speed -->` becomes that of this
    run."""
    quick: bool = False
    """Dense networks only, three runs and four draws each."""

    def run(self) -> None:
        """Measures everything, prints a table and leaves a folder."""
        check_at_least("repeats", self.repeats, 1)
        check_at_least("seeds", self.seeds, 1)
        if not self.most_seconds > 0:
            raise UsageError(f"`most-seconds` must be positive; got {self.most_seconds:g}.")
        skipped: list[str] = []
        with measured(self.output or Path("results", "speed")) as run:
            rows = list(self.measure(skipped, run.say))
            write_jsonl(run.folder / "results.jsonl", rows)
            draw_speed(run.folder / "speed.png", rows)
            draw_errors(run.folder / "errors.png", rows)
            write_page(run.folder, report(rows, skipped, command_line()))
            run.tables.append(terminal_table(rows))
            run.tables += [Text(f"Left out: {reason}") for reason in skipped]
        if self.docs is not None:
            put_into_page(self.docs, summary_table(rows))

    def measure(self, skipped: list[str], say: Callable[[str], None]) -> Iterator[Row]:
        """One row for each network and method; what is left out is added to `skipped`."""
        makers, left_out = speed_cases(self.data_dir, self.quick)
        skipped += left_out
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
            for make in makers:
                case = make()
                tell = lambda words, case=case: say(f"{case.name}: {words}")
                tell("the truth")
                truth = find_truth(case)
                yield from self._in_jax(case, truth, skipped, tell)
                if others is not None:
                    tell("peers in PyTorch")
                    yield from self._in_torch(case, truth, others, skipped)

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
                        "nothing was written."
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
