"""What is measured of one model: accuracies, membership, relearning, distances."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

import sapsel_jax as sap
from benchmarks.learning.data import Split
from benchmarks.learning.models import AT_ONCE, Model
from benchmarks.learning.scenarios import SCENARIOS
from benchmarks.learning.training import compute_logits
from benchmarks.measures.metrics import (
    accuracies,
    accuracy,
    count_changed,
    count_entries,
    towards_retraining,
)
from benchmarks.methods.case import Case
from benchmarks.methods.updates import as_batch
from benchmarks.tools.records import Row, Share

MOST = 1_000
"""Examples of a set, where a sample of it will do."""
COUNTS = (0, 1, 5, 10, 50, 100)
"""Poisoned examples that a relearning attacker holds."""
HELD_SHARE = 0.2
"""Of the poisoned examples: what the attacker chooses from."""
STEP_SIZES = (1e-3, 3e-3, 1e-2)
RELEARNING_STEPS, RELEARNING_BATCH = 30, 10


class EvidenceRow(Row):
    """What `Evidence.of` measures, in a journal's rows."""

    test_accuracy: Share
    forget_accuracy: Share
    attack_success: Share | None
    retain_accuracy: Share
    test_recovery: float | None
    test_gap: float
    forget_recovery: float | None
    forget_gap: float
    attack_recovery: float | None
    attack_gap: float | None
    tug_of_war: Share
    changed_entries: NonNegativeInt
    total_entries: PositiveInt
    moved: NonNegativeFloat
    distance: NonNegativeFloat
    membership_entropy: Share | None = None
    membership_logistic: Share | None = None
    relearning_counts: list[NonNegativeInt] | None = None
    relearning: list[Share] | None = None
    relearning_signed: float | None = None
    relearning_absolute: NonNegativeFloat | None = None
    """These six only where a model is attacked."""
    relearning_retained: Share | None = None
    """What comes back by steps on retained examples alone; older records have none."""
    relearning_retained_gap: float | None = None
    """What is more than with the retrained model."""


@dataclass(frozen=True)
class Evidence:
    """What is measured of models of one case, beside the poisoned and the retrained model."""

    case: Case

    def of(self, params: Any, *, attacked: bool) -> dict[str, Any]:
        """All figures of a model, rounded; those of attacks only where they are asked for."""
        case, measured = self.case, figures(self.case, params)
        before, aim = self._references
        found = measured | towards(case, measured, before, aim) | changes(case, params)
        if attacked:
            found |= self._attacks(params)
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()}

    def _attacks(self, params: Any) -> dict[str, Any]:
        curve = relearning(self.case, params)
        counts = relearning_counts(len(self.case.poisoned.original.labels))
        by_retained = relearning_by_retained(self.case, params)
        return {
            **membership(self.case, params),
            "relearning_counts": counts,
            "relearning": curve,
            **relearning_areas(curve, self._retrained_curve, counts),
            "relearning_retained": by_retained,
            "relearning_retained_gap": by_retained - self._retrained_by_retained,
        }

    @functools.cached_property
    def _references(self) -> tuple[dict[str, Any], dict[str, Any]]:
        case = self.case
        return figures(case, case.params), figures(case, case.retrained.params)

    @functools.cached_property
    def _retrained_curve(self) -> list[float]:
        return relearning(self.case, self.case.retrained.params)

    @functools.cached_property
    def _retrained_by_retained(self) -> float:
        return relearning_by_retained(self.case, self.case.retrained.params)


def figures(case: Case, params: Any) -> dict[str, Any]:
    """Accuracies: of the test set, the forget set, the retained set, and the attack's success."""
    measured = accuracies(case.model, params, case.sets)
    retained = case.poisoned.train.take(case.poisoned.retained[:MOST])
    return measured | {"retain_accuracy": accuracy(case.model, params, retained)}


def towards(
    case: Case, after: dict[str, Any], before: dict[str, Any], aim: dict[str, Any]
) -> dict[str, Any]:
    """What of each gap is recovered, what is left of it, and the tug-of-war over all.

    Args:
      case: whose figures they are.
      after: the figures of the unlearned model.
      before: those of the poisoned model.
      aim: those of the retrained model.
    """
    fields = towards_retraining(case.sets, after, before, aim)
    pulled = ("forget_accuracy", "retain_accuracy", "test_accuracy")
    of = lambda measured: jnp.array([measured[name] for name in pulled], jnp.float32)
    return fields | {"tug_of_war": float(sap.audit.tug_of_war(of(after), of(aim)))}


