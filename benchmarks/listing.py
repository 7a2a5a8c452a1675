"""`python -m benchmarks list`: what there is to choose from."""

from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.learning.data import DATASETS, is_prepared
from benchmarks.learning.models import MODELS
from benchmarks.learning.scenarios import SCENARIOS
from benchmarks.methods.masks import METHODS, REFERENCES
from benchmarks.methods.rankings import RANKED, summary
from benchmarks.methods.updates import STUDIED_UPDATES
from benchmarks.render import COMMITTED
from benchmarks.secrets.text import TEXTS
from benchmarks.tools.origin import FILE, read_origin


@dataclass(frozen=True)
class List:
    """List data sets, models, scenarios, methods, updates, and the results so far."""

    data_dir: str | None = None
    """Where tensorflow-datasets keeps prepared data; None is its default, or TFDS_DATA_DIR."""
    results: Path = Path("results")
    """The folder whose results are listed, beside those of the repository; every command writes to
    a folder in it by default."""

    def run(self) -> None:
        """Prints one table per kind of choice."""
        read = (*DATASETS, "tiny_shakespeare")
        absent = {name for name in read if not is_prepared(name, self.data_dir)}
        kinds = {
            "Data sets": DATASETS,
            "Texts": TEXTS,
            "Models": MODELS,
            "Scenarios": {name: scenario.summary for name, scenario in SCENARIOS.items()},
            "Methods": REFERENCES | {name: method.summary for name, method in METHODS.items()},
            "Rankings of the ablation": {name: summary(name) for name in RANKED},
            "Updates": {name: update.summary for name, update in STUDIED_UPDATES.items()},
            f"Results in {self.results}": _results(self.results),
            "Results in the repository": _results(COMMITTED),
        }
        console = Console()
        for title, choices in ((title, some) for title, some in kinds.items() if some):
            table = Table(title=title, box=box.SIMPLE, show_header=False, title_justify="left")
            for name, words in choices.items():
                table.add_row(f"[bold]{name}[/bold]", words, "not prepared" * (name in absent))
            console.print(table)


def _results(results: Path) -> dict[str, str]:
    """The folders of results, each with the title of its report."""
    found = {}
    for folder in sorted(path.parent for path in results.glob(f"*/{FILE}")):
        report = folder / "report.md"
        if report.exists():
            found[folder.name] = report.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")
        else:
            command = read_origin(folder).commands[-1]
            found[folder.name] = f"not finished: {command} --output {folder}"
    return found
