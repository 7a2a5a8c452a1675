"""The pictures of the study: recovery against fraction, what rankings gain, how steady they are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from benchmarks.ablation.findings import Comparison, Findings
from benchmarks.methods.rankings import LIKE, RANKED
from benchmarks.reporting.palette import COLOURS
from benchmarks.reporting.tables import SHORT_TITLES, TITLES, plain_name
from benchmarks.tools.drawing import FAINT, INK, MUTED, figure
from benchmarks.tools.statistics import Interval

SHARPEST_CONTROL = f"{LIKE}sharpest"
# Colour, marker and line, so that a curve is known without its colour.
STYLES: dict[str, tuple[str, str, Any]] = {
    "sharpest": (COLOURS["sharpest"], "o", "-"),
    "sharpest_per_leaf": (COLOURS["sharpest"], "s", (0, (4, 2))),
    SHARPEST_CONTROL: (COLOURS["random_like_sharpest"], "o", (0, (1, 1.5))),
    "random": (COLOURS["random"], "x", (0, (1, 1.5))),
    "flattest": (COLOURS["flattest"], "v", "-"),
    "predicted_decrease": ("#0072B2", "D", "-"),
    "newton_step": ("#0072B2", "^", (0, (4, 2))),
    "brain_damage": ("#CC79A7", "P", "-"),
    "saliency": (COLOURS["saliency"], "D", "-"),
    "fisher_ratio": (COLOURS["saliency"], "^", (0, (4, 2))),
    "magnitude": ("#5B4A3F", "X", "-"),
}
LOWEST = -0.25
"""The least recovery that is drawn."""


def draw_recovery(path: Path, title: str, findings: Findings) -> None:
    """Recovery against the share of the parameters that changes, a panel per update."""
    seeds = f"{findings.num_seeds} seeds" if findings.num_seeds > 1 else "One seed"
    bars = ". Bars: 95 % t intervals" if findings.num_seeds > 1 else ""
    with figure(
        path,
        (13.0, 9.6),
        f"{title}: recovery by share of the parameters",
        f"0 %: the poisoned model; 100 %: retrained from scratch. {seeds}{bars}.",
    ) as canvas:
        axes = canvas.subplots(2, 2, sharex=True, sharey=True)
        for ax in axes.flat[len(findings.updates) :]:
            ax.set_visible(False)
        for ax, update in zip(axes.flat, findings.updates, strict=False):
            _draw_recovery_panel(ax, findings, update, findings.fractions)
        for ax in axes[-1]:
            ax.set_xlabel("share of the parameters that the mask selects")
        handles = [
            Line2D([], [], color=colour, marker=marker, linestyle=line, label=plain_name(method))
            for method, (colour, marker, line) in STYLES.items()
        ]
        canvas.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)


def _draw_recovery_panel(
    ax: Axes, findings: Findings, update: str, fractions: Sequence[float]
) -> None:
    ax.set_title(TITLES[update])
    ax.set_xscale("log")
    ax.set_xticks(fractions, [f"{100 * fraction:g} %" for fraction in fractions])
    ax.minorticks_off()
    ax.set_xlim(fractions[0] / 1.35, fractions[-1] * 2.6)
    ax.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f} %")
    ax.grid(axis="y", color=FAINT, linewidth=0.7)
    ends = {"full": "all", "last_layer": "last layer"}
    heights = {name: findings.recoveries[name, None, update].mean for name in ends}
    close = abs(heights["full"] - heights["last_layer"]) < 0.07
    for name, words in ends.items():
        y, higher = heights[name], name == max(heights, key=lambda n: heights[n])
        ax.axhline(max(y, LOWEST), color=INK, linewidth=1.1, alpha=0.8)
        text = f"{words} {round(100 * y)} %"
        place = (1.0, max(y, LOWEST))
        lift = (2 if higher else -2) if close else 2
        anchor = "bottom" if lift > 0 else "top"
        ax.annotate(
            text,
            place,
            (0, lift),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            va=anchor,
            fontsize=9,
        ).set_in_layout(False)
    for i, (method, (colour, marker, line)) in enumerate(STYLES.items()):
        values = [findings.recoveries[method, fraction, update] for fraction in fractions]
        shift = 1.022 ** (i - len(STYLES) / 2)
        bold = method == "sharpest"
        ax.errorbar(
            [fraction * shift for fraction in fractions],
            [value.mean for value in values],
            yerr=[value.half_width or 0.0 for value in values],
            color=colour,
            marker=marker,
            linestyle=line,
            linewidth=2.2 if bold else 1.3,
            markersize=7 if bold else 5.5,
            markeredgecolor="white",
            markeredgewidth=0.5,
            elinewidth=0.9,
            zorder=5 if bold else 3,
        )
    ax.set_ylim(LOWEST - 0.03, 1.12)


def draw_gains(
    path: Path, parts: Sequence[Findings], titles: dict[str, str], fraction: float
) -> None:
    """What each ranking gains over its control, by part and update, as a map of numbers."""
    columns = [(f.part, update) for f in parts for update in f.updates]
    found = {
        (c.method, c.part, c.update): c
        for f in parts
        for c in f.controlled
        if c.fraction == fraction
    }
    with figure(
        path,
        (max(9.0, 2.4 + 0.58 * len(columns)), 5.8),
        f"What a ranking adds to its choice of layers, at {100 * fraction:g} % of the parameters",
        "Points above its control. On colour: survives Holm's correction over the part's table.",
    ) as canvas:
        ax = canvas.subplots()
        for x, (part, update) in enumerate(columns):
            for y, method in enumerate(RANKED):
                comparison = found.get((method, part, update))
                if comparison is not None:
                    _draw_gain(ax, x, y, comparison)
        ax.set_xlim(-0.5, len(columns) - 0.5)
        ax.set_ylim(len(RANKED) - 0.5, -0.5)
        ax.set_yticks(range(len(RANKED)), [plain_name(method) for method in RANKED])
        words = [SHORT_TITLES[update] for _, update in columns]
        ax.set_xticks(range(len(columns)), words, rotation=90, fontsize=9)
        ax.tick_params(length=0, labelcolor=INK)
        left = -0.5
        for f in parts:
            if left > 0:
                ax.axvline(left, color=INK, linewidth=1.0)
            ax.text(
                left + len(f.updates) / 2,
                -0.62,
                titles[f.part].replace(", ", "\n"),
                ha="center",
                va="bottom",
                fontsize=9,
                linespacing=1.3,
            )
            left += len(f.updates)
        for spine in ax.spines.values():
            spine.set_visible(False)


def _draw_gain(ax: Axes, x: int, y: int, comparison: Comparison) -> None:
    points = 100 * comparison.difference.mean
    strength = min(1.0, abs(points) / 20)
    colour = np.array([0.0, 0.45, 0.70] if points > 0 else [0.84, 0.37, 0.0])
    shade = 1 - (0.25 + 0.75 * strength) * (1 - colour) if comparison.survives else np.ones(3)
    ax.fill_between([x - 0.48, x + 0.48], y - 0.46, y + 0.46, color=tuple(shade), linewidth=0)
    dark = comparison.survives and strength > 0.55
    ax.text(
        x,
        y,
        f"{points:+.0f}" if abs(points) >= 9.95 else f"{points:+.1f}",
        ha="center",
        va="center",
        fontsize=9,
        color="white" if dark else INK if comparison.survives else MUTED,
        fontweight="bold" if comparison.survives else "normal",
    )


def draw_stability(
    path: Path, overlaps: dict[tuple[str, str], Interval], kinds: dict[str, str], fraction: float
) -> None:
    """The overlap of masks for each method and kind of change, a panel per kind."""
    methods = list(dict.fromkeys(method for method, _ in overlaps))
    chance = fraction / (2 - fraction)
    with figure(
        path,
        (13.0, 1.9 + 0.42 * len(methods)),
        f"How steady the top {100 * fraction:g} % are",
        "Jaccard overlap of two masks, 95 % t intervals over all models and seeds. Dotted: "
        "two random masks.",
    ) as canvas:
        axes = canvas.subplots(1, len(kinds), sharey=True)
        for ax, kind in zip(axes, kinds, strict=True):
            ax.set_title(kind)
            ax.set_xlim(0, 1.12)
            ax.set_xticks([0, 0.5, 1])
            ax.set_axisbelow(True)
            ax.grid(axis="x", color=FAINT, linewidth=0.7)
            ax.axvline(chance, color=INK, linewidth=1.0, linestyle=(0, (1, 1.5)))
            ax.spines["left"].set_visible(False)
            ax.tick_params(axis="y", length=0, labelcolor=INK)
            for y, method in enumerate(methods):
                if (method, kind) not in overlaps:
                    continue
                value = overlaps[method, kind]
                colour = COLOURS["sharpest"] if method.startswith("sharpest") else "#0072B2"
                ax.barh(y, value.mean, height=0.62, color=colour, alpha=0.85)
                spread = value.half_width or 0.0
                ax.errorbar(value.mean, y, xerr=spread, color=INK, elinewidth=1.0)
                ax.text(
                    min(value.mean + spread, 1.0) + 0.02,
                    y,
                    f"{value.mean:.2f}",
                    va="center",
                    fontsize=9,
                )
        axes[0].set_yticks(range(len(methods)), [plain_name(method) for method in methods])
        axes[0].set_ylim(len(methods) - 0.5, -0.5)
