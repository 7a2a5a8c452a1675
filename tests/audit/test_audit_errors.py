"""What stops a figure of the audit, in one sentence each."""

import jax.numpy as jnp
import pytest
from refusals import refuses

from sapsel_jax import audit

EMPTY = jnp.zeros(0)
WHOLE = jnp.ones(3, int)
THREE, FOUR = jnp.ones(3), jnp.ones(4)
MANY = jnp.ones((4, 2))
REAL = "must hold real floating-point arrays; the array has dtype int32."

ERRORS = {
    "logits that are whole": (
        lambda: audit.accuracy(jnp.ones((3, 2), int), WHOLE),
        TypeError,
        f"`logits` {REAL}",
    ),
    "labels that are real": (
        lambda: audit.margin(jnp.ones((3, 2)), THREE),
        TypeError,
        "`labels` must hold integers; got dtype float32.",
    ),
    "labels that do not fit": (
        lambda: audit.modified_entropy(jnp.ones((3, 2)), jnp.ones(4, int)),
        ValueError,
        "`labels` must have the shape of `logits` without its last axis, [3]; got [4].",
    ),
    "one class": (
        lambda: audit.margin(jnp.ones((3, 1)), WHOLE),
        ValueError,
        "`logits` must have at least 2 classes along its last axis; got shape [3, 1].",
    ),
    "no examples": (
        lambda: audit.accuracy(jnp.ones((0, 2)), jnp.ones(0, int)),
        ValueError,
        "`logits` is empty; its shape is [0, 2].",
    ),
    "no axis over examples": (
        lambda: audit.accuracy(THREE, jnp.array(0)),
        ValueError,
        "`logits` must have an axis over examples before that over classes.",
    ),
    "right labels that do not fit": (
        lambda: audit.attack_success(jnp.ones((3, 2)), WHOLE, jnp.ones(4, int)),
        ValueError,
        "`labels` must have the shape of `logits` without its last axis, [3]; got [4].",
    ),
    "targets that are real": (
        lambda: audit.attack_success(jnp.ones((3, 2)), THREE, WHOLE),
        TypeError,
        "`targets` must hold integers; got dtype float32.",
    ),
    "no members": (
        lambda: audit.auc(EMPTY, THREE),
        ValueError,
        "`member_scores` is empty; its shape is [0].",
    ),
    "scores with two axes": (
        lambda: audit.true_positive_rate(THREE, MANY),
        ValueError,
        "`other_scores` must have one axis, over examples; got shape [4, 2].",
    ),
    "labels to forget that are real": (
        lambda: audit.entropy_attack(jnp.ones((3, 2)), THREE, jnp.ones((3, 2)), WHOLE),
        TypeError,
        "`forget_labels` must hold integers; got dtype float32.",
    ),
    "unseen labels that do not fit": (
        lambda: audit.entropy_attack(jnp.ones((3, 2)), WHOLE, jnp.ones((4, 2)), WHOLE),
        ValueError,
        "`unseen_labels` must have the shape of `unseen_logits` without its last axis, [4]; "
        "got [3].",
    ),
    "whole numbers for what counts": (
        lambda: audit.auc(THREE, FOUR, member_where=WHOLE),
        TypeError,
        "`member_where` must hold bools; got dtype int32.",
    ),
    "what counts of others that do not fit": (
        lambda: audit.true_positive_rate(THREE, FOUR, other_where=THREE > 0),
        ValueError,
        "`other_where` must have one bool for each of 4 examples; got shape [3].",
    ),
    "what counts of features that do not fit": (
        lambda: audit.logistic_attack(MANY, MANY, forget_where=MANY > 0, num_folds=2),
        ValueError,
        "`forget_where` must have one bool for each of 4 examples; got shape [4, 2].",
    ),
    "a rate above 1": (
        lambda: audit.true_positive_rate(THREE, FOUR, false_positive_rate=1.5),
        ValueError,
        "`false_positive_rate` must lie in [0, 1]; got 1.5.",
    ),
    "too many folds": (
        lambda: audit.logistic_attack(THREE, FOUR, num_folds=4),
        ValueError,
        "`num_folds` must be at most the number of examples of either set, 3 and 4; got 4.",
    ),
    "one fold": (
        lambda: audit.logistic_attack(THREE, FOUR, num_folds=1),
        ValueError,
        "`num_folds` must be at least 2; got 1.",
    ),
    "other features": (
        lambda: audit.logistic_attack(MANY, jnp.ones((4, 3))),
        ValueError,
        "`forget_features` and `unseen_features` must have the same features; got 2 and 3.",
    ),
    "features with three axes": (
        lambda: audit.logistic_attack(jnp.ones((3, 2, 2)), MANY),
        ValueError,
        "`forget_features` must have one axis, over examples, or a second over features; "
        "got shape [3, 2, 2].",
    ),
    "no penalty": (
        lambda: audit.logistic_attack(THREE, FOUR, penalty=0),
        ValueError,
        "`penalty` must be finite and above 0; got 0.",
    ),
    "margins of one axis": (
        lambda: audit.u_lira(THREE, MANY),
        ValueError,
        "`unlearned_margins` must have two axes, models and examples; got shape [3].",
    ),
    "two models": (
        lambda: audit.u_lira(MANY[:2], MANY),
        ValueError,
        "`unlearned_margins` must come from at least 3 models; got 2.",
    ),
    "one model": (
        lambda: audit.klom(MANY, MANY[:1]),
        ValueError,
        "`retrained_margins` must come from at least 2 models; got 1.",
    ),
    "other examples": (
        lambda: audit.klom_binned(MANY, jnp.ones((4, 3))),
        ValueError,
        "`unlearned_margins` and `retrained_margins` must be of the same examples; got 2 and 3.",
    ),
    "other numbers of models": (
        lambda: audit.u_lira(MANY, MANY[:3]),
        ValueError,
        "`unlearned_margins` and `retrained_margins` must come from as many models; got 4 and 3.",
    ),
    "no floor": (
        lambda: audit.klom(MANY, MANY, min_std=0.0),
        ValueError,
        "`min_std` must be finite and above 0; got 0.",
    ),
    "no clip": (
        lambda: audit.u_lira(MANY, MANY, clip=-1.0),
        ValueError,
        "`clip` must be finite and above 0; got -1.",
    ),
    "no bins": (
        lambda: audit.klom_binned(MANY, MANY, num_bins=0),
        ValueError,
        "`num_bins` must be at least 1; got 0.",
    ),
    "no alternatives": (
        lambda: audit.exposure(0.0, EMPTY),
        ValueError,
        "`alternative_losses` is empty; its shape is [0].",
    ),
    "alternatives that do not fit": (
        lambda: audit.exposure(THREE, FOUR),
        ValueError,
        "`alternative_losses` must have the shape of `canary_loss` and a last axis over "
        "alternatives; got [4] and [3].",
    ),
    "shares that are whole": (
        lambda: audit.recovery(WHOLE, THREE, THREE, num_examples=9),
        TypeError,
        f"`after` {REAL}",
    ),
    "no examples measured": (
        lambda: audit.recovery(THREE, THREE, THREE, num_examples=0),
        ValueError,
        "`num_examples` must be at least 1; got 0.",
    ),
    "no shares": (
        lambda: audit.recovery(THREE, EMPTY, THREE, num_examples=9),
        ValueError,
        "`poisoned` is empty; its shape is [0].",
    ),
    "a negative gap": (
        lambda: audit.recovery(THREE, THREE, THREE, num_examples=9, small_gap=-0.1),
        ValueError,
        "`small_gap` must be finite and at least 0; got -0.1.",
    ),
    "other sets": (
        lambda: audit.tug_of_war(THREE, FOUR),
        ValueError,
        "`after` and `retrained` must have the same shape, with a last axis over sets; "
        "got [3] and [4].",
    ),
    "rates that do not fit": (
        lambda: audit.relearning_area(THREE, FOUR, counts=(0, 1, 5)),
        ValueError,
        "`retrained_rates` must have a last axis over the 3 counts; got shape [4].",
    ),
    "counts that fall": (
        lambda: audit.relearning_area(THREE, THREE, counts=(0, 5, 1)),
        ValueError,
        "`counts` must rise; got (0, 5, 1).",
    ),
    "one count": (
        lambda: audit.relearning_area(jnp.ones(1), jnp.ones(1), counts=(3,)),
        ValueError,
        "`counts` must hold at least 2 numbers; got 1.",
    ),
    "other trees": (
        lambda: audit.distance({"a": THREE}, {"a": FOUR}),
        ValueError,
        "`params` and `other` must have the same shapes; at 'a' they are float32[3] and "
        "float32[4].",
    ),
    "whole parameters": (lambda: audit.distance(THREE, WHOLE), TypeError, f"`other` {REAL}"),
    "other dtypes": (
        lambda: audit.changed_mask({"a": THREE}, {"a": WHOLE}),
        ValueError,
        "`after` and `before` must have the same dtypes; got int32 and float32.",
    ),
    "a mask that is not bool": (
        lambda: audit.sparsity(THREE),
        TypeError,
        "`mask` must hold bool arrays; the array has dtype float32.",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_arguments_are_told_in_one_sentence(name):
    call, error, message = ERRORS[name]
    refuses(call, error, message)
