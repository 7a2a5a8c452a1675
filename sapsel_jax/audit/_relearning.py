"""Relearning attacks: how many forgotten examples bring the rest back?"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sapsel_jax._base.checks import batch_size as count_examples
from sapsel_jax._base.checks import check_count, check_float_leaves, check_scalar
from sapsel_jax._base.types import Batch, LossFn, Params
from sapsel_jax._updates.iterative import iterative_update
from sapsel_jax.audit._ensembles import map_models
from sapsel_jax.audit._inputs import check_not_empty, wide

COUNTS = (0, 1, 5, 10, 50, 100)
"""How many forgotten examples the attacker holds, where nothing else is said."""


class Relearning(NamedTuple):
    """What a relearning attack on one model achieves.

    Attributes:
      rates: the score on the held-out examples for each count, shape (counts,), by the attacker's
        best step size.
      step_size: that step size.
      trials: the score for every step size and count, shape (step sizes, counts).
    """

    rates: jax.Array
    step_size: jax.Array
    trials: jax.Array


class RelearningArea(NamedTuple):
    """What lies between two relearning curves, over log(1 + count) scaled to [0, 1].

    Attributes:
      signed: above 0 where the model relearns faster than the retrained one, below 0 where it
        resists more.
      absolute: how far apart the curves are, whichever is above: 0 for the retrained model itself.
    """

    signed: jax.Array
    absolute: jax.Array


def relearn(
    loss_fn: LossFn,
    params: Params,
    examples: Batch,
    heldout: Batch,
    *,
    score_fn: Callable[..., jax.Array],
    step_sizes: Any,
    counts: Sequence[int] = COUNTS,
    optimizer: Callable[[Any], optax.GradientTransformation] = optax.adam,
    num_steps: int = 50,
    batch_size: int = 10,
    at_once: int = 8,
    args: tuple[Any, ...] = (),
) -> Relearning:
    """Attacks a model by fine-tuning on a few forgotten examples; scores it on the others.

    For each count k the attacker takes `num_steps` steps on the first k of `examples`, in turn,
    with every step size, always from `params`. The step size is tuned for this model: the one of
    the largest mean rate over the counts is the attacker's. It is chosen by the held-out rates
    themselves, so the curve is what the strongest such attacker reaches, for the retrained model as
    for the others. Compare the curves by `relearning_area`.

    Args:
      loss_fn: `loss_fn(params, example, *args) -> scalar`, the loss of one example that the
        attacker lowers: the loss of the original target.
      params: pytree of floating-point arrays of the model under attack.
      examples: batch that the attacker holds, in order, shuffled: the usual protocol takes 20 % of
        the forget set as they were trained on. Unrelated examples make the control.
      heldout: batch of the other forgotten examples.
      score_fn: `score_fn(params, heldout, *args) -> scalar`, the rate in [0, 1] at which the
        original target comes back; `accuracy` of the logits on the original labels, usually.
      step_sizes: what the attacker tries, above 0, shape (step sizes,).
      counts: Python integers of at least 0, rising, none above the number of `examples`; 0 is the
        model as it is.
      optimizer: a function of the step size that returns an optax transformation. The step size is
        an array: cast it there where parameters are floats of 8 bits, or promotion is strict.
      num_steps: of each attack, a Python integer of at least 1.
      batch_size: how many examples each step takes, at least 1; with a smaller count some twice.
      at_once: how many attacks run side by side, as in `train_ensemble`.
      args: further arguments of both functions, passed through as they are.

    Returns:
      A `Relearning`. A step that would leave the parameters NaN or infinite is not taken. A step
      size whose score is NaN is never the best, unless all are.

    Raises:
      TypeError: if `params` or `step_sizes` hold anything but real floating-point arrays,
        `loss_fn` or `score_fn` returns anything but one real scalar, or a count is no Python
        integer.
      ValueError: if a batch is empty, the counts do not rise or exceed the examples, there are no
        step sizes, or a number is out of range.

    Cost: step sizes × positive counts × (`num_steps` gradients of `batch_size` examples and one
      evaluation of `heldout`).

    Source: the protocol is this library's. An attack of this kind is in Lynch et al., "Eight
      Methods to Evaluate Robust Unlearning in LLMs" (arXiv 2402.16835).

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import sapsel_jax as sap
      >>> def loss_fn(w, y):
      ...     return 0.5 * (w - y) ** 2
      >>> def score_fn(w, heldout):
      ...     return jnp.mean(jnp.abs(heldout - w) < 0.5)
      >>> attack = sap.audit.relearn(
      ...     loss_fn, jnp.array(0.0), jnp.ones(1), jnp.ones(3), score_fn=score_fn, counts=(0, 1),
      ...     step_sizes=jnp.array([0.01, 1.0]), optimizer=optax.sgd, num_steps=2, batch_size=1,
      ... )
      >>> print(attack.rates, attack.step_size)
      [0. 1.] 1.0
    """
    check_float_leaves("params", params)
    num_examples = count_examples("examples", examples)
    count_examples("heldout", heldout)
    _check_counts(counts)
    if counts[-1] > num_examples:
        raise ValueError(
            f"`counts` must be at most the number of `examples`, {num_examples}; got {counts[-1]}."
        )
    check_count("num_steps", num_steps, minimum=1)
    check_count("batch_size", batch_size, minimum=1)
    check_count("at_once", at_once, minimum=1)
    step_sizes = jnp.atleast_1d(wide("step_sizes", step_sizes))
    check_not_empty("step_sizes", step_sizes)
    turns = jnp.arange(num_steps * batch_size).reshape(num_steps, batch_size)

    def score(model: Params) -> jax.Array:
        rate = score_fn(model, heldout, *args)
        check_scalar("score_fn", rate, differentiable=False)
        return jnp.asarray(rate, step_sizes.dtype)

    def attack(trial: tuple[jax.Array, jax.Array]) -> jax.Array:
        step_size, count = trial
        batches = jax.tree.map(lambda x: jnp.asarray(x)[turns % count], examples)
        relearned, _ = iterative_update(
            loss_fn, params, batches, optimizer=optimizer(step_size), args=args
        )
        return score(relearned)

    some = jnp.asarray([count for count in counts if count > 0])
    pairs = jnp.repeat(step_sizes, some.size), jnp.tile(some, step_sizes.size)
    trials = map_models(attack, pairs, at_once).reshape(step_sizes.size, some.size)
    if counts[0] == 0:
        before = jnp.full_like(trials[:, :1], score(params))
        trials = jnp.concatenate([before, trials], axis=1)
    mean = jnp.mean(trials, axis=1)
    best = jnp.argmax(jnp.where(jnp.isnan(mean), -jnp.inf, mean))
    return Relearning(trials[best], step_sizes[best], trials)


def relearning_area(
    rates: Any, retrained_rates: Any, *, counts: Sequence[int] = COUNTS
) -> RelearningArea:
    """Computes the area between a model's relearning curve and the retrained model's.

    Curves are straight between the counts. The horizontal axis is log(1 + count) from the first
    count to the last, scaled to length 1, so that the first few examples weigh as much as the many
    that follow. A rate that is higher by 0.1 everywhere gives an area of 0.1.

    Args:
      rates: of the unlearned model, shape (..., counts), as `relearn` returns them.
      retrained_rates: of the retrained model, shape (..., counts).
      counts: as they were given to `relearn`, at least two.

    Returns:
      A `RelearningArea` of arrays of shape (...), in [−1, 1] and [0, 1]; NaN where a rate is.

    Raises:
      TypeError: if rates are not real floating-point numbers or a count is no Python integer.
      ValueError: if the last axes do not fit the counts, or the counts do not rise.

    Cost: a few operations for each number; no gradient.

    Source: the protocol is this library's.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> rates, retrained_rates = jnp.array([0.0, 1.0, 1.0]), jnp.array([0.0, 0.0, 1.0])
      >>> print(sap.audit.relearning_area(rates, retrained_rates, counts=(0, 1, 3)).signed)
      0.5
    """
    _check_counts(counts)
    if len(counts) < 2:
        raise ValueError(f"`counts` must hold at least 2 numbers; got {len(counts)}.")
    rates, retrained_rates = (
        wide(name, value)
        for name, value in (("rates", rates), ("retrained_rates", retrained_rates))
    )
    for name, value in (("rates", rates), ("retrained_rates", retrained_rates)):
        if value.shape[-1:] != (len(counts),):
            raise ValueError(
                f"`{name}` must have a last axis over the {len(counts)} counts; "
                f"got shape {list(value.shape)}."
            )
    place = np.log1p(np.asarray(counts, float))
    widths = jnp.asarray(np.diff(place) / (place[-1] - place[0]), rates.dtype)
    left, right = (rates - retrained_rates)[..., :-1], (rates - retrained_rates)[..., 1:]
    signed = jnp.sum(widths * (left + right), axis=-1) / 2
    # Where the curves cross, two triangles in place of a trapezium.
    apart = jnp.abs(left) + jnp.abs(right)
    triangles = (left**2 + right**2) / jnp.where(apart > 0, apart, 1)
    absolute = jnp.sum(widths * jnp.where(left * right < 0, triangles, apart), axis=-1) / 2
    return RelearningArea(signed, absolute)


def _check_counts(counts: Sequence[int]) -> None:
    for count in counts:
        check_count("counts", count, minimum=0)
    if not len(counts) or any(a >= b for a, b in itertools.pairwise(counts)):
        raise ValueError(f"`counts` must rise; got {tuple(counts)}.")
    if counts[-1] == 0:
        raise ValueError("`counts` must hold a number above 0.")
