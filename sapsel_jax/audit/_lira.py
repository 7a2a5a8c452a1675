"""A membership attack for each example, by ensembles of unlearned and of retrained models."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sapsel_jax._base.checks import check_positive
from sapsel_jax.audit._attacks import auc
from sapsel_jax.audit._inputs import check_same_examples, wide_margins


class Lira(NamedTuple):
    """What the attacks achieve. At chance every figure is 1/2.

    Attributes:
      accuracy: the share of models that are told right, over the examples and both kinds of model.
      auc: the area under the ROC curve of the log-likelihood ratio, over the same.
      per_example: the share that are told right for each example, shape (examples,). Look at the
        largest: an average hides the examples that were not forgotten.
    """

    accuracy: jax.Array
    auc: jax.Array
    per_example: jax.Array


def u_lira(
    unlearned_margins: Any, retrained_margins: Any, *, min_std: float = 0.01, clip: float = 100.0
) -> Lira:
    """Attacks by U-LiRA: was this example unlearned by this model, or never seen?

    For each example, one Gaussian is fitted to its margins under the unlearned models, and one to
    its margins under the retrained models. A model is taken for unlearned if its margin is likelier
    under the first. In turn, the i-th model of each kind is left out of both fits and judged by
    them. So the accuracy is 1/2 on average if nothing tells the two apart, however many models
    there are.

    Args:
      unlearned_margins: `margin` of each example under each model that was trained on it and then
        unlearned it, real floating-point, shape (models, examples), at least 3 models.
      retrained_margins: the same under models that never saw the examples, of the same shape.
      min_std: floor of the standard deviations, in nats, above 0: differences well below it do not
        count.
      clip: margins are cut to [−clip, clip], in nats, above 0, so that infinite margins do not
        decide the fit.

    Returns:
      A `Lira`; a model whose margins are equally likely counts as half told. An example whose
      margin is NaN under every model, as `margin` gives it for a label that is none of the classes,
      is ignored: it counts in neither `accuracy` nor `auc`. A NaN under some models only is no such
      mark, and gives NaN for its example and over all.

    Raises:
      TypeError: if the margins are not real floating-point numbers.
      ValueError: if there are fewer than 3 models or no examples, the shapes differ, or a number is
        out of range.

    Cost: a pass over the margins per model, and sorting them.

    Source: Hayes et al., "Inexact Unlearning Needs More Careful Evaluations to Avoid a False Sense
      of Privacy" (arXiv 2403.01218), U-LiRA; the margins as in Carlini et al. (arXiv 2112.03570).

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> retrained = jnp.array([[-1.0], [0.0], [1.0], [0.5]])
      >>> print(sap.audit.u_lira(retrained + 9.0, retrained).accuracy)
      1.0
      >>> print(sap.audit.u_lira(retrained, retrained).accuracy)
      0.5
    """
    unlearned = wide_margins("unlearned_margins", unlearned_margins, 3)
    retrained = wide_margins("retrained_margins", retrained_margins, 3)
    check_same_examples("unlearned_margins", unlearned, "retrained_margins", retrained)
    if len(unlearned) != len(retrained):
        raise ValueError(
            "`unlearned_margins` and `retrained_margins` must come from as many models; "
            f"got {len(unlearned)} and {len(retrained)}."
        )
    check_positive("min_std", min_std)
    check_positive("clip", clip)
    unlearned, retrained = (jnp.clip(x, -clip, clip) for x in (unlearned, retrained))
    fits = [_left_out(x, min_std) for x in (unlearned, retrained)]
    ratios = [_log_density(x, *fits[0]) - _log_density(x, *fits[1]) for x in (unlearned, retrained)]
    told = (1 + jnp.sign(ratios[0])) / 2 + (1 - jnp.sign(ratios[1])) / 2
    per_example = jnp.mean(told, axis=0) / 2
    counts = ~jnp.all(jnp.isnan(unlearned) & jnp.isnan(retrained), axis=0)
    every = jnp.broadcast_to(counts, unlearned.shape).ravel()
    area = auc(*(r.ravel() for r in ratios), member_where=every, other_where=every)
    return Lira(jnp.mean(per_example, where=counts), area, per_example)


def _left_out(margins: jax.Array, min_std: float) -> tuple[jax.Array, jax.Array]:
    """For each model and example the mean and deviation of the margins under the other models."""

    def fit(model: jax.Array) -> tuple[jax.Array, jax.Array]:
        others = (jnp.arange(len(margins)) != model)[:, None]
        std = jnp.std(margins, axis=0, where=others, ddof=1)
        return jnp.mean(margins, axis=0, where=others), jnp.maximum(std, min_std)

    return lax.map(fit, jnp.arange(len(margins)))


def _log_density(x: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Of a Gaussian, but for the constant."""
    return -0.5 * ((x - mean) / std) ** 2 - jnp.log(std)
