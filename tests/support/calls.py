"""Every public function, called once with small arguments, by its name.

What a call hands to JAX is made inside it, so that the call obeys the settings that are in force
around it. Functions that the caller writes, such as losses, can be exchanged by keyword.
"""

import functools
import inspect
import tempfile
from typing import Any

import audits
import jax
import jax.numpy as jnp
import numpy as np
import optax

import sapsel_jax as sap
from sapsel_jax import audit

RNG = np.random.default_rng(0)
NUM_EXAMPLES, NUM_PROBES = 5, 9
SGD = functools.partial(optax.sgd, momentum=0.9)
"""With a state. Not adam, which adds floats to whole numbers: strict promotion forbids it that."""


def reals(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


PARAMS = {"up": reals(3, 2), "bias": reals(2), "down": reals(2)}
GRADIENT = {"up": reals(3, 2), "bias": reals(2), "down": reals(2)}
MASK = {name: leaf > 0 for name, leaf in PARAMS.items()}
DATA = (reals(NUM_EXAMPLES, 3), reals(NUM_EXAMPLES))
ORIGINAL = (DATA[0][:2], DATA[1][:2] + 1)
CORRECTED = (DATA[0][:2], DATA[1][:2])
LABELLED = (DATA[0], np.arange(NUM_EXAMPLES, dtype=np.int32) % 2)
BATCHES = (DATA[0][None, :2], DATA[1][None, :2])
STARTS = {name: np.stack([leaf, leaf + 1]) for name, leaf in PARAMS.items()}
IDS = np.asarray([[[0, 1]], [[2, 3]]], np.int32)
STEP_SIZES = np.asarray([0.1, 0.01], np.float32)


def model_fn(params, example):
    return jnp.tanh(example[0] @ params["up"] + params["bias"]) @ params["down"]


def logits_fn(params, inputs):
    return inputs @ params["up"] + params["bias"]


def output_loss(output, example):
    return 0.5 * jnp.square(output - example[1])


def penalty(params):
    return 0.1 * sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params))


def loss(params, example):
    return output_loss(model_fn(params, example), example) + penalty(params)


def mean_loss(params, data):
    return jnp.mean(jax.vmap(lambda example: loss(params, example))(data))


def key():
    return jax.random.key(0)


def options() -> dict[str, Any]:
    """More probes than run at once, of which one is left over, and a microbatch of that kind."""
    return {"num_probes": NUM_PROBES, "microbatch": 2}


def hutchinson(loss_fn=loss):
    diagonal = sap.hutchinson_diagonal(loss_fn, return_error=True, **options())
    return diagonal(PARAMS, DATA, key())


def propagated(loss_fn=loss):
    weights = np.ones(NUM_EXAMPLES, np.float32)
    whole = sap.propagated_diagonal(loss_fn, num_probes=NUM_PROBES, reduction="sum")
    parts = sap.propagated_diagonal(loss_fn, return_error=True, **options())
    return whole(PARAMS, DATA, key(), weights=weights), parts(PARAMS, DATA, key())


def gauss_newton(output_loss_fn=output_loss):
    diagonal = sap.gauss_newton_diagonal(model_fn, output_loss_fn, microbatch=2)
    return diagonal(PARAMS, DATA)


def sampled_gauss_newton(output_loss_fn=output_loss):
    diagonal = sap.sampled_gauss_newton_diagonal(
        model_fn, output_loss_fn, num_samples=NUM_PROBES, microbatch=2
    )
    return diagonal(PARAMS, DATA, key())


def second_order(loss_fn=loss, output_loss_fn=output_loss, penalty_fn=penalty, **changes):
    """Gauss-Newton with a penalty by default; another solver or loss by keyword."""
    given = {"model_fn": model_fn, "output_loss_fn": output_loss_fn, "penalty_fn": penalty_fn}
    return sap.second_order_update(
        loss_fn,
        PARAMS,
        ORIGINAL,
        CORRECTED,
        DATA,
        **{"damping": 1.0, "mask": MASK, "num_steps": 2, "adapt_damping": True, "microbatch": 2}
        | given
        | changes,
    )


def with_solver(solver):
    functions = {"model_fn": None, "output_loss_fn": None, "penalty_fn": None}
    return second_order(solver=solver, damping=np.float32(0.5), **functions)


def of_up(params):
    return jnp.sum(params["up"]) ** 2


