"""`python -m benchmarks secrets`: making a language model forget passwords, cards, birth dates."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.methods.tuning import TUNING_SEED
from benchmarks.secrets.problem import CORRECTIONS, Problem, Settings
from benchmarks.secrets.records import open_journals
from benchmarks.secrets.report import write_secrets
from benchmarks.secrets.study import Study, run_study
from benchmarks.secrets.text import TEXTS, choose_text, load_text
from benchmarks.secrets.updates import FULL, LEAVES
from benchmarks.tools.command import continued
from benchmarks.tools.errors import UsageError, check_at_least, check_choice, check_share
from benchmarks.tools.origin import Origin, add_origin, write_report

COUNTS = (32, 256, 2048, 16384)
MIDDLE = 256
"""The number of entries at which the other ways, updates and corrections are compared."""
UPDATES = ("first_order", "second_order", "grad_diff", "npo")


QUICK_CANDIDATES = 1_000


@dataclass(frozen=True)
class Secrets:
    """Make a language model forget secrets that it has learned."""

    text: str | None = None
    """tiny_shakespeare (prepared once by tensorflow-datasets) or manual (ships with Python); None
    is the first if it is prepared, else the second."""
    correction: str = "placeholder"
    """What is learned instead: placeholder, other (another secret) or removal."""
    seeds: int = 3
    """How many seeds are reported, each with a retrained model."""
    budget: float = 0.05
    """Example gradients of an update, as a share of those of retraining."""
    data_dir: str | None = None
    """Where tensorflow-datasets keeps prepared data; None is its default, or TFDS_DATA_DIR."""
    cache: Path = Path("results", "cache")
    """Folder where trained parameters are kept, by a hash of data, configuration and seed."""
    output: Path | None = None
    """Folder for the results; None is results/secrets. What stands there is not done again."""
    quick: bool = False
    """A rough run: one seed, a fifth of the text, one number of entries, no other updates, secrets
    ranked among a tenth of the candidates."""

    def run(self) -> None:
        """Measures what is missing; leaves a report."""
        study = self.study()
        with continued(self.output or Path("results", "secrets"), self._identity(study)) as run:
            trials, cells = open_journals(run.folder)
            told = dataclasses.replace(self, text=study.settings.text)
            add_origin(run.folder, told, lambda: {"canaries": _digest(_canaries(study))})
            run.expect(len(list(study.work(trials, cells))))
            run_study(study, trials, cells, run.say)
            run.say("Writing the report")
            write_report(self, run.folder)

    def report(self, folder: Path, origin: Origin) -> None:
        """The picture and the pages from what stands in the folder."""
        study = self.study()
        if origin.facts["canaries"] != _digest(_canaries(study)):
            raise UsageError(
                f"{folder} was made with another version of faker, which draws other secrets; "
                "install that one to write its report."
            )
        trials, cells = open_journals(folder)
        write_secrets(folder, study, trials.rows, cells.rows, origin)

    def study(self) -> Study:
        """What is compared, after a check of every option."""
        if self.text is not None:
            check_choice("text", self.text, TEXTS)
        check_choice("correction", self.correction, CORRECTIONS)
        check_at_least("seeds", self.seeds, 1)
        check_share("budget", self.budget)
        settings = Settings(
            text=choose_text(self.text, self.data_dir),
            data_dir=self.data_dir,
            num_windows=500 if self.quick else Settings.num_windows,
            epochs=5 if self.quick else Settings.epochs,
            budget=self.budget,
            candidates=QUICK_CANDIDATES if self.quick else Settings.candidates,
            cache=self.cache,
        )
        others = tuple(name for name in CORRECTIONS if name != self.correction)
        return Study(
            settings=settings,
            seeds=1 if self.quick else self.seeds,
            counts=(MIDDLE,) if self.quick else COUNTS,
            middle=MIDDLE,
            leaves=(FULL,) if self.quick else tuple(LEAVES),
            updates=() if self.quick else UPDATES,
            corrections=(self.correction, *(() if self.quick else others)),
        )

    def _identity(self, study: Study) -> dict[str, object]:
        """What rows depend on; more seeds only add.

        The text and the canaries are known by a digest: the manual changes with Python, names with
        faker.
        """
        text = load_text(study.settings.text, study.settings.data_dir)
        names = ("correction", "budget", "quick")
        own = {name: getattr(self, name) for name in names}
        return {"text": text.name, **own, "digest": _digest([text._asdict(), _canaries(study)])}


def _canaries(study: Study) -> list[dict[str, Any]]:
    return [each._asdict() for each in Problem(study.settings, TUNING_SEED).canaries]


def _digest(given: Any) -> str:
    return hashlib.sha256(json.dumps(given).encode()).hexdigest()[:16]
