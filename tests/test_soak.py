"""Thousands of steps in a row: no array is left behind, and memory stays flat."""

import gc
import os
from pathlib import Path

import calls
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sapsel_jax as sap

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compiler")]

STATM = Path("/proc/self/statm")
MEBIBYTE = 2**20


def resident_bytes():
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def left_behind(call, num_calls, num_first):
    """How many arrays and resident bytes further calls leave, after some that fill the caches."""
    for i in range(num_first):
        call(i)
    gc.collect()
    arrays, before = len(jax.live_arrays()), resident_bytes()
    for i in range(num_first, num_first + num_calls):
        call(i)
    gc.collect()
    return len(jax.live_arrays()) - arrays, resident_bytes() - before


def steps(i, num_steps=20):
    rng = np.random.default_rng(i)
    draw = lambda x: rng.standard_normal((num_steps, *x.shape[1:])).astype(np.float32)
    return jax.tree.map(draw, calls.BATCHES)


def iterate(params, batches, optimizer):
    return sap.iterative_update(
        calls.loss, params, batches, optimizer=optimizer, mask=calls.MASK, retained=batches
    )


needs_statm = pytest.mark.skipif(not STATM.exists(), reason="resident memory is read on Linux")


@needs_statm
def test_forty_thousand_compiled_steps_leave_nothing():
    run = jax.jit(lambda params, batches: iterate(params, batches, calls.SGD(1e-3)))
    model = {"params": jax.tree.map(jnp.asarray, calls.PARAMS)}

    def call(i):
        model["params"], losses = run(model["params"], steps(i))
        assert np.isfinite(losses).all()

    arrays, grown = left_behind(call, num_calls=2_000, num_first=200)
    assert arrays == 0
    assert grown < 8 * MEBIBYTE


@needs_statm
def test_calls_that_are_not_compiled_as_a_whole_leave_no_array():
    """Each of them compiles a loop of its own, and JAX keeps these programs: memory grows."""

    def call(i):
        iterate(calls.PARAMS, steps(i, num_steps=2), calls.SGD(1e-3))

    arrays, _ = left_behind(call, num_calls=10, num_first=2)
    assert arrays == 0


@needs_statm
def test_steps_through_a_mask_leave_nothing():
    """A loop of the user's own, with a transformation of optax's kind."""
    tx = sap.selective_packed(calls.SGD(1e-3), calls.MASK, 4)
    gradient = jax.grad(lambda params, data: calls.mean_loss(params, data))

    @jax.jit
    def step(params, state, data):
        updates, state = tx.update(gradient(params, data), state, params)
        return jax.tree.map(jnp.add, params, updates), state

    params = jax.tree.map(jnp.asarray, calls.PARAMS)
    model = {"now": (params, tx.init(params))}

    def call(i):
        model["now"] = step(*model["now"], calls.DATA)

    arrays, grown = left_behind(call, num_calls=5_000, num_first=500)
    assert arrays == 0
    assert grown < 8 * MEBIBYTE
