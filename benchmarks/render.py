"""`python -m benchmarks render`: pictures and reports again, from the records they were made of."""

import dataclasses
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.progress import track

from benchmarks.tools.errors import UsageError
from benchmarks.tools.origin import FILE, name_of, read_origin, write_report

COMMITTED = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Render:
    """Rebuild pictures and reports from the records of finished or stopped runs; trains nothing."""

    folders: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Result folders; none named is every folder of benchmarks/results, whose pictures and reports
    the README and the documentation show."""
    data_dir: str | None = None
    """Where tensorflow-datasets keeps prepared data; None is its default, or TFDS_DATA_DIR. A
    picture of data that are not prepared stays as it is."""

    def run(self) -> None:
        """Writes the pictures, `report.md` and `report.html` of every folder."""
        folders = self.folders or committed()
        # No thread draws the progress: it would trip over the import of tensorflow-datasets, which
        # changes how modules are imported.
        for folder in track(folders, "Rendering", transient=True, auto_refresh=False):
            options = options_of(folder)
            if hasattr(options, "data_dir"):
                options = dataclasses.replace(options, data_dir=self.data_dir)
            try:
                write_report(options, folder)
            except (FileNotFoundError, LookupError, StopIteration) as error:
                command = f"{read_origin(folder).commands[-1]} --output {folder}"
                raise UsageError(
                    f"{folder} holds too little for a report; run `{command}` to continue it."
                ) from error
        print(*(f"Rendered: {folder}" for folder in folders), sep="\n")


def committed() -> tuple[Path, ...]:
    """The result folders of the repository."""
    return tuple(path.parent for path in sorted(COMMITTED.glob(f"*/{FILE}")))


def options_of(folder: Path) -> Any:
    """The options of the command that made a folder, all as they are by default.

    Raises:
      UsageError: if the folder does not say how it was made.
    """
    name = name_of(read_origin(folder).commands[0])
    return getattr(importlib.import_module(f"benchmarks.{name}.command"), name.capitalize())()
