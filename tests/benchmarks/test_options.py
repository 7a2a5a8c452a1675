"""The options of the commands: one name, one meaning, one help."""

import sys

import pytest

from benchmarks.__main__ import commands, main
from benchmarks.tools.help import help_texts
from benchmarks.tools.origin import HERE

SAME = {
    "seeds": "How many seeds are reported",
    "tuning_seeds": "How many further seeds",
    "output": "Folder for the results; None is results/",
    "quick": "A rough run",
    "data_dir": "Where tensorflow-datasets keeps prepared data; None is its default, or "
    "TFDS_DATA_DIR.",
    "cache": "Folder where trained parameters are kept, by a hash of data, configuration and seed.",
    "dataset": "digits (embedded), mnist or cifar10 (prepared once by tensorflow-datasets).",
    "model": "The network: mlp, cnn",
    "scenarios": "Any of label, backdoor, feature and sample",
    "budget": "Example gradients",
    "fraction": "Share of the",
    "known": "Share",
    "train_examples": "Training examples to use, drawn at random; None uses all",
    "epochs": "Passes over the training set when training; None is the recipe of data set and",
}


@pytest.mark.parametrize("name", commands())
def test_options_of_one_name_mean_the_same_everywhere(name):
    kind = commands()[name]
    told = help_texts(kind)
    assert told.keys() == kind.__dataclass_fields__.keys()
    if name not in ("render", "list"):
        assert told["output"].endswith("What stands there is not done again.")
        assert list(told)[-2:] == ["output", "quick"]
    for option in told.keys() & SAME.keys():
        assert told[option].startswith(SAME[option]), option
    assert set(HERE) <= SAME.keys()


def test_a_package_that_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert main(["list"]) == 2
    told = 'the benchmarks need tyro; install what they need by `pip install -e ".[bench]"`.'
    assert capsys.readouterr().err == f"error: {told}\n"


def test_exit_codes_are_told(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in ("0 done", "1 an error in the program", "2 wrong use", "130 interrupted"):
        assert words in said
    with pytest.raises(SystemExit) as end:
        main(["unlearn", "--no-such-option"])
    assert end.value.code == 2


def test_help_has_no_line_breaks_of_the_source(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        main(["sparsity", "--help"])
    said = capsys.readouterr().out
    text = help_texts(commands()["sparsity"])["output"]
    assert text in " ".join(line.strip("│ ") for line in said.splitlines())
