"""Each baseline by the property that defines it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sapsel_jax as sap
from benchmarks.learning.data import Split
from benchmarks.learning.scenarios import SCENARIOS, poison
from benchmarks.learning.settings import Settings
from benchmarks.learning.training import train
from benchmarks.measures.metrics import count_changed, count_entries
from benchmarks.methods.updates import as_batch, mix_batches
from benchmarks.paper.baselines import (
    dampen,
    fisher_noise,
    neggrad_weights,
    random_labels,
    scrub_batches,
    scrub_loss,
    sharpness_aware,
    teacher_outputs,
)
from benchmarks.paper.problems import SELECTIONS, Problem
from benchmarks.paper.procedures import PROCEDURES


def bits(leaf):
    return np.asarray(leaf).view(np.uint32)


@pytest.fixture(scope="module")
def tiny():
    """A problem on 120 digits of which a fifth has false labels."""
    return make_problem("label")


def make_problem(scenario):
    settings = dataclasses.replace(Settings(), train_examples=120, epochs=4, scenario=scenario)
    dataset = settings.load(1)
    model = settings.build(dataset)
    poisoned = poison(dataset, scenario, 0.2, 1)
    params = train(model, settings.recipe, poisoned.train, np.arange(120), 12, 1)
    return Problem(
        model=model,
        params=jax.block_until_ready(params),
        train=poisoned.train,
        data=poisoned.data,
        original=poisoned.original,
        corrected=poisoned.corrected,
        retained=poisoned.train.take(poisoned.retained),
        num_classes=10,
        batch_size=16,
        budget=640,
        fraction=0.05,
        seed=1,
    )


def mean_loss(problem, params, split):
    losses = jax.vmap(lambda example: problem.model.loss(params, example))(as_batch(split))
    return float(jnp.mean(losses))


def run(problem, name, **trial):
    procedure = PROCEDURES[name]
    evidence = procedure.select(problem)
    budget = problem.budget - procedure.selection_gradients(problem)
    return procedure.run(problem, evidence, budget, trial)


def test_dampening_changes_what_matters_more_to_the_poison():
    params = {"w": jnp.array([4.0, 4.0, 4.0, 4.0])}
    forget, data = {"w": jnp.array([0.0, 1.0, 3.0, 8.0])}, {"w": jnp.array([0.0, 1.0, 1.0, 1.0])}
    result = dampen(params, forget, data, 2.0, 1.0)
    np.testing.assert_allclose(result["w"], [4.0, 4.0, 4 / 3, 0.5], rtol=1e-6)
    np.testing.assert_array_equal(bits(result["w"])[:2], bits(params["w"])[:2])
    # λ above I_f/I_D never enlarges.
    np.testing.assert_array_equal(dampen(params, forget, data, 2.0, 100.0)["w"], params["w"])


def test_fisher_noise_is_wider_where_there_is_less_information():
    n = 40_000
    params, fisher = {"w": jnp.ones(2 * n)}, {"w": jnp.repeat(jnp.array([16.0, 1.0]), n)}
    noise = fisher_noise(params, fisher, 0.1, jax.random.key(0))["w"] - 1
    spread = np.std(np.asarray(noise).reshape(2, n), axis=1)
    np.testing.assert_allclose(spread, [0.05, 0.1], rtol=0.03)  # 8 standard errors


def test_random_labels_are_never_the_own_ones():
    split = Split(np.zeros((500, 1)), np.arange(500) % 10)
    relabelled = random_labels(split, 10, 3)
    assert not np.any(relabelled.labels == split.labels)
    assert set(relabelled.labels) == set(range(10))
    assert relabelled.images is split.images


def test_weights_of_neggrad_make_its_loss():
    forget, retain = neggrad_weights(0.9)
    losses = np.array([3.0, 5.0, 1.0, 2.0])  # two to forget, two retained
    mean = np.mean(losses * [forget, forget, retain, retain])
    assert mean == pytest.approx(0.9 * 1.5 - 0.1 * 4.0)


@pytest.mark.slow
def test_scrub_starts_flat_and_its_teacher_stays(tiny):
    batches = scrub_batches(
        tiny.model,
        tiny.params,
        mix_batches([(tiny.original, 1.0, 4)], steps=2, seed=0),
        mix_batches([(tiny.retained, 1.0, 4)], steps=2, seed=0),
        gamma=1.0,
        alpha=0.5,
    )
    np.testing.assert_array_equal(batches["divergence_weight"][:, 0], [0.5, -1, 0.5, -1])
    np.testing.assert_array_equal(batches["entropy_weight"][:, 0], [1, 0, 1, 0])
    loss = scrub_loss(tiny.model)
    retained, forgotten = (jax.tree.map(lambda x, i=i: x[i, 0], batches) for i in (0, 1))
    slope = jax.grad(loss)(tiny.params, forgotten)
    np.testing.assert_allclose(optax.tree.norm(slope), 0, atol=1e-5)
    own = {"image": retained["image"], "label": retained["label"], "weight": 1.0}
    np.testing.assert_allclose(
        loss(tiny.params, retained), tiny.model.loss(tiny.params, own), rtol=1e-5
    )
    np.testing.assert_array_equal(
        teacher_outputs(tiny.model, tiny.params, batches["image"]), batches["teacher"]
    )


@pytest.mark.slow
def test_scrub_moves_the_student_alone(tiny):
    before = jax.tree.map(bits, tiny.params)
    moved, _ = run(tiny, "scrub", rate=1e-2, alpha=0.5)
    assert count_changed(tiny.params, moved) > 0
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(bits, tiny.params))


def test_gradient_ascent_raises_the_loss_of_the_poison(tiny):
    params, gradients = run(tiny, "gradient_ascent", rate=1e-3)
    assert mean_loss(tiny, params, tiny.original) > mean_loss(tiny, tiny.params, tiny.original)
    assert gradients == 640


def test_fine_tuning_lowers_the_loss_of_retained_examples(tiny):
    params, _ = run(tiny, "fine_tune", rate=1e-3)
    assert mean_loss(tiny, params, tiny.retained) < mean_loss(tiny, tiny.params, tiny.retained)


def test_neggrad_widens_the_distance_of_both_losses(tiny):
    params, _ = run(tiny, "neggrad_plus", rate=3e-3, alpha=0.9)
    apart = lambda p: mean_loss(tiny, p, tiny.original) - mean_loss(tiny, p, tiny.retained)
    assert apart(params) > apart(tiny.params)


@pytest.mark.slow
def test_salun_leaves_the_other_half_bit_identical(tiny):
    mask = PROCEDURES["salun"].select(tiny)
    assert int(sap.mask_count(mask)) == round(0.5 * count_entries(tiny.params))
    moved, _ = run(tiny, "salun", rate=1e-2)
    outside = lambda before, after, m: np.testing.assert_array_equal(
        bits(before)[~np.asarray(m)], bits(after)[~np.asarray(m)]
    )
    jax.tree.map(outside, tiny.params, moved, mask)
    assert count_changed(tiny.params, moved) > 0


def test_last_layer_leaves_the_others_bit_identical(tiny):
    moved, _ = run(tiny, "last_layer", rate=1e-2)
    changed = {name: count_changed(tiny.params[name], moved[name]) for name in moved}
    assert changed[tiny.model.last_layer] > 0
    assert sum(changed.values()) == changed[tiny.model.last_layer]


def test_a_sharpness_aware_step_uses_the_gradient_at_the_perturbed_place():
    optimizer = sharpness_aware(0.1, 0.5)
    gradient = lambda p: 2 * p * jnp.array([1.0, 3.0])
    start = jnp.array([3.0, 4.0])
    params, state = start, optimizer.init(start)
    for _ in range(2):
        updates, state = optimizer.update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
    uphill = start + 0.5 * gradient(start) / jnp.linalg.norm(gradient(start))
    adam = optax.adam(0.1)
    step, _ = adam.update(gradient(uphill), adam.init(start))
    want = optax.apply_updates(start, step)
    np.testing.assert_allclose(np.asarray(params), np.asarray(want), rtol=1e-5)


@pytest.mark.slow
def test_a_first_order_step_on_every_parameter_is_the_formula(tiny):
    problem = tiny._replace(budget=32 * len(tiny.original.labels))  # every original once
    moved, gradients = run(problem, "full_first_order", step_size=0.3)
    total = lambda split: jax.grad(
        lambda p: jnp.sum(jax.vmap(lambda e: tiny.model.loss(p, e))(as_batch(split)))
    )(tiny.params)
    change = optax.tree.sub(total(tiny.corrected), total(tiny.original))
    want = optax.tree.add_scale(tiny.params, -0.3 / 120, change)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), moved, want)
    assert gradients == 2 * len(tiny.original.labels)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["decrease", "sharpest", "saliency", "random"])
def test_selections_per_unit_reach_every_unit_alike(tiny, name):
    mask = SELECTIONS[f"{name}_per_unit"].select(tiny)
    layers = [np.vstack([layer["kernel"], layer["bias"]]) for layer in mask.values()]
    counts = np.concatenate([layer.sum(0) for layer in layers])
    assert counts.sum() == round(0.05 * count_entries(tiny.params)) == 328
    assert set(counts) == {3, 4}  # 328 entries of 106 units


def test_every_procedure_has_eight_trials():
    assert {len(procedure.trials) for procedure in PROCEDURES.values()} == {8}


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_procedure_keeps_to_its_budget_and_its_mask(scenario):
    problem = make_problem(scenario)
    total = count_entries(problem.params)
    for name, procedure in PROCEDURES.items():
        moved, gradients = run(problem, name, **procedure.trials[0])
        cost = procedure.selection_gradients(problem) + gradients
        assert cost <= problem.budget, name
        if name.removesuffix("_perturbed") in SELECTIONS and not name.startswith(
            ("full", "last_layer")
        ):
            assert 0 < count_changed(problem.params, moved) <= round(0.05 * total), name
