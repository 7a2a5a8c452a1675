"""Eight virtual CPU devices, so that sharded runs can be compared with unsharded ones."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
