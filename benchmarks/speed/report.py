"""What the speed benchmark writes: tables, findings, and the report around them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.reporting.tables import NONE, markdown_table
from benchmarks.speed.contenders import BASIS_ENTRIES
from benchmarks.speed.oracle import CHECKED, TRUTH_TOLERANCE
from benchmarks.speed.torch_link import RECIPE
from benchmarks.tools.errors import UsageError
from benchmarks.tools.folders import write_whole
from benchmarks.tools.origin import Origin
from benchmarks.tools.page import opening

Row = dict[str, Any]
OURS = "sapsel_jax"
HEADINGS = (
    "library",
    "method",
    "of the Hessian",
    "gradient equivalents",
    "predicted",
    "seconds",
    "error",
    "rank correlation",
    "temporaries, MB",
    "compiled in, s",
    "",
)
SUMMARY = (
    "network",
    "entries",
    "exact (predicted)",
    "one propagated probe: cost, error",
    "HesScale: cost, error",
    "basis vectors",
    "seconds: exact",
    "BackPACK",
)
MARKS = ("<!-- speed -->", "<!-- /speed -->")
FASTER, CHEAPER, DEARER = 2, 10, 3
"""How many times faster than BackPACK, cheaper than unbiased peers, dearer than HesScale."""


def networks(rows: Sequence[Row]) -> list[str]:
    """Their names, in the order of the rows."""
    return list(dict.fromkeys(row["network"] for row in rows))


def find(rows: Sequence[Row], network: str, library: str, method: str) -> Row | None:
    """The row of a method on a network."""
    key = (network, library, method)
    return next((r for r in rows if (r["network"], r["library"], r["method"]) == key), None)


def cells(row: Row) -> tuple[str, ...]:
    """One line of the table of a network."""
    number = lambda name, form: NONE if row[name] is None else form(row[name])
    probes = row["num_probes"]
    return (
        row["library"],
        row["method"] if probes == 1 else f"{row['method']}, {probes} products",
        row["kind"],
        cost(row["gradient_equivalents"]),
        number("estimated", cost),
        f"{row['seconds']:,.4f}" if row["seconds"] < 100 else f"{row['seconds']:,.0f}",
        error(row["error"]),
        f"{row['rank_correlation']:.3f}",
        number("temporary_megabytes", lambda x: f"{x:.0f}"),
        number("compile_seconds", lambda x: f"{x:.1f}"),
        row["note"],
    )


def cost(value: float) -> str:
    """Gradient equivalents."""
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def error(value: float) -> str:
    """A relative error: digits where it is large, a power of ten where it is rounding."""
    return f"{value:.3f}" if value >= 1e-3 else f"{value:.0e}"


def terminal_table(rows: Sequence[Row]) -> Table:
    """All rows, a section for each network."""
    table = Table(title="Hessian diagonals", box=box.SIMPLE, title_justify="left")
    for i, name in enumerate(HEADINGS):
        table.add_column(name, justify="right" if 3 <= i <= 9 else "left")
    for network in networks(rows):
        own = [row for row in rows if row["network"] == network]
        table.add_row(f"[bold]{network}[/bold]", f"{own[0]['entries']:,} entries")
        for row in own:
            table.add_row(*cells(row))
        table.add_section()
    return table


def summary_table(rows: Sequence[Row]) -> str:
    """One line for each network, in Markdown."""
    lines = []
    for network in networks(rows):
        exact = find(rows, network, OURS, "exact")
        assert exact is not None
        others = [
            find(rows, network, library, method)
            for library, method in [
                (OURS, "propagated"),
                ("own baseline", "HesScale"),
                ("jax", "basis vectors"),
                ("BackPACK", "DiagHessian"),
            ]
        ]
        propagated, hesscale, basis, backpack = others
        both = lambda r: (
            NONE if r is None else f"{cost(r['gradient_equivalents'])}, {r['error']:.2f}"
        )
        lines.append(
            (
                network,
                f"{exact['entries']:,}",
                f"{cost(exact['gradient_equivalents'])} ({cost(exact['estimated'])})",
                both(propagated),
                both(hesscale),
                NONE if basis is None else cost(basis["gradient_equivalents"]),
                f"{exact['seconds']:.4f}",
                NONE if backpack is None else f"{backpack['seconds']:.4f}",
            )
        )
    return markdown_table(SUMMARY, lines)


def findings(rows: Sequence[Row]) -> list[str]:
    """Three claims, each with the networks it holds on and those it does not."""
    return [
        _claim(
            f"`exact_diagonal` is at least {FASTER} times as fast as BackPACK's DiagHessian, in "
            "seconds",
            {network: against_backpack(rows, network) for network in networks(rows)},
            lambda ratio: ratio >= FASTER,
            lambda ratio: f"{ratio:.1f}",
        ),
        _claim(
            f"One propagated probe costs at least {CHEAPER} times less than every unbiased peer at "
            "equal error (a peer's error falls with the root of its cost; the smaller of the "
            "ratios in seconds and in gradient equivalents, of the best peer)",
            {network: against_peers(rows, network) for network in networks(rows)},
            lambda pair: pair[0] >= CHEAPER,
            lambda pair: f"{cost(pair[0])} ({pair[1]})",
        ),
        _claim(
            f"On trained networks one propagated probe has a lower error than HesScale at no more "
            f"than {DEARER} times its cost (ratio of costs; ours : theirs)",
            {network: against_hesscale(rows, network) for network in networks(rows)},
            lambda three: three[0] <= DEARER and three[1] < three[2],
            lambda three: f"{three[0]:.1f}; {three[1]:.3f} : {three[2]:.3f}",
        ),
    ]


def _claim(words: str, values: dict[str, Any], holds: Any, form: Any) -> str:
    known = {network: value for network, value in values.items() if value is not None}
    lines = [f"{words}:"]
    for title, wanted in (("holds", True), ("does not hold", False)):
        names = [f"{n}: {form(v)}" for n, v in known.items() if holds(v) == wanted]
        if names:
            lines.append(f"  - {title} on {len(names)} of {len(known)}. {'. '.join(names)}.")
    return "\n".join(lines if known else [f"{words}: not measured."])


def against_backpack(rows: Sequence[Row], network: str) -> float | None:
    """Its seconds over ours; None where it does not run."""
    exact, peer = find(rows, network, OURS, "exact"), find(rows, network, "BackPACK", "DiagHessian")
    return None if exact is None or peer is None else peer["seconds"] / exact["seconds"]


def against_peers(rows: Sequence[Row], network: str) -> tuple[float, str] | None:
    """How many times more the best unbiased peer costs at the error of one propagated probe."""
    own = find(rows, network, OURS, "propagated")
    ratios = []
    for row in rows:
        if row["network"] == network and row["kind"] == "unbiased" and row["library"] != OURS:
            assert own is not None
            units = ("seconds", "gradient_equivalents")
            dearer = min(row[unit] / own[unit] for unit in units)
            products = "" if row["num_probes"] == 1 else f", {row['num_probes']} products"
            name = f"{row['library']} {row['method']}{products}"
            ratios.append((dearer * (row["error"] / own["error"]) ** 2, name))
    return min(ratios, default=None)


def against_hesscale(rows: Sequence[Row], network: str) -> tuple[float, float, float] | None:
    """Cost of one propagated probe over that of HesScale, and both errors; trained networks."""
    own = find(rows, network, OURS, "propagated")
    peer = find(rows, network, "own baseline", "HesScale")
    if own is None or peer is None or not own["trained"]:
        return None
    return own["seconds"] / peer["seconds"], own["error"], peer["error"]


def _in_short(rows: Sequence[Row]) -> str:
    told = []
    for method, words in (("exact", "The exact diagonal"), ("propagated", "one propagated probe")):
        own = [each for each in rows if (each["library"], each["method"]) == (OURS, method)]
        costs = [each["gradient_equivalents"] for each in own]
        told.append(f"{words} costs {cost(min(costs))} to {cost(max(costs))} gradients")
    return f"{', '.join(told)}, on {len(networks(rows))} networks."


def report(rows: Sequence[Row], skipped: Sequence[str], origin: Origin) -> str:
    """The whole report in Markdown."""
    entries = " and ".join(f"{n} on {kind} networks" for kind, n in BASIS_ENTRIES.items())
    frameworks = ", ".join(dict.fromkeys(row["framework"] for row in rows))
    parts = [
        "# What a Hessian diagonal costs",
        opening(
            "What the diagonal of a Hessian costs, exact and estimated.",
            "Every way to it, of this library and of others, was checked against float64 and timed "
            "beside one gradient of the same loss.",
            _in_short(rows),
            first="What was asked",
        ),
        "One gradient equivalent is the time of one gradient of the same mean loss on the same "
        "batch in the same framework. `predicted` is what `explain` says before anything is "
        "computed. The error of an estimate is its distance to the true diagonal over that one's "
        "length; rank correlation is Spearman's, over all entries. Biased ones estimate something "
        "else or drop terms.",
        summary_table(rows),
        "![speed](speed.png)",
        "![errors](errors.png)",
        "## What it shows",
        "\n".join(f"- {claim}" for claim in findings(rows)),
        "## Every method",
    ]
    for network in networks(rows):
        own = [row for row in rows if row["network"] == network]
        parts += [
            f"### {network}: {own[0]['entries']:,} entries",
            markdown_table(HEADINGS, [cells(row) for row in own]),
        ]
    parts += [
        "## What was left out",
        "\n".join(f"- {reason}" for reason in skipped) or "Nothing.",
        "## How it was measured",
        "All methods of a framework run in turn on a network, after compilation, a quick "
        "one again and again for 20 ms; medians. PyTorch "
        "runs in a process of its own on the same weights and data, with as many threads, as its "
        "libraries are used: without compilation. "
        "The truth is `exact_diagonal` in float64, itself held to one Hessian-vector product in "
        f"float64 for each of {CHECKED} random entries of every leaf, to within "
        f"{TRUTH_TOLERANCE:.0e}, on all examples of dense networks and the first 64 of "
        "convolutional ones. Nothing is timed before it has passed: an exact answer must be the "
        "truth to float32, an unbiased one must have its length along the truth within the "
        "standard error of its draws. Errors of more probes are those of means of draws, at as "
        f"many times the cost. Basis vectors are timed on a few entries ({entries}) and their time "
        "is scaled to all.",
        f"Command: `{origin.command}`; {frameworks}, on {rows[0]['device']}. The environment with "
        f"the peers in PyTorch: `{RECIPE}`.",
    ]
    return "\n\n".join(parts) + "\n"


def put_into_page(page: Path, table: str) -> None:
    """Replaces what stands between the marks of a page.

    Raises:
      UsageError: if the page does not have them.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"`docs` cannot be read: {page} ({error.strerror}).") from error
    begin, found, rest = text.partition(MARKS[0])
    _, ended, end = rest.partition(MARKS[1])
    if not found or not ended:
        raise UsageError(f"`docs` must hold the marks {MARKS[0]} and {MARKS[1]}; {page} does not.")
    write_whole(page, f"{begin}{MARKS[0]}\n\n{table}\n\n{MARKS[1]}{end}")
