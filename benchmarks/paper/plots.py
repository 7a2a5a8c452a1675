"""The pictures of the comparison: distances to retraining, relearning, the frontier."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from benchmarks.paper.contest import REFERENCES, Arm, Contest
from benchmarks.paper.procedures import PROPOSED
from benchmarks.paper.summary import FORGET_MEASURE, OUR_PREFIXES, Rows, of, standing, standings
from benchmarks.reporting.images import draw_images
from benchmarks.reporting.tables import WORDS, plain_name
from benchmarks.tools.drawing import FAINT, INK, MUTED, figure
from benchmarks.tools.statistics import interval

OURS, SHARPEST, OTHERS = "#D55E00", "#009E73", "#0072B2"
CURVES = {
    PROPOSED: (OURS, "-"),
    f"{PROPOSED}_perturbed": ("#E69F00", "-"),
    "sharpest": (SHARPEST, "-"),
    "full": (OTHERS, "-"),
    "last_layer": ("#CC79A7", "-"),
    "salun": ("#56B4E9", "--"),
    "scrub": ("#7F8C99", "--"),
    "poisoned": (INK, ":"),
    "retrained": (INK, "-"),
}
FRONTIER = {PROPOSED: OURS, "sharpest": SHARPEST, "full": OTHERS}
MOST_POINTS = 0.45
"""Gaps beyond this are drawn at the edge."""


def draw_paper(folder: Path, contest: Contest, rows: Rows) -> dict[str, str]:
    """Writes every picture; returns file names by what they show."""
    pictures = {}
    for scenario, settings in contest.settings.items():
        name = f"images-{scenario}.png"
        draw_images(folder / name, settings)
        pictures[f"images {scenario}"] = name
    scenarios = [s for s in contest.settings if any(row["scenario"] == s for row in rows)]
    _draw_gaps(folder / "gaps.png", rows, scenarios, contest.arms)
    _draw_relearning(folder / "relearning.png", rows, scenarios, contest.arms)
    pictures |= {"gaps": "gaps.png", "relearning": "relearning.png"}
    wide = [s for s in scenarios if s in contest.frontier_scenarios]
    if contest.frontier and wide:
        _draw_frontier(folder / "frontier.png", rows, wide, contest)
        pictures["frontier"] = "frontier.png"
    return pictures


def _colour(method: str) -> str:
    if method.startswith(("decrease", "newton_step")):
        return OURS
    return SHARPEST if method.startswith("sharpest") else OTHERS


def _draw_gaps(path: Path, rows: Rows, scenarios: Sequence[str], arms: Sequence[Arm]) -> None:
    """How far each procedure is from retraining, a panel per scenario."""
    methods = ["poisoned", *(arm.method for arm in arms)]
    with figure(
        path,
        (max(8.0, 3.3 * len(scenarios) + 2.4), 2.1 + 0.3 * len(methods)),
        "How far from retraining",
        "Points from the retrained model: ◆ forget measure, ○ test accuracy. Bars: 95 % t "
        "intervals.",
    ) as canvas:
        axes = canvas.subplots(1, len(scenarios), squeeze=False, sharey=True)[0]
        for ax, scenario in zip(axes, scenarios, strict=True):
            short = FORGET_MEASURE[scenario]
            for each in standings(rows, scenario, arms):
                if each.method == "retrained":
                    continue
                _draw_gap_row(ax, rows, scenario, each.method, methods, arms, short)
            ax.set_title(f"{scenario} · {WORDS[short]}", pad=10)
            ax.set_xlim(-0.01, MOST_POINTS)
            ax.xaxis.set_major_formatter(lambda x, _: f"{round(100 * x, 1):g}")
            ax.grid(axis="both", color=FAINT, linewidth=0.7)
            ax.axvline(0, color=INK, linewidth=1)
            ax.tick_params(axis="y", length=0)
            ax.set_xlabel("points from the retrained model")
        axes[0].set_yticks(range(len(methods)), [plain_name(method) for method in methods])
        axes[0].set_ylim(len(methods) - 0.4, -0.6)
        for label, method in zip(axes[0].get_yticklabels(), methods, strict=True):
            label.set_color(MUTED if method == "poisoned" else _colour(method))
            label.set_fontweight("bold" if method.startswith(OUR_PREFIXES) else "normal")


def _draw_gap_row(
    ax: Axes,
    rows: Rows,
    scenario: str,
    method: str,
    methods: Sequence[str],
    arms: Sequence[Arm],
    short: str,
) -> None:
    arm = next((arm for arm in arms if arm.method == method), Arm(method, 1.0, 1.0))
    own = of(rows, scenario, arm)
    colour = INK if method in REFERENCES else _colour(method)
    for measure, marker, shift in ((short, "D", -0.15), ("test", "o", 0.15)):
        value = interval([abs(row[f"{measure}_gap"]) for row in own])
        beyond = value.mean > MOST_POINTS
        y = methods.index(method) + shift
        ax.errorbar(
            min(value.mean, MOST_POINTS),
            y,
            xerr=None if beyond else value.half_width,
            fmt=">" if beyond else marker,
            color=colour,
            markerfacecolor=colour if marker == "D" else "white",
            markersize=6,
            elinewidth=1,
            clip_on=not beyond,
        )


def _draw_relearning(path: Path, rows: Rows, scenarios: Sequence[str], arms: Sequence[Arm]) -> None:
    """How fast the poison comes back, a panel per scenario."""
    by_name = {arm.method: arm for arm in arms}
    columns = min(2, len(scenarios))
    lines = -(-len(scenarios) // columns)
    with figure(
        path,
        (12.0, 1.6 + 3.5 * lines),
        "Relearning what was unlearned",
        "Poisoned targets that come back on held-out poisoned examples, against how many the "
        "attacker fine-tunes on. The retrained model (black) is the aim.",
    ) as canvas:
        axes = canvas.subplots(lines, columns, squeeze=False).ravel()
        for ax, scenario in zip(axes, scenarios, strict=False):
            for method, (colour, style) in CURVES.items():
                own = of(rows, scenario, by_name.get(method, Arm(method, 1.0, 1.0)))
                own = [row for row in own if "relearning" in row]
                if not own:
                    continue
                counts = np.log1p(own[0]["relearning_counts"])
                mean = np.mean([row["relearning"] for row in own], 0)
                width = 2.4 if method in ("retrained", PROPOSED) else 1.4
                label = plain_name(method)
                ax.plot(counts, mean, style, color=colour, linewidth=width, label=label)
                ax.set_xticks(counts, [str(count) for count in own[0]["relearning_counts"]])
            ax.set_title(scenario)
            ax.yaxis.set_major_formatter(lambda y, _: f"{round(100 * y, 1):g} %")
            ax.grid(axis="y", color=FAINT, linewidth=0.7)
            ax.set_xlabel("poisoned examples that the attacker holds")
        for ax in axes[len(scenarios) :]:
            ax.set_visible(False)
        handles, labels = axes[0].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)


def _draw_frontier(path: Path, rows: Rows, scenarios: Sequence[str], contest: Contest) -> None:
    """Recovery against the share of the parameters, and against cost."""
    arms = [*contest.arms, *contest.frontier]
    main = contest.arms[0]
    views = {
        "share of the parameters, %": [arm for arm in arms if arm.budget == main.budget],
        "example gradients, % of retraining's": [
            arm for arm in arms if arm.fraction == main.fraction
        ],
    }
    columns = [(scenario, view) for scenario in scenarios for view in views]
    with figure(
        path,
        (3.4 * len(columns) + 1.4, 7.6),
        "The frontier: recovery against size and cost",
        f"By size at {100 * main.budget:g} % of the cost of retraining; by cost with "
        f"{100 * main.fraction:g} % of the parameters. Dotted: goals.",
    ) as canvas:
        axes = canvas.subplots(2, len(columns), squeeze=False)
        for column, (scenario, view) in zip(axes.T, columns, strict=True):
            measures = ((FORGET_MEASURE[scenario], 0.95), ("test", 0.8))
            for ax, (short, goal) in zip(column, measures, strict=True):
                recovered, places = _is_recovered(rows, scenario, arms, short), set()
                for method, colour in FRONTIER.items():
                    points = _frontier_points(
                        rows, scenario, views[view], method, short, view, recovered
                    )
                    if points:
                        x, y, error = zip(*points, strict=True)
                        label = plain_name(method)
                        ax.errorbar(x, y, yerr=error, fmt="o-", color=colour, label=label)
                        places |= set(x)
                ax.axhline(goal if recovered else 0, color=INK, linewidth=1, linestyle=(0, (2, 2)))
                ax.set_xscale("log")
                ax.minorticks_off()
                ax.set_xticks(sorted(places), [f"{x:g}" for x in sorted(places)])
                suffix = " %" if recovered else ""
                ax.yaxis.set_major_formatter(lambda y, _, s=suffix: f"{round(100 * y, 1):g}{s}")
                ax.grid(axis="y", color=FAINT, linewidth=0.7)
                unit = "recovery" if recovered else "gap, points"
                ax.set_title(f"{scenario} · {WORDS[short]}: {unit}", fontsize=9)
            column[-1].set_xlabel(view)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)


def _is_recovered(rows: Rows, scenario: str, arms: Sequence[Arm], short: str) -> bool:
    """Whether there is enough to recover for a share of it to mean something."""
    return all(
        row[f"{short}_recovery"] is not None for arm in arms for row in of(rows, scenario, arm)
    )


def _frontier_points(
    rows: Rows,
    scenario: str,
    arms: Sequence[Arm],
    method: str,
    short: str,
    view: str,
    recovered: bool,
) -> list[tuple[float, float, float]]:
    """Size or cost in per cent, what is recovered, and its half width."""
    points = []
    for arm in arms:
        if arm.method != method or not (own := of(rows, scenario, arm)):
            continue
        line = standing(own).line
        value = (line.recoveries if recovered else line.gaps)[short]
        share = 1.0 if method == "full" else arm.fraction
        x = 100 * (share if "parameters" in view else arm.budget)
        points.append((x, value.mean, value.half_width or 0.0))
    return sorted(points)
