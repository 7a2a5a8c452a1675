"""What the study writes: exponents, tables, pictures, and the report around them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reporting.tables import NONE, markdown_table
from benchmarks.scaling.exponents import (
    LIMIT,
    LIMITED,
    Growth,
    growths,
    series,
    too_fast,
)
from benchmarks.scaling.plots import draw_devices, draw_growth
from benchmarks.scaling.records import Journals
from benchmarks.scaling.study import Study
from benchmarks.tools.origin import Origin
from benchmarks.tools.page import write_page

MEGABYTE = 2**20
MOST_SECONDS = 120
"""That compiling should take for the transformer on paper."""
EVEN = 1.1
"""Times its share that a part may hold and still count as evenly divided."""
Row = dict[str, Any]


def write_scaling(folder: Path, study: Study, journals: Journals, origin: Origin) -> None:
    """The report and its pictures."""
    # More sizes or operations may stand there than this run asks for.
    times = [row for row in journals.times.rows if row["sweep"] in study.sweeps]
    draw_growth(folder / "time.png", times, "seconds", "Time", "seconds, median")
    draw_growth(folder / "memory.png", times, "extra_bytes", "Memory", "bytes beside the arguments")
    draw_devices(folder / "devices.png", journals.devices.rows)
    write_page(folder, _report(study, times, journals, origin))


def _report(study: Study, times: Sequence[Row], journals: Journals, origin: Origin) -> str:
    found = growths(times)
    parts = [
        "# Scaling: what time and memory grow with",
        "One quantity grows and all others stay. All operations at all sizes are timed in turn, "
        f"and the median of up to {study.repeats} runs counts. Memory is read from the compiled "
        "program: results, and what it holds meanwhile.",
        *[f"- {name}: {sweep.about}" for name, sweep in study.sweeps.items()],
        "![time](time.png)",
        "![memory](memory.png)",
        "## Exponents",
        "The slope of the logarithm over all sizes, and between the two largest ones, where what a "
        "call costs by itself no longer hides it. *In gradients* is the slope of the time over "
        "that of a gradient of the same size.",
        exponent_table(found),
        verdict(found),
        spread(times),
        "## Figures",
        *[part for name in study.sweeps for part in (f"### {name}", _figures(times, name))],
        "## Examples over devices",
        "512 examples on virtual devices: operations and bytes of one device, from the compiled "
        "program. A loop's body counts once.",
        "![devices](devices.png)",
        _devices(journals.devices.rows),
        "## A large transformer, on paper",
        _about_paper(study, journals.paper.rows),
        paper_table(journals.paper.rows),
        paper_verdict(journals.paper.rows),
        f"Command: `{origin.command}`, {origin.versions('jax')}, on {origin.software['device']}; "
        "the last two sections on virtual devices of the processor.",
    ]
    return "\n\n".join(_joined(parts)) + "\n"


def _joined(parts: Sequence[str]) -> list[str]:
    """The parts, items of a list next to each other."""
    joined: list[str] = []
    for part in parts:
        if part.startswith("- ") and joined and joined[-1].startswith("- "):
            joined[-1] += f"\n{part}"
        else:
            joined.append(part)
    return joined


def exponent_table(found: Sequence[Growth]) -> str:
    """One line for each operation of each sweep."""
    number = lambda x: NONE if x is None else f"{x:.2f}"
    headings = (
        *("against", "operation", "time", "time, largest", "time, fastest run", "in gradients"),
        *("memory", "memory, largest"),
    )
    return markdown_table(headings, [(*one[:2], *map(number, one[2:])) for one in found])


def verdict(found: Sequence[Growth]) -> str:
    """Whether the limited operations stay below the limit."""
    names = f"{', '.join(LIMITED[:-1])} and {LIMITED[-1]}"
    most = max((one for one in found if one.operation in LIMITED), key=lambda one: one.seconds)
    missed = too_fast(found)
    if not missed:
        return (
            f"The largest exponent of the time of {names} is {most.seconds:.2f} ({most.operation} "
            f"against {most.sweep}); {LIMIT} was the aim."
        )
    told = [f"{one.operation} against {one.sweep} ({one.seconds:.2f})" for one in missed]
    return f"{LIMIT} was the aim for {names}. Not met: {', '.join(told)}."


def spread(times: Sequence[Row]) -> str:
    """How much runs of the same work differ, which is what exponents of single steps stand on."""
    factor = np.median([max(row["runs"]) / min(row["runs"]) for row in times])
    return (
        f"The slowest run of an operation at a size took {factor:.1f} times the fastest one, in "
        "the median over all: so much else the machine did."
    )


def _figures(times: Sequence[Row], sweep: str) -> str:
    """Seconds and megabytes of every operation at every size."""
    operations = list(dict.fromkeys(row["operation"] for row in times if row["sweep"] == sweep))
    columns = [series(times, sweep, operation) for operation in operations]
    headings = [sweep]
    for operation in operations:
        headings += [f"{operation}, s", f"{operation}, MB"]
    lines = []
    for some in zip(*columns, strict=True):
        cells = [f"{some[0]['entries' if sweep == 'parameters' else 'size']:,}"]
        for row in some:
            cells += [f"{row['seconds']:.2g}", _megabytes(row["extra_bytes"])]
        lines.append(cells)
    kept = [i for i in range(len(headings)) if any(line[i] != NONE for line in lines)]
    return markdown_table([headings[i] for i in kept], [[line[i] for i in kept] for line in lines])


def _megabytes(count: int | None) -> str:
    return NONE if count is None else f"{count / MEGABYTE:,.3g}"


def _devices(rows: Sequence[Row]) -> str:
    headings = ("operation", "devices", "operations", "of one device's", "MB", "exchanges")
    first = {row["operation"]: row for row in rows if row["devices"] == 1}
    lines = []
    for row in rows:
        share = (
            row["floating_point_operations"]
            / (first[row["operation"]]["floating_point_operations"])
        )
        lines.append(
            (
                row["operation"],
                str(row["devices"]),
                f"{row['floating_point_operations']:.3g}",
                f"{share:.3f}",
                _megabytes(row["argument_bytes"] + row["extra_bytes"]),
                ", ".join(row["collectives"]) or NONE,
            )
        )
    return markdown_table(headings, lines)


def _about_paper(study: Study, rows: Sequence[Row]) -> str:
    size = study.transformer
    return (
        f"A transformer of {rows[0]['entries']:,} parameters: one scan over {size.blocks} blocks "
        f"of width {size.width:,} with {size.heads} heads, {size.vocabulary:,} tokens, texts of "
        f"{size.length}. It is compiled from shapes for {rows[0]['devices']} virtual devices, 2×4, "
        "with every matrix along both axes and the texts along the first; no array of it is ever "
        "made. *Held* are arguments, results that do not take their place, and temporaries of one "
        "device; the *ideal* is an even share of arguments and results. A block is computed again "
        "on the way back (`jax.checkpoint`). The machine code is not optimised, as it is not run, "
        "and what only the backend for processors does to long sums is left out. "
        "Propagation goes through the scan as a loop, so that fewer blocks compile no faster."
    )


def paper_table(rows: Sequence[Row]) -> str:
    """Megabytes of one device for each part, and the seconds of compiling."""
    headings = (
        *(
            "blocks",
            "part",
            "arguments and results, MB",
            "ideal, MB",
            "temporaries, MB",
            "held, MB",
        ),
        *("held over ideal", "traced in, s", "compiled in, s", "exchanges"),
    )
    lines = []
    for row in rows:
        fixed, held = _fixed(row), _fixed(row) + row["temporary_bytes"]
        lines.append(
            (
                str(row["blocks"]),
                row["part"],
                f"{fixed / MEGABYTE:,.0f}",
                f"{row['ideal_bytes'] / MEGABYTE:,.0f}",
                f"{row['temporary_bytes'] / MEGABYTE:,.0f}",
                f"{held / MEGABYTE:,.0f}",
                f"{held / row['ideal_bytes']:.2f}",
                f"{row['trace_seconds']:.0f}",
                f"{row['compile_seconds']:.0f}",
                ", ".join(row["collectives"]) or NONE,
            )
        )
    return markdown_table(headings, lines)


def paper_verdict(rows: Sequence[Row]) -> str:
    """Which parts hold more than their share, or took longer to compile than they should."""
    names = [f"{row['part']} of {row['blocks']} blocks" for row in rows]
    shares = [(_fixed(row) + row["temporary_bytes"]) / row["ideal_bytes"] for row in rows]
    most = max(range(len(rows)), key=lambda i: shares[i])
    held = (
        f"The most, {shares[most]:.2f} times its even share, is held by {names[most]}; "
        f"{sum(share < EVEN for share in shares)} of {len(rows)} parts hold less than {EVEN} times "
        "theirs."
    )
    seconds = [row["trace_seconds"] + row["compile_seconds"] for row in rows]
    late = [
        f"{name} ({taken:.0f} s)"
        for name, taken in zip(names, seconds, strict=True)
        if taken > MOST_SECONDS
    ]
    if not late:
        return f"{held} Every part is traced and compiled in under {MOST_SECONDS} s."
    aim = f"{MOST_SECONDS} s were the aim for tracing and compiling."
    return f"{held} {aim} Not met: {', '.join(late)}."


def _fixed(row: Row) -> int:
    return row["argument_bytes"] + row["result_bytes"] - row["reused_bytes"]
