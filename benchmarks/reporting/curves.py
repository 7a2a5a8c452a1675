"""Pictures of recovery against the number of entries that change."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from benchmarks.methods.ways import LIKE, PROPOSED
from benchmarks.reporting.needed import GOAL, Rows, curve, measure_of, restored_by_all
from benchmarks.reporting.palette import COLOURS
from benchmarks.reporting.tables import plain_name, short_number
from benchmarks.tools.drawing import FAINT, INK, figure
from benchmarks.tools.statistics import interval

# Colour and marker, so that a curve is known without its colour.
STYLES: dict[str, tuple[str, str]] = {
    PROPOSED: (INK, "o"),
    "change_in_stages": ("#E69F00", "D"),
    "change": ("#0072B2", "d"),
    "length": ("#56B4E9", "v"),
    "decrease": ("#CC79A7", "P"),
    "sharpest": (COLOURS["sharpest"], "s"),
    "saliency": (COLOURS["saliency"], "^"),
    "random": (COLOURS["random"], "x"),
}
FEW = 6
"""Up to so many numbers of entries each has a tick of its own."""
LOWEST = -0.15
"""The least recovery that is drawn."""


def draw_sparsity(
    path: Path, title: str, rows: Rows, scenarios: Sequence[str], known: float, ways: Sequence[str]
) -> None:
    """A panel per scenario."""
    columns = min(2, len(scenarios))
    rows_of_panels = -(-len(scenarios) // columns)
    num_seeds = len({row["seed"] for row in rows})
    seeds = f"{num_seeds} seeds; bars: 95 % t intervals" if num_seeds > 1 else "one seed"
    with figure(
        path,
        (max(10.5, 6.8 * columns), 4.6 * rows_of_panels + 1.4),
        title,
        f"0 %: the poisoned model; 100 %: retrained from scratch; {seeds}. Dotted: random entries, "
        "as many of each leaf.",
    ) as canvas:
        panels = list(canvas.subplots(rows_of_panels, columns, squeeze=False, sharey=True).flat)
        for ax in panels[len(scenarios) :]:
            ax.set_visible(False)
        for ax, scenario in zip(panels, scenarios, strict=False):
            draw_panel(ax, rows, scenario, known, ways)
            words = {"forget": "forget accuracy", "attack": "attack success"}
            ax.set_title(f"{scenario}: {words[measure_of(scenario)]}")
        handles = [
            Line2D([], [], color=colour, marker=marker, label=plain_name(way))
            for way, (colour, marker) in STYLES.items()
            if way in ways
        ]
        canvas.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)


def draw_panel(ax: Axes, rows: Rows, scenario: str, known: float, ways: Sequence[str]) -> None:
    """Recovery against the number of entries in one scenario, a curve per way."""
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short_number(x)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.0f} %"))
    ax.set_xlabel("entries that change")
    ax.grid(axis="y", color=FAINT, linewidth=0.7)
    whole = list(restored_by_all(rows, scenario, known).values())
    if not whole:
        ax.text(0.5, 0.5, "nothing to restore", transform=ax.transAxes, ha="center")
        return
    level = interval(whole).mean
    # One name above its line and one below, so that they stand apart where the lines do not.
    for height, text, up in (
        (level, "all entries", 2),
        (GOAL * level, f"{100 * GOAL:.0f} % of it", -11),
    ):
        ax.axhline(height, color=INK, linewidth=0.9, alpha=0.7)
        ax.annotate(
            text,
            (0.0, height),
            (4, up),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=9.5,
        )
    tried = curve(rows, scenario, known, PROPOSED).counts
    if 0 < len(tried) <= FEW:
        ax.set_xticks(tried)
        ax.minorticks_off()
    for way in ways:
        colour, marker = STYLES[way.removeprefix(LIKE)]
        found = curve(rows, scenario, known, way)
        bold, control = way == PROPOSED, way.startswith(LIKE)
        line: Any = (0, (1, 1.5)) if control else "-"
        ax.errorbar(
            found.counts,
            [max(value.mean, LOWEST) for value in found.recoveries],
            yerr=None if control else [value.half_width or 0.0 for value in found.recoveries],
            color=colour,
            marker=None if control else marker,
            linestyle=line,
            linewidth=2.4 if bold else 1.3,
            markersize=6.5 if bold else 5,
            elinewidth=0.8,
            zorder=5 if bold else 3,
            alpha=0.8 if control else 1,
        )
    ax.set_ylim(LOWEST - 0.03, max(1.12, level + 0.1))
