"""How commands end early: by signals, by full disks, beside another run; and what they leave."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from benchmarks.__main__ import main
from benchmarks.tools.command import continued
from benchmarks.tools.ending import exit_code
from benchmarks.tools.errors import UsageError
from benchmarks.tools.folders import locked, whole_file
from benchmarks.tools.records import study_folder

# A command that tells when it is at work, and then works until it is stopped.
WORK = """
import sys, time
from pathlib import Path
from benchmarks.tools.ending import exit_code, finish, stop_in_order
stop_in_order()
def work():
    from benchmarks.tools.command import continued
    with continued(Path(sys.argv[1]), {}) as run:
        run.say("Working")
        (run.folder / "results.jsonl").write_text("half")
        print("at work", flush=True)
        time.sleep(600)
finish(exit_code(work))
"""
KEPT = "what is finished stands in {}, and the same command goes on from there"


@pytest.fixture(autouse=True)
def _interrupts_are_heard():
    """A shell's background and `nohup` ignore signals, and what is started there inherits that."""
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@contextlib.contextmanager
def at_work(output):
    """A process that has begun to write to `output`."""
    command = [sys.executable, "-c", WORK, str(output)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "at work\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        pytest.param(signal.SIGHUP, 129, "terminated", marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_a_command_in_one_sentence(number, code, word, tmp_path):
    output = tmp_path / "out"
    with at_work(output) as process:
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert said == f"{word}; {KEPT.format(output)}.\n"
    assert {path.name for path in output.iterdir()} == {"settings.json", "results.jsonl"}


def test_beside_a_run_there_is_no_second_and_after_a_kill_there_is(tmp_path):
    output = tmp_path / "out"
    refused = "Another run is writing to {}; wait until it ends, or name another folder."
    with at_work(output) as process:
        with pytest.raises(UsageError) as caught, study_folder(output, {}):
            pass
        assert str(caught.value) == refused.format(output)
        process.kill()
        process.wait()
    with study_folder(output, {}):
        pass
    assert {path.name for path in output.iterdir()} == {"settings.json", "results.jsonl"}


def test_a_lock_can_be_waited_for(tmp_path):
    output = tmp_path / "study"
    with at_work(output) as process:
        process.send_signal(signal.SIGTERM)
        with locked(output / ".lock", output, wait=True):
            pass
    with locked(output / ".lock", output, wait=True):
        assert (output / ".lock").exists()
    assert not (output / ".lock").exists()


def disk_full(where):
    raise OSError(28, "No space left on device", where)


def test_a_full_disk_is_told_in_one_sentence(tmp_path, capsys):
    output = tmp_path / "out"
    for where in (str(output / "gaps.png"), None):

        def measure(where=where):
            with continued(output, {}):
                raise OSError(28, "No space left on device", where)

        assert exit_code(measure) == 2
        place = "" if where is None else f": {where}"
        want = f"error: No space left on device{place}; {KEPT.format(output)}.\n"
        assert capsys.readouterr().err == want


def test_a_run_prints_its_tables_and_where_its_report_is(tmp_path, capsys):
    with continued(tmp_path / "out", {}) as run:
        run.expect(2)
        run.say("First")
        run.say("Second")
        run.tables.append("a table")
        (run.folder / "report.html").touch()
    said = capsys.readouterr().out
    assert said.split("\n")[-3:] == ["a table", f"Report: {tmp_path / 'out' / 'report.html'}", ""]


@pytest.mark.parametrize("command", ["unlearn", "audit", "selection", "paper", "ablation"])
def test_names_that_are_too_long_end_in_one_sentence(command, tmp_path, capsys):
    quick = ["--scenarios", "label"] if command == "paper" else []
    for name in ("x" * 300,):
        output = tmp_path / name
        assert main([command, "--quick", "--output", str(output), *quick]) == 2
        said = capsys.readouterr().err
        assert said == f"error: `output` cannot be written: {output} (File name too long).\n"
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "page"
    path.write_text("old")

    def stop():
        with whole_file(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert path.read_text() == "old"
    (tmp_path / ".page.partial").write_text("what a killed run had left")
    with whole_file(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["page"]
    assert path.stat().st_mode & 0o044 == 0o044 & ~umask()


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_an_import_is_done(number, tmp_path):
    (tmp_path / "lengthy.py").write_text(
        "import time\nprint('importing', flush=True)\ntime.sleep(0.3)\nprint('imported')\n"
    )
    lines = """
import time
from benchmarks.tools.ending import exit_code, finish, stop_in_order
stop_in_order()
def work():
    import lengthy
    time.sleep(60)
finish(exit_code(work))
"""
    places = os.pathsep.join([str(tmp_path), os.getcwd()])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        [sys.executable, "-c", lines], env={**os.environ, "PYTHONPATH": places}, **pipes
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(number)
        rest, said = process.communicate(timeout=60)
    assert rest == "imported\n"
    word = "interrupted" if number == signal.SIGINT else "terminated"
    assert said == f"{word}; nothing was written.\n"
    assert process.returncode == 128 + number


def test_a_signal_that_a_destructor_swallows_is_sent_again():
    lines = """
import time
from benchmarks.tools.ending import exit_code, finish, stop_in_order
stop_in_order()
class Slow:
    def __del__(self):
        print("in it", flush=True)
        time.sleep(60)
def work():
    Slow()
    time.sleep(60)
finish(exit_code(work))
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", lines], **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in it\n"
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=50)
    assert said == "terminated; nothing was written.\n"
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "number"), [("unlearn", signal.SIGINT), ("paper", signal.SIGTERM)]
)
@pytest.mark.parametrize("seconds", [0.3, 1.5, 4, 12])
def test_a_signal_at_any_moment(command, number, seconds, tmp_path):
    output = tmp_path / "out"
    options = ["--cache", str(tmp_path / "cache")]
    line = [sys.executable, "-m", "benchmarks", command, "--output", str(output), *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(line, **pipes) as process:
        time.sleep(seconds)
        process.send_signal(number)
        try:
            _, said = process.communicate(timeout=120)
        finally:
            process.kill()
    if process.returncode == -number:  # it came before the program's first line had run
        assert seconds < 2
        assert not said
        assert not list(tmp_path.iterdir())
        return
    word = "interrupted" if number == signal.SIGINT else "terminated"
    assert said.startswith(f"{word}; ")
    assert said.count("\n") == 1
    assert process.returncode == 128 + number
    left = {path.name for path in tmp_path.iterdir()} - {"cache"}
    assert left <= {"out"}
    if left:
        with study_folder_of(output):
            assert not [path.name for path in output.iterdir() if "partial" in path.name]


@contextlib.contextmanager
def study_folder_of(output):
    """Takes the lock, to see that nobody holds it."""
    with locked(output / ".lock", output):
        yield
