"""A mean over batches larger than memory: what it is, and that stopping it changes no bit."""

import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import changed_bits

import sapsel_jax as sap

PARAMS = {"a": jnp.ones((3, 2)), "empty": jnp.zeros((0, 2)), "b": jnp.float32(1.5)}
BATCHES = [
    np.random.default_rng(i).normal(size=(2 + i % 3, 3)).astype(np.float32) for i in range(9)
]


def loss_fn(p, x):
    return jnp.sum(jnp.tanh(x @ p["a"]) * p["b"]) ** 2


@jax.jit
def diagonal(batch, number):
    return sap.exact_diagonal(loss_fn)(PARAMS, batch)


SLOW = pytest.mark.slow


class Stop(BaseException):
    """An end that no handler of errors expects."""


def mean(**options):
    return sap.mean_over_batches(diagonal, PARAMS, BATCHES, **options)


def test_it_is_the_diagonal_over_all_examples():
    want = sap.exact_diagonal(loss_fn)(PARAMS, np.concatenate(BATCHES))
    for got, leaf in zip(jax.tree.leaves(mean()), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(got, leaf, 1e-6)


@pytest.mark.parametrize(
    ("where", "save_every"),
    [("on_batch", 4), *(pytest.param(*some, marks=SLOW) for some in (("on_batch", 1), ("fn", 2)))],
)
def test_stopped_anywhere_and_continued_it_has_the_same_bits(where, save_every, tmp_path):
    for stop in range(1, len(BATCHES)):

        def on_batch(done, stop=stop):
            if where == "on_batch" and done == stop:
                raise Stop

        def fn(batch, number, stop=stop):
            if where == "fn" and number == stop:
                raise Stop
            return diagonal(batch, number)

        options = {"folder": tmp_path / str(stop), "save_every": save_every}
        with pytest.raises(Stop):
            sap.mean_over_batches(fn, PARAMS, BATCHES, on_batch=on_batch, **options)
        numbers = []
        got = mean(on_batch=numbers.append, **options)
        assert numbers == [*range(stop // save_every * save_every + 1, len(BATCHES) + 1)]
        assert not changed_bits(got, mean()).any()
        # What is finished is read, not computed again.
        again = sap.mean_over_batches(lambda *_: 1 / 0, PARAMS, BATCHES, **options)
        assert not changed_bits(again, got).any()


def stop_at(done, stop):
    if done == stop:
        raise Stop


KILLED = """
    import os, signal, sys, threading, time
    from pathlib import Path
    import test_over_batches as case
    import sapsel_jax as sap

    folder, kill_at, out = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

    def watch():  # a state that is being written stands in a folder with another name
        while not any("tmp" in path.name for path in folder.glob("*")):
            time.sleep(0.0001)
        os.kill(os.getpid(), signal.SIGKILL)

    def on_batch(done):
        if done == kill_at:
            threading.Thread(target=watch, daemon=True).start()

    got = case.mean(folder=folder, save_every=1, on_batch=on_batch)
    case.np.savez(out, **{name: leaf for name, leaf in got.items()})
"""


@pytest.mark.slow
def test_killed_during_writes_it_has_the_same_bits(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(textwrap.dedent(KILLED))
    folder = __file__.rsplit("/", 1)[0]
    environment = {"PYTHONPATH": ":".join([folder, *sys.path]), "JAX_PLATFORMS": "cpu"}

    def run(name, kill_at):
        arguments = [
            sys.executable,
            script,
            tmp_path / name,
            str(kill_at),
            tmp_path / f"{name}.npz",
        ]
        return subprocess.run(arguments, env=environment, check=False).returncode

    never = 10**6
    assert [run("killed", stop) for stop in (2, 5, never)] == [-9, -9, 0]
    assert run("whole", never) == 0
    with np.load(tmp_path / "killed.npz") as killed, np.load(tmp_path / "whole.npz") as whole:
        assert not changed_bits(dict(killed), dict(whole)).any()


def test_batches_may_begin_where_they_are_needed(tmp_path):
    options = {"folder": tmp_path / "state", "save_every": 2}
    with pytest.raises(Stop):
        mean(on_batch=lambda done: stop_at(done, 5), **options)
    starts = []

    def batches(number):
        starts.append(number)
        return BATCHES[number:]

    got = sap.mean_over_batches(diagonal, PARAMS, batches, **options)
    assert starts == [4]
    assert not changed_bits(got, mean()).any()


def test_numbers_count_the_batches():
    fn = lambda batch, number: jnp.float32(number)
    got = sap.mean_over_batches(fn, jnp.float32(0), [jnp.ones(1), jnp.ones(3), jnp.ones(1)])
    assert got == (0 * 1 + 1 * 3 + 2 * 1) / 5
    assert jnp.isnan(sap.mean_over_batches(fn, jnp.float32(0), []))


def test_a_folder_of_other_parameters_is_refused(tmp_path):
    mean(folder=tmp_path / "state")
    others = {**PARAMS, "b": jnp.float32(1)}
    with pytest.raises(ValueError, match="`folder` must be new or hold a mean for the same `param"):
        sap.mean_over_batches(diagonal, others, BATCHES, folder=tmp_path / "state")


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"`save_every` must be at least 1; got 0\."):
        mean(save_every=0)
    with pytest.raises(ValueError, match="`batch` is empty"):
        sap.mean_over_batches(diagonal, PARAMS, [np.zeros((0, 3))])
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match="`folder` needs orbax-checkpoint; install it by"):
        mean(folder=tmp_path)
