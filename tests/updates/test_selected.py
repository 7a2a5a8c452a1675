"""What `unlearn` says where fewer entries than asked for could be selected."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import changed_bits

import sapsel_jax as sap
from sapsel_jax import Reason

SIZE = 8
PARAMS = {"a": jnp.ones(5), "b": jnp.ones(3)}
ONES, ZEROS = ({n: jnp.full((2, *p.shape), x) for n, p in PARAMS.items()} for x in (1.0, 0.0))
UPDATES = {
    "default": None,
    "second_order": functools.partial(sap.second_order_update, damping=0.1),
    "first_order": sap.with_first_order(step_size=0.5),
    "iteration": sap.with_iteration(
        optimizer=optax.sgd(0.5), num_steps=2, batch_size=2, key=jax.random.key(1)
    ),
}


def loss_fn(params, example):
    squares = jax.tree.map(lambda p, x: jnp.sum((p - x) ** 2), params, example)
    return 0.5 * (squares["a"] + squares["b"])


def as_tree(values):
    values = jnp.asarray(values, jnp.float32)
    return {"a": values[:5], "b": values[5:]}


@functools.cache
def compiled(fraction, name="first_order", **options):
    """The one call as a function of the curvature on a batch: one trace for many values."""

    def call(values):
        return sap.unlearn(
            loss_fn,
            PARAMS,
            ONES,
            ZEROS,
            ZEROS,
            key=jax.random.key(0),
            fraction=fraction,
            curvature=lambda p, batch: as_tree(values),
            update=UPDATES[name],
            **options,
        )

    return jax.jit(call)


def check_refused(result):
    certificate = result.certificate
    assert certificate.reason == Reason.TOO_FEW_SELECTED
    assert not certificate.converged
    assert certificate.num_steps == 0
    assert certificate.predicted_change == 0
    assert certificate.actual_change == 0
    assert not changed_bits(PARAMS, result.params).any()


def check_taken(result, selected):
    assert result.certificate.converged
    assert result.certificate.reason == Reason.CONVERGED
    mask = np.concatenate([np.asarray(leaf) for leaf in jax.tree.leaves(result.mask)])
    assert mask.sum() == selected
    np.testing.assert_array_equal(changed_bits(PARAMS, result.params), mask)


@pytest.mark.parametrize("name", UPDATES)
def test_curvature_that_is_no_number_is_no_success(name):
    call = compiled(3 / SIZE, name)
    check_refused(call(np.full(SIZE, np.nan)))
    check_taken(call(np.arange(SIZE)), 3)


FRACTIONS = (0.0, 0.01, 3 / SIZE, 1.0)


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(
        st.sampled_from([np.nan, np.inf, -np.inf, -1.0, 0.0, 2.0]), min_size=SIZE, max_size=SIZE
    ),
    fraction=st.sampled_from(FRACTIONS),
)
def test_too_few_are_those_that_non_finite_curvature_leaves(values, fraction):
    result = compiled(fraction)(np.asarray(values))
    wanted, usable = round(fraction * SIZE), int(np.isfinite(values).sum())
    if fraction == 0 or 0 < wanted <= usable:
        check_taken(result, wanted)
    else:  # a fraction that rounds to no entry asks for something, too, and gets nothing
        check_refused(result)


def in_units(scores, fraction):
    return sap.select_top_units(scores, fraction)


OTHERS = {
    "per-leaf": (sap.select_top_fraction_per_leaf, 3),  # 2 of 5 and 1 of 3
    "units": (in_units, 3),
    "fewer than the fraction": (lambda s, f: sap.select_top_fraction(s, f / 3), 1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_selections_say_themselves_how_many_they_want(name):
    select, wanted = OTHERS[name]
    call = compiled(3 / SIZE, select=select)
    values = np.arange(SIZE, dtype=float)
    check_taken(call(values), wanted)
    values[0] = np.nan  # there are enough without it
    check_taken(call(values), wanted)
    values[5:] = np.nan
    if name == "fewer than the fraction":
        check_taken(call(values), wanted)
    else:
        check_refused(call(values) if name == "per-leaf" else call(np.full(SIZE, np.nan)))


def test_scores_that_do_not_look_at_the_curvature_do_not_mind():
    result = compiled(3 / SIZE, score=lambda diagonal: sap.score_magnitude(PARAMS))(
        np.full(SIZE, np.nan)
    )
    check_taken(result, 3)


def test_a_mask_of_ones_own_is_taken_and_an_empty_one_is_not():
    mask = as_tree([1, 1, 0, 0, 0, 0, 0, 0])
    some = jax.tree.map(lambda x: x > 0, mask)
    check_taken(compiled(0.5, select=lambda scores, fraction: some)(np.ones(SIZE)), 2)
    none = jax.tree.map(lambda x: x > 1, mask)
    check_refused(compiled(0.5, select=lambda scores, fraction: none)(np.ones(SIZE)))


def test_entries_below_a_floor_are_left_out_on_purpose():
    call = compiled(0.5, score=lambda diagonal: sap.score_flattest(diagonal, floor=0.5))
    check_taken(call([0, 0, 0, 0, 0, 0, 1, 2]), 2)
    check_refused(call([0, 0, 0, 0, 0, np.nan, 1, 2]))  # it might have been the third
    check_refused(call(np.zeros(SIZE)))  # nothing is left to change


def test_a_certificate_of_steps_none_of_which_was_finite_says_so():
    update = sap.with_iteration(
        optimizer=optax.sgd(jnp.inf), num_steps=2, batch_size=2, key=jax.random.key(0)
    )
    moved, certificate = jax.jit(lambda p: update(loss_fn, p, ONES, ZEROS, ZEROS))(PARAMS)
    assert certificate.reason == Reason.NOT_FINITE
    assert not certificate.converged
    assert not changed_bits(PARAMS, moved).any()
