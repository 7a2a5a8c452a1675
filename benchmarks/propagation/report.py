"""Tables and pictures of the measurements of curvature propagation."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.ticker

from benchmarks.measures.diagonals import FRACTIONS
from benchmarks.reporting.tables import markdown_table
from benchmarks.tools.drawing import FAINT, INK, MUTED, figure
from benchmarks.tools.origin import Origin
from benchmarks.tools.page import opening

Row = dict[str, Any]
WANTED = 0.95
"""The overlap of masks that is asked for."""
GOALS = {
    "relu mlp": (2.0, 0.18, 0.99),
    "tanh mlp": (2.5, 0.28, 0.97),
    "gelu mlp": (3.0, 0.30, 0.90),
    "relu cnn": (2.0, 0.15, 0.98),
    "gelu cnn": (3.0, 0.25, 0.96),
    "attention": (4.0, 0.40, 0.85),
}
"""At most this cost and error, at least this rank correlation, with one probe."""
COLOURS = {
    "relu mlp": "#0072B2",
    "tanh mlp": "#009E73",
    "gelu mlp": "#D55E00",
    "relu cnn": "#56B4E9",
    "gelu cnn": "#E69F00",
    "attention": "#CC79A7",
}
OURS, OTHER = "#D55E00", "#7F8C99"


def part(rows: Sequence[Row], name: str) -> list[Row]:
    """The rows about one thing."""
    return [row for row in rows if row["part"] == name]


def percent(share: float) -> str:
    """A share in per cent."""
    return f"{100 * share:.0f}" if share < 0.995 else f"{100 * share:.1f}"


def quality_table(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Cost and quality of one probe."""
    headings = (
        *("network", "entries", "cost", "exact costs", "error", "rank correlation"),
        *(f"top {100 * f:.0f} %" for f in FRACTIONS),
        *("captured", "goals"),
    )
    return headings, [
        (
            f"{row['network']}, {row['dataset']}",
            f"{row['entries']:,}",
            f"{row['cost']:.2f}",
            f"{row['exact_cost']:.1f}",
            f"{row['error']:.3f}",
            f"{row['rank_correlation']:.3f}",
            *(percent(row["overlap"][str(f)]) for f in FRACTIONS),
            percent(row["captured"]),
            _goals(row),
        )
        for row in part(rows, "quality")
    ]


def _goals(row: Row) -> str:
    cost, error, correlation = GOALS[row["network"]]
    missed = [
        name
        for name, met in {
            f"cost {cost}": row["cost"] <= cost,
            f"error {error}": row["error"] <= error,
            f"rank correlation {correlation}": row["rank_correlation"] >= correlation,
        }.items()
        if not met
    ]
    return f"missed: {', '.join(missed)}" if missed else "met"


def _probes_table(rows: Sequence[Row]) -> str:
    """How many probes it takes for masks that agree with those of the exact diagonal."""
    columns = [f"top {100 * f:.0f} %" for f in FRACTIONS]
    found = part(rows, "probes")
    cells = []
    for dataset, name in dict.fromkeys((row["dataset"], row["network"]) for row in found):
        mine = [row for row in found if (row["dataset"], row["network"]) == (dataset, name)]
        most = max(row["probes"] for row in mine)
        cells.append(
            (f"{name}, {dataset}", *(_first_above(mine, f, "probes", most) for f in FRACTIONS))
        )
    return markdown_table(("network", *columns), cells)


def _examples_table(rows: Sequence[Row]) -> str:
    """How many examples it takes for masks that agree with those of all examples."""
    found = part(rows, "examples")
    most = found[0]["of"]
    cells = []
    for name in dict.fromkeys(row["network"] for row in found):
        for method in ("exact", "propagated"):
            mine = [r for r in found if (r["network"], r["method"]) == (name, method)]
            cells.append(
                (f"{name}, {method}", *(_first_above(mine, f, "examples", most) for f in FRACTIONS))
            )
    columns = [f"top {100 * f:.0f} %" for f in FRACTIONS]
    return markdown_table(("network", *columns), cells)


def _first_above(rows: Sequence[Row], fraction: float, of: str, most: int) -> str:
    enough = [row[of] for row in rows if row["overlap"][str(fraction)] >= WANTED]
    return f"{min(enough):,}" if enough else f"over {most:,}"


def _rules_table(rows: Sequence[Row]) -> str:
    """The error of one probe without each rule."""
    found = part(rows, "rules")
    names = list(dict.fromkeys(row["network"] for row in found))
    errors = {(row["without"], row["network"]): row["error"] for row in found}
    cells = [
        (without, *(f"{errors[without, n]:.3f}" if (without, n) in errors else "" for n in names))
        for without in dict.fromkeys(row["without"] for row in found)
    ]
    return markdown_table(("without", *names), cells)


