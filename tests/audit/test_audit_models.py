"""Evidence on trained models whose answer is known: memorised random labels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from refusals import refuses

import sapsel_jax as sap
from sapsel_jax import audit

pytestmark = pytest.mark.slow

NUM_CLASSES, NUM_INPUTS, WIDTH, STEPS = 4, 24, 48, 200
FORGET, TRAINED, UNSEEN = slice(0, 40), slice(40, 80), slice(80, 120)
COUNTS = (0, 1, 10)


def model_fn(params, x):
    return jnp.tanh(x @ params["in"]) @ params["out"] + params["bias"]


def loss_fn(params, example):
    x, y = example
    return optax.softmax_cross_entropy_with_integer_labels(model_fn(params, x), y)


def score_fn(params, heldout):
    x, y = heldout
    return audit.accuracy(model_fn(params, x), y)


def start(key):
    first, second = jax.random.split(key)
    return {
        "in": jax.random.normal(first, (NUM_INPUTS, WIDTH)) / NUM_INPUTS**0.5,
        "out": jax.random.normal(second, (WIDTH, NUM_CLASSES)) / WIDTH**0.5,
        "bias": jnp.zeros(NUM_CLASSES),
    }


@pytest.fixture(scope="module")
def data():
    """Inputs and labels that have nothing to do with each other: they can only be memorised."""
    rng = np.random.default_rng(0)
    return (
        rng.standard_normal((120, NUM_INPUTS)).astype(np.float32),
        rng.integers(0, NUM_CLASSES, 120).astype(np.int32),
    )


@pytest.fixture(scope="module")
def ensembles(data):
    """Six models trained on the forget set too; twice six on the other examples alone."""
    rng = np.random.default_rng(1)
    with_forget, without = np.arange(80), np.arange(40, 80)
    pools = [with_forget] * 6 + [without] * 12
    ids = np.stack([rng.choice(pool, (STEPS, 20)) for pool in pools])
    params = jax.vmap(start)(jax.random.split(jax.random.key(0), 18))
    train = jax.jit(
        lambda p, d, i: audit.train_ensemble(loss_fn, p, d, i, optimizer=optax.adam(0.01))
    )
    return train(params, data, ids)[0]


def pick(models, index):
    return jax.tree.map(lambda leaf: leaf[index], models)


def take(data, part):
    return jax.tree.map(lambda x: x[part], data)


def test_an_overfitted_model_gives_its_members_away_and_a_retrained_one_does_not(data, ensembles):
    def attacks(params, data):
        logits = model_fn(params, data[0])
        forget, unseen = (take((logits, data[1]), part) for part in (FORGET, UNSEEN))
        losses = [optax.softmax_cross_entropy_with_integer_labels(*x) for x in (forget, unseen)]
        return audit.entropy_attack(*forget, *unseen), audit.logistic_attack(*losses)

    attacks = jax.jit(attacks)
    for attack in attacks(pick(ensembles, 0), data):
        assert attack.auc > 0.8
        assert attack.accuracy > 0.75
    for attack in attacks(pick(ensembles, 6), data):
        assert abs(attack.auc - 0.5) < 3 * attack.standard_error
        assert abs(attack.accuracy - 0.5) < 0.25


def test_ensembles_of_one_training_are_alike_and_others_are_told_apart(data, ensembles):
    x, y = take(data, FORGET)
    margins = audit.margin(
        jax.vmap(lambda p: model_fn(p, x))(ensembles), jnp.broadcast_to(y, (18, 40))
    )
    poisoned, first, second = margins[:6], margins[6:12], margins[12:]
    assert audit.u_lira(poisoned, first).accuracy > 0.8
    assert abs(audit.u_lira(second, first).accuracy - 0.5) < 0.15
    # With so few models of one training KLOM is 0.61 on average, of heavy tails: see its docs.
    assert jnp.median(audit.klom(second, first)) < 1
    assert jnp.median(audit.klom(poisoned, first)) > 3


def test_what_was_masked_comes_back_at_once_and_what_was_never_learned_does_not(data, ensembles):
    forget = take(data, FORGET)
    examples, heldout = take(forget, slice(0, 10)), take(forget, slice(10, 40))
    # The attacker knows where to look: a mask over the outputs' biases hides the memory.
    only_bias = {"in": False, "out": False, "bias": True}
    mask = jax.tree.map(
        lambda leaf, own: jnp.full(leaf.shape, own), start(jax.random.key(0)), only_bias
    )
    attack = jax.jit(
        lambda params, examples, heldout: audit.relearn(
            loss_fn,
            params,
            examples,
            heldout,
            score_fn=score_fn,
            step_sizes=jnp.array([1e-3, 1e-1]),
            counts=COUNTS,
            optimizer=lambda step_size: sap.selective(optax.adam(step_size), mask),
            num_steps=100,
        )
    )
    masked = pick(ensembles, 0) | {"bias": pick(ensembles, 0)["bias"].at[0].add(8.0)}
    hidden, retrained = (attack(p, examples, heldout) for p in (masked, pick(ensembles, 6)))
    # Everything is taken for class 0 at first; ten examples bring the memory back.
    assert hidden.rates[0] < 0.6
    assert hidden.rates[2] > 0.7
    assert retrained.rates[2] < 0.6
    area = audit.relearning_area(hidden.rates, retrained.rates, counts=COUNTS)
    assert area.signed > 0.1
    itself = audit.relearning_area(retrained.rates, retrained.rates, counts=COUNTS)
    assert (itself.signed, itself.absolute) == (0, 0)
    # The curve is that of the step size with the largest mean, and starts at the model as it is.
    for result, params in ((hidden, masked), (retrained, pick(ensembles, 6))):
        best = int(jnp.argmax(result.trials.mean(1)))
        np.testing.assert_array_equal(result.rates, result.trials[best])
        assert result.step_size == pytest.approx([1e-3, 1e-1][best])
        np.testing.assert_allclose(result.trials[:, 0], score_fn(params, heldout))


def pull(w, y):
    """A loss whose steps can be followed by hand."""
    return 0.5 * (w - y) ** 2


def mean(w, heldout):
    return w + 0 * heldout.sum()


def test_relearning_takes_the_first_examples_in_turn():
    # One step of sgd(1/2) on two examples: half way from 0 to their mean.
    attack = lambda at_once: audit.relearn(
        pull,
        jnp.array(0.0),
        jnp.array([2.0, 4.0, 12.0]),
        jnp.zeros(1),
        score_fn=mean,
        step_sizes=jnp.array([0.5, 0.25]),
        counts=(1, 2, 3),
        optimizer=optax.sgd,
        num_steps=1,
        batch_size=3,
        at_once=at_once,
    )
    got = attack(1)
    # Of two the first comes twice: (2 + 4 + 2) / 3.
    np.testing.assert_allclose(got.trials, [[1, 4 / 3, 3], [0.5, 2 / 3, 1.5]], rtol=1e-6)
    np.testing.assert_allclose(got.rates, [1, 4 / 3, 3], rtol=1e-6)
    np.testing.assert_allclose(attack(4).trials, got.trials, rtol=1e-6)


def test_an_attack_that_diverges_is_not_the_best():
    got = audit.relearn(
        pull,
        jnp.array(0.0),
        jnp.ones(1),
        jnp.zeros(1),
        score_fn=lambda w, heldout: jnp.where(jnp.abs(w) > 100, jnp.nan, w),
        step_sizes=jnp.array([1e30, 0.5]),
        counts=(0, 1),
        optimizer=optax.sgd,
        num_steps=4,
        batch_size=1,
    )
    assert got.step_size == 0.5
    assert np.isnan(got.trials[0, 1])


def test_an_ensemble_is_its_models_trained_one_by_one(data):
    rng = np.random.default_rng(2)
    ids = rng.integers(0, 120, (3, 4, 5))
    params = jax.vmap(start)(jax.random.split(jax.random.key(1), 3))
    train = jax.jit(
        lambda p, d, i, at_once: audit.train_ensemble(
            loss_fn, p, d, i, optimizer=optax.adam(0.01), at_once=at_once
        ),
        static_argnums=3,
    )
    alone = jax.jit(
        lambda p, batches: sap.iterative_update(loss_fn, p, batches, optimizer=optax.adam(0.01))
    )
    for at_once in (1, 2):  # the third model has a group of its own
        got, losses = train(params, data, ids, at_once)
        assert losses.shape == (3, 4)
        for i in range(3):
            want, curve = alone(pick(params, i), take(data, ids[i]))
            np.testing.assert_allclose(losses[i], curve, rtol=1e-4)
            for a, b in zip(jax.tree.leaves(pick(got, i)), jax.tree.leaves(want), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


TWO, ONE = jnp.zeros(2), jnp.zeros(1)
IDS = jnp.zeros((2, 1, 1), int)
ANY: Any = 1.5


def ensemble(params=TWO, data=ONE, ids: Any = IDS, at_once=8):
    return audit.train_ensemble(pull, params, data, ids, optimizer=optax.sgd(1.0), at_once=at_once)


def relearn(params: Any = 0.0, examples: Any = TWO, heldout=ONE, **options: Any):
    options = {"step_sizes": ONE + 1, "counts": (0, 1)} | options
    return audit.relearn(pull, params, examples, heldout, score_fn=mean, **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: ensemble(params=jnp.zeros(2, int)),
            TypeError,
            "`params` must hold real floating-point arrays; the array has dtype int32.",
        ),
        (
            lambda: ensemble(data=jnp.zeros(0)),
            ValueError,
            "`data` is empty; it must hold at least one example.",
        ),
        (
            lambda: ensemble(ids=jnp.zeros((2, 1, 1))),
            TypeError,
            "`ids` must hold integers; got dtype float32.",
        ),
        (
            lambda: ensemble(ids=IDS[:1]),
            ValueError,
            "`ids` must have the shape (models, steps, batch) with 2 models; got [1, 1, 1].",
        ),
        (lambda: ensemble(at_once=0), ValueError, "`at_once` must be at least 1; got 0."),
        (
            lambda: relearn(params=1),
            TypeError,
            "`params` must hold real floating-point arrays; the array has dtype int32.",
        ),
        (
            lambda: relearn(examples=jnp.zeros(0)),
            ValueError,
            "`examples` is empty; it must hold at least one example.",
        ),
        (
            lambda: relearn(heldout=jnp.zeros(0)),
            ValueError,
            "`heldout` is empty; it must hold at least one example.",
        ),
        (
            lambda: relearn(counts=(0, 3)),
            ValueError,
            "`counts` must be at most the number of `examples`, 2; got 3.",
        ),
        (lambda: relearn(counts=(0, 1, 1)), ValueError, "`counts` must rise; got (0, 1, 1)."),
        (lambda: relearn(counts=()), ValueError, "`counts` must rise; got ()."),
        (lambda: relearn(counts=(0,)), ValueError, "`counts` must hold a number above 0."),
        (
            lambda: relearn(counts=(ANY,)),
            TypeError,
            "`counts` must be a Python integer; got float.",
        ),
        (
            lambda: relearn(step_sizes=jnp.zeros(0)),
            ValueError,
            "`step_sizes` is empty; its shape is [0].",
        ),
        (lambda: relearn(num_steps=0), ValueError, "`num_steps` must be at least 1; got 0."),
        (lambda: relearn(batch_size=0), ValueError, "`batch_size` must be at least 1; got 0."),
        (lambda: relearn(at_once=0), ValueError, "`at_once` must be at least 1; got 0."),
    ],
)
def test_bad_arguments_are_told_in_one_sentence(call, error, message):
    refuses(call, error, message)
