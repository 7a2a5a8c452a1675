"""The rows of the study: whatever is not recorded yet is measured."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from benchmarks.scaling import devices, on_paper, virtual
from benchmarks.scaling.records import Journals
from benchmarks.scaling.sweeps import SWEEPS, Sweep, works
from benchmarks.scaling.transformer import Size
from benchmarks.tools.records import Journal
from benchmarks.tools.timing import in_turn

PARTS = ("gradient", "selection", "selective adam step", "propagation", "all in one program")
TURN_SECONDS = 0.05
"""What takes less runs several times in its turn."""
MOST_SECONDS = 20
"""What has run for so long in all is not run again."""


@dataclass(frozen=True)
class Study:
    """What is measured, and how often."""

    sweeps: dict[str, Sweep]
    repeats: int
    large: bool
    """Whether the transformer on paper is the large one."""

    @property
    def transformer(self) -> Size:
        """The one on paper."""
        return on_paper.LARGE if self.large else on_paper.SMALL

    @property
    def papers(self) -> list[tuple[Size, str]]:
        """What is compiled on paper."""
        smaller = [self.transformer._replace(blocks=count) for count in on_paper.FEWER_BLOCKS]
        parts = [(self.transformer, part) for part in PARTS]
        return parts + [(size, "propagation") for size in smaller if self.large]

    def missing(self, journals: Journals) -> Iterator[tuple[Any, ...]]:
        """The pieces of work that are left, each a kind and what it is about."""
        for name, sweep in self.sweeps.items():
            keys = [(name, size, each) for size in sweep.sizes for each in sweep.operations]
            if not all(key in journals.times for key in keys):
                yield "sweep", name
        for operation in devices.OPERATIONS:
            if not all((operation, count) in journals.devices for count in devices.COUNTS):
                yield "devices", operation
        for size, part in self.papers:
            if (size.blocks, part) not in journals.paper:
                yield "paper", size, part


def run_study(study: Study, journals: Journals, advance: Callable[[str], None]) -> None:
    """Measures whatever is not recorded yet.

    Args:
      study: what to measure.
      journals: the rows.
      advance: called with a few words before each piece of work.
    """
    for kind, *about in list(study.missing(journals)):
        if kind == "sweep":
            (name,) = about
            advance(f"{name}: every size in turn")
            _add(journals.times, _swept(name, study.sweeps[name], study.repeats))
        elif kind == "devices":
            advance(f"{about[0]} on virtual devices")
            _add(journals.devices, virtual.on_devices(*about))
        else:
            advance(f"{about[1]} of {about[0].blocks} blocks, on paper")
            _add(journals.paper, virtual.on_paper(*about))


def _add(journal: Journal, rows: Iterator[dict[str, Any]]) -> None:
    """Records rows, but for those that a run which was killed had recorded."""
    key = journal.kind.key
    for row in rows:
        if tuple(row[field] for field in key) not in journal:
            journal.append(row)


def _swept(name: str, sweep: Sweep, repeats: int) -> Iterator[dict[str, Any]]:
    """The operations at all sizes, one after the other in every round.

    So what else the machine does falls on all sizes alike.
    """
    entries, all_works = {}, {}
    for size in sweep.sizes:
        problem = sweep.make(size)
        entries[size] = sum(leaf.size for leaf in jax.tree.leaves(problem.params))
        for operation, work in works(problem, sweep.operations).items():
            all_works[size, operation] = work
    runs = in_turn(
        {f"{size} {operation}": work.run for (size, operation), work in all_works.items()},
        repeats,
        lambda words: None,
        most_seconds=MOST_SECONDS,
        turn_seconds=TURN_SECONDS,
    )
    for (size, operation), work in all_works.items():
        seconds = runs[f"{size} {operation}"]
        memory = None if work.program is None else work.program.memory_analysis()
        yield {
            "sweep": name,
            "size": size,
            "operation": operation,
            "entries": entries[size],
            "seconds": float(np.median(seconds)),
            "runs": seconds,
            "argument_bytes": memory and memory.argument_size_in_bytes,
            "extra_bytes": memory and memory.output_size_in_bytes + memory.temp_size_in_bytes,
        }


def sweeps(quick: bool) -> dict[str, Sweep]:
    """All sweeps, or the smaller sizes of each."""
    if not quick:
        return SWEEPS
    return {name: sweep._replace(sizes=sweep.sizes[:3]) for name, sweep in SWEEPS.items()}
