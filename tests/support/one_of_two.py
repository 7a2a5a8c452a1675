"""One of two processes with two devices each: saves, patches and streams what spans them both.

`python one_of_two.py NUMBER PORT FOLDER [BATCH]`; at that batch the second process is killed.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import sapsel_jax as sap

HEARTBEAT = 10
NUM_BATCHES = 6
RNG = np.random.default_rng(0)
VALUES = {
    "in": RNG.normal(size=(8, 4)).astype(np.float32),
    "out": RNG.normal(size=(4, 3)).astype(np.float32),
}
DATA = RNG.normal(size=(NUM_BATCHES, 8, 8)).astype(np.float32)


def loss_fn(params, x):
    return jnp.sum(jnp.tanh(x @ params["in"]) @ params["out"]) ** 2


def save_and_patch(number, folder, params, spread):
    """Masks and patches of what spans both processes, to files and back."""
    select = jax.jit(lambda p: sap.select_top_count(jax.tree.map(jnp.abs, p), 7))
    mask = select(params)
    sap.save_mask(folder / "together.mask", mask)
    sap.save_mask(folder / f"own{number}.mask", mask)
    for name in ("together.mask", f"own{number}.mask"):
        back = sap.load_mask(folder / name, like=params)
        assert back["in"].sharding == params["in"].sharding
        assert all(bool((a == b).all()) for a, b in zip(back.values(), mask.values(), strict=True))

    after = jax.jit(lambda p, m: jax.tree.map(lambda x, m: jnp.where(m, -x, x), p, m))(params, mask)
    patch = sap.make_patch(params, after)
    sap.save_patch(folder / "together.patch", patch)
    applied = sap.apply_patch(params, sap.load_patch(folder / "together.patch"))
    assert applied["in"].sharding == params["in"].sharding
    assert sap.make_patch(applied, after).num_changed == 0
    assert sap.make_patch(sap.revert_patch(applied, patch), params).num_changed == 0

    try:
        jax.device_put(DATA[number], spread)
    except AssertionError:
        pass  # JAX compares what each process hands in
    else:
        raise RuntimeError("batches that differ were taken")


def main(number, folder, killed_at):
    mesh = jax.make_mesh((4,), ("all",), axis_types=(AxisType.Auto,))
    spread, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("all",), ()))
    place = lambda x, sharding: jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])
    params = {"in": place(VALUES["in"], spread), "out": place(VALUES["out"], spread)}
    assert not params["in"].is_fully_addressable
    if killed_at is None and not (folder / "stream").exists():
        save_and_patch(number, folder, params, spread)

    def batches(start):
        for whole in DATA[start:]:  # of each batch a process reads its own half only
            own = whole[4 * number : 4 * number + 4]
            yield jax.make_array_from_process_local_data(spread, own)

    def on_batch(done):
        if number == 1 and done == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    copies = {name: place(leaf, everywhere) for name, leaf in VALUES.items()}
    found = sap.mean_over_batches(
        jax.jit(lambda batch, number: sap.exact_diagonal(loss_fn)(copies, batch)),
        copies,
        batches,
        folder=folder / "stream",
        save_every=2,
        on_batch=on_batch,
    )
    if number == 0:
        arrays: dict[str, Any] = {name: np.asarray(leaf) for name, leaf in found.items()}
        np.savez(folder / "diagonal.npz", **arrays)


if __name__ == "__main__":
    number, port, folder, *killed_at = sys.argv[1:]
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(
        f"localhost:{port}", 2, int(number), heartbeat_timeout_seconds=HEARTBEAT
    )
    main(int(number), Path(folder), int(killed_at[0]) if killed_at else None)
