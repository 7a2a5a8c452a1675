"""An update of a handful of entries: a short update of all, cut down in stages."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from sapsel_jax._base.calls import call_curvature
from sapsel_jax._base.checks import batch_size, check_count
from sapsel_jax._base.losses import wide_loss
from sapsel_jax._base.types import Batch, Diagonal, LossFn, Mask, Params, Scores
from sapsel_jax._curvature.propagation import propagated_diagonal
from sapsel_jax._selection.entries import top_floats
from sapsel_jax._selection.masks import mask_count
from sapsel_jax._selection.scores import score_change
from sapsel_jax._selection.search import num_entries
from sapsel_jax._updates.certificates import Certificate
from sapsel_jax._updates.certified import certified, refuted
from sapsel_jax._updates.iterative import join_batches, take_step
from sapsel_jax._updates.masked import check_update, keep_unselected
from sapsel_jax._updates.selective import selective

FIRST_SHARE = 0.3
"""The share of the steps before the first cut; the later stages have the rest in equal parts."""


class Sparsified(NamedTuple):
    """What `sparsify_update` returns.

    Attributes:
      params: pytree shaped like the parameters, bit-identical outside the mask.
      mask: pytree of bool arrays, True for the entries that were kept.
      losses: the mean loss of each batch before its step, shape (steps,).
      certificate: whether to trust the result: a `Certificate`.
    """

    params: Params
    mask: Mask
    losses: jax.Array
    certificate: Certificate


def sparsify_update(
    loss_fn: LossFn,
    params: Params,
    batches: Batch,
    data: Batch,
    *,
    key: jax.Array,
    counts: Sequence[int] | jax.Array,
    optimizer: optax.GradientTransformation,
    mask: Mask | None = None,
    steps: Sequence[int] | None = None,
    retained: Batch | None = None,
    curvature: Callable[..., Diagonal] | None = None,
    score: Callable[[Params, Params, Diagonal], Scores] = score_change,
    microbatch: int | None = None,
    args: tuple[Any, ...] = (),
) -> Sparsified:
    """Finds a few entries whose change does the work of an update of all of them.

    A stage of steps moves all entries, or those of `mask`. Then `counts[0]` of them keep their
    change: those whose change the loss would miss most, by `score`. All others are put back, bit
    for bit. The next stage moves the kept entries on from where they are; then `counts[1]` of them
    are kept, and so on. The last stage moves `counts[-1]` entries. Every stage begins with a fresh
    state of the optimizer.

    The call is one function of arrays: `jax.jit` compiles it whole, with `loss_fn`, the counts and
    the options bound beforehand. `make_patch` of the parameters before and after is the result in a
    few bytes.

    Args:
      loss_fn: `loss_fn(params, example, *args) -> scalar`, the loss of one example.
      params: pytree of floating-point arrays.
      batches: pytree of arrays with leading axes (steps, examples): corrected examples to descend
        on, or with a sign inside the loss originals to ascend on.
      data: batch of the training set as it should have been, or a random sample of it: what the
        curvature is measured on.
      key: a JAX random key, for curvature that is estimated.
      counts: how many entries to keep after each stage but the last, Python integers of at least
        1, none larger than the one before it. Fractions of a fifth, such as (5000, 1000, 200, 40),
        lose little from one to the next. Or an array of such integers, which may be traced: other
        counts need no new compilation then, and their values are not checked. None at all where a
        `mask` is given: then its entries move, and none of them is put back.
      optimizer: any optax transformation; it is wrapped by `selective`.
      mask: pytree of bool arrays shaped like `params`, True for the entries that the first stage
        moves; None moves all of them. Entries with the largest expected gain (`score_decrease`),
        some four times as many as are wanted, are a good beginning for a handful.
      steps: how many batches each stage takes, one number more than `counts`, each at least 1;
        None gives the first stage 30 % of them and the others the rest in equal parts.
      retained: batches to mix in, with as many steps; each step's loss is the mean over the
        examples of both.
      curvature: as for `unlearn`; it is measured once, on `data`, before the first step. None takes
        `propagated_diagonal`.
      score: `score(before, after, diagonal)` to scores; it runs once per stage.
      microbatch: how many examples the default curvature and the certificate work on at once, at
        least 1; the default is all of them.
      args: further arguments of `loss_fn`, passed through as they are.

    Returns:
      A `Sparsified`. Its certificate is about the loss that the steps descend on, measured on the
      last examples of the batches, as many as `data` holds; it predicts to first order. Where that
      loss has not fallen, the parameters are the old ones.
      Scores that are NaN are never kept: where fewer than `counts[-1]` entries are left, nothing
      changes and the reason is `TOO_FEW_SELECTED`.

    Raises:
      TypeError: if `params` holds anything but real floating-point arrays or `mask` anything but
        bool arrays, `loss_fn` returns anything but one real scalar, `curvature` cannot be called in
        either way, or a count is no Python integer.
      ValueError: if the batches are empty or differ in length, `retained` differs from them in
        structure, steps or the shape of an example, `mask` does not fit `params`, `counts` rises,
        holds more than there are entries, or is empty without a mask, or `steps` does not fit
        `counts` or the batches.
      NotImplementedError: if there are 2³² entries or more.

    Cost: the curvature of `data`, one gradient per batch, a selection per stage, and for the
      certificate a gradient and two passes on as many examples as `data` holds.

    Source: own. The score is that of Optimal Brain Damage, applied to an update.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import sapsel_jax as sap
      >>> def loss_fn(w, y):
      ...     return 0.5 * jnp.sum((w - y) ** 2)
      >>> wanted = jnp.array([[0.1, 2.0, -1.0]])
      >>> result = sap.sparsify_update(
      ...     loss_fn, jnp.zeros(3), jnp.tile(wanted, (9, 1, 1)), wanted,
      ...     key=jax.random.key(0), counts=(2, 1), optimizer=optax.sgd(0.5),
      ... )
      >>> print(result.params.round(1), result.certificate.converged)
      [0. 2. 0.] True
    """
    check_update(params, mask)
    batches = join_batches(batches, retained)
    num_data = batch_size("data", data)
    if len(counts) == 0 and mask is None:
        raise ValueError("`counts` must name at least one number of entries; got none.")
    stage_ends = _stage_ends(counts, steps, batch_size("batches", batches), num_entries(params))
    if curvature is None:
        curvature = propagated_diagonal(loss_fn, microbatch=microbatch)
    before = jax.tree.map(jnp.asarray, params)
    diagonal = call_curvature(curvature, before, data, key, args)
    optimizer = optax.with_extra_args_support(optimizer)
    loss = wide_loss(loss_fn, before, jax.tree.map(lambda x: x[0], batches), None, args)

    def step(carry: Any, inputs: Any) -> Any:
        batch, count = inputs
        current, state, mask = lax.cond(count > 0, cut_down, lambda *now: now[:3], *carry, count)
        current, state, mean, taken = take_step(
            loss, selective(optimizer, mask), mask, current, state, batch
        )
        return (current, state, mask), (mean, taken)

    def cut_down(current: Params, state: Any, mask: Mask, count: jax.Array) -> Any:
        scores = score(before, current, diagonal)
        inside = jax.tree.map(lambda m, s: jnp.where(m, s, -jnp.inf), mask, scores)
        leaves, structure = jax.tree.flatten(inside)
        mask = structure.unflatten(top_floats(leaves, count))
        current = keep_unselected(before, current, mask, jnp.bool_(True))
        return current, optimizer.init(current), mask

    if mask is None:
        mask = jax.tree.map(lambda x: jnp.ones(x.shape, bool), before)
    start = (before, optimizer.init(before), jax.tree.map(jnp.asarray, mask))
    (moved, _, mask), (losses, taken) = lax.scan(step, start, (batches, stage_ends))
    # The loss that was to fall, on as many examples as there are for the curvature.
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[-num_data:], batches)
    moved, certificate = certified(
        wide_loss(loss_fn, before, flat, microbatch, args),
        before,
        moved,
        flat,
        taken=jnp.any(taken),
        mask=mask,
        iterations=len(stage_ends),
    )
    if len(counts) == 0:
        return Sparsified(moved, mask, losses, certificate)
    enough = mask_count(mask) >= counts[-1]
    moved = keep_unselected(before, moved, None, enough)
    return Sparsified(moved, mask, losses, refuted(certificate, enough))


def _stage_ends(
    counts: Sequence[int] | jax.Array, steps: Sequence[int] | None, num_batches: int, most: int
) -> jax.Array:
    """For each batch how many entries are kept before its step; 0 where no stage begins."""
    if not isinstance(counts, jax.Array):
        for i, count in enumerate(counts):
            check_count(f"counts[{i}]", count, minimum=1)
        if list(counts) != sorted(counts, reverse=True) or max(counts, default=0) > most:
            raise ValueError(
                f"`counts` must fall, from at most the {most} entries of `params`; got "
                f"{list(counts)}."
            )
    if steps is None:
        if num_batches <= len(counts):
            raise ValueError(
                f"`batches` must hold a step for each of the {len(counts) + 1} stages; got "
                f"{num_batches} steps."
            )
        share = FIRST_SHARE if len(counts) else 1
        first = min(max(1, round(share * num_batches)), num_batches - len(counts))
        ends = np.linspace(first, num_batches, len(counts) + 1).round().astype(int)
        steps = [first, *np.diff(ends).tolist()]
    for i, number in enumerate(steps):
        check_count(f"steps[{i}]", number, minimum=1)
    if len(steps) != len(counts) + 1 or sum(steps) != num_batches:
        raise ValueError(
            f"`steps` must be {len(counts) + 1} numbers, one more than `counts`, whose sum is the "
            f"{num_batches} batches; got {list(steps)}."
        )
    places = np.cumsum(steps)[:-1]
    return jnp.zeros(num_batches, jnp.uint32).at[places].set(jnp.asarray(counts, jnp.uint32))
