"""Eight virtual CPU devices, so that sharded runs can be compared with unsharded ones."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


def pytest_configure(config):
    # The fast tests spend most of their time in the compiler; the slow ones compile as users do.
    if "not slow" in config.option.markexpr:
        jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module", autouse=True)
def programs_end_with_their_file():
    """Each compiled program holds mappings of memory, of which Linux gives a process 65,530."""
    yield
    jax.clear_caches()
