"""The commands that time things: what they check first, and what they leave."""

import functools
import json

import jax
import pytest

import benchmarks.speed.cases
import benchmarks.speed.command
from benchmarks.__main__ import main
from benchmarks.speed.cases import mlp, speed_cases
from benchmarks.speed.command import Speed
from benchmarks.speed.plots import LOOKS
from benchmarks.speed.report import (
    against_backpack,
    against_hesscale,
    against_peers,
    findings,
    put_into_page,
    summary_table,
)
from benchmarks.tools.errors import UsageError
from benchmarks.tools.timing import in_turn


def tiny(full):
    return mlp((5, 4, 3), "tanh", 6)._replace(full=full, trained=True)


def use_tiny_case(monkeypatch, full):
    cases = ([functools.partial(tiny, full)], ["that one."])
    monkeypatch.setattr(benchmarks.speed.command, "speed_cases", lambda *_: cases)


def run_speed(output, *options):
    return main(["speed", "--output", str(output), "--repeats", "2", "--seeds", "4", *options])


def measured(output):
    """The rows without those of what was left out."""
    rows = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    return [row for row in rows if "left_out" not in row]


@pytest.mark.slow
def test_speed_leaves_a_row_for_every_method_and_a_report(tmp_path, monkeypatch, capsys):
    use_tiny_case(monkeypatch, full=False)
    output, page = tmp_path / "speed", tmp_path / "page.md"
    page.write_text("before\n<!-- speed -->stale<!-- /speed -->\nafter\n", encoding="utf-8")
    assert run_speed(output, "--docs", str(page)) == 0
    rows = measured(output)
    assert [row["method"] for row in rows] == ["exact", "propagated", "basis vectors"]
    assert all(row["gradient_equivalents"] > 0 and row["error"] < 10 for row in rows)
    assert rows[0]["entries"] == 5 * 4 + 4 + 4 * 3 + 3
    assert rows[0]["error"] < 1e-5 < rows[1]["error"]
    assert [point["probes"] for point in rows[1]["points"]] == [1, 4]
    for name in ("report.md", "report.html", "speed.png", "errors.png"):
        assert (output / name).stat().st_size > 500
    assert "that one." in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- speed -->\n\n| network")
    assert "stale" not in text
    assert text.endswith("<!-- /speed -->\nafter\n")


@pytest.mark.slow
def test_speed_runs_every_method_that_is_installed(tmp_path, monkeypatch):
    use_tiny_case(monkeypatch, full=True)
    assert run_speed(tmp_path / "speed", "--quick") == 0
    rows = {(row["library"], row["method"]): row for row in measured(tmp_path / "speed")}
    assert set(rows) <= set(LOOKS)
    assert {method for library, method in rows if library == "sapsel_jax"} >= {
        "exact",
        "propagated",
        "site probes",
        "Gauss-Newton",
        "empirical Fisher",
    }
    assert rows["jax", "jax.hessian"]["error"] < 1e-5
    assert "holds on" in (tmp_path / "speed" / "report.md").read_text()


def test_a_wrong_diagonal_is_not_timed(tmp_path, monkeypatch, capsys):
    use_tiny_case(monkeypatch, full=False)
    right = benchmarks.speed.command.own_contenders

    def wrong(case):
        exact, *others = right(case)
        twice = lambda *args: jax.tree.map(lambda x: 2 * x, exact.fn(*args))
        return [exact._replace(fn=twice), *others]

    monkeypatch.setattr(benchmarks.speed.command, "own_contenders", wrong)
    assert run_speed(tmp_path / "speed") == 2
    assert "`exact` is off by 1.0e+00 on tanh MLP" in capsys.readouterr().err
    assert not (tmp_path / "speed" / "results.jsonl").exists()
    assert "exact" not in (tmp_path / "speed" / "pieces.jsonl").read_text()


def row(library, method, kind, seconds, error, **changes):
    return {
        "network": "net",
        "entries": 10,
        "trained": True,
        "library": library,
        "method": method,
        "kind": kind,
        "num_probes": 1,
        "gradient_equivalents": seconds,
        "seconds": seconds,
        "error": error,
        "estimated": 2.0 if method == "exact" else None,
    } | changes


ROWS = [
    row("sapsel_jax", "exact", "exact", 2.0, 1e-7),
    row("sapsel_jax", "propagated", "unbiased", 2.0, 0.1),
    row("own baseline", "HesScale", "biased", 1.0, 0.3),
    row("BackPACK", "DiagHessian", "exact", 5.0, 1e-7),
    row("matfree", "Hutchinson", "unbiased", 3.0, 1.0),
    row("curvlinops", "XDiag", "unbiased", 8.0, 0.2, num_probes=4),
]


def test_findings_compare_at_equal_error():
    assert against_backpack(ROWS, "net") == 2.5
    assert against_backpack(ROWS[:3], "net") is None
    found = against_peers(ROWS, "net")
    assert found == (pytest.approx(8 / 2 * (0.2 / 0.1) ** 2), "curvlinops XDiag, 4 products")
    assert against_hesscale(ROWS, "net") == (2.0, 0.1, 0.3)
    untrained = [one | {"trained": False} for one in ROWS]
    assert against_hesscale(untrained, "net") is None
    assert all("holds on 1 of 1. net: " in claim for claim in findings(ROWS))
    slower = [one | {"seconds": 10.0} if one["method"] == "exact" else one for one in ROWS]
    assert "does not hold on 1 of 1. net: 0.5" in findings(slower)[0]
    assert findings(untrained)[2].endswith(": not measured.")


def test_the_summary_has_a_line_for_each_network():
    lines = summary_table([*ROWS[:3], ROWS[0] | {"network": "other"}]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert cells == [
        ["net", "10", "2.0 (2.0)", "2.0, 0.10", "1.0, 0.30", "-", "2.0000", "-"],
        ["other", "10", "2.0 (2.0)", "-", "-", "-", "2.0000", "-"],
    ]


def test_a_page_without_marks_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- speed --> and no end", encoding="utf-8")
    with pytest.raises(UsageError, match="`docs` must hold the marks <!-- speed --> and"):
        put_into_page(page, "table")
    with pytest.raises(UsageError, match=r"`docs` cannot be read: .*missing.md \(No such file"):
        put_into_page(tmp_path / "missing.md", "table")


@pytest.mark.slow
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
    with pytest.raises(UsageError, match="`most-seconds` must be positive; got 0"):
        Speed(most_seconds=0.0).run()


def test_a_contender_rests_when_its_time_is_up():
    ran = []
    works = {"quick": lambda: ran.append("quick"), "dear": lambda: ran.append("dear")}
    runs = in_turn(works, 3, lambda _: None, {"dear": 1})
    assert ran == ["quick", "dear", "quick", "quick"]
    assert [len(runs[name]) for name in works] == [3, 1]
    runs = in_turn(works, 3, lambda _: None, most_seconds=1e-12)
    assert [len(runs[name]) for name in works] == [1, 1]
    ran.clear()
    runs = in_turn({"quick": works["quick"]}, 1, lambda _: None, turn_seconds=1e-3)
    assert len(ran) > 1
    assert len(runs["quick"]) == 1


def test_networks_that_need_data_are_left_out_with_a_reason(monkeypatch):
    monkeypatch.setattr(benchmarks.speed.cases, "is_prepared", lambda *_: False)
    cases, skipped = speed_cases(None, quick=True)
    assert len(cases) == 5
    assert "trained on MNIST: MNIST is not prepared" in skipped[0]
    assert skipped[1] == "Convolutional networks: `--quick` leaves them out."
