"""Pictures of the study: every sweep on logarithmic axes, and the share of one device."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import NullLocator

from benchmarks.reporting.tables import short_number
from benchmarks.scaling.exponents import exponent, quantity, series
from benchmarks.tools.drawing import FAINT, INK, figure

COLOURS = {
    "gradient": "#7F8C99",
    "propagated": "#D55E00",
    "exact": "#0072B2",
    "select": "#009E73",
    "step": "#CC79A7",
    "patch": "#B8860B",
}
Row = dict[str, Any]


def draw_growth(path: Path, rows: Sequence[Row], field: str, title: str, unit: str) -> None:
    """A panel for each sweep, a line for each operation, with its fitted exponent."""
    sweeps = list(dict.fromkeys(row["sweep"] for row in rows))
    subtitle = f"In {unit}, with fitted exponents"
    with figure(path, (4 * len(sweeps), 4.6), title, subtitle) as canvas:
        axes = canvas.subplots(1, len(sweeps), squeeze=False)[0]
        for ax, sweep in zip(axes, sweeps, strict=True):
            for operation, colour in COLOURS.items():
                own = [row for row in series(rows, sweep, operation) if row[field]]
                if not own:
                    continue
                sizes, values = [quantity(row) for row in own], [row[field] for row in own]
                label = f"{operation}, {exponent(sizes, values):.2f}"
                ax.plot(sizes, values, "o-", color=colour, markersize=4, label=label)
            ax.set(xscale="log", yscale="log", title=f"against {sweep}", xlabel=sweep)
            every = sorted({quantity(row) for row in rows if row["sweep"] == sweep})
            ax.set_xticks(every, list(map(short_number, every)))
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_minor_locator(NullLocator())
            ax.tick_params(labelcolor=INK, length=0)
            ax.grid(color=FAINT)
            ax.set_axisbelow(True)
            ax.legend(frameon=False, fontsize=9)


def draw_devices(path: Path, rows: Sequence[Row]) -> None:
    """Operations of one device against the number of devices, with the even share."""
    subtitle = "Operations of one device over those of a single one, 512 examples"
    with figure(path, (7, 4.6), "Examples over devices", subtitle) as canvas:
        ax = canvas.subplots()
        counts = sorted({row["devices"] for row in rows})
        for operation in dict.fromkeys(row["operation"] for row in rows):
            own = sorted(
                (row for row in rows if row["operation"] == operation),
                key=lambda row: row["devices"],
            )
            work = [row["floating_point_operations"] for row in own]
            shares = [each / work[0] for each in work]
            label = f"{operation}, {exponent(counts, shares):.2f}"
            ax.plot(counts, shares, "o-", color=COLOURS[operation], label=label)
        ax.plot(counts, [1 / n for n in counts], "--", color=INK, label="an even share")
        ax.set(xscale="log", yscale="log", xlabel="devices")
        ax.set_xticks(counts, list(map(str, counts)))
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_minor_locator(NullLocator())
        ax.tick_params(labelcolor=INK, length=0)
        ax.grid(color=FAINT)
        ax.legend(frameon=False)
