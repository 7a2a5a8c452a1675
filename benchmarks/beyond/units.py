"""A backdoor that is known in part: units that serve it are set back, and steps on retained data
repair the network.

A unit is scored by Σ |θ g| over its weights and its bias, with the gradient g on the known poison,
over the same sum with the gradient on retained data. More and more units are set back until the
accuracy on the known poison has fallen far enough: the search of Schoepf et al., "Potion: Towards
Poison Unlearning" (arXiv 2406.09173), who dampen entries instead.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.beyond.ideas import Idea, by_way
from benchmarks.beyond.steps import mean_gradient, take_steps
from benchmarks.measures.metrics import accuracy
from benchmarks.methods import curvature
from benchmarks.methods.bench import RATES, Bench
from benchmarks.methods.updates import mix_batches
from benchmarks.methods.ways import PROPOSED

NUMBERS = (1, 2, 4, 8, 16, 32)
"""How many units are set back in turn; each try takes its share of the steps."""
FALLEN = 0.2
"""Accuracy on the known poison, as it was taught, at which the search ends."""

Units = dict[str, np.ndarray]
"""Of each layer but the last, a figure or a flag per output channel."""


def score_units(params: Any, poison: Any, retained: Any, layers: list[str]) -> Units:
    """How much more a unit serves the poison than the rest.

    Args:
      params: the poisoned model's.
      poison: the gradient on the known poison, like `params`.
      retained: the gradient on retained data.
      layers: the layers whose units are scored.
    """
    of = lambda gradient, name: sum(
        np.abs(np.asarray(params[name][leaf] * gradient[name][leaf]))
        .reshape(-1, len(params[name]["bias"]))
        .sum(0)
        for leaf in ("kernel", "bias")
    )
    tiny = np.finfo(np.float32).tiny
    return {name: of(poison, name) / np.maximum(of(retained, name), tiny) for name in layers}


def top_units(scores: Units, number: int) -> Units:
    """The units with the largest scores, over all layers."""
    least = np.sort(np.concatenate(list(scores.values())))[-number]
    return {name: score >= least for name, score in scores.items()}


def random_units(units: Units, seed: int) -> Units:
    """As many units of each layer at random."""
    rng = np.random.default_rng([seed, 11])
    return {name: rng.permutation(chosen) for name, chosen in units.items()}


def set_back(params: Any, fresh: Any, units: Units) -> Any:
    """The parameters with the incoming weights and the biases of units as before training."""
    return params | {
        name: jax.tree.map(lambda own, new, u=u: jnp.where(u, new, own), params[name], fresh[name])
        for name, u in units.items()
    }


def search(bench: Bench, *, at_random: bool) -> Callable[[int, float], Any]:
    """Sets back more and more units until the known poison is no longer answered as taught."""
    start, case = bench.start, bench.evidence.case
    retained = case.poisoned.train.take(case.poisoned.retained)
    steps, size = start.batches["label"].shape
    steps //= len(NUMBERS)
    batches = mix_batches([(retained, 1.0, size)], steps=steps, seed=case.seed)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batches)
    on_poison = curvature.mean_gradient(case.model, case.params, start.original)
    on_retained = curvature.mean_gradient(case.model, case.params, flat)
    layers = [name for name in case.params if name != case.model.last_layer]
    scores = score_units(case.params, on_poison, on_retained, layers)
    fresh = case.model.init(case.seed + 1)
    everything = jax.tree.map(lambda x: np.ones(x.shape, bool), case.params)

    def run(size: int, rate: float) -> Any:
        params = case.params
        for number in NUMBERS:
            units = top_units(scores, number)
            units = random_units(units, case.seed) if at_random else units
            params = set_back(case.params, fresh, units)
            params = take_steps(case.model, mean_gradient, params, everything, batches, rate)
            if accuracy(case.model, params, case.poisoned.original) < FALLEN:
                break
        return params

    return run


WHERE = (("backdoor",), 0.1)

IDEAS = {
    "units": Idea(
        "units by Σ |θ g| on the known poison over that on retained data, set back, more of them "
        "until the known poison has gone; then steps on retained data",
        *WHERE,
        (0,),
        "learning rate",
        RATES,
        lambda bench: search(bench, at_random=False),
        ("random_units",),
    ),
    "random_units": Idea(
        "as many units of each layer at random",
        *WHERE,
        (0,),
        "learning rate",
        RATES,
        lambda bench: search(bench, at_random=True),
    ),
    "few_entries": Idea(
        "24 entries by `sap.sparsify_update`",
        *WHERE,
        (24,),
        "learning rate",
        RATES,
        by_way(PROPOSED),
    ),
}
