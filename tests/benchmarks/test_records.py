"""Records survive a kill, and a folder keeps to its settings."""

import os
import signal
import subprocess
import sys

import pytest

from benchmarks.tools.errors import UsageError
from benchmarks.tools.records import Record, open_folder

WRITER = """
import itertools, sys
from pathlib import Path
from benchmarks.tools.records import Record
record = Record(Path(sys.argv[1]), ["i"])
for i in itertools.count(len(record.rows)):
    record.append({"i": i, "text": "x" * 10_000})
    print(i, flush=True)
"""


def test_what_was_added_is_there_when_it_is_opened_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    record = Record(path, ["method", "seed"])
    record.append({"method": "full", "seed": 1, "x": 0.1}, {"method": "full", "seed": 2, "x": None})
    again = Record(path, ["method", "seed"])
    assert ("full", 2) in again
    assert ("full", 3) not in again
    assert again.rows == record.rows
    with pytest.raises(ValueError, match=r"A row of rows\.jsonl is recorded twice"):
        again.append({"method": "full", "seed": 2, "x": 1})
    assert Record(path, ["seed"]).rows == record.rows


def test_half_a_line_is_dropped_and_written_anew(tmp_path):
    path = tmp_path / "rows.jsonl"
    Record(path, ["i"]).append({"i": 0}, {"i": 1})
    path.write_bytes(path.read_bytes()[:-4])
    record = Record(path, ["i"])
    assert [row["i"] for row in record.rows] == [0]
    record.append({"i": 1})
    assert [row["i"] for row in Record(path, ["i"]).rows] == [0, 1]


def test_a_kill_loses_nothing_that_was_reported(tmp_path):
    path = tmp_path / "rows.jsonl"
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            last = [int(writer.stdout.readline()) for _ in range(20)][-1]
            os.kill(writer.pid, signal.SIGKILL)
        rows = Record(path, ["i"]).rows
        assert [row["i"] for row in rows] == list(range(len(rows)))
        assert len(rows) > last


def test_a_folder_keeps_to_the_settings_it_was_begun_with(tmp_path):
    output = tmp_path / "deep" / "study"
    assert open_folder(output, {"seeds": (1, 2), "share": 0.1}) == output
    open_folder(output, {"share": 0.1, "seeds": [1, 2]})
    with pytest.raises(UsageError, match=r"`output` was begun with other settings \(share\)"):
        open_folder(output, {"seeds": [1, 2], "share": 0.2})


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UsageError, match="`output` already holds other files"):
        open_folder(tmp_path, {})
    with pytest.raises(UsageError, match=r"`output` cannot be written: .*\("):
        open_folder(tmp_path / "notes.txt", {})
    output = tmp_path / "study"
    output.mkdir()
    (output / "settings.json").write_text("{")
    with pytest.raises(UsageError, match=r"holds a settings\.json that cannot be read"):
        open_folder(output, {})
