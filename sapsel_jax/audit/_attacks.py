"""Membership attacks on one model: can forgotten examples be told from unseen ones?"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sapsel_jax._base.checks import check_count, check_fraction, check_positive
from sapsel_jax.audit._confidence import modified_entropy
from sapsel_jax.audit._inputs import (
    check_not_empty,
    counted,
    is_labelled,
    wide,
    wide_logits,
    wide_vector,
)

FIT_STEPS = 100
"""Steps of the logistic fit; each cuts the distance to its optimum."""


class Attack(NamedTuple):
    """What a membership attack achieves.

    At chance, `auc` and both accuracies are 1/2. Compare every figure with the same attack on a
    retrained model. The retrained model's figure is the aim. It is not 1/2 if the forgotten
    examples themselves differ from the unseen examples.

    Unlearning may go too far: if the model is less sure of forgotten examples than of unseen
    examples, an attacker can tell them apart as well. A one-sided attack then has an `auc` near 0,
    which is a leak as much as an `auc` near 1. `two_sided_auc` and `two_sided_accuracy` show both.

    Attributes:
      auc: the area under the ROC curve of "member where the score is high", in [0, 1].
      accuracy: the mean of the shares of members and of non-members that are told right, by a rule
        that was fitted on other examples and takes high scores for members.
      standard_error: of `auc` at chance, √((n + m + 1) / (12 n m)).
      two_sided_auc: max(auc, 1 − auc), in [1/2, 1]: the area for an attacker who knows which side
        the members are on. At chance it is 1/2 + 0.8 standard errors on average.
      two_sided_accuracy: as `accuracy`, by a rule that also learned on the other examples which
        side to take for members. 1/2 at chance on average.
    """

    auc: jax.Array
    accuracy: jax.Array
    standard_error: jax.Array
    two_sided_auc: jax.Array
    two_sided_accuracy: jax.Array


def auc(
    member_scores: Any, other_scores: Any, *, member_where: Any = None, other_where: Any = None
) -> jax.Array:
    """Computes the area under the ROC curve of an attack that takes high scores for members.

    It is the chance that a member scores higher than a non-member; a tie counts as one half. An
    area near 0 is a leak as much as an area near 1: then low scores show the members.

    Args:
      member_scores: real floating-point array, one score per member, shape (n,).
      other_scores: the same of non-members, shape (m,).
      member_where: bools, shape (n,): which members count; all of them if None.
      other_where: bools, shape (m,): which non-members count; all of them if None.

    Returns:
      A float32 (or wider) scalar in [0, 1]; NaN where a score that counts is, or where none counts.

    Raises:
      TypeError: if scores are not real floating-point numbers or a `where` not bools.
      ValueError: if there are no scores, they have more axes than one, or a `where` does not fit.

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
    others = wide_vector("other_scores", other_scores)
    member_where = counted("member_where", member_where, members)
    other_where = counted("other_where", other_where, others)
    num_members, num_others = (
        jnp.sum(where, dtype=jnp.int32) for where in (member_where, other_where)
    )
    rising = jnp.sort(jnp.where(other_where, others, jnp.inf))  # those that do not count come last
    below, up_to = (
        jnp.searchsorted(rising, members, side=side).astype(jnp.int32) for side in ("left", "right")
    )
    wins = jnp.where(member_where, below + jnp.minimum(up_to, num_others), 0)
    pairs = num_members.astype(members.dtype), 2 * num_others.astype(members.dtype)
    area = jnp.sum(wins.astype(members.dtype)) / pairs[0] / pairs[1]
    return _or_nan(area, members, member_where, others, other_where)


