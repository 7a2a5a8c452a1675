"""Tuning: every trial is judged on validation data and on the corrected examples alone.

Test data and the retrained model are never looked at, and the seeds that are tuned on are never
reported.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from benchmarks.measures.metrics import accuracy
from benchmarks.methods.case import Case

TUNING_SEED = 0
"""Hyperparameters are tuned on this seed; the reported seeds are 1, 2, ..."""

MORE_TUNING = 10_000
"""The tuning seeds after the first; reported ones lie far below."""

T = TypeVar("T")


class Judgement(NamedTuple):
    """What tuning sees of a model."""

    validation_accuracy: float
    forget_accuracy: float
    objective: float
    """What tuning raises."""


def tuning_seeds(count: int) -> tuple[int, ...]:
    """So many seeds to run all trials on, none of them reported."""
    return (TUNING_SEED, *range(MORE_TUNING, MORE_TUNING + count - 1))


def judge(case: Case, params: Any) -> Judgement:
    """Measures a model as tuning does."""
    validation = accuracy(case.model, params, case.dataset.validation)
    forget = accuracy(case.model, params, case.poisoned.forget)
    return Judgement(validation, forget, tuning_objective(validation, forget, case.removes))


def tuning_objective(validation: float, forget: float, removal: bool) -> float:
    """What tuning raises: accuracy on validation data and on the corrected examples.

    A removed record should be treated like one never seen, so its accuracy is to meet the accuracy
    on validation data rather than to rise.
    """
    return validation - abs(forget - validation) if removal else validation + forget


def try_all(case: Case, run: Callable[[T], Any], trials: Iterable[T]) -> list[Judgement]:
    """Judges the parameters that `run` returns for each trial."""
    return [judge(case, run(trial)) for trial in trials]


def best(judgements: Sequence[Judgement]) -> int:
    """The index of the trial with the highest objective, the first of equals."""
    return max(range(len(judgements)), key=lambda i: judgements[i].objective)
