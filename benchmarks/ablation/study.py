"""The cells of the study: tuned on one seed, frozen, measured on the others, recorded at once."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks.learning.settings import Settings
from benchmarks.measures.metrics import count_changed, count_entries, towards_retraining
from benchmarks.methods.case import Case, make_case
from benchmarks.methods.curvature import counted_gradients
from benchmarks.methods.rankings import Gathered, gather, make_masks, mask_names, needs
from benchmarks.methods.tuning import TUNING_SEED, best, try_all
from benchmarks.methods.updates import STUDIED_UPDATES
from benchmarks.tools.records import Journal
from benchmarks.tools.timing import timed

Name = tuple[str, float | None]
"""A mask: its method, and the share of the entries that it selects."""


class Part(NamedTuple):
    """One data set, scenario and network of the study."""

    name: str
    title: str
    settings: Settings
    """Its `seeds` are reported: 1, 2, ...; tuning has one of its own."""
    fractions: tuple[float, ...]
    """The shares of the entries that masks select."""
    updates: tuple[str, ...] = tuple(STUDIED_UPDATES)
    """The keys of `STUDIED_UPDATES` to run."""


def count_work(part: Part) -> int:
    """How many times `measure_part` calls `advance`."""
    return len(mask_names(part.fractions)) * (1 + part.settings.seeds)


def measure_part(
    part: Part, trials: Journal, cells: Journal, advance: Callable[[str], None]
) -> None:
    """Tunes and measures every cell of a part that is not recorded yet.

    Args:
      part: what to measure.
      trials: where tuned values stand, a row per method, fraction and update.
      cells: where figures stand, a row per method, fraction, update and seed.
      advance: called with a few words before each mask.
    """
    for seed in range(part.settings.seeds + 1):
        tuning = seed == TUNING_SEED
        bench = functools.cache(functools.partial(Bench.make, part, seed))
        if not tuning and (part.name, "retrained", None, "none", seed) not in cells:
            cells.append(*bench().reference_rows())
        for name in mask_names(part.fractions):
            method, fraction = name
            share = "" if fraction is None else f" {100 * fraction:g} %"
            stage = "tuning" if tuning else f"seed {seed}"
            advance(f"{part.name}, {stage}: {method.replace('_', ' ')}{share}")
            key = (part.name, *name)
            if tuning:
                missing = [u for u in part.updates if (*key, u) not in trials]
                trials.append(*(bench().tune(name, update) for update in missing))
                continue
            missing = [u for u in part.updates if (*key, u, seed) not in cells]
            chosen = {u: trials[*key, u]["chosen"] for u in missing}
            cells.append(*(bench().cell(name, *pair) for pair in chosen.items()))


@dataclass(frozen=True)
class Bench:
    """One seed of a part, ready to run updates on."""

    part: Part
    case: Case
    gathered: Gathered
    masks: dict[Name, Any]
    counted: float
    """What the curvature is counted as, in gradient equivalents."""

    @classmethod
    def make(cls, part: Part, seed: int) -> "Bench":
        """Trains the poisoned model of a seed and makes every mask."""
        case = make_case(part.settings, seed)
        model, sample, corrections = case.model, case.material.sample, case.corrections
        gathered = gather(
            model,
            case.params,
            sample,
            corrections.original,
            corrections.corrected,
            corrections.num_examples,
            case.material.key,
        )
        masks = make_masks(model, gathered.evidence, part.fractions)
        return cls(part, case, gathered, masks, counted_gradients(model, case.params, sample))

    def tune(self, name: Name, update: str) -> dict[str, Any]:
        """The trials of one update with one mask, and the value they chose."""
        case, spec = self.case, STUDIED_UPDATES[update]

        def run(value: float) -> Any:
            work = (case.model, case.params, self.masks[name], case.corrections, value)
            return spec.run(*work)[0]

        judgements = try_all(case, run, spec.trials)
        chosen = best(judgements)
        return {
            **self._names(name, update),
            "tuned": spec.tuned,
            "values": spec.trials,
            "validation_accuracy": [round(j.validation_accuracy, 5) for j in judgements],
            "forget_accuracy": [round(j.forget_accuracy, 5) for j in judgements],
            "chosen": spec.trials[chosen],
            "at_edge": chosen in (0, len(judgements) - 1),
        }

    def cell(self, name: Name, update: str, value: float) -> dict[str, Any]:
        """The figures of one update with one mask, at its tuned value."""
        spec, case = STUDIED_UPDATES[update], self.case
        work = (case.model, case.params, self.masks[name], case.corrections, value)
        (params, gradients), seconds = timed(lambda: spec.run(*work))
        needed = needs(name[0])
        return {
            **self._row(name, update, params),
            "selection_seconds": round(sum(self.gathered.seconds[n] for n in needed), 4),
            "update_seconds": round(seconds, 4),
            "selection_example_gradients": sum(self._evidence_gradients(n) for n in needed),
            "update_example_gradients": gradients,
            "retrain_example_gradients": case.retrain_example_gradients,
            "tuned_value": value,
        }

    def reference_rows(self) -> list[dict[str, Any]]:
        """The poisoned and the retrained model."""
        both = {"poisoned": self.case.params, "retrained": self.case.retrained.params}
        return [self._row((method, None), "none", params) for method, params in both.items()]

    def _row(self, name: Name, update: str, params: Any) -> dict[str, Any]:
        case = self.case
        figures = case.evaluate(params)
        towards = towards_retraining(case.sets, figures, **case.references)
        measured = figures | {k: v for k, v in towards.items() if k.endswith("_recovery")}
        return {
            **self._names(name, update),
            "seed": case.seed,
            **case.names,
            **{k: None if v is None else round(v, 5) for k, v in measured.items()},
            "changed_entries": count_changed(case.params, params),
            "total_entries": count_entries(params),
        }

    def _names(self, name: Name, update: str) -> dict[str, Any]:
        return {"part": self.part.name, "method": name[0], "fraction": name[1], "update": update}

    def _evidence_gradients(self, name: str) -> int:
        c, sample = self.case.corrections, len(self.case.material.sample["label"])
        originals = len(c.original["label"])
        return {
            "diagonal": round(self.counted * sample),
            "change": originals * (1 if c.corrected is None else 2),
            "gradient": originals,
            "forget_fisher": originals,
            "data_fisher": sample,
        }[name]
