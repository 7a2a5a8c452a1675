"""The options of the second-order update, compared one after the other.

Each variant is the paper's selection, the sharpest entries, moved by the second-order update.
They are judged on validation data and the corrected examples, as tuning is; test data is not seen.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

import sapsel_jax as sap
from benchmarks.ablation.study import Part
from benchmarks.learning.models import Model
from benchmarks.methods.case import Case, make_case
from benchmarks.methods.tuning import judge
from benchmarks.methods.updates import newton_steps
from benchmarks.tools.records import Journal

DEFAULTS_SEEDS = 5


class Variant(NamedTuple):
    """Options of one call."""

    damping: float = 0.01
    num_steps: int = 3
    adapt_damping: bool = True
    fraction: float = 0.05
    curvature: str = "exact"
    num_data: int | None = None
    """How many examples of the training set are given; None is the study's sample."""


STEPS = [(1, False), (1, True), (3, False), (3, True), (10, True)]
DAMPINGS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
BASE = Variant()
GROUPS = {
    "damping, steps, adapted damping": [
        BASE._replace(damping=d, num_steps=n, adapt_damping=a) for n, a in STEPS for d in DAMPINGS
    ],
    "fraction": [BASE._replace(fraction=f) for f in (0.005, 0.01, 0.05, 0.2, 1.0)],
    "curvature": [BASE._replace(curvature=c) for c in ("exact", "hutchinson", "propagated")],
    "examples of the training set": [
        BASE._replace(num_data=n) for n in (100, 200, 500, 1_000, None)
    ],
}
"""What is varied, and the variants of it; the base stands in several."""
VARIANTS = list(dict.fromkeys(variant for group in GROUPS.values() for variant in group))


def count_defaults(part: Part) -> int:
    """How many times `measure_defaults` calls `advance`."""
    return _seeds(part) * len(VARIANTS)


def measure_defaults(part: Part, record: Journal, advance: Callable[[str], None]) -> None:
    """Records every variant on every seed that is not recorded yet.

    Args:
      part: whose models and data to use.
      record: a row per variant and seed.
      advance: called with a few words before each variant.
    """
    for seed in range(1, _seeds(part) + 1):
        case = functools.cache(functools.partial(make_case, part.settings, seed))
        for variant in VARIANTS:
            words = ", ".join(f"{name} {value}" for name, value in variant._asdict().items())
            advance(f"{part.name}, seed {seed}: {words}")
            if (part.name, *variant, seed) not in record:
                record.append(_row(part, case(), variant))


def _seeds(part: Part) -> int:
    return min(part.settings.seeds, DEFAULTS_SEEDS)


def _row(part: Part, case: Case, variant: Variant) -> dict[str, Any]:
    c = case.corrections
    data = jax.tree.map(lambda x: x[: variant.num_data], c.data)
    sample = jax.tree.map(lambda x: x[: variant.num_data], case.material.sample)
    diagonal = _diagonal(case.model, variant.curvature, case.params, sample, case.material.key)
    mask = _sharpest(diagonal, variant.fraction)
    params, certificate = newton_steps(
        case.model,
        case.params,
        mask,
        c.original,
        c.corrected,
        data,
        c.num_examples,
        variant.damping,
        num_steps=variant.num_steps,
        adapt_damping=variant.adapt_damping,
    )
    return {
        "part": part.name,
        **variant._asdict(),
        "seed": case.seed,
        **{name: round(value, 5) for name, value in judge(case, params)._asdict().items()},
        "converged": bool(certificate.converged),
        "steps_taken": int(certificate.num_steps),
        "iterations": int(certificate.iterations),
    }


@functools.partial(jax.jit, static_argnums=(0, 1))
def _diagonal(model: Model, kind: str, params: Any, batch: Any, key: jax.Array) -> Any:
    if kind == "exact":
        return sap.exact_diagonal(model.loss)(params, batch)
    estimators = {
        "hutchinson": sap.hutchinson_diagonal,
        "propagated": sap.propagated_diagonal,
    }
    return estimators[kind](model.loss)(params, batch, key)


@functools.partial(jax.jit, static_argnums=1)
def _sharpest(diagonal: Any, fraction: float) -> Any:
    return sap.select_top_fraction(sap.score_sharpest(diagonal), fraction)
