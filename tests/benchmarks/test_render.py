"""What makes reports again from records: origins, packed records, the pictures of the README."""

import gzip
import re
import shutil
from pathlib import Path

import pytest

from benchmarks.__main__ import commands, main
from benchmarks.paper.command import Paper
from benchmarks.render import COMMITTED, committed, options_of
from benchmarks.secrets.command import Secrets
from benchmarks.selection.command import Selection
from benchmarks.sparsity.command import Sparsity
from benchmarks.tools.drawing import figure
from benchmarks.tools.errors import UsageError
from benchmarks.tools.origin import (
    FILE,
    add_origin,
    command_line,
    name_of,
    read_origin,
    write_report,
)
from benchmarks.tools.records import read_lines

ROOT = Path(__file__).parents[2]


def test_a_command_is_written_as_it_is_typed():
    assert command_line(Selection()) == "python -m benchmarks selection"
    options = Sparsity(ways=("random", "sharpest"), known=(1.0,), quick=True, output=Path("x"))
    want = "python -m benchmarks sparsity --known 1.0 --ways random sharpest --quick"
    assert command_line(options) == want
    assert name_of(want) == "sparsity"


def test_a_folder_is_of_all_commands_that_added_to_it(tmp_path):
    add_origin(tmp_path, Sparsity(counts=(96, 768), scenarios=("label",)), lambda: {"a": 1})
    first = read_origin(tmp_path)
    assert first.facts == {"a": 1}
    assert set(first.software) >= {"Python", "jax", "numpy", "device"}
    add_origin(tmp_path, Sparsity(counts=(12, 96), scenarios=("backdoor",), seeds=3))
    add_origin(tmp_path, Sparsity(counts=(96, 768), scenarios=("label",)), lambda: {"a": 2})
    origin = read_origin(tmp_path)
    assert origin.facts == {"a": 1}
    assert origin.commands == (
        "python -m benchmarks sparsity --scenarios label --counts 96 768",
        "python -m benchmarks sparsity --scenarios backdoor --seeds 3 --counts 12 96",
    )
    assert origin.command.startswith("python -m benchmarks sparsity --scenarios label --counts")
    assert "768` and `python" in origin.command


@pytest.mark.parametrize(
    ("some", "other", "want"),
    [
        (Sparsity(counts=(96, 768)), Sparsity(counts=(12, 96)), {"counts": (12, 96, 768)}),
        (
            Sparsity(scenarios=("sample",)),
            Sparsity(scenarios=("label",)),
            {"scenarios": ("sample", "label")},
        ),
        (Paper(), Paper(procedures=("full",), seeds=7), {"procedures": None, "seeds": 7}),
        (Paper(procedures=("full",)), Paper(), {"procedures": None}),
    ],
)
def test_a_report_is_about_everything_that_was_asked_for(some, other, want, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(type(some), "report", lambda self, *about: told.append((self, *about)))
    add_origin(tmp_path, some)
    add_origin(tmp_path, other)
    write_report(type(some)(data_dir="here"), tmp_path)
    ((options, folder, origin),) = told
    assert (folder, origin) == (tmp_path, read_origin(tmp_path))
    assert {name: getattr(options, name) for name in want} == want
    assert options.data_dir == "here"


@pytest.mark.parametrize("text", [None, "", "[]", '{"commands": []'])
def test_a_folder_that_does_not_say_how_it_was_made_is_refused(text, tmp_path, capsys):
    if text is not None:
        (tmp_path / FILE).write_text(text)
    assert main(["render", str(tmp_path)]) == 2
    said = f"error: {tmp_path / FILE} must say which commands made the folder; it does not.\n"
    assert capsys.readouterr().err == said


def test_a_folder_that_holds_too_little_is_refused(tmp_path, capsys):
    add_origin(tmp_path, Selection(quick=True))
    assert main(["render", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    want = f"python -m benchmarks selection --quick --output {tmp_path}"
    assert said.startswith(f"error: {tmp_path} holds too little for a report; run `{want}`")


def test_other_secrets_than_the_records_are_of_are_refused(tmp_path, capsys):
    add_origin(tmp_path, Secrets(), lambda: {"canaries": "others"})
    assert main(["render", str(tmp_path)]) == 2
    told = f"error: {tmp_path} was made with another version of faker, which draws other secrets;"
    assert capsys.readouterr().err.startswith(told)


def test_a_damaged_packed_file_is_told(tmp_path):
    path = tmp_path / "rows.jsonl"
    whole = gzip.compress(b'{"a": 1}\n{"a": 2}\n')
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(whole)
    assert read_lines(path) == [b'{"a": 1}', b'{"a": 2}']
    for damaged in (whole[:-4], b"{}", whole[:12] + b"\xff" + whole[13:]):
        packed.write_bytes(damaged)
        with pytest.raises(UsageError, match=r"rows\.jsonl\.gz is damaged: it cannot be unpacked"):
            read_lines(path)


def test_every_picture_of_the_readme_and_every_report_can_be_made_again():
    folders = {path.name for path in committed()}
    assert folders == {path.parent.name for path in COMMITTED.glob("*/report.md")}
    shown = [
        (ROOT / page).parent / picture
        for page in ("README.md", "docs/index.md")
        for picture in re.findall(r"!\[[^]]*\]\((\S+\.png)\)", (ROOT / page).read_text())
    ]
    assert len(shown) >= 5
    for picture in shown:
        assert picture.resolve().parent.parent == COMMITTED
        assert picture.resolve().parent.name in folders
    for name in folders:
        report = (COMMITTED / name / "report.md").read_text()
        pictures = {path.name for path in (COMMITTED / name).glob("*.png")}
        assert pictures == set(re.findall(r"\]\((\S+\.png)\)", report))
        origin = read_origin(COMMITTED / name)
        assert origin.command in report
        assert isinstance(options_of(COMMITTED / name), commands()[name_of(origin.commands[0])])


def test_committed_records_are_packed():
    for path in COMMITTED.rglob("*.json*"):
        assert path.suffix == ".gz" or path.stat().st_size < 100_000
        assert path.suffix != ".jsonl"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["unlearn-digits-label-mlp", "sparsity-mnist-cnn", "beyond-digits-mlp"]
)
def test_a_report_comes_out_as_it_is_committed(name, tmp_path):
    folder = tmp_path / name
    shutil.copytree(COMMITTED / name, folder)
    was = (folder / "report.md").read_text()
    pictures = sorted(path.name for path in folder.glob("*.png"))
    for path in (folder / "report.md", *folder.glob("*.png")):
        path.unlink()
    assert main(["render", str(folder)]) == 0
    assert (folder / "report.md").read_text() == was
    assert sorted(path.name for path in folder.glob("*.png")) == pictures


@pytest.mark.slow
def test_pictures_are_small_unless_they_are_photographs(tmp_path):
    sizes = []
    for photographs in (False, True):
        path = tmp_path / f"{photographs}.png"
        with figure(path, (3, 3), "Title", "and more", dpi=50, photographs=photographs) as canvas:
            canvas.subplots().imshow([[0.0, 0.3], [0.6, 1.0]], interpolation="bilinear")
        sizes.append(path.stat().st_size)
    assert sizes[0] < sizes[1]
