"""Scores: what makes a parameter worth editing. Larger is selected sooner.

Every score is a pytree shaped like the parameters, in float32 or wider. A score that is computed
from NaN or infinity is NaN, and NaN is never selected.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sapsel_jax._base.checks import check_float_leaves, check_number, check_same_tree
from sapsel_jax._base.precision import wide_dtype
from sapsel_jax._base.types import Diagonal, Params, Scores


def _finite(x: jax.Array) -> jax.Array:
    """`x` in float32 or wider, NaN where it is not finite."""
    x = jnp.asarray(x)
    x = x.astype(wide_dtype(x.dtype))
    return jnp.where(jnp.isfinite(x), x, jnp.nan)


def score_sharpest(diagonal: Diagonal) -> Scores:
    """Ranks the entries with the largest curvature first: the default, and the paper's selection.

    The score is the diagonal itself, with its sign: a large negative curvature comes last.

    Args:
      diagonal: pytree of second derivatives, any shapes.

    Returns:
      Scores shaped like `diagonal`; NaN where it is not finite.

    Raises:
      TypeError: if `diagonal` holds anything but real floating-point arrays.

    Cost: one pass over the entries; no gradient.

    Source: Malekmohammadi, Lee, Xiong (arXiv 2504.06398), abstract.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> sap.score_sharpest(jnp.array([3.0, -4.0, jnp.inf]))
      Array([ 3., -4., nan], dtype=float32)
    """
    check_float_leaves("diagonal", diagonal)
    return jax.tree.map(_finite, diagonal)


def score_flattest(diagonal: Diagonal, *, floor: float) -> Scores:
    """Ranks the entries with the smallest curvature first, among those above a floor.

    The score is −H where H > floor, and -inf elsewhere. Entries without curvature (weights from
    pixels that are never lit, units that never fire) would otherwise be the flattest of all, and
    changing them does nothing. They score -inf and are never selected.

    Args:
      diagonal: pytree of second derivatives H, any shapes.
      floor: entries at or below it do not count as live, in units of the diagonal, at least 0.

    Returns:
      Scores shaped like `diagonal`; NaN where it is not finite.

    Raises:
      TypeError: if `diagonal` holds anything but real floating-point arrays, or `floor` is no
        number.
      ValueError: if `floor` is negative or not finite.

    Cost: one pass over the entries; no gradient.

    Source: the reverse order of `score_sharpest`, as a control for it.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> sap.score_flattest(jnp.array([3.0, 0.5, 0.0, -1.0]), floor=1e-6)
      Array([-3. , -0.5, -inf, -inf], dtype=float32)
    """
    check_float_leaves("diagonal", diagonal)
    check_number("floor", floor, minimum=0)

    def score(h: jax.Array) -> jax.Array:
        h = _finite(h)
        return jnp.where(jnp.isnan(h) | (h > floor), -h, -jnp.inf)

    return jax.tree.map(score, diagonal)


def score_saliency(gradient: Params) -> Scores:
    """Ranks the entries with the largest gradients first.

    The score is |g|.

    Args:
      gradient: pytree of gradients, usually of the loss summed over the examples to forget.

    Returns:
      Scores shaped like `gradient`; NaN where it is not finite.

    Raises:
      TypeError: if `gradient` holds anything but real floating-point arrays.

    Cost: one pass over the entries; no gradient.

    Source: Fan et al., "SalUn" (arXiv 2310.12508), equation 3.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> sap.score_saliency(jnp.array([0.5, -2.0]))
      Array([0.5, 2. ], dtype=float32)
    """
    check_float_leaves("gradient", gradient)
    return jax.tree.map(lambda g: jnp.abs(_finite(g)), gradient)


def score_magnitude(params: Params) -> Scores:
    """Ranks the largest parameters first.

    The score is |θ|.

    Args:
      params: pytree of parameters.

    Returns:
      Scores shaped like `params`; NaN where they are not finite.

    Raises:
      TypeError: if `params` holds anything but real floating-point arrays.

    Cost: one pass over the entries; no gradient.

    Source: the usual baseline of pruning: Han et al. (arXiv 1506.02626).

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> sap.score_magnitude(jnp.array([0.5, -2.0]))
      Array([0.5, 2. ], dtype=float32)
    """
    check_float_leaves("params", params)
    return jax.tree.map(lambda p: jnp.abs(_finite(p)), params)


def score_random(params: Params, key: jax.Array) -> Scores:
    """Ranks the entries in a random order.

    Scores are independent uniform numbers in [0, 1).

    Args:
      params: pytree of parameters.
      key: a JAX random key.

    Returns:
      Scores shaped and sharded like `params`, float32; NaN where a parameter is not finite.

    Raises:
      TypeError: if `params` holds anything but real floating-point arrays.

    Cost: one pass over the entries; no gradient.

    Source: own, as a control for any selection; `select_like` also matches the counts per leaf.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> scores = sap.score_random(jnp.zeros((2, 3)), jax.random.key(0))
      >>> scores.shape
      (2, 3)
    """
    check_float_leaves("params", params)
    draw = optax.tree.random_like(key, params, sampler=jax.random.uniform, dtype=jnp.float32)
    return jax.tree.map(lambda p, u: jnp.where(jnp.isfinite(p), u, jnp.nan), params, draw)


def score_decrease(gradient: Params, diagonal: Diagonal, *, damping: float) -> Scores:
    """Ranks the entries with the largest predicted decrease of the loss first.

    The score is g² / 2(max(H, 0) + damping): how far one Newton step along that entry alone lowers
    the loss. Without damping the score stays the same when the network is rescaled to the same
    function.

    Args:
      gradient: pytree of gradients g of the loss to be lowered.
      diagonal: pytree of second derivatives H, shaped like `gradient`.
      damping: added to the curvature, in its units, at least 0; where the sum is 0 the score is
        NaN.

    Returns:
      Scores shaped like `gradient`.

    Raises:
      TypeError: if a tree holds anything but real floating-point arrays, or `damping` is no number.
      ValueError: if the trees differ in structure or shapes, or `damping` is negative or not
        finite.

    Cost: one pass over the entries; no gradient.

    Source: the minimum of the second-order Taylor polynomial in one entry.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> sap.score_decrease(jnp.array([2.0, 2.0]), jnp.array([1.0, -5.0]), damping=1.0)
      Array([1., 2.], dtype=float32)
    """
    _check_pair("gradient", gradient, "diagonal", diagonal)
    check_number("damping", damping, minimum=0)
    return jax.tree.map(
        lambda g, h: _finite(_finite(g) ** 2 / (2 * (jnp.maximum(_finite(h), 0) + damping))),
        gradient,
        diagonal,
    )


def score_newton_step(gradient: Params, diagonal: Diagonal, *, damping: float) -> Scores:
    """Ranks the entries with the longest Newton step first.

    The score is |g| / (max(H, 0) + damping): the length of a Newton step along that entry alone.

    Args:
      gradient: pytree of gradients g of the loss to be lowered.
      diagonal: pytree of second derivatives H, shaped like `gradient`.
      damping: added to the curvature, in its units, at least 0; where the sum is 0 the score is
        NaN.

    Returns:
      Scores shaped like `gradient`.

    Raises:
      TypeError: if a tree holds anything but real floating-point arrays, or `damping` is no number.
      ValueError: if the trees differ in structure or shapes, or `damping` is negative or not
        finite.

    Cost: one pass over the entries; no gradient.

    Source: the length of the diagonal Newton step.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> sap.score_newton_step(jnp.array([2.0, -2.0]), jnp.array([1.0, -5.0]), damping=1.0)
      Array([1., 2.], dtype=float32)
    """
    _check_pair("gradient", gradient, "diagonal", diagonal)
    check_number("damping", damping, minimum=0)
    return jax.tree.map(
        lambda g, h: _finite(jnp.abs(_finite(g)) / (jnp.maximum(_finite(h), 0) + damping)),
        gradient,
        diagonal,
    )


def score_brain_damage(params: Params, diagonal: Diagonal) -> Scores:
    """Ranks the entries with the largest Optimal Brain Damage saliency first.

    The score is ½ H θ²: how far the loss rises, to second order, if the entry is set to zero at a
    minimum. It stays the same when the network is rescaled to the same function.

    Args:
      params: pytree of parameters θ.
      diagonal: pytree of second derivatives H, shaped like `params`.

    Returns:
      Scores shaped like `params`.

    Raises:
      TypeError: if a tree holds anything but real floating-point arrays.
      ValueError: if the trees differ in structure or shapes.

    Cost: one pass over the entries; no gradient.

    Source: LeCun, Denker, Solla, "Optimal Brain Damage" (1989), equation 5.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> sap.score_brain_damage(jnp.array([2.0, -1.0]), jnp.array([1.0, 4.0]))
      Array([2., 2.], dtype=float32)
    """
    _check_pair("params", params, "diagonal", diagonal)
    return jax.tree.map(lambda p, h: _finite(0.5 * _finite(h) * _finite(p) ** 2), params, diagonal)


def score_change(before: Params, after: Params, diagonal: Diagonal) -> Scores:
    """Ranks the entries of an update: the change that the loss would miss most comes first.

    The score is ½ H (θ' − θ)²: what the loss gains when the entry is put back to θ from a minimum
    θ'. It does not change when the network is rescaled to the same function. A mask of the
    highest-scoring entries makes a few changes out of many: see `sparsify_update`.

    Args:
      before: pytree of parameters θ, as they were before the update.
      after: pytree of parameters θ', shaped like `before`.
      diagonal: pytree of second derivatives H of the loss that the update lowered, shaped like
        `before`.

    Returns:
      Scores shaped like `before`. An entry that has not moved scores 0, one of negative curvature
      less than 0; NaN where a number is not finite.

    Raises:
      TypeError: if a tree holds anything but real floating-point arrays.
      ValueError: if the trees differ.

    Cost: one pass over the entries.

    Source: LeCun, Denker, Solla, "Optimal Brain Damage" (1989), equation 5, applied to an update
      instead of a network.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> before, after = jnp.array([1.0, 1.0]), jnp.array([3.0, 0.0])
      >>> sap.score_change(before, after, jnp.array([1.0, 8.0]))
      Array([2., 4.], dtype=float32)
    """
    _check_pair("before", before, "after", after)
    _check_pair("before", before, "diagonal", diagonal)

    def score(old: jax.Array, new: jax.Array, h: jax.Array) -> jax.Array:
        return _finite(0.5 * _finite(h) * (_finite(new) - _finite(old)) ** 2)

    return jax.tree.map(score, before, after, diagonal)


def score_fisher_ratio(forget_fisher: Diagonal, data_fisher: Diagonal, *, damping: float) -> Scores:
    """Ranks the entries first that matter more to the forget examples than to the data.

    The score is I_f / (I_D + damping), the ratio of the two Fisher diagonals.

    Args:
      forget_fisher: pytree of Fisher diagonals on the examples to forget.
      data_fisher: the same on the training set, shaped like `forget_fisher`.
      damping: added to the denominator, in its units, at least 0; where the sum is 0 the score is
        NaN.

    Returns:
      Scores shaped like `forget_fisher`.

    Raises:
      TypeError: if a tree holds anything but real floating-point arrays, or `damping` is no number.
      ValueError: if the trees differ in structure or shapes, or `damping` is negative or not
        finite.

    Cost: one pass over the entries; no gradient.

    Source: Foster, Schoepf, Brintrup, selective synaptic dampening (arXiv 2308.07707), section 3.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> sap.score_fisher_ratio(jnp.array([2.0, 1.0]), jnp.array([1.0, 3.0]), damping=1.0)
      Array([1.  , 0.25], dtype=float32)
    """
    _check_pair("forget_fisher", forget_fisher, "data_fisher", data_fisher)
    check_number("damping", damping, minimum=0)
    return jax.tree.map(
        lambda f, d: _finite(_finite(f) / (_finite(d) + damping)), forget_fisher, data_fisher
    )


def _check_pair(name: str, tree: Any, other_name: str, other: Any) -> None:
    check_float_leaves(name, tree)
    check_float_leaves(other_name, other)
    check_same_tree(name, tree, other_name, other)