def unlearn(loss_fn=loss, validate=of_up, **changes):
    given: dict[str, Any] = {"key": key(), "fraction": 0.3}
    if "update" not in changes:
        given["steps"] = sap.Steps(num_steps=3, batch_size=4, step_sizes=(0.01, 0.1))
        given["validate"] = validate
    return sap.unlearn(loss_fn, PARAMS, ORIGINAL, CORRECTED, DATA, **(given | changes))


def with_iteration(loss_fn=loss):
    update = sap.with_iteration(optimizer=SGD(0.1), num_steps=2, batch_size=2, key=key())
    return unlearn(loss_fn, update=update)


def iterative(loss_fn=loss):
    return sap.iterative_update(
        loss_fn,
        PARAMS,
        BATCHES,
        optimizer=SGD(0.1),
        mask=MASK,
        retained=BATCHES,
    )


def sparsify(loss_fn=loss):
    module = lambda x: np if isinstance(x, np.ndarray) else jnp  # traced, or of no dtype of JAX's
    steps = jax.tree.map(lambda x: module(x).concatenate([x, x]), BATCHES)
    return sap.sparsify_update(
        loss_fn, PARAMS, steps, DATA, key=key(), counts=(3,), optimizer=SGD(0.1), retained=steps
    )


def by_transform(make):
    params = jax.tree.map(jnp.asarray, PARAMS)
    transform = make(SGD(0.1))
    updates, state = transform.update(GRADIENT, transform.init(params), params)
    return optax.apply_updates(params, updates), state


def patch():
    return sap.make_patch(PARAMS, {**PARAMS, "bias": PARAMS["bias"] + 1})


def from_file(save, load):
    with tempfile.TemporaryDirectory() as folder:
        save(f"{folder}/file")
        return load(f"{folder}/file")


def stream():
    state = sap.mean_update(sap.mean_init(PARAMS), GRADIENT, 3)
    return sap.mean_update(state, PARAMS, np.int32(2))


def train_ensemble(loss_fn=loss):
    return audit.train_ensemble(loss_fn, STARTS, DATA, IDS, optimizer=SGD(0.1))


def relearn(loss_fn=loss, score_fn=mean_loss):
    return audit.relearn(
        loss_fn,
        PARAMS,
        ORIGINAL,
        DATA,
        score_fn=score_fn,
        step_sizes=STEP_SIZES,
        counts=(0, 1, 2),
        optimizer=SGD,
        num_steps=2,
        batch_size=2,
    )


