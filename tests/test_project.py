"""What the files beside the code say of it."""

import importlib.metadata
import os
import re
import tomllib
from pathlib import Path

import sapsel_jax as sap

ROOT = Path(__file__).parents[1]


def test_there_is_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    source = (ROOT / project["tool"]["hatch"]["version"]["path"]).read_text()
    assert f'\n__version__ = "{sap.__version__}"\n' in source
    assert importlib.metadata.version("sapsel_jax") == sap.__version__
    assert f"\nversion: {sap.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert (ROOT / "CHANGELOG.md").read_text().startswith(f"# Changelog\n\n## {sap.__version__} ")


def test_contributors_are_told_of_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = set(re.findall(r"`((?:sapsel_jax|benchmarks|tests)/[\w/.]*)`", text))
    assert len(paths) > 12
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    for path, name in (
        ("benchmarks/methods/rankings.py", "SCORES"),
        ("benchmarks/methods/masks.py", "METHODS"),
        ("benchmarks/learning/scenarios.py", "SCENARIOS"),
        ("benchmarks/paper/procedures.py", "PROCEDURES"),
        ("benchmarks/speed/contenders.py", "Contender"),
        ("tests/selection/test_scoring.py", "SCORES"),
    ):
        assert path in paths
        assert re.search(rf"^(class )?{name}\b", (ROOT / path).read_text(), re.MULTILINE), path


def test_checks_are_the_same_everywhere():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"repo: (.*)", hooks) == ["local"]
    checks = (ROOT / ".ci" / "run").read_text()
    for entry in re.findall(r"entry: (.*)", hooks):
        assert f"\n{entry.removesuffix(' --fix')}" in checks
    assert "- run: .ci/run\n" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