def changes(case: Case, params: Any) -> dict[str, Any]:
    """How far the parameters went, and how far they are from the retrained ones."""
    return {
        "changed_entries": count_changed(case.params, params),
        "total_entries": count_entries(params),
        "moved": float(sap.audit.distance(params, case.params)),
        "distance": float(sap.audit.distance(params, case.retrained.params)),
    }


def membership(case: Case, params: Any) -> dict[str, float]:
    """Whether the poisoned examples can be told from unseen ones made alike: 1/2 is chance."""
    rng = np.random.default_rng([case.seed, 7])
    sets = []
    unseen = SCENARIOS[case.settings.scenario].unseen(case.dataset)
    for split in (case.poisoned.original, unseen):
        count = len(split.labels)
        sets.append(split.take(rng.permutation(count)[:MOST]))
    entropy, logistic = _membership(case.model, params, *sets)
    return {"membership_entropy": float(entropy), "membership_logistic": float(logistic)}


@functools.partial(jax.jit, static_argnums=0)
def _membership(model: Model, params: Any, members: Split, others: Split) -> Any:
    logits = [
        compute_logits(model, params, jnp.asarray(split.images)) for split in (members, others)
    ]
    losses = [
        -jnp.take_along_axis(jax.nn.log_softmax(x), jnp.asarray(split.labels)[:, None], 1)[:, 0]
        for x, split in zip(logits, (members, others), strict=True)
    ]
    entropy = sap.audit.entropy_attack(logits[0], members.labels, logits[1], others.labels)
    return entropy.auc, sap.audit.logistic_attack(*losses).accuracy


def relearning_counts(num_poisoned: int) -> tuple[int, ...]:
    """How many poisoned examples the attacker holds in turn: those of the protocol there are."""
    return tuple(count for count in COUNTS if count <= _num_held(num_poisoned))


def _num_held(num_poisoned: int) -> int:
    return max(1, round(HELD_SHARE * num_poisoned))


def relearning(case: Case, params: Any) -> list[float]:
    """How often what was unlearned comes back on the other poisoned examples, for each count."""
    counts = relearning_counts(len(case.poisoned.original.labels))
    held, others = _attackers_share(case)
    rates = _relearn(case.model, counts, params, as_batch(held.take(np.arange(counts[-1]))), others)
    return [round(float(rate), 4) for rate in rates]


def relearning_by_retained(case: Case, params: Any) -> float:
    """How often it comes back by as many steps on retained examples, each taken once."""
    order = np.random.default_rng([case.seed, 12]).permutation(case.poisoned.retained)
    examples = case.poisoned.train.take(order[: RELEARNING_STEPS * RELEARNING_BATCH])
    counts = (0, len(examples.labels))
    _, others = _attackers_share(case)
    return round(float(_relearn(case.model, counts, params, as_batch(examples), others)[-1]), 4)


def _attackers_share(case: Case) -> tuple[Split, Any]:
    """The poisoned examples that the attacker holds, and, as a batch, others."""
    split = case.poisoned.original
    order = np.random.default_rng([case.seed, 8]).permutation(len(split.labels))
    held = _num_held(len(order))
    return split.take(order[:held]), as_batch(split.take(order[held:][:MOST]))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _relearn(
    model: Model, counts: tuple[int, ...], params: Any, examples: Any, heldout: Any
) -> jax.Array:
    def score(p: Any, batch: Any) -> jax.Array:
        return sap.audit.accuracy(compute_logits(model, p, batch["image"]), batch["label"])

    return sap.audit.relearn(
        model.loss,
        params,
        examples,
        heldout,
        score_fn=score,
        step_sizes=jnp.array(STEP_SIZES),
        counts=counts,
        num_steps=RELEARNING_STEPS,
        batch_size=RELEARNING_BATCH,
        at_once=AT_ONCE[model.name],
    ).rates


def relearning_areas(
    rates: list[float], retrained: list[float], counts: tuple[int, ...]
) -> dict[str, float]:
    """What lies between a model's relearning curve and the retrained model's."""
    area = sap.audit.relearning_area(jnp.array(rates), jnp.array(retrained), counts=counts)
    return {"relearning_signed": float(area.signed), "relearning_absolute": float(area.absolute)}
