"""Imports go down only: no folder reads what stands above it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = {
    "_base": (),
    "_primitives": ("_base",),
    "_graph": ("_base", "_primitives"),
    "_passes": ("_base", "_primitives", "_graph"),
    "_curvature": ("_base", "_primitives", "_graph", "_passes"),
    "_selection": ("_base",),
    "_updates": ("_base", "_primitives", "_graph", "_passes", "_curvature"),
    "audit": ("_base", "_selection", "_updates"),
}
# Methods in one call, which put the steps together.
STEPS = tuple(folder for folder in LIBRARY if folder != "audit")
LIBRARY |= {
    "_sparsify": STEPS,
    "_descent": (*STEPS, "_sparsify"),
    "_unlearn": (*STEPS, "_sparsify", "_descent"),
}
SHARED = {
    "tools": (),
    "learning": ("tools",),
    "measures": ("tools", "learning"),
    "methods": ("tools", "learning", "measures"),
    "reporting": ("tools", "learning", "measures", "methods"),
}
COMMANDS = ("__main__", "listing", "render")
"""Above all studies."""


def imports(package):
    """Every import within a package, as the file, its folder and the folder that it reads."""
    for path in sorted((ROOT / package).rglob("*.py")):
        folder = path.relative_to(ROOT / package).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                pytest.fail(f"{path} imports relative to its folder")
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            for module in modules:
                parts = (module or "").split(".")
                if parts[0] == package and len(parts) > 1 and parts[1] != folder:
                    yield str(path.relative_to(ROOT)), folder, parts[1]


def test_the_library():
    found = [each for each in imports("sapsel_jax") if each[1] != "__init__"]
    assert {folder for _, folder, _ in found} <= set(LIBRARY)
    assert len(found) > 100
    assert [each for each in found if each[2] not in LIBRARY[each[1]]] == []


def test_the_benchmarks():
    found = [each for each in imports("benchmarks") if each[1] not in COMMANDS]
    assert len(found) > 100
    # A study reads what is shared, and no other study.
    below = lambda folder: SHARED.get(folder, tuple(SHARED))
    assert [each for each in found if each[2] not in below(each[1])] == []


def test_the_benchmarks_use_the_public_library():
    private = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "benchmarks").rglob("*.py"))
        if "sapsel_jax._" in path.read_text()
    ]
    # What it measures are the rules of blocks themselves.
    assert set(private) <= {
        "benchmarks/propagation/block_rules.py",
        "benchmarks/propagation/command.py",
    }