def true_positive_rate(
    member_scores: Any,
    other_scores: Any,
    *,
    false_positive_rate: float = 0.01,
    member_where: Any = None,
    other_where: Any = None,
) -> jax.Array:
    """Computes the share of the members that are found at a given false positive rate.

    The threshold is the lowest score that at most this share of the non-members lies above. Members
    with low scores are not found; negate both scores to look for them.

    Args:
      member_scores: real floating-point array, one score per member, shape (n,).
      other_scores: the same of non-members, shape (m,).
      false_positive_rate: a Python number in [0, 1]. Below 1/m no non-member may be accused.
      member_where: bools, shape (n,): which members count; all of them if None.
      other_where: bools, shape (m,): which non-members count; all of them if None.

    Returns:
      A float32 (or wider) scalar in [0, 1], at chance `false_positive_rate`; NaN where a score that
      counts is, or where none counts.

    Raises:
      TypeError: if scores are not real floating-point numbers, the rate no Python number, or a
        `where` not bools.
      ValueError: if there are no scores, they have more axes than one, the rate is out of range, or
        a `where` does not fit.

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
    others = wide_vector("other_scores", other_scores)
    check_fraction("false_positive_rate", false_positive_rate)
    member_where = counted("member_where", member_where, members)
    other_where = counted("other_where", other_where, others)
    num_others = jnp.sum(other_where, dtype=jnp.int32)
    # In float64 on the host: float32 may round the product up to the next whole number.
    allowed = np.floor(false_positive_rate * np.arange(others.size + 1)).astype(np.int32)
    accused = jnp.asarray(allowed)[num_others]
    from_below = jnp.sort(jnp.where(other_where, others, -jnp.inf))
    threshold = from_below[others.size - 1 - jnp.minimum(accused, others.size - 1)]
    found = ((members > threshold) | (accused >= num_others)) & member_where
    rate = jnp.sum(found, dtype=members.dtype) / jnp.sum(member_where, dtype=members.dtype)
    rate = jnp.where(num_others > 0, rate, jnp.nan)
    return _or_nan(rate, members, member_where, others, other_where)


def entropy_attack(
    forget_logits: Any,
    forget_labels: Any,
    unseen_logits: Any,
    unseen_labels: Any,
    *,
    num_folds: int = 5,
) -> Attack:
    """Attacks by modified entropy: takes examples of low entropy for members.

    A model is surer of examples that it was trained on, so members have low entropies: `auc` and
    `accuracy` take low for member. Examples that were unlearned too far have higher entropies than
    unseen examples and give an `auc` below 1/2. They can be told apart, too: `two_sided_auc` and
    `two_sided_accuracy` say how well.

    One threshold serves all classes. It is fitted on all folds but one and tried on that one, in
    turn; the i-th example that counts belongs to fold i mod `num_folds`, so shuffle where the order
    means something.

    Args:
      forget_logits: of the examples to forget, real floating-point, shape (n, classes).
      forget_labels: integers in [0, classes), shape (n,): the labels they were trained on. An
        example with any other label, such as -100, is ignored.
      unseen_logits: of examples the model never saw, from the same distribution, shape
        (m, classes).
      unseen_labels: integers in [0, classes), shape (m,); others are ignored likewise.
      num_folds: a Python integer of at least 2 and at most n and m.

    Returns:
      An `Attack`; NaN where a logit of an example that counts is. If fewer than `num_folds`
      examples of either set count, the accuracies are NaN.

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
      >>> attack = sap.audit.entropy_attack(unsure, labels, sure, labels, num_folds=2)  # too far
      >>> print(attack.auc, attack.accuracy, attack.two_sided_auc, attack.two_sided_accuracy)
      0.0 0.5 1.0 1.0
    """
    scores, labelled = [], []
    for kind, logits, labels in (
        ("forget", forget_logits, forget_labels),
        ("unseen", unseen_logits, unseen_labels),
    ):
        logits, labels = wide_logits(logits, labels, (f"{kind}_logits", f"{kind}_labels"))
        scores.append(wide_vector(f"{kind}_labels", -modified_entropy(logits, labels)))
        labelled.append(is_labelled(labels, logits))
    (members, others), (member_where, other_where) = scores, labelled
    folds = _Folds(member_where, other_where, num_folds, jnp.result_type(members, others))
    scores = jnp.where(folds.counts, jnp.concatenate([members, others]), -jnp.inf)
    order = jnp.argsort(scores)
    ordered = scores[order]
    is_new = jnp.concatenate([jnp.ones(1, bool), ordered[1:] > ordered[:-1]])

    def from_here_up(chosen: jax.Array) -> jax.Array:
        """The share of the chosen examples whose scores are at least this one."""
        count = jnp.cumsum(chosen[order][::-1], dtype=jnp.int32)[::-1]
        return count.astype(scores.dtype) / count[0].astype(scores.dtype)

    def accuracies_of(fold: jax.Array) -> tuple[jax.Array, jax.Array]:
        # How far members lead others above each score. The best cut lies half way between the score
        # where they lead most and the score before. An attacker who may take either side for
        # members cuts where the lead is farthest from 0.
        used = folds.counts & (folds.fold != fold)
        lead = from_here_up(used & folds.is_member) - from_here_up(used & ~folds.is_member)

        def is_above(place: jax.Array) -> jax.Array:
            cut = (ordered[place] + ordered[jnp.maximum(place - 1, 0)]) / 2
            return (scores > cut) | (scores >= ordered[place])  # the cut may be rounded up to it

        most = jnp.argmax(jnp.where(is_new, lead, -jnp.inf))
        farthest = jnp.argmax(jnp.where(is_new, jnp.abs(lead), -jnp.inf))
        taken = is_above(farthest) ^ (lead[farthest] < 0)
        return folds.accuracy(is_above(most), fold), folds.accuracy(taken, fold)

    one_sided, two_sided = jax.vmap(accuracies_of)(folds.numbers)
    area = auc(members, others, member_where=member_where, other_where=other_where)
    one_sided, two_sided = (
        jnp.where(folds.are_filled & ~jnp.isnan(area), jnp.mean(accuracies), jnp.nan)
        for accuracies in (one_sided, two_sided)
    )
    two_sided_area = jnp.maximum(area, 1 - area)
    return Attack(area, one_sided, folds.standard_error(), two_sided_area, two_sided)


def logistic_attack(
    forget_features: Any,
    unseen_features: Any,
    *,
    num_folds: int = 5,
    penalty: float = 0.01,
    forget_where: Any = None,
    unseen_where: Any = None,
) -> Attack:
    """Fits a logistic regression that tells the two sets apart, and tries it on held-out examples.

    The features are standardised, both sets weigh the same, and the mean log loss with
    ½ · penalty · ‖w‖² is minimised by steps with the bound ¼XᵀX on its Hessian, which converge from
    anywhere. Every example is judged by the fit on the other folds. The i-th example that counts
    belongs to fold i mod `num_folds`, so shuffle if the order means something. If there is nothing
    to learn, the figures are at or a little below 1/2. The fit finds the side on which the members
    are, so the two-sided figures equal the others.

    Args:
      forget_features: what the attacker sees of the examples to forget, real floating-point, shape
        (n,) or (n, features): losses or margins, usually.
      unseen_features: the same of examples the model never saw, from the same distribution, shape
        (m,) or (m, features).
      num_folds: a Python integer of at least 2 and at most n and m.
      penalty: above 0, in units of the mean log loss.
      forget_where: bools, shape (n,): which examples to forget count, `labels >= 0` for instance;
        all of them if None.
      unseen_where: bools, shape (m,): which unseen examples count; all of them if None.

    Returns:
      An `Attack`; NaN where a feature of an example that counts is NaN or infinite, or where fewer
      than `num_folds` examples of either set count.

    Raises:
      TypeError: if features are not real floating-point numbers or a `where` not bools.
      ValueError: if there are too few examples, the shapes do not fit, or a number is out of range.

    Cost: per fold, 100 passes over the features.

    Source: Kurmanji et al., SCRUB (arXiv 2302.09880), the logistic attack on losses; the bound is
      from Böhning, "Multinomial logistic regression algorithm" (1992).

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
    member_where = counted("forget_where", forget_where, members)
    other_where = counted("unseen_where", unseen_where, others)
    folds = _Folds(member_where, other_where, num_folds, jnp.result_type(members, others))
    counts = folds.counts[:, None]
    x = jnp.where(counts, jnp.concatenate([members, others]), 0)
    # So that squares keep their digits.
    x = x - jnp.mean(x, axis=0, where=counts, keepdims=True)

    def judge(fold: jax.Array) -> jax.Array:
        weights = folds.weights(folds.fold != fold) / 2  # one in all
        rows = x - (weights @ x)[None]
        deviation = jnp.sqrt(weights @ rows**2)[None]
        rows = rows / jnp.where(deviation > 0, deviation, 1)
        rows = jnp.concatenate([rows, jnp.ones_like(rows[:, :1])], axis=1)
        ridge = penalty * jnp.ones(rows.shape[1], rows.dtype).at[-1].set(0)
        bound = 0.25 * (rows.T * weights[None]) @ rows + jnp.diag(ridge)

        def step(w: jax.Array, _: Any) -> tuple[jax.Array, None]:
            error = jax.nn.sigmoid(rows @ w) - folds.is_member.astype(x.dtype)
            return w - jnp.linalg.solve(bound, rows.T @ (weights * error) + ridge * w), None

        w, _ = lax.scan(step, jnp.zeros(rows.shape[1], rows.dtype), length=FIT_STEPS)
        return rows @ w

    judged = jax.vmap(judge)(folds.numbers)
    scores = judged[folds.fold, jnp.arange(folds.fold.size)]
    accuracy = jnp.mean(jax.vmap(lambda fold: folds.accuracy(scores > 0, fold))(folds.numbers))
    area = auc(
        scores[: members.shape[0]],
        scores[members.shape[0] :],
        member_where=member_where,
        other_where=other_where,
    )
    area = jnp.where(folds.are_filled, area, jnp.nan)
    accuracy = jnp.where(jnp.isnan(area), jnp.nan, accuracy)
    return Attack(area, accuracy, folds.standard_error(), area, accuracy)


