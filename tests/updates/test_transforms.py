import functools
import inspect
from typing import Any

import chex
import flax.linen as linen
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from trees import changed_bits, collectives, flat

import sapsel_jax as sap

SHAPES = {"bias": (3,), "empty": (0, 2), "kernel": (4, 3), "scale": ()}
NUM_ENTRIES = 16


def params_and_mask():
    rng = np.random.default_rng(0)
    params = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    params["kernel"][1:3] = -0.0
    params["bias"][1] = -0.0
    mask = {name: rng.random(shape) < 0.5 for name, shape in SHAPES.items()}
    mask["scale"] = np.array(True)
    return jax.tree.map(jnp.asarray, (params, mask))


def gradient(params, mask, step=0.0):
    """Depends on the parameters, and is NaN or infinite outside the mask."""
    return jax.tree.map(
        lambda p, m: jnp.where(m, jnp.cos(p + step) + 0.1, jnp.where(p < 0, jnp.nan, jnp.inf)),
        params,
        mask,
    )


def run(transform, params, mask, *, num_steps=3, **extra_args):
    """Parameters after a few steps of optax, one `lax.scan`."""
    transform = optax.with_extra_args_support(transform)

    def step(carry, i):
        params, state = carry
        updates, state = transform.update(gradient(params, mask, i), state, params, **extra_args)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, transform.init(params)), jnp.arange(float(num_steps)))[0]


def check_untouched(before, after, mask):
    """No bit changes outside the mask, and most entries inside it change to other numbers."""
    changed, selected = changed_bits(before, after), flat(mask)
    assert not (changed & ~selected).any()
    assert changed.sum() > selected.sum() / 2
    assert np.isfinite(flat(after)).all()


# Optimizers that want more than gradients, with what they want.
WANTING = {
    "lbfgs": "the loss; see the line search",
    "polyak_sgd": "the value of the loss; see the line search",
    "momo": "the value of the loss",
    "momo_adam": "the value of the loss",
    "sophia": "the loss",
    "dpsgd": "a gradient per example",
    "sam": "an inner loop; its parts are optimizers of this list",
    "noisy_sgd": "a key; given below",
    "mechanize": "an optimizer; given below",
    "schedule_free": "an optimizer; given below",
}
HELPERS = (
    "scale_by",
    "split",
    "hutchinson",
    "differentially",
    "reduce",
    "normalize",
    "schedule_free_eval",
)
SGD = optax.sgd(0.1)
OPTIMIZERS = {
    "noisy_sgd": lambda: optax.noisy_sgd(0.1, key=0),
    "mechanize": lambda: optax.contrib.mechanize(SGD),
    "schedule_free": lambda: optax.contrib.schedule_free(SGD, 0.1),
    "weight_decay": lambda: optax.adamw(0.1, weight_decay=0.5),
    "chain": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(0.1), optax.add_noise(0.1, 0.5, key=0)
    ),
    "schedule": lambda: optax.inject_hyperparams(optax.adamw)(optax.linear_schedule(0.1, 0.05, 3)),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(0.1), 5),
    "multi_steps": lambda: optax.MultiSteps(optax.adamw(0.1), 2).gradient_transformation(),
}
for module, home in [(optax, "optax._src.alias"), (optax.contrib, "optax.contrib.")]:
    for name, make in inspect.getmembers(module, inspect.isfunction):
        if (
            make.__module__.startswith(home)
            and name not in WANTING
            and not name.startswith(HELPERS)
        ):
            by_rate = "learning_rate" in inspect.signature(make).parameters
            OPTIMIZERS[name] = functools.partial(make, learning_rate=0.1) if by_rate else make


def test_the_list_of_optimizers_is_that_of_optax():
    assert {"adam", "adamw", "lion", "sgd", "adafactor", "muon", "prodigy"} <= set(OPTIMIZERS)
    assert len(OPTIMIZERS) > 45


@pytest.mark.filterwarnings("ignore:.*optimistic_adam_v2:DeprecationWarning")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_unselected_entries_keep_their_bits(name):
    # sm3 takes no scalars and muon no empty leaves, masked or not.
    params, mask = ({n: tree[n] for n in ("bias", "kernel")} for tree in params_and_mask())
    train = jax.jit(lambda p, m: run(sap.selective(OPTIMIZERS[name](), m), p, m))
    after, _ = train(params, mask)
    check_untouched(params, after, mask)


