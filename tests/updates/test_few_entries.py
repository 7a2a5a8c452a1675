"""What `unlearn` does by itself: a few entries by their gain, cut down as adam moves them."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import mean_loss, to_unlearn
from trees import changed_bits

import sapsel_jax as sap
from sapsel_jax import Reason

pytestmark = pytest.mark.usefixtures("quick_compiler")
KEY = jax.random.key(3)
STEPS = sap.Steps(num_steps=12, batch_size=4, step_size=0.03, step_sizes=(0.01, 1e-4, 0.05))


def run(batches, loss_fn, **options):
    options = {"steps": STEPS, "curvature": sap.empirical_fisher_diagonal(loss_fn)} | options
    return jax.jit(lambda *b: sap.unlearn(loss_fn, *b, key=KEY, **options))(*batches)


def climbing(loss_fn):
    def loss(params, marked):
        example, removed = marked
        value = loss_fn(params, example)
        return jnp.where(removed, -0.2 * jnp.minimum(value, 2.3), value)

    return loss


def by_hand(loss_fn, params, original, corrected, data, count, step_size, diagonal):
    """The same from public functions, its examples drawn as the call draws them."""
    first, second = jax.random.split(jax.random.fold_in(KEY, 1))
    shape = (STEPS.num_steps, STEPS.batch_size // 2)

    def draw(batch, key):
        rows = jax.random.randint(key, shape, 0, len(batch[1]), jnp.int32)
        return jax.tree.map(lambda x: x[rows], batch)

    gradient = jax.grad(lambda p: mean_loss(loss_fn, p, original))(params)
    gain = sap.score_decrease(gradient, diagonal, damping=1e-3)
    about, retained = draw(original if corrected is None else corrected, first), draw(data, second)
    if corrected is None:
        loss_fn = climbing(loss_fn)
        about, retained = (about, jnp.ones(shape, bool)), (retained, jnp.zeros(shape, bool))
    return sap.sparsify_update(
        loss_fn,
        params,
        about,
        data,
        key=KEY,
        counts=(2 * count, count),
        mask=sap.select_top_count(gain, 4 * count),
        retained=retained,
        optimizer=optax.adam(step_size),
        curvature=lambda p, b: diagonal,
    )


@pytest.mark.parametrize("removal", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_it_is_what_its_parts_do(removal):
    loss_fn, batches = to_unlearn(removal)
    got = run(batches, loss_fn, count=3)
    want = jax.jit(functools.partial(by_hand, loss_fn, count=3, step_size=0.03))(
        *batches, diagonal=got.diagonal
    )
    chex.assert_trees_all_equal(got.mask, want.mask)
    chex.assert_trees_all_close(got.params, want.params, rtol=1e-5)
    assert got.certificate.converged
    assert got.certificate.actual_change < 0
    assert got.step_size == np.float32(0.03)
    assert int(sap.mask_count(got.mask)) == 3
    mask = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(got.mask)])
    np.testing.assert_array_equal(changed_bits(batches[0], got.params), mask)
    if removal:
        before, after = (mean_loss(loss_fn, p, batches[1]) for p in (batches[0], got.params))
        assert after > before


@pytest.mark.slow
def test_the_step_size_is_the_one_that_validation_prefers():
    loss_fn, batches = to_unlearn()
    held_out = batches[3]
    loss = lambda p: mean_loss(loss_fn, p, held_out)
    options = {"key": KEY, "count": 3, "curvature": sap.empirical_fisher_diagonal(loss_fn)}

    @jax.jit
    def alone(step_size):
        steps = STEPS._replace(step_size=step_size)
        return sap.unlearn(loss_fn, *batches, steps=steps, **options)

    @jax.jit
    def preferred(sign):
        validate = lambda params: sign * loss(params)
        return sap.unlearn(loss_fn, *batches, steps=STEPS, validate=validate, **options)

    tried = [alone(size) for size in STEPS.step_sizes]
    values = [float(loss(each.params)) for each in tried]
    for sign, place in ((1, int(np.argmin(values))), (-1, int(np.argmax(values))), (np.nan, 0)):
        got, want = preferred(sign), tried[place]
        assert got.step_size == np.float32(STEPS.step_sizes[place])
        np.testing.assert_allclose(loss(got.params), loss(want.params), rtol=1e-6)
        chex.assert_trees_all_equal(got.mask, want.mask)


@pytest.mark.slow
def test_sizes_that_do_not_lower_the_loss_do_not_compete():
    loss_fn, batches = to_unlearn()
    steps = STEPS._replace(step_sizes=(1e30, 0.03))
    moved = lambda p: -sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(p))
    got = run(batches, loss_fn, count=3, steps=steps, validate=moved)
    assert got.step_size == np.float32(0.03)
    assert got.certificate.converged


def test_the_papers_selection_is_one_argument_away():
    loss_fn, batches = to_unlearn()
    got = run(batches, loss_fn, fraction=0.2, score=sap.score_sharpest)
    want = sap.select_top_fraction(sap.score_sharpest(got.diagonal), 0.2)
    chex.assert_trees_all_equal(got.mask, want)


@pytest.mark.slow
def test_a_count_is_a_fraction():
    loss_fn, batches = to_unlearn()
    count = run(batches, loss_fn, count=8, score=sap.score_sharpest)
    fraction = run(batches, loss_fn, fraction=0.2, score=sap.score_sharpest)
    assert not changed_bits(count.params, fraction.params).any()
    per_leaf = functools.partial(run, batches, loss_fn, select=sap.select_top_fraction_per_leaf)
    assert not changed_bits(per_leaf(count=8).params, per_leaf(fraction=0.2).params).any()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"count": 0}, {"fraction": 0.0}])
def test_none_of_the_entries(options):
    loss_fn, batches = to_unlearn()
    got = run(batches, loss_fn, **options)
    assert not changed_bits(batches[0], got.params).any()
    assert got.certificate.converged


@pytest.mark.slow
def test_one_entry_at_least_and_at_most_all_of_them():
    loss_fn, batches = to_unlearn()
    assert int(sap.mask_count(run(batches, loss_fn).mask)) == 1  # 1 % of 40
    everything = run(batches, loss_fn, count=10**6)
    assert all(leaf.all() for leaf in jax.tree.leaves(everything.mask))


def test_too_few_entries_with_finite_curvature():
    loss_fn, batches = to_unlearn()
    hole = lambda p, batch: jax.tree.map(lambda x: jnp.where(x > 0, 1.0, jnp.nan), p)
    got = run(batches, loss_fn, fraction=0.9, curvature=hole)
    assert got.certificate.reason == Reason.TOO_FEW_SELECTED
    assert not changed_bits(batches[0], got.params).any()


@pytest.mark.slow
def test_a_mask_without_counts_is_moved_as_it_is():
    loss_fn, (params, _, corrected, data) = to_unlearn()
    mask = jax.tree.map(lambda x: x > 0, params)
    batches = jax.tree.map(lambda x: jnp.stack([x] * 3), corrected)
    options = {"optimizer": optax.adam(0.01), "mask": mask}
    want, _ = jax.jit(lambda p: sap.iterative_update(loss_fn, p, batches, **options))(params)
    options |= {"key": KEY, "counts": (), "curvature": lambda p, b: p}
    got = jax.jit(lambda p: sap.sparsify_update(loss_fn, p, batches, data, **options))(params)
    chex.assert_trees_all_close(got.params, want, rtol=1e-6)
    assert got.certificate.converged


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"count": 3, "fraction": 0.1},
            ValueError,
            "`fraction` and `count` must not be given together.",
        ),
        ({"count": -1}, ValueError, "`count` must be at least 0; got -1."),
        ({"count": 2.0}, TypeError, "`count` must be a Python integer; got float."),
        (
            {"validate": lambda p: jnp.zeros(2)},
            TypeError,
            "`validate` must return one real scalar; it returned float32[2].",
        ),
        (
            {"validate": lambda p: 0.0, "update": sap.with_first_order(step_size=0.1)},
            ValueError,
            "`steps` and `validate` must be left out beside an `update`.",
        ),
        (
            {"steps": STEPS._replace(num_steps=2)},
            ValueError,
            "`steps.num_steps` must be at least 3; got 2.",
        ),
        (
            {"steps": STEPS._replace(batch_size=5)},
            ValueError,
            "`steps.batch_size` must be even; got 5.",
        ),
        (
            {"steps": STEPS._replace(step_sizes=())},
            ValueError,
            "`steps.step_sizes` must name at least one step size; got none.",
        ),
        (
            {"steps": STEPS._replace(step_sizes=(0.1, -1.0))},
            ValueError,
            "`steps.step_sizes[1]` must be finite and above 0; got -1.",
        ),
    ],
)
def test_options_that_cannot_be(options, kind, message):
    loss_fn, batches = to_unlearn()
    with pytest.raises(kind) as raised:
        jax.eval_shape(lambda: sap.unlearn(loss_fn, *batches, key=KEY, **options))
    assert str(raised.value).split("\n")[0] == message


def test_floats_of_8_bits_need_another_update():
    loss_fn = lambda p, y: jnp.sum((p.astype(jnp.float32) - y) ** 2)
    params, batch = jnp.ones(3, jnp.float8_e4m3fn), jnp.zeros((2, 3))
    with pytest.raises(TypeError, match="`params` must hold floats of 16 bits or more where no"):
        sap.unlearn(loss_fn, params, batch, batch, batch, key=KEY)
