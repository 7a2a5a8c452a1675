"""The picture of the study: what is forgotten and what is kept, against the number of entries."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from benchmarks.methods.ways import LIKE, PROPOSED
from benchmarks.reporting.curves import STYLES
from benchmarks.reporting.tables import plain_name, short_number
from benchmarks.secrets.problem import REMOVAL
from benchmarks.secrets.study import Study, references
from benchmarks.secrets.summary import Rows, of_plan
from benchmarks.secrets.updates import FULL, Plan
from benchmarks.tools.drawing import FAINT, INK, MUTED, figure

PANELS = {
    "memorisation": "forgotten secrets",
    "hidden_memorisation": "other secrets, not shown to the update",
}
REMOVAL_STYLE = ("#882255", "p")
MARKS = {
    "none": "*",
    "placeholder": "o",
    "other": "s",
    REMOVAL: "^",
    "first_order": "v",
    "second_order": "d",
    "grad_diff": "x",
    "npo": "+",
}
"""By the correction of the iterative update, or by another update."""
MARK_COLOURS = {
    "none": INK,
    "placeholder": "#0072B2",
    "other": "#009E73",
    REMOVAL: "#D55E00",
    "first_order": "#56B4E9",
    "second_order": "#CC79A7",
    "grad_diff": "#7F8C99",
    "npo": "#E69F00",
}


def draw_secrets(path: Path, study: Study, rows: Rows) -> None:
    """Exact memorisation against the number of entries, and of kept against forgotten secrets."""
    seeds = f"{study.seeds} seeds" if study.seeds > 1 else "one seed"
    with figure(
        path,
        (15.0, 6.0),
        "What a language model still knows of its secrets",
        f"{seeds}. Exact memorisation: the share of the characters that the model guesses right. "
        "Dotted: random entries, as many of each leaf.",
    ) as canvas:
        panels = canvas.subplots(1, 3)
        for ax, (field, title) in zip(panels, PANELS.items(), strict=False):
            ax.set_title(title)
            _draw_memorisation(ax, study, rows, field)
        _draw_trade(panels[2], study, rows)
        ways = {p.way.removeprefix(LIKE) for p in study.plans if p.entries}
        handles = [
            Line2D([], [], color=STYLES[way][0], marker=STYLES[way][1], label=plain_name(way))
            for way in STYLES
            if way in ways and way != "decrease"
        ]
        if REMOVAL in study.corrections[1:]:
            words = f"{plain_name(PROPOSED)}, {REMOVAL}"
            colour, marker = REMOVAL_STYLE
            handles.append(Line2D([], [], color=colour, marker=marker, label=words))
        canvas.legend(handles=handles, loc="outside lower left", ncols=5, frameon=False)


def _draw_memorisation(ax: Axes, study: Study, rows: Rows, field: str) -> None:
    first = study.corrections[0]
    ax.set_xscale("log")
    ax.set_ylim(-0.03, 1.06)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short_number(x)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.0f} %"))
    ax.set_xlabel("entries that change")
    ax.grid(axis="y", color=FAINT, linewidth=0.7)
    levels = {"retrained": references(first)[1], f"all, {first}": Plan(first, "iterative", FULL, 0)}
    for name, plan in levels.items():
        level = float(np.mean([row[field] for row in of_plan(rows, plan)]))
        ax.axhline(level, color=INK if name == "retrained" else MUTED, linewidth=0.9)
        ax.annotate(
            name,
            (1.0, level),
            (-4, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=9.5,
            ha="right",
        )
    drawn = (first, REMOVAL)
    few = [p for p in study.plans if p.update == "iterative" and p.entries]
    for correction, way in dict.fromkeys((p.correction, p.way) for p in few):
        if correction not in drawn:
            continue
        own = [p for p in few if (p.correction, p.way) == (correction, way)]
        values = [[row[field] for row in of_plan(rows, plan)] for plan in own]
        colour, marker = STYLES[way.removeprefix(LIKE)]
        if correction != first:
            colour, marker = REMOVAL_STYLE
        control = way.startswith(LIKE)
        ax.plot(
            [plan.entries for plan in own],
            [np.mean(each) for each in values],
            color=colour,
            marker=None if control else marker,
            linestyle=(0, (1, 1.5)) if control else "-",
            linewidth=2.4 if way == PROPOSED else 1.3,
        )


def _draw_trade(ax: Axes, study: Study, rows: Rows) -> None:
    """What is kept against what is forgotten, a mark for each way."""
    forgotten, kept = PANELS
    ax.set_title("kept (hidden) against forgotten")
    ax.set(xlim=(-0.03, 1.06), ylim=(-0.03, 1.06))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.0f} %"))
    ax.set_xlabel("forgotten secrets")
    ax.plot([0, 1], [0, 1], color=FAINT, linewidth=1)
    for plan in (*references(study.corrections[0]), *study.plans):
        own = of_plan(rows, plan)
        if not own:
            continue
        x, y = (float(np.mean([row[field] for row in own])) for field in (forgotten, kept))
        style = plan.correction if plan.update == "iterative" else plan.update
        ax.plot(x, y, MARKS[style], color=MARK_COLOURS[style], markersize=6.5, alpha=0.85)
        if plan.update == "none":
            ax.annotate(plan.way, (x, y), (4, 4), textcoords="offset points", fontsize=9.5)
    shown = dict.fromkeys(
        plan.correction if plan.update == "iterative" else plan.update for plan in study.plans
    )
    handles = [
        Line2D([], [], linestyle="", color=MARK_COLOURS[style], marker=MARKS[style], label=label)
        for style in shown
        for label in [plain_name(style)]
    ]
    ax.legend(handles=handles, frameon=False, fontsize=9.5, loc="lower right")
