"""From parameters to new parameters in one call: curvature, scores, mask, update."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sapsel_jax._base.calls import call_curvature
from sapsel_jax._base.checks import batch_size, check_count, check_fraction
from sapsel_jax._base.losses import wide_loss
from sapsel_jax._base.precision import widen
from sapsel_jax._base.types import Batch, Diagonal, LossFn, Mask, Params, Scores
from sapsel_jax._curvature.propagation import propagated_diagonal
from sapsel_jax._descent import DEFAULT_STEPS, WIDE, Steps, check_steps, descend_on_few
from sapsel_jax._selection.entries import select_top_count, select_top_fraction
from sapsel_jax._selection.masks import mask_count
from sapsel_jax._selection.scores import score_decrease
from sapsel_jax._selection.search import num_entries
from sapsel_jax._updates.certificates import Certificate, no_number
from sapsel_jax._updates.certified import Update, refuted
from sapsel_jax._updates.corrections import Correction, read_correction
from sapsel_jax._updates.masked import keep_unselected

FRACTION = 0.01
"""The share of the entries that move where nothing is said of it."""
DAMPING = 1e-3
"""Of the gain by which `unlearn` selects where no score is given."""


class Unlearned(NamedTuple):
    """What `unlearn` returns.

    Attributes:
      params: pytree shaped like the parameters, bit-identical outside the mask.
      mask: pytree of bool arrays, True for the entries that might differ.
      diagonal: the curvature of the loss that was trained, float32 or wider.
      certificate: whether to trust the result: a `Certificate`.
      step_size: the step size of the steps that `unlearn` takes by itself; NaN for another update.
    """

    params: Params
    mask: Mask
    diagonal: Diagonal
    certificate: Certificate
    step_size: jax.Array


def unlearn(
    loss_fn: LossFn,
    params: Params,
    original: Batch,
    corrected: Batch | None,
    data: Batch,
    *,
    key: jax.Array,
    fraction: float | None = None,
    count: int | None = None,
    num_examples: int | None = None,
    curvature: Callable[..., Diagonal] | None = None,
    score: Callable[[Diagonal], Scores] | None = None,
    select: Callable[[Scores, float], Mask] = select_top_fraction,
    update: Update | None = None,
    steps: Steps = DEFAULT_STEPS,
    validate: Callable[[Params], jax.Array] | None = None,
    microbatch: int | None = None,
    args: tuple[Any, ...] = (),
) -> Unlearned:
    """Unlearns wrong examples by changing a few parameters.

    The curvature of the loss that was trained gives each entry a score. The entries with the
    highest scores are selected, and the update changes only these. That curvature is computed from
    parts, with N examples in the training set as it should have been:
    diag(data) + (Σ diag(original) − Σ diag(corrected)) / N for corrections, and
    (N diag(data) + Σ diag(original)) / (N + m) for m removed examples.

    By itself the call begins with four times as many entries as are wanted, those with the largest
    gain g² / 2(H + 0.001) on the originals, takes steps of adam, and puts entries back twice, until
    as many are left as were asked for: those whose change the loss would miss most
    (`sparsify_update`). With a `score`, such as `score_sharpest` for the selection of the paper,
    or a `select` of your own, exactly the entries that these select move, and none is put back.

    The call is one function of arrays: `jax.jit` compiles it whole, with `loss_fn` and the options
    bound beforehand. Nothing goes through the host.

    Args:
      loss_fn: `loss_fn(params, example, *args) -> scalar`, the loss of one example.
      params: pytree of floating-point arrays, where the loss was trained to.
      original: batch of the examples as they were trained on.
      corrected: batch of the same examples as they should have been; None removes the originals.
        Where an answer was wrong, give the same input with the right answer: the clean image of a
        backdoor's example does not show what was learned of the trigger. Where only the input was
        wrong, as with a feature to forget, give the input as it should be.
      data: batch of the training set as it should have been: with the corrected examples, without
        the removed ones. A random sample of it will do if `num_examples` is given.
      key: a JAX random key, for curvature that is estimated and for the examples of the steps.
      fraction: share of all entries to change, a Python number in [0, 1].
      count: how many entries to change, a Python integer of at least 0, instead of a fraction.
        Without either it is 1 % of the entries, at least one.
      num_examples: the size of the training set as it should have been; None takes the size of
        `data`.
      curvature: `curvature(params, batch, key, *args)` or `curvature(params, batch, *args)`: the
        mean diagonal over a batch, as `hutchinson_diagonal` or `exact_diagonal` return it. The key
        is passed to a function that needs a third positional argument beside `args`, whatever its
        name, and to a parameter that is named `key`. None takes `propagated_diagonal`, whose masks
        hardly differ from the masks of `exact_diagonal`, at a fraction of the cost.
      score: `score(diagonal) -> scores`; other inputs of a score can be bound beforehand. None
        takes the gain.
      select: `select(scores, fraction) -> mask`, without side effects: it may be called twice.
      update: `update(loss_fn, params, original, corrected, data, *, mask, num_examples, microbatch,
        args) -> (params, Certificate)`: `with_first_order`, `with_iteration`, or
        `second_order_update` with its damping bound by `functools.partial`. None takes `steps`.
      steps: a `Steps`: how many, of how many examples, how long. Half of the examples of a step are
        drawn from `data`, half from the corrected ones. Where examples are removed, these are
        climbed on with weight 0.2, until their loss reaches a ceiling.
      validate: `validate(params) -> scalar`, a loss on held-out data, the lower the better; of a
        score the negative. Then the steps are taken once for each of `steps.step_sizes`, and of the
        results whose certificate has converged the one with the lowest value is returned.
      microbatch: how many examples are worked on at once, at least 1; the default is all of them.
        For the default curvature and the update.
      args: further arguments of `loss_fn`, passed through as they are.

    Returns:
      An `Unlearned`. If its certificate has not converged, the parameters are the result of the
      last step that held, or the old parameters if none held. Entries whose curvature is NaN or
      infinite are never selected. If fewer entries than asked for are left, or none at all, nothing
      changes and the reason is `TOO_FEW_SELECTED`. A fraction of 0 changes nothing and converges.

    Raises:
      TypeError: if `params` holds anything but real floating-point arrays, or without an `update`
        floats of 8 bits, `loss_fn` or `validate` returns anything but one real scalar, `curvature`
        cannot be called in either way, or a number is none.
      ValueError: if a batch is empty, `corrected` differs from `original` in structure or number, a
        number is out of range, `fraction` and `count` are both given, or `steps` or `validate` is
        given beside an `update`.

    Cost: the curvature of `data`, `original` and `corrected` (about 1.0 to 4.0 gradient equivalents
      on each by default), a gradient on `original` where no score is given, a selection, and the
      update: one gradient for each step, by default 6,400 example gradients, for each step size
      that is tried; a second selection if `select` is not the default.

    Source: Malekmohammadi, Lee, Xiong (arXiv 2504.06398), with the updates of Warnecke et al.
      (arXiv 2108.11577); what it does by itself is own.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> def loss_fn(w, example):
      ...     x, y = example
      ...     return 0.5 * (jnp.vdot(w, x) - y) ** 2
      >>> x = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.1]])
      >>> data = (x, jnp.array([1.0, 1.0, 0.0]))
      >>> original, corrected = (x[:1], jnp.array([3.0])), (x[:1], jnp.array([1.0]))
      >>> result = sap.unlearn(
      ...     loss_fn, jnp.array([2.0, 0.0]), original, corrected, data,
      ...     key=jax.random.key(0), count=1, steps=sap.Steps(step_size=0.03),
      ... )
      >>> print(result.params.round(1), result.mask, result.certificate.converged)
      [1. 0.] [ True False] True
    """
    wanted, share = _wanted(fraction, count, num_entries(params))
    correction = read_correction(params, original, corrected, data, num_examples, microbatch)
    check_steps(steps)
    if update is not None and (validate is not None or steps is not DEFAULT_STEPS):
        raise ValueError("`steps` and `validate` must be left out beside an `update`.")
    if curvature is None:
        curvature = propagated_diagonal(loss_fn, microbatch=microbatch)
    params = jax.tree.map(jnp.asarray, params)
    diagonal = _trained_diagonal(curvature, params, correction, key, args)
    if score is None:
        loss = wide_loss(loss_fn, params, original, microbatch, args)
        gradient = loss.gradient(widen(params), original)
        scores = score_decrease(gradient, diagonal, damping=DAMPING)
    else:
        scores = score(diagonal)
    counts: Sequence[int] = ()
    if select is not select_top_fraction:
        mask = select(scores, share)
    elif score is None and update is None and wanted:
        wide = min(WIDE * wanted, num_entries(params))
        mask = select_top_count(scores, wide)
        counts = [round((wide * wanted) ** 0.5), wanted]
    else:
        mask = select_top_count(scores, wanted)
    if update is None:
        moved, mask, certificate, step_size = descend_on_few(
            loss_fn,
            params,
            correction,
            diagonal,
            mask,
            counts,
            steps=steps,
            key=jax.random.fold_in(key, 1),
            validate=validate,
            microbatch=microbatch,
            args=args,
        )
    else:
        moved, certificate = update(
            loss_fn,
            params,
            original,
            corrected,
            data,
            mask=mask,
            num_examples=correction.num_examples,
            microbatch=microbatch,
            args=args,
        )
        step_size = no_number(jnp.float32)
    enough = jnp.bool_(True)
    if share > 0:
        enough = ~_too_few(scores, mask, select, wanted, share)
    moved = keep_unselected(params, moved, None, enough)
    return Unlearned(moved, mask, diagonal, refuted(certificate, enough), step_size)


def _wanted(fraction: float | None, count: int | None, size: int) -> tuple[int, float]:
    """How many entries are to change, and which share of all that is."""
    if count is not None:
        if fraction is not None:
            raise ValueError("`fraction` and `count` must not be given together.")
        check_count("count", count, minimum=0)
        count = min(count, size)
        return count, count / max(size, 1)
    if fraction is None:
        return min(max(1, round(FRACTION * size)), size), FRACTION
    check_fraction("fraction", fraction)
    return round(fraction * size), fraction


def _trained_diagonal(
    curvature: Callable[..., Diagonal],
    params: Params,
    correction: Correction,
    key: jax.Array,
    args: tuple[Any, ...],
) -> Diagonal:
    """The diagonal on the training set as it was, from that on its parts."""
    data_key, own_key = jax.random.split(key)
    on = lambda batch, key: call_curvature(curvature, params, batch, key, args)
    num_examples = correction.num_examples
    num_originals = batch_size("original", correction.original)
    whole, old = on(correction.data, data_key), on(correction.original, own_key)
    if correction.corrected is None:
        total = num_examples + num_originals
        return jax.tree.map(
            lambda d, o: (num_examples / total) * d + (num_originals / total) * o, whole, old
        )
    # The same key, so that what original and corrected examples have in common cancels.
    new, share = on(correction.corrected, own_key), num_originals / num_examples
    return jax.tree.map(lambda d, o, c: d + share * (o - c), whole, old, new)


def _too_few(
    scores: Scores,
    mask: Mask,
    select: Callable[[Scores, float], Mask],
    wanted: int,
    share: float,
) -> jax.Array:
    """Whether NaN scores kept entries from being selected, or none was selected at all."""
    selected = mask_count(mask)
    if select is select_top_fraction:
        holes = [jnp.any(jnp.isnan(leaf)) for leaf in jax.tree.leaves(scores)]
        short = jnp.any(jnp.asarray(holes)) & (selected < wanted)
    else:
        # What another selection wants it says itself, of scores without holes.
        filled = jax.tree.map(lambda s: jnp.where(jnp.isnan(s), 0, s), scores)
        short = selected < mask_count(select(filled, share))
    return short | (selected == 0)
