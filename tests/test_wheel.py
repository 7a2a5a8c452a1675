"""The wheel: what it holds, and that it needs neither this folder nor the benchmarks' packages."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ABSENT = ["flax", "tensorflow_datasets", "sklearn", "matplotlib", "rich", "tyro", "benchmarks"]
PROGRAM = f"""
import sys
for name in {ABSENT}:
    sys.modules[name] = None  # importing it raises, as if it were not installed
sys.path.insert(0, sys.argv[1])
import jax.numpy as jnp
import sapsel_jax as sap
print(sap.__file__)
params = jnp.array([2.0, 2.0])
diagonal = sap.basis_diagonal(lambda w: w[1] ** 4)(params)
mask = sap.select_top_fraction(sap.score_sharpest(diagonal), 0.5)
loss_fn = lambda w, y: 0.5 * jnp.sum((w - y) ** 2)
original = jnp.full((1, 2), 4.0)
print(sap.first_order_update(loss_fn, params, original, None, step_size=1.0, mask=mask).tolist())
"""


@pytest.mark.slow
def test_the_wheel_imports_elsewhere_without_the_extras(tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("sapsel_jax-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "sapsel_jax/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"sapsel_jax"}

    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [sys.executable, "-I", "-c", PROGRAM, site]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=True)
    place, result = done.stdout.split("\n")[:2]
    assert Path(place).is_relative_to(site)
    assert result == "[2.0, 0.0]"
