"""Evidence: what unlearning forgot, what it kept, and what an attacker still finds.

Pure functions of logits, losses, margins and parameters, and two loops that `jax.jit` compiles.
Reals are float32 or wider inside, whatever came in. Nothing but `report` goes through the host.

An example whose label lies outside [0, classes), such as -100, is ignored: figures come out as if
it were not there. Functions of labels see that themselves, `margin` and `modified_entropy` mark it
by NaN, `klom` and `u_lira` understand that mark. Functions of scores, losses and features take the
examples that count by `where`: there a NaN is a fault of the model, and is passed on.
"""

from sapsel_jax.audit._accuracy import accuracy, attack_success
from sapsel_jax.audit._attacks import (
    Attack,
    auc,
    entropy_attack,
    logistic_attack,
    true_positive_rate,
)
from sapsel_jax.audit._confidence import margin, modified_entropy
from sapsel_jax.audit._distance import changed_mask, distance, sparsity
from sapsel_jax.audit._ensembles import train_ensemble
from sapsel_jax.audit._exposure import exposure
from sapsel_jax.audit._klom import klom, klom_binned
from sapsel_jax.audit._lira import Lira, u_lira
from sapsel_jax.audit._recovery import Recovery, recovery, tug_of_war
from sapsel_jax.audit._relearning import Relearning, RelearningArea, relearn, relearning_area
from sapsel_jax.audit._report import report

__all__ = [
    "Attack",
    "Lira",
    "Recovery",
    "Relearning",
    "RelearningArea",
    "accuracy",
    "attack_success",
    "auc",
    "changed_mask",
    "distance",
    "entropy_attack",
    "exposure",
    "klom",
    "klom_binned",
    "logistic_attack",
    "margin",
    "modified_entropy",
    "recovery",
    "relearn",
    "relearning_area",
    "report",
    "sparsity",
    "train_ensemble",
    "true_positive_rate",
    "tug_of_war",
    "u_lira",
]
