"""What others do, from their formulas: the parts of each baseline that are its own.

Wherever a baseline is a choice of examples, labels and weights, it runs through the same compiled
steps as everything else (`procedures`); here is what those steps are given.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.learning.data import Split
from benchmarks.learning.models import Model

FISHER_FLOOR = 1e-6
"""Added to the Fisher information, so that entries without any get noise of a finite size."""


def random_labels(split: Split, num_classes: int, seed: int) -> Split:
    """The same images, each with a random label that is not its own.

    Source: S. Golatkar, A. Achille, S. Soatto (2020); with a mask, SalUn (C. Fan et al., 2024).
    """
    shift = np.random.default_rng([seed, 5]).integers(1, num_classes, len(split.labels))
    return Split(split.images, ((split.labels + shift) % num_classes).astype(split.labels.dtype))


def neggrad_weights(alpha: float) -> tuple[float, float]:
    """The weights of forgotten and retained examples in alpha·L_r − (1 − alpha)·L_f.

    A batch holds as many of the ones as of the others and its loss is the mean over both, hence
    the factor 2.

    Source: NegGrad+ of M. Kurmanji et al., "Towards Unbounded Machine Unlearning" (2023).
    """
    return -2 * (1 - alpha), 2 * alpha


@jax.jit
def dampen(params: Any, forget: Any, data: Any, alpha: Any, strength: Any) -> Any:
    """Selective synaptic dampening: θ ← θ·min(λ I_D/I_f, 1) where I_f > alpha·I_D.

    Args:
      params: what was trained.
      forget: I_f, the Fisher diagonal on the examples to forget.
      data: I_D, that on the training set.
      alpha: how much larger I_f must be.
      strength: λ.

    Source: J. Foster, S. Schoepf, A. Brintrup, "Fast Machine Unlearning Without Retraining Through
      Selective Synaptic Dampening" (2024), equations 6 and 7.
    """

    def leaf(p: jax.Array, f: jax.Array, d: jax.Array) -> jax.Array:
        factor = jnp.minimum(strength * d / jnp.where(f > 0, f, 1), 1)
        return jnp.where(f > alpha * d, p * factor, p)

    return jax.tree.map(leaf, params, forget, data)


@jax.jit
def fisher_noise(params: Any, retained: Any, scale: Any, key: jax.Array) -> Any:
    """Fisher forgetting: θ ← θ + s·F^(−1/4)·n, with n standard normal.

    Args:
      params: what was trained.
      retained: F, the Fisher diagonal on the examples to keep.
      scale: s, (λσ²)^(1/4) in the paper.
      key: of the noise.

    Source: S. Golatkar, A. Achille, S. Soatto, "Eternal Sunshine of the Spotless Net" (2020),
      section 5: noise of covariance (λσ²)^(1/2) F^(−1/2).
    """
    noise = optax.tree.random_like(key, params)
    spread = lambda f: (f + FISHER_FLOOR) ** -0.25
    return jax.tree.map(lambda p, f, n: p + scale * spread(f) * n, params, retained, noise)


def scrub_batches(
    model: Model, teacher: Any, forget: Any, retained: Any, gamma: float, alpha: float
) -> dict[str, Any]:
    """Batches for `scrub_loss`: one of retained examples, one of forgotten ones, in turn.

    The teacher's outputs stand in the batches as data, so nothing can move the teacher. The
    student starts as its copy, where the forget loss is flat: hence retained examples come first.

    Args:
      model: of teacher and student.
      teacher: the poisoned parameters.
      forget: batches of `image` and `label`, with leading axes (steps, examples).
      retained: as many.
      gamma: weight of the cross entropy on retained examples.
      alpha: weight of the divergence on retained examples.
    """
    pairs = {name: np.stack([retained[name], forget[name]], 1) for name in ("image", "label")}
    batches: dict[str, Any] = {name: _flat(array) for name, array in pairs.items()}
    batches["teacher"] = teacher_outputs(model, teacher, batches["image"])
    of_retained = np.tile([True, False], len(forget["label"]))[:, None]
    spread = lambda retain, drop: np.broadcast_to(
        np.where(of_retained, retain, drop).astype(np.float32), batches["label"].shape
    )
    batches["entropy_weight"] = spread(gamma, 0.0)
    batches["divergence_weight"] = spread(alpha, -1.0)
    return batches


@functools.cache
def scrub_loss(model: Model) -> Any:
    """The loss of one example: gamma·CE + alpha·KL if retained, −KL if forgotten.

    KL is the divergence of the student's class probabilities from the teacher's.

    Source: SCRUB of M. Kurmanji et al., "Towards Unbounded Machine Unlearning" (2023), equation 3.
    """

    def loss(params: Any, example: dict[str, jax.Array]) -> jax.Array:
        student = jax.nn.log_softmax(model.apply(params, example["image"][None])[0])
        teacher = example["teacher"]
        divergence = jnp.sum(jnp.exp(teacher) * (teacher - student))
        entropy = -student[example["label"]]
        return example["entropy_weight"] * entropy + example["divergence_weight"] * divergence

    return loss


@functools.partial(jax.jit, static_argnums=0)
def teacher_outputs(model: Model, params: Any, images: jax.Array) -> jax.Array:
    """Log probabilities of batches of images, with the images' leading axes."""
    return jax.lax.map(lambda batch: jax.nn.log_softmax(model.apply(params, batch)), images)


def sharpness_aware(learning_rate: Any, radius: Any) -> optax.GradientTransformation:
    """Adam whose every second call is the step, taken by the gradient at a perturbed place.

    The call before it moves `radius` uphill on its own batch. Pairs of batches make it what
    C. Fan et al. (2025) do against relearning: the first holds the examples to correct alone.

    Source: P. Foret et al., "Sharpness-Aware Minimization" (2021), by `optax.contrib.sam`.
    """
    uphill = optax.chain(optax.contrib.normalize(), optax.sgd(radius))
    return optax.contrib.sam(optax.adam(learning_rate), uphill, sync_period=2)


def _flat(pairs: np.ndarray) -> np.ndarray:
    return pairs.reshape(-1, *pairs.shape[2:])
