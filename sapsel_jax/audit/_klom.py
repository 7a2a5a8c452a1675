"""How far an ensemble of unlearned models is from one of retrained models, example by example."""

from typing import Any

import jax
import jax.numpy as jnp

from sapsel_jax._base.checks import check_count, check_positive
from sapsel_jax.audit._inputs import check_same_examples, wide_margins


def klom(
    unlearned_margins: Any, retrained_margins: Any, *, min_std: float = 0.01, clip: float = 100.0
) -> jax.Array:
    """Computes KLOM, the divergence of unlearned from retrained margins, with Gaussians.

        log(s_u / s_r) + (s_r² + (m_r − m_u)²) / 2s_u² − 1/2

    m and s are the means and standard deviations of an example's margins over retrained (r) and
    unlearned (u) models. A Gaussian needs far fewer models than a histogram (`klom_binned`). Two
    ensembles of T models each, trained alike, do not give 0: for Gaussian margins the average is
    (T − 1)(1 + 2/T) / (2T − 6) − 1/2, which is 0.38 for 8 models, 0.07 for 32, 0.02 for 128.
    Compare with the value of two ensembles of retrained models.

    Args:
      unlearned_margins: `margin` of each example under each unlearned model, real floating-point,
        shape (models, examples), at least 2 models.
      retrained_margins: the same under retrained models, shape (models, examples), at least 2
        models, not necessarily as many.
      min_std: floor of the standard deviations, in nats, above 0: differences well below it do not
        count.
      clip: margins are cut to [−clip, clip], in nats, above 0, so that infinite margins do not
        decide the fit.

    Returns:
      Float32 (or wider) divergences in nats, at least 0 (but for rounding), shape (examples,); NaN
      where a margin is, so also for an example that `margin` marks as ignored.

    Raises:
      TypeError: if the margins are not real floating-point numbers.
      ValueError: if there are fewer than 2 models or no examples, the examples differ, or a number
        is out of range.

    Cost: a few passes over the margins.

    Source: Georgiev et al., "Attribute-to-Delete: Machine Unlearning via Datamodel Matching"
      (arXiv 2410.23232), KLOM; here with the closed form for two Gaussians.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> retrained = jnp.array([[-1.0], [1.0]])  # of deviation √2
      >>> print(sap.audit.klom(retrained + 2.0, retrained))
      [1.]
    """
    unlearned, retrained = _pair(unlearned_margins, retrained_margins, clip)
    check_positive("min_std", min_std)
    shift = jnp.mean(retrained, axis=0) - jnp.mean(unlearned, axis=0)
    std_u, std_r = (
        jnp.maximum(jnp.std(margins, axis=0, ddof=1), min_std) for margins in (unlearned, retrained)
    )
    return jnp.log(std_u / std_r) + ((std_r / std_u) ** 2 + (shift / std_u) ** 2 - 1) / 2


def klom_binned(
    unlearned_margins: Any,
    retrained_margins: Any,
    *,
    num_bins: int = 20,
    smoothing: float = 1e-5,
    clip: float = 100.0,
) -> jax.Array:
    """Computes KLOM by histograms, as it was published.

    The range of both ensembles is cut into equal bins. With p the share of the models in a bin,
    raised by `smoothing`, the result is Σ p_r log(p_r / p_u) over the bins. Given many models, it
    can be compared with published figures. A bin without an unlearned model adds nearly
    −p_r log(smoothing), so with fewer than some hundred models the result depends mostly on their
    number; `klom` does not.

    Args:
      unlearned_margins: as in `klom`, shape (models, examples), at least 2 models.
      retrained_margins: as in `klom`, shape (models, examples), at least 2 models.
      num_bins: a Python integer of at least 1.
      smoothing: added to each share, before they are made to sum to 1 again, above 0.
      clip: margins are cut to [−clip, clip], in nats, above 0.

    Returns:
      Float32 (or wider) divergences in nats, at least 0 (but for rounding), shape (examples,); NaN
      where a margin is, so also for an example that `margin` marks as ignored.

    Raises:
      TypeError: if the margins are not real floating-point numbers, or `num_bins` is no Python
        integer.
      ValueError: as `klom`.

    Cost: a pass over the margins for each bin; no gradient.

    Source: Georgiev et al. (arXiv 2410.23232), appendix E.1.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> unlearned, retrained = jnp.array([[0.0], [3.0]]), jnp.array([[0.0], [0.0]])
      >>> print(sap.audit.klom_binned(unlearned, retrained, num_bins=2).round(3))
      [0.693]
    """
    unlearned, retrained = _pair(unlearned_margins, retrained_margins, clip)
    check_count("num_bins", num_bins, minimum=1)
    check_positive("smoothing", smoothing)
    both = jnp.concatenate([unlearned, retrained])
    low, high = (end(both, axis=0, keepdims=True) for end in (jnp.min, jnp.max))
    width = jnp.where(high > low, high - low, 1)

    def shares(margins: jax.Array) -> jax.Array:
        place = jnp.clip(jnp.floor((margins - low) / width * num_bins), 0, num_bins - 1)
        bins = jnp.arange(num_bins, dtype=place.dtype)
        share = jax.vmap(lambda bin: jnp.mean(place == bin, axis=0, dtype=place.dtype))(bins)
        raised = share + smoothing
        return raised / jnp.sum(raised, axis=0, keepdims=True)

    p, q = shares(retrained), shares(unlearned)
    divergence = jnp.sum(p * jnp.log(p / q), axis=0)
    return jnp.where(jnp.isnan(low[0]), jnp.nan, divergence)


def _pair(unlearned: Any, retrained: Any, clip: float) -> tuple[jax.Array, jax.Array]:
    unlearned = wide_margins("unlearned_margins", unlearned, 2)
    retrained = wide_margins("retrained_margins", retrained, 2)
    check_same_examples("unlearned_margins", unlearned, "retrained_margins", retrained)
    check_positive("clip", clip)
    return jnp.clip(unlearned, -clip, clip), jnp.clip(retrained, -clip, clip)
