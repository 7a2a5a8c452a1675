"""How steady a selection is: under other probes, other data, another seed, another scale.

A ReLU layer times 2 and the next one divided by 2 are the same function. A selection that follows
the function, and not how it is written down, does not change.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import sapsel_jax as sap
from benchmarks.ablation.study import Part
from benchmarks.learning.data import Split
from benchmarks.learning.models import Model
from benchmarks.methods.case import Case, make_case
from benchmarks.methods.rankings import PER_LEAF, RANKED, SCORES, Evidence, gather, score_all
from benchmarks.methods.updates import as_batch
from benchmarks.tools.records import Journal

KINDS = {
    "probes": "two estimates of the curvature by one probe each",
    "samples": "two disjoint halves of the training data and of the poisoned examples",
    "seeds": "two seeds, which differ in data, first weights and order",
    "rescaling": "the same function, one ReLU layer times 2 and the next divided by 2",
}
FRACTION = 0.05
FACTOR = 2.0
UNDAMPED = "predicted_decrease_undamped"
"""`predicted_decrease` without its damping, which alone depends on the scale."""
RELU_LAYERS = {"mlp": ("dense1", "dense2"), "cnn": ("conv1", "conv2")}
"""Two layers with ReLU, and for the CNN max pooling, between them."""


def count_stability(part: Part) -> int:
    """How many times `measure_stability` calls `advance`."""
    return part.settings.seeds


def measure_stability(part: Part, record: Journal, advance: Callable[[str], None]) -> None:
    """Records the overlap of each method's masks, for each seed and kind of change.

    Args:
      part: whose models and data to use.
      record: a row per method, kind and seed.
      advance: called with a few words before each seed.
    """

    @functools.lru_cache(maxsize=2)
    def masks_of(seed: int) -> tuple[Case, Evidence, dict[str, Any]]:
        case = make_case(part.settings, seed)
        evidence = _evidence(case)
        return case, evidence, _masks(evidence)

    for seed in range(1, part.settings.seeds + 1):
        advance(f"{part.name}, seed {seed}: how steady masks are")
        if (part.name, RANKED[0], "rescaling", seed) in record:
            continue
        case, evidence, masks = masks_of(seed)
        pairs = {
            "probes": tuple(_masks(_probed(case, evidence, i)) for i in range(2)),
            "samples": tuple(_masks(half) for half in _halves(case)),
            "rescaling": (masks, _masks(_evidence(case, rescale(case.model, case.params)))),
        }
        if part.settings.seeds > 1:
            pairs["seeds"] = (masks, masks_of(seed % part.settings.seeds + 1)[2])
        record.append(
            *(
                {
                    "part": part.name,
                    "method": method,
                    "kind": kind,
                    "seed": seed,
                    "overlap": round(float(sap.mask_overlap(a[method], b[method])), 5),
                }
                for kind, (a, b) in pairs.items()
                for method in masks
            )
        )


def rescale(model: Model, params: Any) -> Any:
    """The same function: a ReLU layer's kernel and bias times 2, the next one's kernel over 2."""
    first, second = RELU_LAYERS[model.name]
    return params | {
        first: jax.tree.map(lambda p: FACTOR * p, params[first]),
        second: params[second] | {"kernel": params[second]["kernel"] / FACTOR},
    }


def _evidence(case: Case, params: Any = None) -> Evidence:
    c = case.corrections
    about = (case.material.sample, c.original, c.corrected, c.num_examples, case.material.key)
    return gather(case.model, case.params if params is None else params, *about).evidence


def _probed(case: Case, evidence: Evidence, index: int) -> Evidence:
    key = jax.random.fold_in(case.material.key, index)
    return evidence._replace(diagonal=_estimate(case.model, case.params, case.material.sample, key))


def _halves(case: Case) -> list[Evidence]:
    """Evidence from every second example, and from the others, in a random order."""
    poisoned, c = case.poisoned, case.corrections
    rng = np.random.default_rng([case.seed, 6])
    most = min(2 * len(case.material.sample["label"]), len(poisoned.train.labels))
    sample = rng.permutation(len(poisoned.train.labels))[: most - most % 2]
    own = rng.permutation(len(poisoned.indices))[: len(poisoned.indices) // 2 * 2]

    def half(split: Split, ids: np.ndarray, i: int) -> dict[str, np.ndarray]:
        return as_batch(split.take(np.sort(ids[i::2])))

    return [
        gather(
            case.model,
            case.params,
            half(poisoned.train, sample, i),
            half(poisoned.original, own, i),
            None if poisoned.corrected is None else half(poisoned.corrected, own, i),
            c.num_examples,
            case.material.key,
        ).evidence
        for i in range(2)
    ]


def _masks(evidence: Evidence) -> dict[str, Any]:
    """The mask of each ranking at 5 %."""
    scores = score_all(evidence)
    masks = {name: _top(scores[name]) for name in SCORES if name in RANKED}
    masks[UNDAMPED] = _top(_undamped(evidence))
    return masks | {PER_LEAF: _top_per_leaf(scores["sharpest"])}


@functools.partial(jax.jit, static_argnums=0)
def _estimate(model: Model, params: Any, batch: Any, key: jax.Array) -> Any:
    return sap.hutchinson_diagonal(model.loss, num_probes=1)(params, batch, key)


@jax.jit
def _undamped(evidence: Evidence) -> Any:
    return sap.score_decrease(evidence.change, evidence.diagonal, damping=0)


_top = jax.jit(lambda scores: sap.select_top_fraction(scores, FRACTION))
_top_per_leaf = jax.jit(lambda scores: sap.select_top_fraction_per_leaf(scores, FRACTION))
