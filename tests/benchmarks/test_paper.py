"""The comparison with baselines: resumed after a kill, the same twice, and its files."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refuses

import benchmarks.paper.command
import benchmarks.paper.contest as contest_module
from benchmarks.__main__ import main
from benchmarks.learning.settings import Settings
from benchmarks.paper.command import Paper
from benchmarks.paper.contest import Arm, Contest, run_contest, tune
from benchmarks.paper.procedures import PROCEDURES, PROPOSED
from benchmarks.paper.records import open_journals
from benchmarks.paper.summary import against_rivals, best_rival, gap_of, reached, standings
from benchmarks.tools.errors import UsageError

FEW = ("gradient_ascent", "fine_tune", "full")


@pytest.fixture
def small(tmp_path):
    settings = Settings(train_examples=120, epochs=4, budget=0.1, seeds=2)
    arms = tuple(Arm(name, 0.05, 0.1) for name in FEW)
    return Contest({"label": settings}, (0.5, 1.0), arms, (), (), tmp_path / "cache")


def records(folder):
    folder.mkdir(exist_ok=True)
    return open_journals(folder)


def stable(rows):
    return [{k: v for k, v in row.items() if not k.endswith("_seconds")} for row in rows]


def test_what_is_recorded_is_not_done_again(small, tmp_path):
    trials, cells = records(tmp_path / "some")
    assert len(list(small.work(trials, cells))) == 3 + 2 * 2 * 3
    tried = {"trials": [], "validation_accuracy": [], "forget_accuracy": [], "chosen": {}}
    trials.append(*({"scenario": "label", **arm._asdict(), **tried} for arm in small.arms))
    (some,) = rows_of([("full", 1, 0.0, 0.0)])
    of = lambda arm, seed, known: some | {"known": known, **arm._asdict(), "seed": seed}
    for known in small.known:
        cells.append(*(of(arm, 1, known) for arm in small.arms))
    again = records(tmp_path / "some")
    left = list(small.work(*again))
    assert left == [("label", 2, known, arm) for known in small.known for arm in small.arms]
    cells.append(of(small.arms[0], 2, 0.5))
    assert list(small.work(trials, cells)) == left[1:]
    wider = dataclasses.replace(small, frontier=(Arm("full", 0.05, 0.2), *small.arms))
    assert len(list(wider.work(trials, cells))) == len(left) - 1
    wider = dataclasses.replace(wider, frontier_scenarios=("label",))
    assert len(list(wider.work(trials, cells))) == len(left) - 1 + 1 + 2  # its trials, two seeds


@pytest.mark.slow
def test_a_kill_costs_what_was_under_way(small, tmp_path, monkeypatch):
    whole = records(tmp_path / "whole")
    pieces = []
    run_contest(small, *whole, pieces.append)
    assert len(pieces) == 3 + 2 * 2 * 3
    assert len(whole[0].rows) == 3
    assert len(whole[1].rows) == 2 * (2 + 2 * 3)

    class Killed(Exception):
        pass

    def kill(words):
        left.append(words)
        if len(left) == 8:
            raise Killed

    left = []
    with pytest.raises(Killed):
        run_contest(small, *records(tmp_path / "cut"), kill)
    with (tmp_path / "cut" / "results.jsonl").open("a") as file:
        file.write('{"scenario": "lab')  # half a line, as a kill may leave it
    resumed = []
    run_contest(small, *records(tmp_path / "cut"), resumed.append)
    assert len(resumed) == len(pieces) - 7
    cut, whole = records(tmp_path / "cut"), records(tmp_path / "whole")
    assert stable(cut[0].rows) == stable(whole[0].rows)
    assert stable(cut[1].rows) == stable(whole[1].rows)

    monkeypatch.setattr(contest_module, "make_case", None)  # nothing is left that needs it
    run_contest(small, *cut, pytest.fail)
    wider = dataclasses.replace(small, known=(0.1, 0.5, 1.0))
    assert len(list(wider.work(*cut))) == 2 * 3


def rows_of(figures):
    """Rows of two methods and the references, from (method, seed, forget gap, test gap)."""
    return [
        {
            "dataset": "digits",
            "variant": "scikit-learn",
            "model": "mlp",
            "scenario": "label",
            "known": 1.0,
            "method": method,
            "fraction": 0.05,
            "budget": 0.02,
            "seed": seed,
            "test_accuracy": 0.9 + test,
            "forget_accuracy": 0.9 + forget,
            "attack_success": None,
            "retain_accuracy": 0.9,
            "test_recovery": None,
            "forget_recovery": 1 + forget,
            "attack_recovery": None,
            "test_gap": test,
            "forget_gap": forget,
            "attack_gap": None,
            "tug_of_war": 1.0,
            "moved": 1.0,
            "distance": 1.0,
            "relearning_absolute": 0.1,
            "membership_entropy": 0.5,
            "changed_entries": 1,
            "total_entries": 10,
            "selection_seconds": 0.0,
            "update_seconds": 0.0,
            "selection_example_gradients": 1,
            "update_example_gradients": 1,
            "retrain_example_gradients": 100,
        }
        for method, seed, forget, test in figures
    ]


def test_figures_against_the_best_other_procedure():
    rows = rows_of(
        [
            (PROPOSED, 1, -0.02, -0.01),
            (PROPOSED, 2, -0.03, 0.01),
            ("sharpest", 1, 0.0, 0.0),
            ("sharpest", 2, 0.0, 0.0),
            ("full", 1, -0.05, -0.02),
            ("full", 2, -0.06, -0.02),
            ("random", 1, -0.2, -0.01),
            ("random", 2, -0.2, -0.01),
        ]
    )
    arms = [Arm(name, 0.05, 0.02) for name in (PROPOSED, "sharpest", "full", "random")]
    # The sharpest are nearest, but they are ours.
    assert best_rival(rows, "label", arms, gap_of("forget")) == "full"
    assert best_rival(rows, "label", arms, gap_of("test")) == "random"
    forget, test, relearning = against_rivals(rows, ["label"], arms)
    assert forget.difference.mean == pytest.approx(0.03)
    assert test.difference.mean == pytest.approx(0.0)
    assert relearning.difference.mean == 0
    first = standings(rows, "label", arms)[0]
    assert first.share == pytest.approx(0.02)
    assert reached(first.line, "forget", 0.95) is True  # 97.5 %
    assert reached(first.line, "forget", 0.98) is False
    assert reached(first.line, "test", 0.8) is True  # no gap to speak of, and none left
    assert reached(first.line, "attack", 0.8) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"known": (0.5,)}, "`known` must hold shares above 0 and end with 1."),
        ({"known": ()}, "`known` must hold shares above 0 and end with 1."),
        (
            {"scenarios": ("labels",)},
            "`scenarios` must be one of label, backdoor, feature, sample; got 'labels'.",
        ),
        (
            {"frontier_budgets": (2.0,)},
            "`frontier-budgets` must lie between 0 and 1; got 2.",
        ),
        ({"seeds": 0}, "`seeds` must be at least 1; got 0."),
        ({"tuning_seeds": 0}, "`tuning-seeds` must be at least 1; got 0."),
    ],
)
def test_bad_options(options, message):
    refuses(lambda: Paper(**options).contest(), UsageError, message)


def test_the_best_trial_is_the_best_over_all_tuning_seeds(monkeypatch):
    monkeypatch.setitem(PROCEDURES, "full", PROCEDURES["full"]._replace(trials=["a", "b", "c"]))
    figures = {0: [0.9, 0.5, 0.8], 10_000: [0.1, 0.5, 0.8], 10_001: [0.9, 0.5, 0.1]}

    class Bench:
        def __init__(self, seed):
            self.objectives = figures[seed]

        def try_all(self, arm):
            return np.array([(0.1, 0.2, objective) for objective in self.objectives])

    contest = Contest({}, (1.0,), (), (), (), Path(), num_tuning_seeds=3)
    assert contest.tuning_seeds == (0, 10_000, 10_001)
    benches: Any = [Bench(seed) for seed in contest.tuning_seeds]
    row = tune(benches, "label", Arm("full", 0.05, 0.02))
    assert row["chosen"] == "a"
    assert row["validation_accuracy"] == [0.1] * 3
    assert tune(benches[1:2], "label", Arm("full", 0.05, 0.02))["chosen"] == "c"


def test_sizes():
    assert list(Paper(dataset="cifar10").contest().settings) == ["label", "backdoor"]
    cifar10 = Paper(dataset="cifar10").contest().settings["label"]
    assert (cifar10.train_examples, cifar10.model) == (10_000, "cnn")
    mnist = Paper(dataset="mnist").contest().settings
    assert mnist["label"].train_examples is None
    assert mnist["sample"].train_examples == 5_000
    assert (
        Paper(dataset="mnist", train_examples=900).contest().settings["sample"].train_examples
        == 900
    )


def test_a_folder_belongs_to_its_settings(tmp_path, monkeypatch, capsys):
    def work(contest, trials, cells, advance):
        assert contest.known == (1.0,)
        advance("working")
        if interrupted:
            raise KeyboardInterrupt

    interrupted = False
    monkeypatch.setattr(benchmarks.paper.command, "run_contest", work)
    monkeypatch.setattr(benchmarks.paper.command, "write_paper", lambda folder, *_: None)
    command = ["paper", "--quick", "--output", str(tmp_path / "out"), "--scenarios", "label"]
    assert main(command) == 0
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["dataset"] == "digits"
    assert main([*command, "--seeds", "7", "--procedures", "full"]) == 0  # adds to it
    assert main([*command, "--model", "cnn"]) == 2
    assert "was begun with other settings (model)" in capsys.readouterr().err
    interrupted = True
    assert main(command) == 130
    assert "the same command goes on from there" in capsys.readouterr().err


@pytest.mark.slow
def test_a_quick_run_leaves_a_report(tmp_path):
    output, cache = tmp_path / "out", tmp_path / "cache"
    options = ["--train-examples", "120", "--epochs", "8", "--budget", "0.5"]
    options += ["--scenarios", "label", "backdoor"]
    command = ["paper", "--quick", "--output", str(output), "--cache", str(cache), *options]
    assert main(command) == 0
    names = {path.name for path in output.iterdir()}
    pictures = {"images-label.png", "images-backdoor.png", "gaps.png", "relearning.png"}
    files = {"settings.json", "tuning.jsonl", "results.jsonl", "table.md", "report.md"}
    files |= {"tuning.jsonl.sums", "results.jsonl.sums", "origin.json"}
    assert names == pictures | files | {"report.html"}
    text = (output / "report.md").read_text()
    assert all(f"]({picture})" in text for picture in pictures)
    sources = re.findall(r'(?:src|href)="([^"]*)"', (output / "report.html").read_text())
    assert len(sources) == len(pictures)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    rows = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * (2 + len(PROCEDURES))
    for row in rows:
        if row["method"] not in ("poisoned", "retrained"):
            cost = row["selection_example_gradients"] + row["update_example_gradients"]
            assert cost <= 0.5 * row["retrain_example_gradients"]
    before = (output / "results.jsonl").read_bytes()
    assert main(command) == 0
    assert (output / "results.jsonl").read_bytes() == before
    assert main([*command, "--model", "cnn"]) == 2
