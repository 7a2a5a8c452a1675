"""From parameters to new parameters in one call: curvature, scores, mask, update."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sapsel_jax._base.calls import call_curvature
from sapsel_jax._base.checks import batch_size, check_fraction
from sapsel_jax._base.types import Batch, Diagonal, LossFn, Mask, Params, Scores
from sapsel_jax._curvature.propagation import propagated_diagonal
from sapsel_jax._selection.entries import select_top_fraction
from sapsel_jax._selection.masks import mask_count
from sapsel_jax._selection.scores import score_sharpest
from sapsel_jax._selection.search import num_entries
from sapsel_jax._updates.certificates import Certificate
from sapsel_jax._updates.certified import Update, refuted
from sapsel_jax._updates.corrections import Correction, read_correction
from sapsel_jax._updates.masked import keep_unselected
from sapsel_jax._updates.second_order import second_order_update

DAMPING = 0.1
"""Where the default update starts: see `unlearn`.

Measured by `python -m benchmarks ablation`: adapted dampings from 0.003 to 0.3 end within 3 points
of accuracy of each other; on false labels, those up to 0.1 meet negative curvature without it.
"""

NUM_STEPS = 3
"""How many steps the default update takes.

Measured likewise: one step falls short of three by 2 to 7 points. Ten take back 11 points more of a
backdoor where `data` is the whole training set, and lose 2 where it is a tenth of it.
"""


class Unlearned(NamedTuple):
    """What `unlearn` returns.

    Attributes:
      params: pytree shaped like the parameters, bit-identical outside the mask.
      mask: pytree of bool arrays, True for the entries that might move.
      diagonal: the curvature of the loss that was trained, float32 or wider.
      certificate: whether to trust the result: a `Certificate`.
    """

    params: Params
    mask: Mask
    diagonal: Diagonal
    certificate: Certificate


def unlearn(
    loss_fn: LossFn,
    params: Params,
    original: Batch,
    corrected: Batch | None,
    data: Batch,
    *,
    key: jax.Array,
    fraction: float = 0.05,
    num_examples: int | None = None,
    curvature: Callable[..., Diagonal] | None = None,
    score: Callable[[Diagonal], Scores] = score_sharpest,
    select: Callable[[Scores, float], Mask] = select_top_fraction,
    update: Update | None = None,
    microbatch: int | None = None,
    args: tuple[Any, ...] = (),
) -> Unlearned:
    """Unlearns wrong examples by updating only the highest-scoring parameters.

    The curvature of the loss that was trained gives each entry a score. The entries with the
    highest scores are selected, and the update changes only these. That curvature is computed from
    parts, with N examples in the training set as it should have been:
    diag(data) + (Σ diag(original) − Σ diag(corrected)) / N for corrections, and
    (N diag(data) + Σ diag(original)) / (N + m) for m removed examples.

    The call is one function of arrays: `jax.jit` compiles it whole, with `loss_fn` and the options
    bound beforehand. Nothing goes through the host.

    Args:
      loss_fn: `loss_fn(params, example, *args) -> scalar`, the loss of one example.
      params: pytree of floating-point arrays, where the loss was trained to.
      original: batch of the examples as they were trained on.
      corrected: batch of the same examples as they should have been; None removes the originals.
      data: batch of the training set as it should have been: with the corrected examples, without
        the removed ones. A random sample of it will do if `num_examples` is given.
      key: a JAX random key, for curvature that is estimated.
      fraction: share of all entries to select, a Python number in [0, 1].
      num_examples: the size of the training set as it should have been; None takes the size of
        `data`.
      curvature: `curvature(params, batch, key, *args)` or `curvature(params, batch, *args)`: the
        mean diagonal over a batch, as `hutchinson_diagonal` or `exact_diagonal` return it. The key
        is passed to a function that needs a third positional argument beside `args`, whatever its
        name, and to a parameter that is named `key`. None takes `propagated_diagonal`, whose masks
        hardly differ from the masks of `exact_diagonal`, at a fraction of the cost.
      score: `score(diagonal) -> scores`; other inputs of a score can be bound beforehand.
      select: `select(scores, fraction) -> mask`, without side effects: it may be called twice.
      update: `update(loss_fn, params, original, corrected, data, *, mask, num_examples, microbatch,
        args) -> (params, Certificate)`: `with_first_order`, `with_iteration`, or
        `second_order_update` with its damping bound by `functools.partial`. None takes three
        second-order steps with adapted damping from 0.1.
      microbatch: how many examples are worked on at once, at least 1; the default is all of them.
        For the default curvature and the update.
      args: further arguments of `loss_fn`, passed through as they are.

    Returns:
      An `Unlearned`. If its certificate has not converged, the parameters are the result of the
      last step that held, or the old parameters if none held. Entries whose curvature is NaN or
      infinite are never selected. If fewer entries than asked for are left, or none at all, nothing
      changes and the reason is `TOO_FEW_SELECTED`. A fraction of 0 changes nothing and converges.

    Raises:
      TypeError: if `params` holds anything but real floating-point arrays, `loss_fn` returns
        anything but one real scalar, `curvature` cannot be called in either way, or a number is
        none.
      ValueError: if a batch is empty, `corrected` differs from `original` in structure or number,
        or a number is out of range.

    Cost: the curvature of `data`, `original` and `corrected` (about 1.4 to 3.6 gradient equivalents
      on each by default), a selection, and the update; a second selection if `select` is not the
      default.

    Source: Malekmohammadi, Lee, Xiong (arXiv 2504.06398), with the updates of Warnecke et al.
      (arXiv 2108.11577).

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
      ...     key=jax.random.key(0), fraction=0.5,
      ... )
      >>> print(result.params.round(1), result.mask, result.certificate.converged)
      [1. 0.] [ True False] True
    """
    check_fraction("fraction", fraction)
    correction = read_correction(params, original, corrected, data, num_examples, microbatch)
    if curvature is None:
        curvature = propagated_diagonal(loss_fn, microbatch=microbatch)
    if update is None:
        most = round(fraction * num_entries(params)) if select is select_top_fraction else None
        update = functools.partial(
            second_order_update,
            damping=DAMPING,
            adapt_damping=True,
            num_steps=NUM_STEPS,
            num_selected=most,
        )
    diagonal = _trained_diagonal(curvature, params, correction, key, args)
    scores = score(diagonal)
    mask = select(scores, fraction)
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
    enough = ~_too_few(scores, mask, select, fraction)
    params = jax.tree.map(jnp.asarray, params)
    moved = keep_unselected(params, moved, None, enough)
    return Unlearned(moved, mask, diagonal, refuted(certificate, enough))


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
    scores: Scores, mask: Mask, select: Callable[[Scores, float], Mask], fraction: float
) -> jax.Array:
    """Whether NaN scores kept entries from being selected, or none was selected at all."""
    if fraction == 0:
        return jnp.bool_(False)
    selected = mask_count(mask)
    if select is select_top_fraction:
        holes = [jnp.any(jnp.isnan(leaf)) for leaf in jax.tree.leaves(scores)]
        wanted = round(fraction * num_entries(scores))
        short = jnp.any(jnp.asarray(holes)) & (selected < wanted)
    else:
        # What another selection wants it says itself, of scores without holes.
        filled = jax.tree.map(lambda s: jnp.where(jnp.isnan(s), 0, s), scores)
        short = selected < mask_count(select(filled, fraction))
    return short | (selected == 0)