def _table(rows: Sequence[Row], name: str, columns: dict[str, Callable[[Row], str]]) -> str:
    cells = [[form(row) for form in columns.values()] for row in part(rows, name)]
    return markdown_table(list(columns), cells)


def _in_short(rows: Sequence[Row]) -> str:
    costs, ranks = ([row[name] for row in rows] for name in ("cost", "rank_correlation"))
    return (
        f"One probe costs {min(costs):.2f} to {max(costs):.2f} gradients. Its rank correlation "
        f"with the exact diagonal is {min(ranks):.3f} to {max(ranks):.3f}, on {len(rows)} networks."
    )


def report(rows: Sequence[Row], origin: Origin) -> str:
    """The report as Markdown."""
    headings, cells = quality_table(rows)
    parts = [
        "# Curvature propagation",
        opening(
            "How near one pass over a network comes to its Hessian diagonal, and what it costs.",
            "One probe of `propagated_diagonal` was compared with the exact diagonal of networks "
            "that were trained on digits.",
            _in_short(part(rows, "quality")),
            first="What was asked",
        ),
        "One probe of `propagated_diagonal` on networks trained on handwritten digits: 512 "
        "examples of scikit-learn's, 2,000 of MNIST. Cost is in gradient equivalents: time over "
        "that of one compiled gradient of the same mean loss on the same batch, timed in turn, the "
        "least of up to 200 runs each. The rank correlation is Spearman's, over all entries. The "
        "error is the distance to the exact diagonal over its length. The columns after it are, in "
        "per cent, the share of the entries with the largest curvature that both agree on, and the "
        "curvature that the mask of 5 % captures of what the best one does.",
        markdown_table(headings, cells),
        "## The masks it selects",
        f"Probes for an overlap of {percent(WANTED)} % with the mask of the exact diagonal of the "
        "same examples, among powers of two.",
        "![masks](masks.png)",
        _probes_table(rows),
    ]
    if part(rows, "examples"):
        parts += [
            f"Examples for an overlap of {percent(WANTED)} % with the mask of the exact diagonal "
            f"of all {part(rows, 'examples')[0]['of']:,}: the exact diagonal and one probe.",
            "![examples](examples.png)",
            _examples_table(rows),
        ]
    parts += [
        "## Depth",
        "tanh networks 64-32-...-32-10 on 512 digits.",
        "![depth](depth.png)",
        _table(
            rows,
            "depth",
            {
                "layers": lambda row: str(row["layers"]),
                "one pass": lambda row: f"{row['propagated']:.1f}",
                "one product per site": lambda row: f"{row['product per site']:.1f}",
            },
        ),
        "Residual tanh layers of width 32 in one `lax.scan`, on the same digits. Memory is what "
        "the compiled program holds beside its arguments and results; the spread is the standard "
        "error of one probe over the length of the diagonal, from 64 probes.",
        _table(
            rows,
            "stack",
            {
                "layers in a scan": lambda row: str(row["layers"]),
                "one pass": lambda row: f"{row['cost']:.1f}",
                "memory, MB": lambda row: f"{row['megabytes']:.1f}",
                "of a gradient, MB": lambda row: f"{row['gradient_megabytes']:.1f}",
                "compiled in, s": lambda row: f"{row['compile_seconds']:.1f}",
                "spread": lambda row: f"{row['spread']:.2f}",
            },
        ),
        "## What each rule buys",
        "The error of one probe with one rule taken away; empty where a network has no block "
        "for it.",
        _rules_table(rows),
    ]
    if part(rows, "large"):
        parts += [
            "## Large networks",
            "On random images of 32×32×3; memory is what the compiled program holds beside its "
            "arguments and results.",
            _table(
                rows,
                "large",
                {
                    "network": lambda row: row["network"],
                    "entries": lambda row: f"{row['entries']:,}",
                    "examples": lambda row: str(row["examples"]),
                    "microbatch": lambda row: str(row["microbatch"]),
                    "cost": lambda row: f"{row['cost']:.1f}",
                    "memory, MB": lambda row: f"{row['megabytes']:,.0f}",
                    "compiled in, s": lambda row: f"{row['compile_seconds']:.0f}",
                },
            ),
        ]
    parts += [
        "## Several probes",
        "At once, as the library runs them by default, and in turn.",
        _table(
            rows,
            "loops",
            {
                "network": lambda row: row["network"],
                "probes": lambda row: str(row["probes"]),
                "way": lambda row: row["way"],
                "cost": lambda row: f"{row['cost']:.1f}",
                "memory, MB": lambda row: f"{row['megabytes']:,.0f}",
            },
        ),
        f"Command: `{origin.command}`, {origin.versions('jax')}, on {origin.software['device']}.",
    ]
    return "\n\n".join(parts) + "\n"


