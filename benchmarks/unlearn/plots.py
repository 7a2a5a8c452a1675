"""The pictures of a comparison: legible without colour, labelled where they are read."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from benchmarks.learning.settings import Settings
from benchmarks.measures.summary import Line
from benchmarks.methods.masks import METHODS
from benchmarks.methods.ways import LIKE
from benchmarks.reporting.curves import STYLES, draw_panel
from benchmarks.reporting.images import draw_images
from benchmarks.reporting.needed import Rows, measure_of
from benchmarks.reporting.palette import COLOURS
from benchmarks.reporting.tables import TITLES, WORDS, plain_name, short_number
from benchmarks.tools.drawing import FAINT, INK, MUTED, figure
from benchmarks.unlearn.comparison import Comparison
from benchmarks.unlearn.sparsity import COMPARED

LAYER_COLOURS = ["#0072B2", "#56B4E9", "#E69F00", "#CC79A7", "#009E73", "#7F8C99"]
MARKERS = {"first_order": "o", "second_order": "s", "iterative": "D"}
LOWEST, HIGHEST = -0.35, 1.2
"""The range of recoveries that is drawn; what lies outside stands at the edge with its figure."""
APART = 1.12
"""Marks of the same cost are set this factor apart, so that their bars can be told apart."""


def draw_all(folder: Path, comparison: Comparison, lines: Sequence[Line]) -> list[str]:
    """Writes every picture into `folder`.

    Returns:
      Their file names, in the order a report shows them.
    """
    settings = comparison.settings
    draw_few_entries(folder / "sparsity.png", comparison.sparsity_rows, settings)
    draw_recovery(folder / "recovery.png", lines)
    draw_accuracy(folder / "accuracy.png", lines)
    draw_masks(folder / "masks.png", comparison.facts["layer_shares"])
    draw_images(folder / "images.png", settings)
    return ["sparsity.png", "recovery.png", "accuracy.png", "masks.png", "images.png"]


def draw_few_entries(path: Path, rows: Rows, settings: Settings) -> None:
    """Recovery against the number of entries, to be read at a third of its size too."""
    seeds = f"{settings.seeds} seeds; bars: 95 % t intervals" if settings.seeds > 1 else "One seed"
    measure = WORDS[measure_of(settings.scenario)]
    with figure(
        path,
        (6.0, 5.2),
        "How few entries have to change",
        f"Recovery of {measure}: 0 % poisoned, 100 % retrained.\n"
        f"{seeds}. Dotted: random, as many in each leaf.",
        dpi=225,
    ) as canvas:
        ax = canvas.subplots()
        draw_panel(ax, rows, settings.scenario, settings.known, COMPARED)
        ax.set_xlabel(f"entries that change, of {rows[0]['total_entries']:,}")
        ax.set_xticks(sorted({row["count"] for row in rows if row["count"]}))
        ax.minorticks_off()
        handles = [
            Line2D(
                [],
                [],
                color=STYLES[way.removeprefix(LIKE)][0],
                marker=None if way.startswith(LIKE) else STYLES[way][1],
                linestyle=":" if way.startswith(LIKE) else "-",
                label="its control" if way.startswith(LIKE) else plain_name(way),
            )
            for way in COMPARED
        ]
        canvas.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)


def draw_recovery(path: Path, lines: Sequence[Line]) -> None:
    """Recovery towards retraining against cost, a panel per update and measure."""
    measures = sorted(lines[0].accuracies, key=lambda short: short not in lines[-1].recoveries)[:2]
    updates = [update for update in MARKERS if any(line.update == update for line in lines)]
    retraining = next(line.gradients for line in lines if line.method == "retrained")
    size = (12.0, 1.2 + 3.9 * len(updates))
    with figure(
        path,
        size,
        "How much is recovered, and at what cost",
        "Retraining from scratch is 100 %, the poisoned model 0 %. Bars: 95 % t intervals.",
    ) as canvas:
        axes = canvas.subplots(len(updates), len(measures), squeeze=False, sharex=True)
        costs = [line.gradients for line in lines if line.update != "none"]
        axes[0, 0].set_xscale("log")
        axes[0, 0].set_xlim(min(costs) / 16, max(retraining * 2, max(costs) * 90))
        for row, update in zip(axes, updates, strict=True):
            part = [line for line in lines if line.update == update]
            for ax, short in zip(row, measures, strict=True):
                _draw_recovery_panel(ax, part, short, retraining)
                ax.set_title(f"{TITLES[update]} · {WORDS[short]}", pad=20)
        for ax in axes[-1]:
            ax.set_xlabel("example gradients, selection and update together")


def _draw_recovery_panel(ax: Axes, lines: Sequence[Line], short: str, retraining: float) -> None:
    recoverable = all(short in line.recoveries for line in lines)
    values = [line.recoveries[short] if recoverable else line.gaps[short] for line in lines]
    aim = 1.0 if recoverable else 0.0
    means = [value.mean for value in values]
    spreads = [value.half_width or 0.0 for value in values]
    low, high = _limits(means, recoverable)
    ax.set_ylim(low, high)
    costs = [line.gradients for line in lines]
    ax.yaxis.set_major_formatter(
        lambda y, _: f"{100 * y:.0f} %" if recoverable else f"{100 * y:+.0f}"
    )
    ax.xaxis.set_major_formatter(lambda x, _: short_number(x))
    ax.grid(axis="y", color=FAINT, linewidth=0.7)
    ax.axhline(aim, color=INK, linewidth=1.0)
    ax.axvline(retraining, color=INK, linewidth=1.0, linestyle=(0, (2, 2)))
    ax.annotate(
        "retraining's cost",
        (retraining, 1.0),
        (0, 4),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="center",
        fontsize=9,
    ).set_in_layout(False)
    if not recoverable:
        ax.set_ylabel("points above the retrained model")
    right = max(costs) * 2.2
    for side, place in (("left", min(costs) / 1.7), ("right", right)):
        members = [i for i, line in enumerate(lines) if _side(line.method) == side]
        shown = [float(np.clip(means[i], low, high)) for i in members]
        heights = _spread(shown, (high - low) / 14, low, high)
        for rank, (i, y, height) in enumerate(zip(members, shown, heights, strict=True)):
            line, colour = lines[i], COLOURS.get(lines[i].method, MUTED)
            bold = line.method == "sharpest"
            outside = y != means[i]
            x = costs[i] * APART**rank
            ax.errorbar(x, means[i], yerr=spreads[i], color=colour, elinewidth=1.4, zorder=2)
            marker = MARKERS[line.update] if not outside else "v" if means[i] < low else "^"
            ax.plot(
                x,
                y,
                marker,
                color=colour,
                markersize=10 if bold else 8,
                markeredgecolor="white",
                clip_on=False,
                zorder=4 if bold else 3,
            )
            figure = f" ({100 * means[i]:.0f})" if outside else ""
            ax.annotate(
                plain_name(line.method) + figure,
                (x, y),
                (place, height),
                color=colour,
                fontsize=10,
                fontweight="bold" if bold else "normal",
                ha="right" if side == "left" else "left",
                va="center",
                bbox={"boxstyle": "round,pad=0.15", "color": "white", "alpha": 0.85},
                arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "alpha": 0.6},
                zorder=5,
            ).set_in_layout(False)


def _side(method: str) -> str:
    """Where the method's label stands: beside the cheap selections or beside the dear ones."""
    return "right" if METHODS[method].needs == "curvature" else "left"


