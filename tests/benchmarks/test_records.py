"""Journals survive a kill and notice damage, and a folder keeps to its settings and to one run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from benchmarks.tools.errors import UsageError
from benchmarks.tools.records import Journal, Row, Share, study_folder

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
WRITER = """
import itertools, sys
from pathlib import Path
from typing import ClassVar
from benchmarks.tools.records import Journal, Row
class Line(Row):
    key: ClassVar = ("i",)
    i: int
    text: str
journal = Journal(Path(sys.argv[1]), Line)
for i in itertools.count(len(journal.rows)):
    journal.append({"i": i, "text": "x" * 10_000})
    print(i, flush=True)
"""


class Line(Row):
    """A row of these tests."""

    key: ClassVar = ("method", "seed")

    method: str
    seed: int
    x: Share | None
    values: list[float]


class Numbered(Row):
    """What `WRITER` writes."""

    key: ClassVar = ("i",)

    i: int
    text: str = ""


def line(seed, x: float | None = 0.5):
    return {"method": "full", "seed": seed, "x": x, "values": [1.25, float(seed)]}


def written(folder, count=3):
    """A journal's file with its rows."""
    path = folder / "rows.jsonl"
    Journal(path, Line).append(*map(line, range(count)))
    return path


def test_what_was_added_is_there_when_it_is_opened_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    journal = Journal(path, Line)
    journal.append(line(1), line(2, None))
    journal.append()
    again = Journal(path, Line)
    assert ("full", 2) in again
    assert ("full", 3) not in again
    assert again["full", 2] == line(2, None)
    assert (
        again.rows == journal.rows == [json.loads(text) for text in path.read_text().splitlines()]
    )
    with pytest.raises(ValueError, match=r"A row of rows\.jsonl is recorded twice"):
        again.append(line(2))
    assert Journal(path, Line).rows == journal.rows


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (line(1, float("nan")), "`x`: input should be a finite number"),
        (line(1) | {"values": [float("inf")]}, r"`values\.0`: input should be a finite number"),
        (line(1, 1.5), "`x`: input should be less than or equal to 1"),
        ({"method": "full", "seed": 1}, "`x`: field required"),
        (line(1) | {"y": 1}, "`y`: extra inputs are not permitted"),
    ],
)
def test_a_row_that_cannot_be_read_again_is_not_written(row, reason, tmp_path):
    path = tmp_path / "rows.jsonl"
    with pytest.raises(UsageError, match=f"The row of method full, seed 1 cannot .*: {reason}"):
        Journal(path, Line).append(line(0), row)
    assert not path.exists()


def test_half_a_line_is_dropped_and_told(tmp_path, capsys):
    path = written(tmp_path)
    for cut in range(2, 50, 8):
        path.write_bytes(path.read_bytes()[:-cut])
        journal = Journal(path, Line)
        assert [row["seed"] for row in journal.rows] == [0, 1]
        told = f"note: dropped half a line at the end of {path}, which a killed run had left.\n"
        assert capsys.readouterr().err == told
        journal.append(line(2))
        assert Journal(path, Line).rows == [line(0), line(1), line(2)]
        assert capsys.readouterr().err == ""


