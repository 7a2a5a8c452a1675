"""The peers: each is held to the truth on a tiny network before anything else is believed."""

import importlib.util
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.learning.plain import random_params
from benchmarks.speed.cases import Case, mlp
from benchmarks.speed.contenders import gauss_newton_is_hessian, own_contenders
from benchmarks.speed.oracle import find_truth, objection, quality, stacked
from benchmarks.speed.peers import PEERS, Unavailable, jax_peers
from benchmarks.speed.torch_link import LIBRARIES, asked_of, torch_peers
from benchmarks.tools.errors import UsageError

TORCH_PYTHON = os.environ.get("TORCH_PYTHON")
"""The Python of an environment with the peers in PyTorch."""


def tiny(activation="relu"):
    return mlp((5, 4, 3), activation, 6)


def tiny_cnn(activation="relu"):
    images = jax.random.uniform(jax.random.key(0), (5, 12, 12, 1))
    block = (activation, "pool")
    layers = ("conv SAME", *block, "conv VALID", *block, "flatten", "dense", activation, "dense")
    shapes = [(5, 5, 1, 2), (3, 3, 2, 3), (12, 4), (4, 3)]
    batch = (images, jnp.array([0, 1, 2, 0, 1]))
    return Case(f"{activation} CNN", layers, random_params(shapes), batch)


def draws_of(case, contender):
    fn = jax.jit(contender.fn)
    count = 64 if contender.kind == "unbiased" else 1
    return stacked([fn(case.params, case.batch, jax.random.key(i)) for i in range(count)])


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_is_what_it_is_said_to_be(name):
    case = tiny()
    try:
        contenders = PEERS[name](case)
    except Unavailable as error:
        pytest.skip(str(error))
    for one in contenders:
        draws, truth = draws_of(case, one), find_truth(case).diagonal
        assert draws.shape[1] == case.num_entries
        assert objection(one.kind, draws, truth) == ""


def test_peers_that_cannot_run_are_named_with_a_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "matfree.stochtrace", None)
    contenders, skipped = jax_peers(mlp((100, 40, 3), "tanh", 2))
    assert 'matfree: not installed (`matfree`; `pip install -e ".[peers]"`).' in skipped
    assert any("it runs on dense networks of up to 4,000 parameters." in s for s in skipped)
    assert "jax.hessian" not in [one.method for one in contenders]


def test_gauss_newton_is_exact_on_relu_networks_alone():
    assert gauss_newton_is_hessian(tiny("relu"))
    assert not gauss_newton_is_hessian(tiny("tanh"))
    methods = {one.method for one in own_contenders(tiny("tanh"))}
    assert "Gauss-Newton" not in methods
    assert {"exact", "propagated", "site probes", "HesScale", "basis vectors"} <= methods
    assert "DiagGGNExact" in asked_of(tiny("relu"))
    assert asked_of(tiny()._replace(full=False)) == ("DiagHessian",)


def test_objections():
    truth = np.array([1.0, 2.0, 3.0])
    assert objection("exact", truth[None] * (1 + 1e-6), truth) == ""
    assert objection("exact", truth[None] * 1.01, truth) == "is off by 1.0e-02"
    noise = np.random.default_rng(0).normal(size=(16, 3))
    assert objection("unbiased", truth + noise, truth) == ""
    assert "of the length it should have" in objection("unbiased", 3 * truth + noise, truth)
    assert objection("biased", 3 * truth[None], truth) == ""
    assert (
        objection("biased", np.full((1, 3), np.nan), truth) == "holds numbers that are not finite"
    )


def test_more_draws_are_means():
    truth = np.array([3.0, 4.0])
    draws = np.array([[3.0, 5.0], [3.0, 5.0], [3.0, 3.5], [3.0, 2.5]])
    found = quality(draws, truth, averages=True)
    assert found["error"] == pytest.approx(0.2)
    assert found["errors"] == [(1, pytest.approx(0.2)), (4, pytest.approx(0.0))]
    assert found["rank_correlation"] == pytest.approx(0.5)
    assert quality(draws, truth, averages=False)["errors"] == [(1, pytest.approx(0.2))]


def test_a_wrong_truth_is_refused(monkeypatch):
    right = find_truth.__globals__["_diagonal_sum"]
    wrong = lambda *args: jax.tree.map(lambda x: 1.01 * x, right(*args))
    monkeypatch.setitem(find_truth.__globals__, "_diagonal_sum", wrong)
    with pytest.raises(UsageError, match=r"`exact_diagonal` is off by .*e-02 on tanh MLP"):
        find_truth(tiny("tanh"))


def test_a_python_that_is_not_there_or_lacks_torch():
    options = {"draws": 1, "repeats": 1, "seconds": 1.0, "turn": 0.0}
    with (
        pytest.raises(UsageError, match=r"`torch-python` cannot be run: nowhere \(No such file"),
        torch_peers(Path("nowhere"), **options),
    ):
        pass


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is installed")
def test_a_python_without_torch_is_told():
    with torch_peers(Path(sys.executable), draws=1, repeats=1, seconds=1.0, turn=0.0) as peers:
        assert peers is not None
        with pytest.raises(UsageError, match=r"`torch-python` failed: .*No module named 'torch'"):
            peers.measure(tiny())


@pytest.mark.slow
@pytest.mark.skipif(TORCH_PYTHON is None, reason="TORCH_PYTHON names no Python with the peers")
@pytest.mark.parametrize("make", [tiny, tiny_cnn])
def test_the_peers_in_pytorch_are_what_they_are_said_to_be(make):
    assert TORCH_PYTHON is not None
    case = make()
    truth = find_truth(case).diagonal
    with torch_peers(Path(TORCH_PYTHON), draws=16, repeats=1, seconds=1.0, turn=0.0) as peers:
        assert peers is not None
        answers = peers.measure(case)
    assert {answer.row["library"] for answer in answers} == set(LIBRARIES)
    for answer in answers:
        assert answer.draws is not None, answer.row
        assert objection(answer.row["kind"], answer.draws, truth) == ""
        assert len(answer.row["runs"]) == 1