@pytest.mark.parametrize("wrap", [sap.selective, functools.partial(sap.selective_packed, count=16)])
def test_masks_can_be_vmapped_and_a_second_one_needs_no_new_trace(wrap):
    params, mask = params_and_mask()
    masks = jax.tree.map(lambda m: jnp.stack([m, ~m]), mask)
    num_traces = []

    @jax.jit
    def train(params, mask):
        num_traces.append(1)
        return run(wrap(optax.adamw(0.1), mask), params, mask)[0]

    alone = []
    for i in range(2):
        one = jax.tree.map(lambda m, i=i: m[i], masks)
        alone.append(train(params, one))
        check_untouched(params, alone[i], one)
    assert len(num_traces) == 1
    together = jax.vmap(train, in_axes=(None, 0))(params, masks)
    for i in range(2):
        chex.assert_trees_all_close(
            jax.tree.map(lambda t, i=i: t[i], together), alone[i], rtol=1e-5
        )


def test_an_optimizer_of_whole_matrices_sees_zeros_outside_the_mask():
    params, mask = params_and_mask()
    params, mask = ({n: tree[n] for n in ("bias", "kernel")} for tree in (params, mask))
    grads = gradient(params, mask)
    masked = jax.tree.map(lambda g, m: jnp.where(m, g, 0.0), grads, mask)
    inner = optax.contrib.muon(0.1)
    want, _ = inner.update(masked, inner.init(params), params)
    outer = sap.selective(inner, mask)
    got, _ = outer.update(grads, outer.init(params), params)
    chex.assert_trees_all_equal(got, jax.tree.map(lambda u, m: jnp.where(m, u, -0.0), want, mask))


@pytest.mark.slow
def test_line_searches_and_values_pass_through():
    params, mask = params_and_mask()

    def loss(p):
        return sum(jnp.sum((leaf - 2.0) ** 2) for leaf in jax.tree.leaves(p))

    @jax.jit
    def minimize(params, mask):
        transform = sap.selective(optax.lbfgs(), mask)
        state = transform.init(params)
        for _ in range(3):
            value, grad = jax.value_and_grad(loss)(params)
            grad = jax.tree.map(lambda g, m: jnp.where(m, g, jnp.nan), grad, mask)
            updates, state = transform.update(
                grad, state, params, value=value, grad=grad, value_fn=loss
            )
            params = optax.apply_updates(params, updates)
        return params

    after = minimize(params, mask)
    check_untouched(params, after, mask)
    np.testing.assert_allclose(flat(after)[flat(mask)], 2.0, rtol=1e-4)
    for wrap in (sap.selective, functools.partial(sap.selective_packed, count=NUM_ENTRIES)):
        after, _ = run(wrap(optax.polyak_sgd(), mask), params, mask, value=jnp.float32(3.0))
        check_untouched(params, after, mask)


def test_lookahead_keeps_the_bits_of_both_copies():
    params, mask = params_and_mask()
    both: Any = optax.LookaheadParams.init_synced(params)
    apply: Any = optax.apply_updates
    transform = sap.selective(optax.lookahead(optax.adamw(0.1), 2, 0.5), mask)

    @jax.jit
    def train(both):
        state = transform.init(both)
        for i in range(4):
            updates, state = transform.update(gradient(both.fast, mask, i), state, both)
            both = apply(both, updates)
        return both

    after = train(both)
    check_untouched(params, after.fast, mask)
    check_untouched(params, after.slow, mask)


@pytest.mark.slow
def test_flax_trains_through_a_mask():
    dense = linen.Dense(3)
    x = jnp.ones((2, 4))
    params = dense.init(jax.random.key(0), x)["params"]
    mask = sap.select_top_count(sap.score_magnitude(params), 5)
    for transform in (
        sap.selective(optax.adamw(0.1), mask),
        sap.selective_packed(optax.adamw(0.1), mask, 5),
    ):
        state = TrainState.create(apply_fn=dense.apply, params=params, tx=transform)
        state = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, params))
        np.testing.assert_array_equal(changed_bits(params, state.params), flat(mask))