def _limits(means: Sequence[float], recoverable: bool) -> tuple[float, float]:
    if recoverable:
        return max(LOWEST, min(*means, 0.0) - 0.08), min(HIGHEST, max(*means, 1.0) + 0.12)
    reach = min(0.4, max(0.05, *(1.3 * abs(mean) for mean in means)))
    return -reach, min(reach, max(0.02, *(1.6 * mean for mean in means)))


def _spread(heights: Sequence[float], distance: float, low: float, high: float) -> list[float]:
    """Heights at least `distance` apart, in the same order, near where they were, in the range."""
    order = np.argsort(heights)
    placed = np.array(heights, float)[order]
    for _ in range(200):
        for i in range(len(placed) - 1):
            overlap = distance - (placed[i + 1] - placed[i])
            if overlap > 0:
                placed[i] -= overlap / 2
                placed[i + 1] += overlap / 2
        placed += max(0.0, low - placed[0]) - max(0.0, placed[-1] - high)
    result = np.empty(len(placed))
    result[order] = placed
    return result.tolist()


def draw_accuracy(path: Path, lines: Sequence[Line]) -> None:
    """Every measure before and after, a row per method."""
    shorts = list(lines[0].accuracies)
    methods = [method for method in METHODS if any(line.method == method for line in lines)]
    with figure(
        path,
        (12.0, 1.9 + 0.66 * len(methods)),
        "Before and after",
        "From the poisoned model to the unlearned one: ○ first-order, □ second-order, ◆ iterative "
        "update. Bars: 95 % t intervals.",
    ) as canvas:
        axes = canvas.subplots(1, len(shorts), squeeze=False, sharey=True)[0]
        for ax, short in zip(axes, shorts, strict=True):
            _draw_accuracy_panel(ax, lines, methods, short)
        axes[0].set_yticks(range(len(methods)), [plain_name(method) for method in methods])
        axes[0].set_ylim(len(methods) - 0.4, -0.6)
        for label, method in zip(axes[0].get_yticklabels(), methods, strict=True):
            label.set_color(COLOURS.get(method, MUTED))
            label.set_fontweight("bold" if method == "sharpest" else "normal")


