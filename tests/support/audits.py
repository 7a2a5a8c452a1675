"""Every figure of the audit, with arguments to call it by, and the same under `jit`."""

import inspect
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from sapsel_jax import audit

RNG = np.random.default_rng(0)
LOGITS = (3 * RNG.standard_normal((12, 4))).astype(np.float32)
LABELS = RNG.integers(0, 4, 12)
SCORES = RNG.standard_normal(9).astype(np.float32)
OTHERS = RNG.standard_normal(7).astype(np.float32)
ENSEMBLE = RNG.standard_normal((6, 5)).astype(np.float32)
SHARES = RNG.uniform(0, 1, 3).astype(np.float32)

CALLS = {
    "accuracy": (audit.accuracy, LOGITS, LABELS),
    "attack_success": (audit.attack_success, LOGITS, LABELS, LABELS[::-1]),
    "auc": (audit.auc, SCORES, OTHERS),
    "true_positive_rate": (
        lambda a, b: audit.true_positive_rate(a, b, false_positive_rate=0.3),
        SCORES,
        OTHERS,
    ),
    "margin": (audit.margin, LOGITS, LABELS),
    "modified_entropy": (audit.modified_entropy, LOGITS, LABELS),
    "entropy_attack": (audit.entropy_attack, LOGITS, LABELS, LOGITS[::-1] / 2, LABELS),
    "logistic_attack": (audit.logistic_attack, SCORES, OTHERS),
    "u_lira": (audit.u_lira, ENSEMBLE, ENSEMBLE[::-1] + 1),
    "klom": (audit.klom, ENSEMBLE, 2 * ENSEMBLE[1:]),
    "klom_binned": (audit.klom_binned, ENSEMBLE, 2 * ENSEMBLE[1:]),
    "exposure": (audit.exposure, SCORES, ENSEMBLE[:1].repeat(9, 0)),
    "recovery": (
        lambda a, p, r: audit.recovery(a, p, r, num_examples=500),
        SHARES,
        SHARES[::-1],
        SHARES / 2,
    ),
    "tug_of_war": (audit.tug_of_war, SHARES, SHARES[::-1]),
    "relearning_area": (
        lambda a, b: audit.relearning_area(a, b, counts=(0, 1, 5)),
        SHARES,
        SHARES[::-1],
    ),
    "distance": (audit.distance, SCORES, SCORES[::-1]),
    "changed_mask": (audit.changed_mask, SHARES, SHARES[::-1]),
    "sparsity": (audit.sparsity, SHARES > 0.5),
}


STATIC = {"num_examples", "small_gap", "counts", "num_folds", "num_bins", "false_positive_rate"}


def jitted(name):
    fn = getattr(audit, name)
    return jax.jit(fn, static_argnames=STATIC & set(inspect.signature(fn).parameters))


fast = SimpleNamespace(**{name: jitted(name) for name in CALLS})
"""The same functions, each compiled as a whole: quicker than one operation at a time."""
REALS = sorted(set(CALLS) - {"changed_mask", "sparsity"})
"""The functions whose results are real numbers."""


def every(arguments):
    """All of the functions as one, so that one program is compiled for all."""
    return {name: CALLS[name][0](*some) for name, some in arguments.items()}


def arguments(dtype=np.float32):
    """Numbers that bfloat16 holds, in another dtype."""

    def cast(x):
        return jnp.asarray(x, jnp.bfloat16).astype(dtype) if x.dtype == np.float32 else x

    return {name: [cast(x) for x in some] for name, (_, *some) in CALLS.items()}


def results(fn, dtype):
    """What has real numbers in it, by name."""
    return {name: value for name, value in fn(arguments(dtype)).items() if name in REALS}