def test_nnx_trains_through_a_mask():
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    before = nnx.state(model, nnx.Param)
    kept = jax.tree.map(np.asarray, before)
    mask = sap.select_top_count(sap.score_magnitude(before), 5)
    optimizer = nnx.Optimizer(model, sap.selective(optax.adamw(0.1), mask), wrt=nnx.Param)
    grads = nnx.grad(lambda m: jnp.sum(m(jnp.ones((2, 4)))))(model)
    optimizer.update(model, grads)
    np.testing.assert_array_equal(changed_bits(kept, nnx.state(model, nnx.Param)), flat(mask))


@jax.jit
def packed_and_dense(params, mask):
    packed = sap.selective_packed(optax.adamw(0.1), mask, NUM_ENTRIES)
    return run(packed, params, mask), run(sap.selective(optax.adamw(0.1), mask), params, mask)[0]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(hnp.arrays(bool, NUM_ENTRIES), st.integers(0, 2**31))
def test_packed_steps_equal_dense_ones(selected, seed):
    params, mask = params_and_mask()
    leaves, structure = jax.tree.flatten(mask)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    parts = [
        part.reshape(leaf.shape)
        for part, leaf in zip(np.split(selected, ends), leaves, strict=True)
    ]
    mask = structure.unflatten(parts)
    params = jax.tree.map(lambda p: p * np.random.default_rng(seed).choice([1, -1]), params)
    (packed, state), dense = packed_and_dense(params, mask)
    chex.assert_trees_all_close(packed, dense, rtol=1e-5)
    assert not (changed_bits(params, packed) & ~selected).any()
    assert int(state.num_left_out) == 0
    assert int(state.ends[-1]) == selected.sum()


@pytest.mark.parametrize("room", [0, 3, 8])
def test_packed_leaves_out_what_finds_no_room_and_counts_it(room):
    params, mask = params_and_mask()
    after, state = jax.jit(lambda p, m: run(sap.selective_packed(optax.adamw(0.1), m, room), p, m))(
        params, mask
    )
    selected = flat(mask)
    first = selected & (np.cumsum(selected) <= room)
    np.testing.assert_array_equal(changed_bits(params, after), first)
    assert int(state.num_left_out) == max(selected.sum() - room, 0)
    assert state.inner[0].mu.shape == (room,)


def test_leaves_of_several_dtypes_are_packed_in_the_widest():
    params, mask = params_and_mask()
    params["kernel"] = params["kernel"].astype(jnp.bfloat16)
    transform = sap.selective_packed(optax.adam(0.1), mask, NUM_ENTRIES)
    after, state = jax.jit(lambda p: run(transform, p, mask))(params)
    assert state.inner[0].mu.dtype == jnp.float32
    chex.assert_trees_all_equal_dtypes(after, params)
    check_untouched(params, after, mask)


@pytest.mark.parametrize("wrap", [sap.selective, functools.partial(sap.selective_packed, count=8)])
def test_state_can_be_made_from_shapes_alone(wrap):
    params, mask = params_and_mask()
    shapes = jax.eval_shape(lambda: params)
    transform = wrap(optax.adamw(0.1), mask)
    want = jax.eval_shape(transform.init, params)
    chex.assert_trees_all_equal(jax.eval_shape(transform.init, shapes), want)
    chex.assert_trees_all_equal_shapes_and_dtypes(transform.init(shapes), want)


def test_packed_state_takes_a_fiftieth_of_the_dense_one():
    # Adam on 1 % of 100 million entries, by shapes alone.
    params = [jax.ShapeDtypeStruct((10_000, 1_000), jnp.float32)] * 10
    masks = [jax.ShapeDtypeStruct(p.shape, bool) for p in params]

    def num_bytes(init):
        state = jax.eval_shape(lambda m: init(m).init(params), masks)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))

    packed = num_bytes(lambda m: sap.selective_packed(optax.adam(0.1), m, 1_000_000))
    dense = num_bytes(lambda m: sap.selective(optax.adam(0.1), m))
    assert packed < 0.0151 * dense


def spread(axis_type):
    """Parameters and a mask, whole and over eight devices."""
    rng = np.random.default_rng(0)
    params = {"a": rng.standard_normal((8, 4)).astype(np.float32), "b": -np.zeros(16, np.float32)}
    mask = jax.tree.map(lambda p: rng.random(p.shape) < 0.1, params)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type, axis_type))
    specs = {"a": P("data", "model"), "b": P("data")}
    place = lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec))
    return mesh, (params, mask), [jax.tree.map(place, tree, specs) for tree in (params, mask)]


