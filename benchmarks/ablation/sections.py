"""Two sections of the study's report: how steady masks are, and the options of an update."""

from collections.abc import Sequence
from typing import Any

from benchmarks.ablation.defaults import BASE, GROUPS, Variant
from benchmarks.ablation.stability import FRACTION, KINDS
from benchmarks.ablation.study import Part
from benchmarks.reporting.tables import NONE, markdown_table, percent, plain_name
from benchmarks.tools.statistics import Interval, interval


def mean_overlaps(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], Interval]:
    """The overlap of masks by method and kind of change, over all models and seeds."""
    groups: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["kind"]), []).append(row["overlap"])
    return {names: interval(values) for names, values in groups.items()}


def stability_section(overlaps: dict[tuple[str, str], Interval]) -> str:
    """The table of overlaps, by ranking and kind of change."""
    methods = list(dict.fromkeys(method for method, _ in overlaps))
    rows = [
        [plain_name(m), *(_overlap(overlaps.get((m, kind))) for kind in KINDS)] for m in methods
    ]
    kinds = "; ".join(f"{kind}: {words}" for kind, words in KINDS.items())
    return "\n\n".join(
        [
            f"Jaccard overlap of the top {100 * FRACTION:g} % with themselves after a change. "
            f"{kinds}. Where a score does not use what changes the overlap is 1. Two random masks "
            f"overlap by {FRACTION / (2 - FRACTION):.3f}.",
            markdown_table(["ranking", *KINDS], rows),
        ]
    )


def _overlap(value: Interval | None) -> str:
    if value is None:
        return NONE
    spread = "" if value.half_width is None else f" ±{value.half_width:.3f}"
    return f"{value.mean:.3f}{spread}"


def defaults_section(defaults: Sequence[dict[str, Any]], parts_by_name: dict[str, Part]) -> str:
    """Validation plus corrected-forget accuracy of every variant, by part."""
    parts = list(dict.fromkeys(row["part"] for row in defaults))
    groups: dict[tuple[str, Variant], list[dict[str, Any]]] = {}
    for row in defaults:
        variant = Variant(*(row[name] for name in Variant._fields))
        groups.setdefault((row["part"], variant), []).append(row)
    blocks = [
        "The sharpest entries moved by the second-order update, one option changed at a time from "
        f"{', '.join(f'{k} {v}' for k, v in BASE._asdict().items() if v is not None)} and all of "
        "the study's sample. The figure is the mean of validation and corrected-forget accuracy "
        "in per cent, less is worse; in brackets the share of seeds whose certificate converged, "
        "where not all did."
    ]
    for title, variants in GROUPS.items():
        rows = []
        for variant in variants:
            values = [
                [row["objective"] / 2 for row in groups.get((part, variant), [])] for part in parts
            ]
            cells = [
                percent(interval(v)) + _unconverged(groups[part, variant]) if v else NONE
                for part, v in zip(parts, values, strict=True)
            ]
            overall = sum(sum(v) / len(v) for v in values if v) / len(values)
            mean = f"{100 * overall:.1f}" if all(values) else NONE
            rows.append([_words(variant, title), *cells, mean])
        columns = [title, *(parts_by_name[part].title for part in parts), "mean"]
        blocks += [f"### By {title}", markdown_table(columns, rows)]
    return "\n\n".join(blocks)


def _unconverged(rows: Sequence[dict[str, Any]]) -> str:
    share = sum(row["converged"] for row in rows) / len(rows)
    return "" if share == 1 else f" ({100 * share:.0f} %)"


def _words(variant: Variant, title: str) -> str:
    if title == "damping, steps, adapted damping":
        steps = "1 step" if variant.num_steps == 1 else f"{variant.num_steps} steps"
        return f"{variant.damping:g}, {steps}{', adapted' * variant.adapt_damping}"
    field = {
        "fraction": variant.fraction,
        "curvature": variant.curvature,
        "examples of the training set": variant.num_data or "all of the sample",
    }
    return str(field[title])