CALLS = {
    "apply_patch": lambda: sap.apply_patch(PARAMS, patch()),
    "basis_diagonal": lambda fn=mean_loss: sap.basis_diagonal(fn, chunk=4)(PARAMS, DATA),
    "conjugate_gradient": lambda: with_solver(sap.conjugate_gradient()),
    "count_nonfinite": lambda: sap.count_nonfinite(PARAMS),
    "dense_solver": lambda: with_solver(sap.dense_solver(count=4)),
    "describe_mask": lambda: sap.describe_mask(MASK),
    "describe_patch": lambda: sap.describe_patch(patch()),
    "diagonal_solver": lambda: with_solver(sap.diagonal_solver()),
    "empirical_fisher_diagonal": lambda loss_fn=loss: sap.empirical_fisher_diagonal(
        loss_fn, microbatch=2
    )(PARAMS, DATA),
    "exact_diagonal": lambda loss_fn=loss: sap.exact_diagonal(loss_fn, microbatch=2)(PARAMS, DATA),
    "explain": lambda loss_fn=loss: str(sap.explain(loss_fn, PARAMS, (DATA[0][0], DATA[1][0]))),
    "first_order_update": lambda loss_fn=loss: sap.first_order_update(
        loss_fn, PARAMS, ORIGINAL, CORRECTED, step_size=0.1, mask=MASK
    ),
    "gauss_newton_diagonal": gauss_newton,
    "gradient_change": lambda loss_fn=loss: sap.gradient_change(
        loss_fn, PARAMS, ORIGINAL, CORRECTED, num_examples=NUM_EXAMPLES, microbatch=1
    ),
    "hutchinson_diagonal": hutchinson,
    "is_piecewise_affine": lambda: sap.is_piecewise_affine(
        model_fn, PARAMS, (DATA[0][0], DATA[1][0])
    ),
    "iterative_update": iterative,
    "lissa": lambda: with_solver(sap.lissa(batch_size=2, key=key(), tolerance=1.0)),
    "load_mask": lambda: from_file(
        lambda path: sap.save_mask(path, MASK), lambda path: sap.load_mask(path, PARAMS)
    ),
    "load_patch": lambda: from_file(
        lambda path: sap.save_patch(path, patch()), lambda path: sap.load_patch(path).num_changed
    ),
    "make_patch": lambda: patch().num_changed,
    "mask_complement": lambda: sap.mask_complement(MASK),
    "mask_count": lambda: sap.mask_count(MASK),
    "mask_density": lambda: sap.mask_density(MASK),
    "mask_intersection": lambda: sap.mask_intersection(MASK, MASK),
    "mask_overlap": lambda: sap.mask_overlap(MASK, MASK),
    "mask_union": lambda: sap.mask_union(MASK, MASK),
    "mean_finalize": lambda: sap.mean_finalize(stream()),
    "mean_init": lambda: sap.mean_init(PARAMS),
    "mean_over_batches": lambda: sap.mean_over_batches(lambda batch, n: GRADIENT, PARAMS, [DATA]),
    "mean_update": stream,
    "probe_diagonal": lambda fn=mean_loss: sap.probe_diagonal(fn, num_probes=NUM_PROBES, chunk=4)(
        PARAMS, key(), DATA
    ),
    "propagated_diagonal": propagated,
    "revert_patch": lambda: sap.revert_patch(sap.apply_patch(PARAMS, patch()), patch()),
    "sampled_gauss_newton_diagonal": sampled_gauss_newton,
    "save_mask": lambda: from_file(lambda path: sap.save_mask(path, MASK), lambda path: None),
    "save_patch": lambda: from_file(lambda path: sap.save_patch(path, patch()), lambda path: None),
    "score_brain_damage": lambda: sap.score_brain_damage(PARAMS, GRADIENT),
    "score_change": lambda: sap.score_change(PARAMS, GRADIENT, PARAMS),
    "score_decrease": lambda: sap.score_decrease(GRADIENT, PARAMS, damping=0.1),
    "score_fisher_ratio": lambda: sap.score_fisher_ratio(PARAMS, GRADIENT, damping=0.1),
    "score_flattest": lambda: sap.score_flattest(PARAMS, floor=0.1),
    "score_magnitude": lambda: sap.score_magnitude(PARAMS),
    "score_newton_step": lambda: sap.score_newton_step(GRADIENT, PARAMS, damping=0.1),
    "score_random": lambda: sap.score_random(PARAMS, key()),
    "score_saliency": lambda: sap.score_saliency(GRADIENT),
    "score_sharpest": lambda: sap.score_sharpest(PARAMS),
    "second_order_update": second_order,
    "select_leaves": lambda: sap.select_leaves(PARAMS, lambda path, leaf: path == "up"),
    "select_like": lambda: sap.select_like(MASK, key()),
    "select_top_count": lambda: sap.select_top_count(PARAMS, 3),
    "select_top_fraction": lambda: sap.select_top_fraction(PARAMS, 0.3),
    "select_top_fraction_per_leaf": lambda: sap.select_top_fraction_per_leaf(PARAMS, 0.3),
    "select_top_fraction_per_unit": lambda: sap.select_top_fraction_per_unit(PARAMS, 0.3),
    "select_top_units": lambda: sap.select_top_units(PARAMS, 0.3),
    "selective": lambda: by_transform(lambda inner: sap.selective(inner, MASK)),
    "selective_packed": lambda: by_transform(lambda inner: sap.selective_packed(inner, MASK, 4)),
    "sparsify_update": sparsify,
    "unlearn": unlearn,
    "with_first_order": lambda loss_fn=loss: unlearn(
        loss_fn, update=sap.with_first_order(step_size=0.1)
    ),
    "with_iteration": with_iteration,
    "audit.relearn": relearn,
    "audit.report": lambda: audit.report(
        logits_fn, PARAMS, {**PARAMS, "bias": PARAMS["bias"] + 1}, LABELLED, None, LABELLED
    ),
    "audit.train_ensemble": train_ensemble,
}
for _name, (_fn, *_arguments) in audits.CALLS.items():
    CALLS[f"audit.{_name}"] = lambda fn=_fn, arguments=_arguments: fn(*arguments)


def public_functions():
    """All public functions by name, those of the audit after a dot."""
    found = {}
    for prefix, module in (("", sap), ("audit.", audit)):
        members = ((name, getattr(module, name)) for name in module.__all__)
        found |= {prefix + name: member for name, member in members if inspect.isfunction(member)}
    return found
