"""The commands that time things: what they check first, and what they leave."""

import json

import jax
import jax.numpy as jnp
import pytest

import benchmarks.speed
import sapsel_jax as sap
from benchmarks.__main__ import main
from benchmarks.cases import mlp
from benchmarks.errors import UsageError
from benchmarks.speed import Speed, oracle_error


def tiny():
    return mlp((5, 4, 3), jnp.tanh, 6)


@pytest.fixture
def tiny_cases(monkeypatch):
    monkeypatch.setattr(benchmarks.speed, "speed_cases", lambda *_: [tiny])


def test_the_oracle_tells_a_wrong_diagonal_from_a_right_one():
    case = tiny()
    diagonal = jax.jit(sap.exact_diagonal(case.loss_fn))(case.params, case.batch)
    assert oracle_error(case, diagonal) < 1e-4
    assert oracle_error(case, jax.tree.map(lambda x: 1.01 * x, diagonal)) > 5e-3


def test_speed_leaves_a_row_for_every_method_and_a_report(tmp_path, tiny_cases):
    output = tmp_path / "speed"
    assert main(["speed", "--output", str(output), "--repeats", "2", "--seeds", "1"]) == 0
    rows = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert [row["method"] for row in rows] == list(benchmarks.speed.COLOURS)
    assert all(row["gradient_equivalents"] > 0 and row["error"] < 10 for row in rows)
    assert rows[0]["entries"] == 5 * 4 + 4 + 4 * 3 + 3
    for name in ("report.md", "report.html", "speed.png"):
        assert (output / name).stat().st_size > 500


def test_a_wrong_diagonal_is_not_timed(tmp_path, tiny_cases, monkeypatch, capsys):
    right = sap.exact_diagonal
    wrong = lambda loss_fn: lambda p, b: jax.tree.map(lambda x: 2 * x, right(loss_fn)(p, b))
    monkeypatch.setattr(sap, "exact_diagonal", wrong)
    assert main(["speed", "--output", str(tmp_path / "speed"), "--repeats", "1"]) == 2
    assert "`exact_diagonal` is off by" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_selection_leaves_a_row_for_every_contender_and_a_report(tmp_path):
    output = tmp_path / "selection"
    options = ["--entries", "20000", "--repeats", "1"]
    assert main(["selection", "--output", str(output), *options]) == 0
    rows = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert {row["task"] for row in rows} == {"select", "step", "file"}
    assert all(row["entries"] == 20_000 and row["seconds"] > 0 for row in rows)
    for name in ("report.md", "report.html", "selection.png"):
        assert (output / name).stat().st_size > 500


def test_counts_are_checked():
    with pytest.raises(UsageError, match="`repeats` must be at least 1; got 0"):
        Speed(repeats=0).run()