def test_a_line_that_lacks_only_its_end_is_kept(tmp_path, capsys):
    path = written(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    Journal(path, Line).append(line(3))
    assert Journal(path, Line).rows == [line(seed) for seed in range(4)]
    assert path.read_bytes()[: len(whole)] == whole
    assert capsys.readouterr().err == ""


def test_a_kill_loses_nothing_that_was_reported(tmp_path):
    path = tmp_path / "rows.jsonl"
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            last = [int(writer.stdout.readline()) for _ in range(20)][-1]
            os.kill(writer.pid, signal.SIGKILL)
        rows = Journal(path, Numbered).rows
        assert [row["i"] for row in rows] == list(range(len(rows)))
        assert len(rows) > last


def test_a_kill_between_checksum_and_row_is_harmless(tmp_path):
    path = written(tmp_path)
    sums = path.with_name("rows.jsonl.sums")
    for rest in (b"0123abcd\n", b"012"):
        sums.write_bytes(sums.read_bytes() + rest)
        Journal(path, Line).append(line(len(path.read_bytes().splitlines())))
    assert Journal(path, Line).rows == [line(seed) for seed in range(5)]


def damage(number, old, new):
    def work(lines):
        lines[number] = lines[number].replace(old, new)

    return work


@pytest.mark.parametrize(
    ("work", "number", "reason"),
    [
        (damage(1, b"0.5", b"0.6"), 2, r"it is not what rows\.jsonl\.sums has a checksum of"),
        (damage(1, b"1.25", b"1.26"), 2, r"it is not what rows\.jsonl\.sums has a checksum of"),
        (damage(2, b"full", b"last"), 3, r"it is not what rows\.jsonl\.sums has a checksum of"),
        (damage(0, b"0.5", b"NaN"), 1, "`x`: input should be a finite number"),
        (damage(0, b"0.5", b"1e999"), 1, "`x`: input should be a finite number"),
        (damage(0, b"0.5", b"5.0"), 1, "`x`: input should be less than or equal to 1"),
        (damage(0, b'"x"', b'"y"'), 1, "`x`: field required"),
        (damage(0, b"0.5", b'"0.5"'), 1, "`x`: input should be a valid number"),
        (damage(1, b'"seed":1', b'"seed":true'), 2, "`seed`: input should be a valid integer"),
        (damage(1, b'"full"', b"null"), 2, "`method`: input should be a valid string"),
        (damage(1, b"}", b""), 2, "it is not JSON"),
        (damage(1, b"f", b"\xff"), 2, "it is not JSON"),
        (lambda lines: lines.insert(1, b"\n"), 2, "it is not JSON"),
        (lambda lines: lines.insert(1, b"[1]\n"), 2, "input should be an object"),
        (lambda lines: lines.append(b"\0\0\0"), 4, "it is not JSON"),
        (lambda lines: lines.append(lines[0]), 4, "it repeats line 1"),
        (lambda lines: lines.insert(1, lines[0].replace(b"0.5", b"0.25")), 2, "it repeats line 1"),
    ],
)
@pytest.mark.parametrize("sums", [True, False])
def test_damage_is_told_with_file_and_line(work, number, reason, sums, tmp_path):
    path = written(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    work(lines)
    path.write_bytes(b"".join(lines))
    if not sums:
        path.with_name("rows.jsonl.sums").unlink()
        if "checksum" in reason:
            return  # what an earlier version wrote has none
    with pytest.raises(UsageError) as caught:
        Journal(path, Line)
    want = rf"Line {number} of {path} is damaged: {reason.replace(chr(92), '')}; restore the file,"
    assert str(caught.value).startswith(want)
    assert path.read_bytes() == b"".join(lines)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A journal's file, and what stands in it and in its checksums."""
    path = written(tmp_path_factory.mktemp("journal"))
    sums = path.with_name("rows.jsonl.sums")
    return path, path.read_bytes(), sums, sums.read_bytes()


@settings(max_examples=100, deadline=None)
@given(place=st.integers(0), byte=st.integers(1, 255))
def test_no_changed_byte_is_taken_for_a_measurement(finished, place, byte):
    path, text, sums, checksums = finished
    changed = bytearray(text)
    changed[place % len(text)] ^= byte
    path.write_bytes(changed)
    sums.write_bytes(checksums)
    if place % len(text) == len(text) - 1 and byte ^ ord("\n") not in b" \t\r":
        assert Journal(path, Line).rows == [line(0), line(1)]  # a line that has no end
        return
    with pytest.raises(UsageError, match=rf"^Line [123] of {path} is damaged: "):
        Journal(path, Line)


def test_rows_of_an_earlier_version_get_checksums(tmp_path, capsys):
    path = written(tmp_path)
    sums = path.with_name("rows.jsonl.sums")
    want = sums.read_bytes()
    sums.unlink()
    Journal(path, Line)
    told = f"note: {path} had no checksums; its 3 rows are taken as they are.\n"
    assert capsys.readouterr().err == told
    assert sums.read_bytes() == want
    Journal(path, Line)
    assert capsys.readouterr().err == ""
    path.write_bytes(path.read_bytes().replace(b"0.5", b"0.6", 1))
    with pytest.raises(UsageError, match=f"Line 1 of {path} is damaged"):
        Journal(path, Line)


def test_a_folder_keeps_to_the_settings_it_was_begun_with(tmp_path):
    output = tmp_path / "deep" / "study"
    with study_folder(output, {"seeds": (1, 2), "share": 0.1}) as folder:
        assert folder == output
    with study_folder(output, {"share": 0.1, "seeds": [1, 2]}):
        pass
    assert [path.name for path in output.iterdir()] == ["settings.json"]
    with (
        pytest.raises(UsageError, match=r"`output` was begun with other settings \(share\)"),
        study_folder(output, {"seeds": [1, 2], "share": 0.2}),
    ):
        pass


def open_study(output, names):
    with study_folder(output, names):
        pass


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UsageError, match="`output` already holds other files"):
        open_study(tmp_path, {})
    with pytest.raises(UsageError, match=r"`output` cannot be written: .*\("):
        open_study(tmp_path / "notes.txt", {})
    with pytest.raises(UsageError, match=r"`output` cannot be written: .* \(File name too long\)"):
        open_study(tmp_path / ("x" * 300), {})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"{", r", line 1 \(Expecting property name"),
        (b'{\n"seeds": 1,\n"share"', r", line 3 \(Expecting ':' delimiter"),
        (b"", r", line 1 \(Expecting value"),
        (b"[]", r", line 1 \(it holds no object\)"),
        (b"\xff\xfe\xfa", r" \(it is not text\)"),
    ],
)
def test_damaged_settings_are_told(text, reason, tmp_path):
    path = tmp_path / "settings.json"
    path.write_bytes(text)
    told = rf"`output` holds a settings\.json that cannot be read: {path}{reason}"
    with pytest.raises(UsageError, match=told):
        open_study(tmp_path, {"seeds": 1})
    assert path.read_bytes() == text


@pytest.mark.parametrize("value", ["NaN", "2", "null", '"1"', "[1]"])
def test_changed_settings_are_told(value, tmp_path):
    (tmp_path / "settings.json").write_text(f'{{"seeds": {value}}}')
    with pytest.raises(UsageError, match=r"begun with other settings \(seeds\)"):
        open_study(tmp_path, {"seeds": 1})