def draw(folder: Path, rows: Sequence[Row]) -> None:
    """All pictures."""
    _draw_depth(folder / "depth.png", part(rows, "depth"))
    _draw_masks(folder / "masks.png", [r for r in part(rows, "probes") if r["dataset"] == "digits"])
    if part(rows, "examples"):
        _draw_examples(folder / "examples.png", part(rows, "examples"))


def _draw_depth(path: Path, rows: Sequence[Row]) -> None:
    title = "The Hessian diagonal of deep networks"
    subtitle = "Gradient equivalents on 512 digits, tanh networks of width 32"
    with figure(path, (9, 5), title, subtitle) as canvas:
        ax = canvas.subplots()
        layers = [row["layers"] for row in rows]
        for name, label, colour in (
            ("product per site", "one product\nper site", OTHER),
            ("propagated", "one pass", OURS),
        ):
            costs = [row[name] for row in rows]
            ax.plot(layers, costs, "o-", color=colour, linewidth=2)
            ax.annotate(
                f"{costs[-1]:.1f} {label}",
                (layers[-1], costs[-1]),
                (10, 0),
                textcoords="offset points",
                va="center",
                color=colour,
            )
        _even(ax, layers)
        ax.set(
            xlabel="layers", ylabel="gradient equivalents", xlim=(layers[0] / 1.2, layers[-1] * 2)
        )
        ax.set_ylim(0, ax.get_ylim()[1])


def _draw_masks(path: Path, rows: Sequence[Row]) -> None:
    title = "Masks from estimates against masks from the exact diagonal"
    subtitle = "Share of the selected entries that are the same, networks trained on digits"
    with figure(path, (11, 4.6), title, subtitle) as canvas:
        axes = canvas.subplots(1, len(FRACTIONS), sharey=True)
        for ax, fraction in zip(axes, FRACTIONS, strict=True):
            for name, colour in COLOURS.items():
                mine = [row for row in rows if row["network"] == name]
                if mine:
                    probes = [row["probes"] for row in mine]
                    shares = [100 * row["overlap"][str(fraction)] for row in mine]
                    ax.plot(probes, shares, "o-", color=colour, markersize=4, label=name)
            _even(ax, sorted({row["probes"] for row in rows}))
            ax.axhline(100 * WANTED, color=MUTED, linewidth=1)
            ax.set(title=f"top {100 * fraction:.0f} %", xlabel="probes")
        axes[0].set_ylabel("per cent")
        handles, labels = axes[0].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)


def _draw_examples(path: Path, rows: Sequence[Row]) -> None:
    title = "Masks from fewer examples"
    subtitle = (
        f"Top 5 %: share in per cent of the mask of the exact diagonal of {rows[0]['of']:,} digits"
    )
    names = list(dict.fromkeys(row["network"] for row in rows))
    shape = (-(-len(names) // 3), min(3, len(names)))
    with figure(path, (11, 1.8 + 3 * shape[0]), title, subtitle) as canvas:
        axes = canvas.subplots(*shape, sharex=True, sharey=True, squeeze=False).ravel()
        for ax in axes[len(names) :]:
            ax.set_visible(False)
        for ax, name in zip(axes, names, strict=False):
            for method, label, colour in (
                ("exact", "exact diagonal", OTHER),
                ("propagated", "one probe", OURS),
            ):
                mine = [r for r in rows if (r["network"], r["method"]) == (name, method)]
                counts = [row["examples"] for row in mine]
                shares = [100 * row["overlap"]["0.05"] for row in mine]
                ax.plot(counts, shares, "o-", color=colour, markersize=4, label=label)
            _even(ax, counts)
            ax.axhline(100 * WANTED, color=MUTED, linewidth=1)
            ax.set(title=name, xlabel="examples")
            ax.tick_params(labelbottom=True)
        handles, labels = axes[0].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)


def _even(ax: Any, counts: Sequence[int]) -> None:
    """A logarithmic axis with these counts as ticks."""
    ax.set_xscale("log", base=2)
    ax.set_xticks(counts, [f"{count:,}" for count in counts])
    ax.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    ax.tick_params(labelcolor=INK, length=0)
    ax.grid(axis="y", color=FAINT)
    ax.set_axisbelow(True)
