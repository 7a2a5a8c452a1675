"""The pictures of the speed benchmark: cost on every network, and error against cost."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from benchmarks.tools.drawing import FAINT, INK, MUTED, figure

Row = dict[str, Any]


class Look(NamedTuple):
    """How a method is drawn; marks tell methods of the same colour apart."""

    colour: str
    mark: str
    on_costs: bool = False
    """Whether it stands in the picture of costs."""


# Okabe and Ito's palette: ours in strong colours, peers by library.
LOOKS = {
    ("sapsel_jax", "exact"): Look("#D55E00", "o", True),
    ("sapsel_jax", "propagated"): Look("#009E73", "o", True),
    ("sapsel_jax", "site probes"): Look("#0072B2", "o"),
    ("sapsel_jax", "Gauss-Newton"): Look("#D55E00", "s"),
    ("sapsel_jax", "sampled Gauss-Newton"): Look("#0072B2", "s"),
    ("sapsel_jax", "empirical Fisher"): Look("#D55E00", "x"),
    ("own baseline", "HesScale"): Look("#CC79A7", "D", True),
    ("jax", "basis vectors"): Look("#7F8C99", "o", True),
    ("jax", "jax.hessian"): Look("#7F8C99", "s"),
    ("optax", "hessian_diag"): Look("#7F8C99", "D"),
    ("matfree", "Hutchinson"): Look("#E69F00", "o"),
    ("matfree", "XDiag"): Look("#E69F00", "s"),
    ("kfac-jax", "Gauss-Newton"): Look("#E69F00", "x"),
    ("BackPACK", "DiagHessian"): Look("#56B4E9", "o", True),
    ("BackPACK", "DiagGGNExact"): Look("#56B4E9", "s"),
    ("BackPACK", "DiagGGNMC"): Look("#56B4E9", "D"),
    ("curvlinops", "Hutchinson"): Look("#333333", "o"),
    ("curvlinops", "XDiag"): Look("#333333", "s"),
    ("nngeometry", "FIM diagonal"): Look("#333333", "x"),
    ("asdl", "Fisher diagonal"): Look("#333333", "+"),
}
FLOOR = 3e-3
"""Errors below this are drawn here: that of an exact diagonal is rounding."""
COLUMNS = 3


def label(key: tuple[str, str]) -> str:
    """A method with its library where that is not ours."""
    library, method = key
    return method if library in ("sapsel_jax", "own baseline", "jax") else f"{library} {method}"


def draw_speed(path: Path, rows: Sequence[Row]) -> None:
    """A line for each network, a mark for each of the main methods, on an axis of cost."""
    networks = list(dict.fromkeys(row["network"] for row in rows))[::-1]
    subtitle = "Gradient equivalents; 1 is the gradient of the same loss on the same batch"
    with figure(path, (11, 2.1 + 0.5 * len(networks)), "A Hessian diagonal", subtitle) as canvas:
        ax = canvas.subplots()
        shown = {key: look for key, look in LOOKS.items() if look.on_costs}
        used = {}
        for i, network in enumerate(networks):
            own = [row for row in rows if row["network"] == network]
            own = [row for row in own if (row["library"], row["method"]) in shown]
            for place, row in enumerate(sorted(own, key=lambda r: r["gradient_equivalents"])):
                look = shown[row["library"], row["method"]]
                used[row["library"], row["method"]] = look
                value = row["gradient_equivalents"]
                ax.plot(value, i, look.mark, color=look.colour, markersize=7)
                ax.annotate(
                    f"{value:,.1f}" if value < 100 else f"{value:,.0f}",
                    (value, i),
                    (0, -10 if place % 2 else 10),
                    textcoords="offset points",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=look.colour,
                )
        for key, look in used.items():
            ax.plot([], [], look.mark, color=look.colour, label=label(key))
        ax.axvline(1, color=MUTED, linewidth=1)
        ax.set_xscale("log")
        ax.set_yticks(range(len(networks)), networks)
        ax.set_ylim(-0.6, len(networks) - 0.4)
        ax.tick_params(axis="y", labelcolor=INK, length=0)
        ax.grid(axis="x", color=FAINT)
        ax.set_axisbelow(True)
        ax.set_xlabel("gradient equivalents", color=MUTED)
        canvas.legend(loc="outside lower center", ncols=len(used), frameon=False, fontsize=9)


def draw_errors(path: Path, rows: Sequence[Row]) -> None:
    """Error against cost, a panel for each network with all methods, a line for each method."""
    networks = dict.fromkeys(row["network"] for row in rows)
    full = dict.fromkeys(row["network"] for row in rows if row["method"] == "HesScale") or networks
    height = math.ceil(len(full) / COLUMNS)
    columns = min(COLUMNS, len(full))
    title = "What an error costs"
    subtitle = "‖estimate − truth‖ / ‖truth‖ at 1, 4 and 16 probes; hollow: biased; bottom: exact"
    with figure(path, (4.6 * columns, 2.3 + 3.3 * height), title, subtitle) as canvas:
        axes = canvas.subplots(height, columns, squeeze=False, sharey=True)
        used = {}
        for ax, network in zip(axes.flat, full, strict=False):
            own = [row for row in rows if row["network"] == network]
            used |= _draw_network(ax, own)
            ax.set_title(network.replace(", ", ",\n", 1), fontsize=9)
            ax.set_xlabel("gradient equivalents", color=MUTED, fontsize=9)
        for ax in axes.flat[len(full) :]:
            ax.set_visible(False)
        for ax in axes[:, 0]:
            ax.set_ylabel("error", color=MUTED, fontsize=9)
        for key, look in used.items():
            axes[0, 0].plot([], [], look.mark + "-", color=look.colour, label=label(key))
        canvas.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)


def _draw_network(ax: Axes, rows: Sequence[Row]) -> dict[tuple[str, str], Look]:
    lines: dict[tuple[str, str], list[Any]] = {}
    biased = set()
    for row in rows:
        key = (row["library"], row["method"])
        if key in LOOKS and row["method"] != "basis vectors":
            points = [(p["gradient_equivalents"], max(p["error"], FLOOR)) for p in row["points"]]
            lines.setdefault(key, []).extend(points)
            if row["kind"] == "biased":
                biased.add(key)
    for key, points in lines.items():
        look = LOOKS[key]
        face = "none" if key in biased else look.colour
        style = {"color": look.colour, "markersize": 5, "linewidth": 1.2, "markerfacecolor": face}
        above = 3 if key[0] == "sapsel_jax" else 2
        ax.plot(*zip(*sorted(points), strict=True), look.mark + "-", zorder=above, **style)
    ax.axhline(FLOOR, color=MUTED, linewidth=0.8)
    ax.set(xscale="log", yscale="log")
    ax.xaxis.set_major_formatter("{x:,g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(color=FAINT)
    ax.set_axisbelow(True)
    return {key: LOOKS[key] for key in lines}
