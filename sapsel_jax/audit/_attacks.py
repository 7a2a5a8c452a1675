"""Membership attacks on one model: can forgotten examples be told from unseen ones?"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sapsel_jax._base.checks import check_count, check_fraction, check_positive
from sapsel_jax.audit._confidence import modified_entropy
from sapsel_jax.audit._inputs import check_not_empty, wide, wide_vector

FIT_STEPS = 100
"""Steps of the logistic fit; each cuts the distance to its optimum."""


class Attack(NamedTuple):
    """What a membership attack achieves. At chance both figures are 1/2.

    Compare them with those of the same attack on a retrained model: that is the aim, and where the
    forgotten examples differ from the unseen ones in themselves it is not 1/2.

    Attributes:
      auc: the area under the ROC curve, in [0, 1].
      accuracy: the mean of the shares of members and of non-members that are told right, by a rule
        that was fitted on other examples.
      standard_error: of `auc` at chance, √((n + m + 1) / (12 n m)).
    """

    auc: jax.Array
    accuracy: jax.Array
    standard_error: jax.Array


def auc(member_scores: Any, other_scores: Any) -> jax.Array:
    """The chance that a member scores higher than a non-member, ties counted as one half.

    It is the area under the ROC curve of "member where the score is high".

    Args:
      member_scores: real floating-point array, one score per member, shape (n,).
      other_scores: the same of non-members, shape (m,).

    Returns:
      A float32 (or wider) scalar in [0, 1]; NaN where a score is.

    Raises:
      TypeError: if scores are not real floating-point numbers.
      ValueError: if there are none or they have more axes than one.

    Cost: sorting m numbers.

    Source: Mann, Whitney, "On a Test of Whether one of Two Random Variables is Stochastically
      Larger than the Other" (1947), the statistic U / nm.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> print(sap.audit.auc(jnp.array([3.0, 1.0]), jnp.array([0.0, 1.0])))
      0.875
    """
    members = wide_vector("member_scores", member_scores)
    others = jnp.sort(wide_vector("other_scores", other_scores))
    below = jnp.searchsorted(others, members, side="left")
    up_to = jnp.searchsorted(others, members, side="right")
    area = jnp.mean((below + up_to).astype(members.dtype)) / (2 * others.size)
    return jnp.where(jnp.any(jnp.isnan(members)) | jnp.isnan(others[-1]), jnp.nan, area)


def true_positive_rate(
    member_scores: Any, other_scores: Any, *, false_positive_rate: float = 0.01
) -> jax.Array:
    """The share of the members that are found while hardly any non-member is accused.

    The threshold is the lowest one that at most this share of the non-members lie above.

    Args:
      member_scores: real floating-point array, one score per member, shape (n,).
      other_scores: the same of non-members, shape (m,).
      false_positive_rate: a Python number in [0, 1]. Below 1/m no non-member may be accused.

    Returns:
      A float32 (or wider) scalar in [0, 1], at chance `false_positive_rate`; NaN where a score is.

    Raises:
      TypeError: if scores are not real floating-point numbers or the rate no Python number.
      ValueError: if there are none, they have more axes than one, or the rate is out of range.

    Cost: sorting m numbers.

    Source: Carlini et al., "Membership Inference Attacks From First Principles"
      (arXiv 2112.03570), who judge attacks by it.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> members, others = jnp.array([4.0, 1.0]), jnp.array([0.0, 1.0, 2.0, 3.0])
      >>> print(sap.audit.true_positive_rate(members, others, false_positive_rate=0.25))
      0.5
    """
    members = wide_vector("member_scores", member_scores)
    others = jnp.sort(wide_vector("other_scores", other_scores))
    check_fraction("false_positive_rate", false_positive_rate)
    accused = math.floor(false_positive_rate * others.size)
    found = members > others[-1 - accused] if accused < others.size else members == members
    rate = jnp.mean(found, dtype=members.dtype)
    return jnp.where(jnp.any(jnp.isnan(members)) | jnp.isnan(others[-1]), jnp.nan, rate)


def entropy_attack(
    forget_logits: Any,
    forget_labels: Any,
    unseen_logits: Any,
    unseen_labels: Any,
    *,
    num_folds: int = 5,
) -> Attack:
    """Takes examples of low modified entropy for members.

    One threshold serves all classes. It is fitted on all folds but one and tried on that one, in
    turn; example i belongs to fold i mod `num_folds`, so shuffle where the order means something.

    Args:
      forget_logits: of the examples to forget, real floating-point, shape (n, classes).
      forget_labels: integers in [0, classes), shape (n,): the labels they were trained on.
      unseen_logits: of examples the model never saw, from the same distribution, shape
        (m, classes).
      unseen_labels: integers in [0, classes), shape (m,).
      num_folds: a Python integer of at least 2 and at most n and m.

    Returns:
      An `Attack`; NaN where a logit is.

    Raises:
      TypeError: if logits are not real floating-point numbers or labels no integers.
      ValueError: if there are too few examples or the shapes do not fit.

    Cost: sorting n + m numbers.

    Source: Song, Mittal (arXiv 2003.10595), the attack by modified entropy.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> sure, unsure = jnp.array([[5.0, 0.0]] * 4), jnp.array([[1.0, 0.0]] * 4)
      >>> labels = jnp.zeros(4, int)
      >>> attack = sap.audit.entropy_attack(sure, labels, unsure, labels, num_folds=2)
      >>> print(attack.auc, attack.accuracy)
      1.0 1.0
    """
    members = wide_vector("forget_logits", -modified_entropy(forget_logits, forget_labels))
    others = wide_vector("unseen_logits", -modified_entropy(unseen_logits, unseen_labels))
    folds = _Folds(members.size, others.size, num_folds)
    scores = jnp.concatenate([members, others])
    order = jnp.argsort(scores)
    ordered = scores[order]

    def accuracy_of(fold: jax.Array) -> jax.Array:
        # Above each score: the share of members less that of others. The best cut lies below the
        # score where it is largest, half way to the one before.
        vote = jnp.where(folds.is_member, 1, -1) * folds.weights(folds.fold != fold)
        above = jnp.cumsum(vote[order][::-1])[::-1]
        is_new = jnp.concatenate([jnp.ones(1, bool), ordered[1:] > ordered[:-1]])
        best = jnp.argmax(jnp.where(is_new, above, -jnp.inf))
        threshold = (ordered[best] + ordered[jnp.maximum(best - 1, 0)]) / 2
        threshold = jnp.where(best == 0, -jnp.inf, threshold)
        return folds.accuracy(scores > threshold, fold)

    accuracy = jnp.mean(jax.vmap(accuracy_of)(jnp.arange(num_folds)))
    return _attack(members, others, accuracy)


def logistic_attack(
    forget_features: Any, unseen_features: Any, *, num_folds: int = 5, penalty: float = 0.01
) -> Attack:
    """Fits a logistic regression that tells the two sets apart, and tries it on held-out examples.

    The features are standardised, both sets weigh the same, and the mean log loss with
    ½ · penalty · ‖w‖² is minimised by steps with the bound ¼XᵀX on its Hessian, which converge from
    anywhere. Every example is judged by the fit on the folds it is not in; example i belongs to
    fold i mod `num_folds`, so shuffle where the order means something. With nothing to be learned
    the figures come out at or a little below 1/2.

    Args:
      forget_features: what the attacker sees of the examples to forget, real floating-point, shape
        (n,) or (n, features): losses or margins, usually.
      unseen_features: the same of examples the model never saw, from the same distribution, shape
        (m,) or (m, features).
      num_folds: a Python integer of at least 2 and at most n and m.
      penalty: above 0, in units of the mean log loss.

    Returns:
      An `Attack`; NaN where a feature is NaN or infinite.

    Raises:
      TypeError: if features are not real floating-point numbers.
      ValueError: if there are too few examples, the shapes do not fit, or a number is out of range.

    Cost: per fold, 100 passes over the features.

    Source: Kurmanji et al., SCRUB (arXiv 2302.09880), the logistic attack on losses; the bound is
      that of Böhning, "Multinomial logistic regression algorithm" (1992).

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> losses, unseen_losses = jnp.array([0.1, 0.2, 0.2, 0.1]), jnp.array([0.9, 0.8, 0.8, 0.9])
      >>> attack = sap.audit.logistic_attack(losses, unseen_losses, num_folds=2)
      >>> print(attack.auc, attack.accuracy)
      1.0 1.0
    """
    members = _features("forget_features", forget_features)
    others = _features("unseen_features", unseen_features)
    if members.shape[1:] != others.shape[1:]:
        raise ValueError(
            "`forget_features` and `unseen_features` must have the same features; "
            f"got {members.shape[1]} and {others.shape[1]}."
        )
    check_positive("penalty", penalty)
    folds = _Folds(members.shape[0], others.shape[0], num_folds)
    x = jnp.concatenate([members, others])
    x = x - jnp.mean(x, axis=0)  # so that squares keep their digits below

    def judge(fold: jax.Array) -> jax.Array:
        weights = folds.weights(folds.fold != fold) / 2  # one in all
        mean = weights @ x
        deviation = jnp.sqrt(weights @ (x - mean) ** 2)
        rows = (x - mean) / jnp.where(deviation > 0, deviation, 1)
        rows = jnp.concatenate([rows, jnp.ones_like(rows[:, :1])], axis=1)
        ridge = penalty * jnp.ones(rows.shape[1], rows.dtype).at[-1].set(0)
        bound = 0.25 * (rows.T * weights) @ rows + jnp.diag(ridge)

        def step(w: jax.Array, _: Any) -> tuple[jax.Array, None]:
            error = jax.nn.sigmoid(rows @ w) - folds.is_member
            return w - jnp.linalg.solve(bound, rows.T @ (weights * error) + ridge * w), None

        w, _ = lax.scan(step, jnp.zeros(rows.shape[1], rows.dtype), length=FIT_STEPS)
        return rows @ w

    judged = jax.vmap(judge)(jnp.arange(num_folds))
    scores = judged[folds.fold, jnp.arange(folds.fold.size)]
    accuracy = jnp.mean(
        jax.vmap(lambda fold: folds.accuracy(scores > 0, fold))(jnp.arange(num_folds))
    )
    return _attack(scores[: members.shape[0]], scores[members.shape[0] :], accuracy)


class _Folds:
    """Members, then others, each dealt out to folds in turn."""

    def __init__(self, num_members: int, num_others: int, num_folds: Any):
        check_count("num_folds", num_folds, minimum=2)
        if num_folds > min(num_members, num_others):
            raise ValueError(
                f"`num_folds` must be at most the number of examples of either set, "
                f"{num_members} and {num_others}; got {num_folds}."
            )
        members, others = jnp.arange(num_members), jnp.arange(num_others)
        self.fold = jnp.concatenate([members, others]) % num_folds
        self.is_member = jnp.arange(num_members + num_others) < num_members

    def weights(self, used: jax.Array) -> jax.Array:
        """Of the examples that are used, such that members sum to 1 and so do others."""
        members, others = used & self.is_member, used & ~self.is_member
        return members / jnp.sum(members) + others / jnp.sum(others)

    def accuracy(self, taken: jax.Array, fold: jax.Array) -> jax.Array:
        """The mean over members and others of the share told right, in one fold."""
        return jnp.sum(self.weights(self.fold == fold) * (taken == self.is_member)) / 2


def _features(name: str, features: Any) -> jax.Array:
    features = wide(name, features)
    if features.ndim not in (1, 2):
        raise ValueError(
            f"`{name}` must have one axis, over examples, or a second over features; "
            f"got shape {list(features.shape)}."
        )
    check_not_empty(name, features)
    return features.reshape(features.shape[0], -1)


def _attack(members: jax.Array, others: jax.Array, accuracy: jax.Array) -> Attack:
    area = auc(members, others)
    n, m = members.size, others.size
    error = jnp.asarray(math.sqrt((n + m + 1) / (12 * n * m)), area.dtype)
    return Attack(area, jnp.where(jnp.isnan(area), jnp.nan, accuracy), error)