class _Folds:
    """Members, then others: of each, those that count are dealt out to folds in turn."""

    def __init__(self, member_where: jax.Array, other_where: jax.Array, num_folds: Any, dtype: Any):
        check_count("num_folds", num_folds, minimum=2)
        if num_folds > min(member_where.size, other_where.size):
            raise ValueError(
                f"`num_folds` must be at most the number of examples of either set, "
                f"{member_where.size} and {other_where.size}; got {num_folds}."
            )
        places = [jnp.cumsum(where, dtype=jnp.int32) - 1 for where in (member_where, other_where)]
        self.dtype, self.numbers = dtype, jnp.arange(num_folds, dtype=jnp.int32)
        self.counts = jnp.concatenate([member_where, other_where])
        self.fold = jnp.concatenate(places) % num_folds
        self.is_member = jnp.arange(self.counts.size) < member_where.size
        self.sizes = [jnp.sum(where, dtype=jnp.int32) for where in (member_where, other_where)]
        self.are_filled = jnp.minimum(*self.sizes) >= num_folds

    def weights(self, used: jax.Array) -> jax.Array:
        """Of the examples that are used, such that members sum to 1 and so do others."""
        used = used & self.counts
        members, others = used & self.is_member, used & ~self.is_member
        members, others = members.astype(self.dtype), others.astype(self.dtype)
        return members / jnp.sum(members) + others / jnp.sum(others)

    def accuracy(self, taken: jax.Array, fold: jax.Array) -> jax.Array:
        """The mean over members and others of the share told right, in one fold."""
        right = (taken == self.is_member).astype(self.dtype)
        return jnp.sum(self.weights(self.fold == fold) * right) / 2

    def standard_error(self) -> jax.Array:
        """Of an area under the curve, at chance."""
        n, m = (size.astype(self.dtype) for size in self.sizes)
        return jnp.sqrt((n + m + 1) / (12 * n * m))


def _features(name: str, features: Any) -> jax.Array:
    features = wide(name, features)
    if features.ndim not in (1, 2):
        raise ValueError(
            f"`{name}` must have one axis, over examples, or a second over features; "
            f"got shape {list(features.shape)}."
        )
    check_not_empty(name, features)
    return features.reshape(features.shape[0], -1)


def _or_nan(
    figure: jax.Array,
    members: jax.Array,
    member_where: jax.Array,
    others: jax.Array,
    other_where: jax.Array,
) -> jax.Array:
    """NaN where a score that counts is."""
    bad = jnp.any(jnp.isnan(members) & member_where) | jnp.any(jnp.isnan(others) & other_where)
    return jnp.where(bad, jnp.nan, figure)
