"""The table of a comparison, as text cells: the terminal and the report show the same ones."""

from collections.abc import Callable, Sequence

from rich import box
from rich.table import Table
from tabulate import tabulate

from benchmarks.measures.summary import Line
from benchmarks.tools.statistics import Interval

TITLES = {
    "none": "References",
    "first_order": "First-order update",
    "second_order": "Second-order update",
    "iterative": "Iterative update",
    "corrected_only": "Iterative update, no retained data",
}
SHORT_TITLES = {
    "first_order": "first order",
    "second_order": "second order",
    "iterative": "iterative",
    "corrected_only": "no retained data",
}
WORDS = {
    "test": "test accuracy",
    "forget": "forget accuracy",
    "attack": "attack success",
}
NONE = "-"
NUM_COSTS = 3
"""The last columns of a table: changed entries, example gradients, seconds."""
WIDE = 120
"""Columns of a terminal that has room for them."""


def plain_name(name: str) -> str:
    """A method's name as words."""
    return name.replace("_", " ")


def percent(value: Interval, signed: bool = False) -> str:
    """A share in per cent, with its interval."""
    text = f"{100 * value.mean:+.1f}" if signed else f"{100 * value.mean:.1f}"
    return text if value.half_width is None else f"{text} ±{100 * value.half_width:.1f}"


def short_number(value: float) -> str:
    """1,280 or 63.4k or 1.1M."""
    if value >= 999_500:
        return f"{value / 1e6:.3g}M"
    return f"{value / 1e3:.3g}k" if value >= 9_999.5 else f"{value:,.0f}"


def probability(value: float) -> str:
    """A p value, to three digits."""
    return "< 0.001" if value < 0.0005 else f"{value:.3f}"


def seconds(value: float) -> str:
    """To the millisecond, or whole seconds."""
    return f"{value:.3f}" if value < 9.9995 else f"{value:.0f}"


def headings(lines: Sequence[Line]) -> list[str]:
    """The columns that this scenario has."""
    measured = list(lines[0].accuracies)
    return [
        "method",
        *(f"{name} %" for name in measured),
        *(f"{name} recovery %" for name in measured),
        "changed entries",
        "example gradients",
        "seconds",
    ]


def cells(line: Line) -> list[str]:
    """One line of the table."""
    costs = [NONE] * NUM_COSTS
    if line.method != "poisoned":
        costs = [
            f"{line.changed:,.0f} ({100 * line.changed / line.total:.1f} %)",
            split(line.selection_gradients, line.update_gradients, short_number),
            split(line.selection_seconds, line.update_seconds, seconds),
        ]
    return [
        plain_name(line.method),
        *(percent(value) for value in line.accuracies.values()),
        *(towards_retraining(line, short) for short in line.accuracies),
        *costs,
    ]


def towards_retraining(line: Line, short: str) -> str:
    """The recovery in per cent; where too little can be recovered, Δ and the gap that is left."""
    if line.update == "none":
        return NONE
    if short in line.recoveries:
        return percent(line.recoveries[short])
    return f"Δ {percent(line.gaps[short], signed=True)}"


def split(selection: float, update: float, form: Callable[[float], str]) -> str:
    """Selection + update, or the update alone where selecting costs nothing."""
    return f"{form(selection)} + {form(update)}" if selection else form(update)


def sections(lines: Sequence[Line]) -> list[tuple[str, list[Line]]]:
    """References first, then one part per update, each with its title."""
    parts = {update: [line for line in lines if line.update == update] for update in TITLES}
    return [(TITLES[update], part) for update, part in parts.items() if part]


def rich_table(title: str, lines: Sequence[Line], width: int) -> Table:
    """The table for a terminal of so many columns; a narrow one shows no costs."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    shown = slice(None if width >= WIDE else -NUM_COSTS)
    for i, heading in enumerate(headings(lines)[shown]):
        table.add_column(heading, justify="right" if i else "left", no_wrap=i == 0)
    for name, part in sections(lines):
        table.add_row(f"[bold]{name}[/bold]")
        for line in part:
            style = "bold" if line.method == "sharpest" else None
            row = cells(line)[shown]
            table.add_row(f"  {row[0]}", *row[1:], style=style)
        table.add_section()
    return table


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, its first column to the left and the others to the right."""
    sides = ("left", *("right" for _ in columns[1:]))
    return tabulate(rows, columns, tablefmt="pipe", colalign=sides, disable_numparse=True)
