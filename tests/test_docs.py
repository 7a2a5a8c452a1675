"""The documentation site: complete, and with no code on it that is not run."""

import re
from pathlib import Path

import sapsel_jax as sap

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {path: path.read_text() for path in sorted(DOCS.rglob("*.md"))}
EXAMPLES = sorted((DOCS / "examples").glob("*.py"))


def test_every_public_name_has_its_place():
    names = {f"sapsel_jax.{name}" for name in sap.__all__ if name != "audit"}
    names |= {f"sapsel_jax.audit.{name}" for name in sap.audit.__all__}
    found = [
        name
        for path, text in PAGES.items()
        if path.parent.name == "reference"
        for name in re.findall(r"^\.\. auto\w+:: (\S+)$", text, re.MULTILINE)
    ]
    assert sorted(found) == sorted(names)


def test_every_report_is_shown():
    reports = {
        path.parent.name for path in (DOCS.parent / "benchmarks/results").glob("*/report.md")
    }
    shown = {path.stem for path in PAGES if path.parent.name == "reports"}
    assert shown == reports
    for name in shown:
        include = f"{{include}} ../../benchmarks/results/{name}/report.md\n"
        assert include in PAGES[DOCS / "reports" / f"{name}.md"]
        assert f"\nreports/{name}\n" in PAGES[DOCS / "index.md"]


def test_code_on_pages_is_run():
    for path, text in PAGES.items():
        for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            assert block.startswith(">>> "), (path, block)


def test_examples_are_short_and_shown():
    assert len(EXAMPLES) >= 16
    shown = {
        (path.parent / name).resolve()
        for path, text in PAGES.items()
        for name in re.findall(r"^```{literalinclude} (\S+)$", text, re.MULTILINE)
    }
    assert shown == set(EXAMPLES)
    for path in EXAMPLES:
        assert len(path.read_text().splitlines()) < 60, path


def test_reasons_are_all_explained():
    text = PAGES[DOCS / "troubleshooting.md"]
    explained = set(re.findall(r"^\| `([A-Z_]+)` \|", text, re.MULTILINE))
    assert explained == {reason.name for reason in sap.Reason} - {"CONVERGED"}
