"""Eight virtual CPU devices, to compare sharded runs with unsharded ones; quick compilation."""

import os

import jax
import jaxlib
import pytest

jax.config.update("jax_num_cpu_devices", 8)


def pytest_configure(config):
    # Most of the time goes to the compiler. It splits programs for idle cores, of which there are
    # none here.
    flags = ["--xla_cpu_parallel_codegen_split_count=1"]
    if "not slow" in config.option.markexpr:  # the slow tests compile as users do
        jax.config.update("jax_disable_most_optimizations", True)
        # An older emitter of code takes half of the time; jaxlib 0.12 does not have it.
        if jaxlib.version.__version_info__ < (0, 11):
            flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])


@pytest.fixture(scope="module")
def quick_compiler():
    """For files of slow tests whose programs are large and run once."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module", autouse=True)
def programs_end_with_their_file():
    """Each compiled program holds mappings of memory, of which Linux gives a process 65,530."""
    yield
    jax.clear_caches()
