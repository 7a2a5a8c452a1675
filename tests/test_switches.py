"""The whole public API under JAX's own switches: the same numbers, in the same dtypes."""

import contextlib
import functools

import calls
import jax
import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("quick_compiler")
SWITCHES = {
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "dtype promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "nans": lambda: jax.debug_nans(True),
    "leaks": jax.checking_leaks,
    "64 bits": lambda: jax.enable_x64(True),
}
"""What a caller hands over is 32 bits wide under each of them."""
DRAWS_SIGNS = ("hutchinson_diagonal", "probe_diagonal")
"""JAX draws other signs under 64 bits."""
STRICTEST = ("rank promotion", "dtype promotion", "nans")


def arrays(name, switches=()):
    """The arrays that a public function returns under some switches."""
    with contextlib.ExitStack() as stack:
        for switch in switches:
            stack.enter_context(SWITCHES[switch]())
        return [x for x in jax.tree.leaves(calls.CALLS[name]()) if hasattr(x, "dtype")]


@functools.cache
def plain(name):
    return arrays(name)


def test_every_public_function_is_called():
    assert set(calls.public_functions()) == set(calls.CALLS)


@functools.cache
def plain_specs(name):
    return jax.eval_shape(lambda: arrays(name))


def check_traces(switches):
    # Tracing is enough to tell, and compiles nothing; text is made on the host.
    for name in sorted(set(calls.CALLS) - {"describe_mask", "describe_patch", "audit.report"}):
        specs = jax.eval_shape(lambda name=name: arrays(name, switches))
        assert specs == plain_specs(name), name


@pytest.mark.slow
def test_switches_together_change_no_dtype_and_forbid_nothing():
    check_traces([name for name in SWITCHES if name != "nans"])


# The others forbid together what each of them forbids.
@pytest.mark.slow
@pytest.mark.parametrize("switch", ["nans", "64 bits"])
def test_a_switch_changes_no_dtype_and_forbids_nothing(switch):
    check_traces([switch])


# Under 64 bits random signs differ; there the strict switches alone are compared by number.
@pytest.mark.slow
@pytest.mark.parametrize("name", calls.CALLS)
def test_switches_change_no_number(name):
    switches = STRICTEST if name in DRAWS_SIGNS else ("64 bits", *STRICTEST)
    for a, b in zip(arrays(name, switches), plain(name), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