@pytest.mark.parametrize(
    ("wrap", "axis_type"),
    [
        (sap.selective, AxisType.Auto),
        (sap.selective, AxisType.Explicit),
        (functools.partial(sap.selective_packed, count=6), AxisType.Auto),
    ],
)
def test_sharded_parameters_take_the_same_step(wrap, axis_type):
    mesh, whole, parts = spread(axis_type)

    def init(params, mask):
        return wrap(optax.adamw(0.1), mask).init(params)

    def step(params, mask, state):
        updates, _ = wrap(optax.adamw(0.1), mask).update(gradient(params, mask), state, params)
        return optax.apply_updates(params, updates)

    with jax.set_mesh(mesh):
        state = jax.jit(init)(*parts)
        compiled = jax.jit(step).lower(*parts, state).compile()
        after = compiled(*parts, state)
    want = jax.jit(step)(*whole, jax.jit(init)(*whole))
    chex.assert_trees_all_close(after, want, rtol=1e-6)
    assert collectives(compiled) <= {"all-reduce"}
    assert not (changed_bits(whole[0], after) & ~flat(whole[1])).any()


def test_packed_refuses_an_explicit_mesh():
    mesh, _, (params, mask) = spread(AxisType.Explicit)
    with jax.set_mesh(mesh), pytest.raises(NotImplementedError) as raised:
        sap.selective_packed(optax.sgd(0.1), mask, 3).init(params)
    assert str(raised.value) == (
        "`selective_packed` takes no leaves sharded over an Explicit mesh; use an Auto mesh or "
        "`selective`; got bool[8@data,4@model]."
    )


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_transformations_lower_for_other_platforms(platform):
    params, mask = jax.eval_shape(params_and_mask)
    exported = jax.export.export(packed_and_dense, platforms=[platform])(params, mask)
    assert exported.platforms == (platform,)


WRONG = {
    "bias": jnp.zeros(3),
    "empty": jnp.zeros((0, 2)),
    "kernel": jnp.zeros((3, 4)),
    "scale": jnp.zeros(()),
}


@pytest.mark.parametrize("wrap", [sap.selective, functools.partial(sap.selective_packed, count=8)])
def test_trees_that_do_not_fit_the_mask_are_refused(wrap):
    params, mask = params_and_mask()
    transform = wrap(optax.sgd(0.1), mask)
    shapes = "must have the same shapes; at 'kernel' they are bool[4, 3] and float32[3, 4]."
    with pytest.raises(ValueError, match="`mask` and `params`") as raised:
        transform.init(WRONG)
    assert str(raised.value) == f"`mask` and `params` {shapes}"
    with pytest.raises(ValueError, match="`mask` and `updates`") as raised:
        transform.update(WRONG, transform.init(params), params)
    assert str(raised.value) == f"`mask` and `updates` {shapes}"
    with pytest.raises(TypeError, match="hold bool") as raised:
        wrap(optax.sgd(0.1), params)
    assert str(raised.value) == "`mask` must hold bool arrays; leaf 'bias' has dtype float32."


def test_packed_refuses_what_it_cannot_do():
    params, mask = params_and_mask()
    number: Any = 2.0
    with pytest.raises(ValueError, match=r"^`count` must be at least 0; got -1\.$"):
        sap.selective_packed(optax.sgd(0.1), mask, -1)
    with pytest.raises(TypeError, match=r"^`count` must be a Python integer; got float\.$"):
        sap.selective_packed(optax.sgd(0.1), mask, number)
    with pytest.raises(
        NotImplementedError, match=r"fewer than 2\*\*31 entries; got \[65536, 32768\]"
    ):
        sap.selective_packed(optax.sgd(0.1), jax.ShapeDtypeStruct((2**16, 2**15), bool), 1)
    transform = sap.selective_packed(optax.lbfgs(), mask, 8)
    with pytest.raises(NotImplementedError, match="cannot pass `value_fn` on"):
        transform.update(params, transform.init(params), params, value_fn=lambda p: 0.0)
