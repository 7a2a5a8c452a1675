"""How a command runs: into a folder that a later run continues, with its progress shown."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from benchmarks.tools.ending import noting, stoppable
from benchmarks.tools.records import study_folder

MIN_WIDTH = 170
"""Columns of a table where the output is no terminal."""


class Run:
    """A command under way.

    Attributes:
      folder: where it writes.
      tables: what is printed when everything is in place.
    """

    def __init__(self, folder: Path):
        """A run that has told nothing yet."""
        self.folder = folder
        self.tables: list[RenderableType] = []
        self._console = wide_console()
        self._bar = _progress_bar(self._console)
        self._total: int | None = None

    def expect(self, total: int) -> None:
        """Tells how many times `say` will be called."""
        self._total = total

    def say(self, words: str) -> None:
        """Tells what is done next. What was told before is done."""
        if self._bar.tasks:
            self._bar.update(self._bar.task_ids[0], description=words, advance=1)
            return
        # Not earlier: the import of tensorflow-datasets changes how modules are imported, which
        # the thread that draws the progress would trip over.
        self._bar.add_task(words, total=self._total)
        self._bar.start()

    def tell(self, words: str) -> None:
        """Tells more of what `say` has told."""
        self._bar.update(self._bar.task_ids[0], description=words)

    @contextlib.contextmanager
    def _under_way(self) -> Iterator["Run"]:
        try:
            with stoppable():
                yield self
        finally:
            if self._bar.tasks:
                self._bar.stop()

    def _print(self, output: Path) -> None:
        for table in self.tables:
            self._console.print(table, highlight=False)
        self._console.print(f"Report: {output / 'report.html'}", highlight=False, soft_wrap=True)


@contextlib.contextmanager
def continued(output: Path, settings: dict[str, Any]) -> Iterator[Run]:
    """A run that adds to a folder what is missing there.

    Args:
      output: the folder, new or begun with the same settings.
      settings: what its rows depend on.

    Raises:
      UsageError: if `output` holds something else, was begun with other settings, cannot be
        written, or another run writes to it.
    """
    left = f"what is finished stands in {output}, and the same command goes on from there"
    with noting(lambda: left), study_folder(output, settings) as folder:
        with Run(folder)._under_way() as run:
            yield run
        run._print(output)


def wide_console() -> Console:
    """A console that does not squeeze tables where its output goes to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, MIN_WIDTH))


def _progress_bar(console: Console) -> Progress:
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
