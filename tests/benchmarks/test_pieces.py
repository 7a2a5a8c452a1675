"""Measurements in pieces: nothing is done twice, and what is finished stands in a file."""

import json
import signal
import subprocess
import sys
import time

import pytest

from benchmarks.__main__ import main
from benchmarks.tools.command import continued
from benchmarks.tools.pieces import Pieces, measure, read_rows


def test_what_is_finished_is_not_done_again(tmp_path):
    done = []

    def piece(name, stop=False):
        def work():
            done.append(name)
            if stop:
                raise KeyboardInterrupt
            yield {"name": name, "pair": (1, 2)}
            yield {"name": name}

        return work

    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), continued(output, {}) as run:
        measure(run, {"a": piece("a"), "b": piece("b", stop=True), "c": piece("c")})
    assert not (output / "results.jsonl").exists()
    with continued(output, {}) as run:
        plan = {name: piece(name) for name in "abc"}
        assert Pieces(run).missing(plan) == 2
        rows = measure(run, plan)
        run.tables.append("done")
        (run.folder / "report.html").touch()
    assert done == ["a", "b", "b", "c"]
    assert [row["name"] for row in rows] == ["a", "a", "b", "b", "c", "c"]
    assert rows == read_rows(output)
    assert rows[0] == {"name": "a", "pair": [1, 2]}


def test_progress_is_of_what_is_missing(tmp_path):
    with continued(tmp_path, {}) as run:
        measure(run, {"a": lambda: []})
    with continued(tmp_path, {}) as run:
        measure(run, {"a": lambda: [], "b": lambda: run.tell("more of b") or [], "c": lambda: []})
        (task,) = run._bar.tasks
        assert (task.total, task.completed, task.description) == (2, 1, "c")


@pytest.mark.slow
def test_a_stopped_command_goes_on_where_it_was_stopped(tmp_path):
    output = tmp_path / "out"
    # Three seeds take longer than the two seconds after which a signal that JAX drops comes again.
    options = ["selection", "--entries", "200000", "--repeats", "1", "--seeds", "3"]
    options += ["--output", str(output)]
    pieces = output / "pieces.jsonl"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-m", "benchmarks", *options], **pipes) as process:
        try:
            while not pieces.exists() or not pieces.read_text():
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    kept = f"what is finished stands in {output}, and the same command goes on from there"
    assert said == f"interrupted; {kept}.\n"
    first = json.loads(pieces.read_text().splitlines()[0])
    assert first["piece"] == "seed 0: select"
    assert main(options) == 0
    rows = read_rows(output)
    assert rows[: len(first["rows"])] == first["rows"]
    assert {row["task"] for row in rows} == {"select", "step", "file"}
