"""Two processes over loopback: what spans both is saved, patched and streamed."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import one_of_two
import pytest

import sapsel_jax as sap

SCRIPT = Path(one_of_two.__file__)


def run_both(folder, *options):
    """The exit codes of both, and what they said."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    commands = [
        [sys.executable, str(SCRIPT), str(number), str(port), str(folder), *options]
        for number in (0, 1)
    ]
    env = os.environ | {"PYTHONPATH": str(Path(sap.__file__).parents[1])}
    both = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
        for command in commands
    ]
    said = [one.communicate(timeout=300)[1] for one in both]
    return [one.returncode for one in both], said


def diagonal(folder):
    with np.load(folder / "diagonal.npz") as saved:
        return dict(saved)


@pytest.mark.slow
def test_what_spans_two_processes_is_saved_and_a_killed_run_resumes_to_the_same_bits(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    codes, said = run_both(whole)
    assert codes == [0, 0], said

    values, data = one_of_two.VALUES, one_of_two.DATA
    mask = sap.load_mask(whole / "together.mask", like=values)
    chosen = np.sort(np.concatenate([np.abs(leaf)[mask[name]] for name, leaf in values.items()]))
    every = np.sort(np.concatenate([np.abs(leaf).ravel() for leaf in values.values()]))
    np.testing.assert_array_equal(chosen, every[-7:])
    for number in (0, 1):
        assert (whole / f"own{number}.mask").read_bytes() == (whole / "together.mask").read_bytes()
    patch = sap.load_patch(whole / "together.patch")
    assert patch.num_changed == 7
    after = sap.apply_patch(values, patch)
    np.testing.assert_array_equal(after["in"] != values["in"], mask["in"])
    want = sap.exact_diagonal(one_of_two.loss_fn)(values, data.reshape(-1, 8))
    for name, leaf in diagonal(whole).items():
        np.testing.assert_allclose(leaf, want[name], rtol=1e-4, atol=1e-5)

    start = time.monotonic()
    codes, said = run_both(cut, "3")
    assert codes[1] == -9
    assert codes[0] != 0
    # It waits for the heartbeat, and not for ever.
    assert time.monotonic() - start < 120
    assert not (cut / "diagonal.npz").exists()
    codes, said = run_both(cut)
    assert codes == [0, 0], said
    for name, leaf in diagonal(cut).items():
        np.testing.assert_array_equal(leaf, diagonal(whole)[name])