def _draw_accuracy_panel(
    ax: Axes, lines: Sequence[Line], methods: Sequence[str], short: str
) -> None:
    references = {
        line.method: line.accuracies[short].mean for line in lines if line.update == "none"
    }
    ax.set_title(WORDS[short], pad=24)
    ax.grid(axis="x", color=FAINT, linewidth=0.7)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.0f} %")
    for line in lines:
        if line.update == "none":
            continue
        value, colour = line.accuracies[short], COLOURS.get(line.method, MUTED)
        y = methods.index(line.method) + 0.24 * (list(MARKERS).index(line.update) - 1)
        ax.plot([references["poisoned"], value.mean], [y, y], color=colour, alpha=0.3, linewidth=4)
        ax.errorbar(
            value.mean,
            y,
            xerr=value.half_width,
            fmt=MARKERS[line.update],
            color=colour,
            markerfacecolor=colour if line.update == "iterative" else "white",
            markersize=7,
            elinewidth=1.2,
            zorder=4,
        )
    means = [line.accuracies[short].mean for line in lines]
    room = 0.28 * (max(means) - min(means)) + 0.01
    low, high = max(min(means) - room, -0.04), min(max(means) + room, 1.06)
    ax.set_xlim(low, high)
    _draw_references(ax, references)


def _draw_references(ax: Axes, references: dict[str, float]) -> None:
    """A line for each reference, its name on the side where there is room."""
    low, high = ax.get_xlim()
    first, second = sorted(references, key=lambda name: references[name])
    far_apart = references[second] - references[first] > 0.6 * (high - low)
    sides = ("left", "right") if far_apart else ("right", "left")
    for name, side in zip((first, second), sides, strict=True):
        at = references[name]
        style = "-" if name == "retrained" else (0, (2, 2))
        ax.axvline(at, color=INK, linewidth=1.0, linestyle=style, zorder=2)
        ax.annotate(
            f"{name} {100 * at:.0f} %",
            (at, 1.0),
            (3 if side == "left" else -3, 4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha=side,
            fontsize=9,
        )


def draw_masks(path: Path, shares: dict[str, dict[str, float]]) -> None:
    """Which layers the entries of each mask lie in."""
    layers = list(next(iter(shares.values())))
    with figure(
        path,
        (12.0, 1.7 + 0.5 * len(shares)),
        "Where the selected parameters lie",
        "Share of each mask's entries by layer, kernel and bias together; first reported seed.",
    ) as canvas:
        ax = canvas.subplots()
        for y, by_layer in enumerate(shares.values()):
            left = 0.0
            for layer, colour in zip(layers, LAYER_COLOURS, strict=False):
                share = by_layer[layer]
                ax.barh(y, share, left=left, height=0.72, color=colour, edgecolor="white")
                if share > 0.055:
                    name = f"{layer}  " if share > 0.13 else ""
                    text_colour = INK if colour in ("#56B4E9", "#E69F00") else "white"
                    text = f"{name}{100 * share:.0f} %"
                    place = (left + share / 2, y)
                    ax.text(*place, text, ha="center", va="center", color=text_colour, fontsize=10)
                left += share
        names = ["all parameters" if m == "full" else plain_name(m) for m in shares]
        ax.set_yticks(range(len(shares)), names)
        ax.invert_yaxis()
        ax.set_xlim(0, 1)
        ax.set_xticks([])
        for spine in ax.spines.values():
            spine.set_visible(False)
        ax.tick_params(length=0, labelcolor=INK)
        handles = [
            Patch(color=colour, label=layer)
            for layer, colour in zip(layers, LAYER_COLOURS, strict=False)
        ]
        ax.legend(
            handles=handles,
            ncols=len(layers),
            loc="upper left",
            bbox_to_anchor=(0, 0.01),
            frameon=False,
            handlelength=1,
            handleheight=1,
        )
