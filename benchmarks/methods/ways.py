"""The ways to find a given number of entries and to move them, all with the same steps of adam."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sapsel_jax as sap
from benchmarks.learning.models import Model
from benchmarks.measures.metrics import count_entries
from benchmarks.methods.curvature import mean_gradient

NUM_STAGES = 4
"""How often `change_in_stages` cuts down what it moves."""
FIRST_CUT = 0.05
"""The share of all entries that its first cut leaves."""
FIRST_STAGE = 0.15
"""The share of the steps before the first cut, where all entries move."""
GAIN_TIMES = 4
"""How many times as many entries as are wanted `gain_then_change` begins with."""
GAIN_STAGES = 2
"""How often it cuts them down."""
FIRST_GAIN_STAGE = 0.3
"""The share of the steps before it does so first."""
DAMPING = 1e-3
"""Of `decrease`, in units of the curvature."""
CHECK_COST = (
    "The check of the result of a way that cuts down costs a gradient and two passes on the "
    "examples of the curvature beside that."
)
LIKE = "like_"
"""Before the name of a way: its control, random entries, as many in each leaf."""


class Start(NamedTuple):
    """What every way begins with."""

    model: Model
    params: Any
    """The poisoned parameters."""
    batches: Any
    """Steps by examples: one half about the poisoned examples, one half retained; examples of a
    weight below 0 are climbed on."""
    data: Any
    """A sample of the training set with what is known corrected."""
    original: Any
    """The poisoned examples as they were trained on."""
    diagonal: Any
    """The curvature of the loss on `data`."""
    key: jax.Array

    @property
    def num_steps(self) -> int:
        """How many steps there are."""
        return len(self.batches["label"])


class Way(NamedTuple):
    """A way to find entries and to move them."""

    summary: str
    needs: tuple[str, ...]
    """What it computes beside the steps: `curvature`, `gradient`."""
    run: Callable[[Start, int, float], tuple[Any, Any]]
    """`run(start, count, rate)` returns new parameters and the mask of the entries."""


@functools.partial(jax.jit, static_argnums=(0, 1))
def _descend(
    model: Model, num_steps: int, params: Any, mask: Any, batches: Any, rate: jax.Array
) -> Any:
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, num_steps))
    return sap.iterative_update(
        model.bounded_loss, params, batches, optimizer=optimizer, mask=mask
    )[0]


def move(start: Start, mask: Any, rate: float) -> Any:
    """All steps on one mask, the learning rate falling on a half cosine."""
    return _descend(start.model, start.num_steps, start.params, mask, start.batches, rate)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _cut_down(
    model: Model,
    score: Callable[..., Any],
    steps: tuple[int, ...],
    start: Any,
    counts: jax.Array,
    rate: jax.Array,
) -> Any:
    params, batches, data, diagonal, mask = start
    result = sap.sparsify_update(
        model.bounded_loss,
        params,
        batches,
        data,
        key=jax.random.key(0),
        counts=counts,
        mask=mask,
        steps=steps,
        optimizer=optax.adam(rate),
        curvature=lambda params, batch: diagonal,
        score=score,
    )
    return result.params, result.mask


def _by_change(score: Callable[..., Any], num_stages: int) -> Callable[..., tuple[Any, Any]]:
    def run(start: Start, count: int, rate: float) -> tuple[Any, Any]:
        counts = stage_counts(count_entries(start.params), count, num_stages)
        given = (start.params, start.batches, start.data, start.diagonal, None)
        steps = stage_steps(start.num_steps, num_stages, FIRST_STAGE)
        return _cut_down(start.model, score, steps, given, jnp.asarray(counts), rate)

    return run


def _gain_then_change(start: Start, count: int, rate: float) -> tuple[Any, Any]:
    wide = min(GAIN_TIMES * count, count_entries(start.params))
    mask = sap.select_top_count(_decrease(start), wide)
    counts = [round(n) for n in np.geomspace(wide, count, GAIN_STAGES + 1)[1:]]
    given = (start.params, start.batches, start.data, start.diagonal, mask)
    steps = stage_steps(start.num_steps, GAIN_STAGES, FIRST_GAIN_STAGE)
    return _cut_down(start.model, sap.score_change, steps, given, jnp.asarray(counts), rate)


def stage_counts(num_entries: int, count: int, num_stages: int) -> list[int]:
    """From a share of all entries to `count`, each stage the same fraction of the one before."""
    first = max(count, round(FIRST_CUT * num_entries)) if num_stages > 1 else count
    return [round(n) for n in np.geomspace(first, count, num_stages)]


def stage_steps(num_steps: int, num_stages: int, first: float) -> tuple[int, ...]:
    """How many steps come before the first cut, a share of all, and how many follow each cut."""
    ends = np.linspace(first * num_steps, num_steps, num_stages + 1).round().astype(int)
    return tuple(np.diff(ends, prepend=0).tolist())


def length(before: Any, after: Any, diagonal: Any) -> Any:
    """Scores a change by its size alone."""
    return sap.score_magnitude(jax.tree.map(jnp.subtract, after, before))


def _by_score(score: Callable[[Start], Any]) -> Callable[..., tuple[Any, Any]]:
    def run(start: Start, count: int, rate: float) -> tuple[Any, Any]:
        mask = sap.select_top_count(score(start), count)
        return move(start, mask, rate), mask

    return run


def _gradient(start: Start) -> Any:
    return mean_gradient(start.model, start.params, start.original)


def _decrease(start: Start) -> Any:
    return sap.score_decrease(_gradient(start), start.diagonal, damping=DAMPING)


WAYS = {
    "gain_then_change": Way(
        f"{GAIN_TIMES} times as many as are wanted by `decrease`; then, cut down {GAIN_STAGES} "
        "times as they move, those whose change the loss would miss most, ½ H δ²",
        ("curvature", "gradient"),
        _gain_then_change,
    ),
    "change_in_stages": Way(
        "those whose change the loss would miss most, ½ H δ², after a short update of all entries; "
        f"cut down {NUM_STAGES} times as they move",
        ("curvature",),
        _by_change(sap.score_change, NUM_STAGES),
    ),
    "change": Way(
        "the same, cut down once, after a short update of all entries",
        ("curvature",),
        _by_change(sap.score_change, 1),
    ),
    "length": Way(
        "the entries with the largest change |δ| after a short update of all",
        (),
        _by_change(length, 1),
    ),
    "decrease": Way(
        f"the largest expected gain, g² / 2(H + {DAMPING:g}), g on the poisoned examples",
        ("curvature", "gradient"),
        _by_score(_decrease),
    ),
    "sharpest": Way(
        "the largest curvature", ("curvature",), _by_score(lambda s: sap.score_sharpest(s.diagonal))
    ),
    "saliency": Way(
        "the largest gradient on the poisoned examples",
        ("gradient",),
        _by_score(lambda s: sap.score_saliency(_gradient(s))),
    ),
    "random": Way("random entries", (), _by_score(lambda s: sap.score_random(s.params, s.key))),
}
"""By name. All but the last have a control that takes as many entries of each leaf at random."""

PROPOSED = "gain_then_change"


def names() -> list[str]:
    """Every way and every control, each control after its way."""
    pairs = [(name, LIKE + name) for name in WAYS if name != "random"]
    return [*(name for pair in pairs for name in pair), "random"]
