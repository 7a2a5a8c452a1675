"""How far a command is, on the terminal."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def progress_bar(console: Console) -> Progress:
    """What is being done, how much is done, for how long and how long still; gone at the end."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


MIN_WIDTH = 170
"""Columns of a table where the output is no terminal."""


def wide_console() -> Console:
    """A console that does not squeeze tables where its output goes to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, MIN_WIDTH))
