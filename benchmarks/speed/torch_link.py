"""The peers in PyTorch, asked in a process of their own: the end that stays here."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.speed.cases import Case
from benchmarks.speed.contenders import gauss_newton_is_hessian, has_gauss_newton
from benchmarks.tools.errors import UsageError

LIBRARIES = ("BackPACK", "curvlinops", "nngeometry", "asdl")
GAUSS_NEWTON_METHODS = ("DiagGGNExact", "DiagGGNMC", "FIM diagonal", "Fisher diagonal")
RECIPE = (
    "python3.11 -m venv venv-torch && venv-torch/bin/pip install torch==2.13.0 numpy "
    "backpack-for-pytorch curvlinops-for-pytorch nngeometry asdfghjkl"
)
"""How the environment is made."""


class Answer(NamedTuple):
    """What a peer said about a case: draws (draws, entries), and the seconds of its runs."""

    row: dict[str, Any]
    draws: np.ndarray | None
    gradient_runs: list[float]
    versions: str


class TorchPeers:
    """The other process."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        """Takes the process, which waits, and a folder for what goes to and fro."""
        self.process, self.folder = process, folder

    def measure(self, case: Case) -> list[Answer]:
        """Everything that those peers say about a case.

        Raises:
          UsageError: if the process ends.
        """
        path = self.folder / "case.npz"
        save_case(path, case)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(f"{path}\n")
            self.process.stdin.flush()
            answered = self.process.stdout.readline() == "done\n"
        except BrokenPipeError:
            answered = False
        if not answered:
            lines = (self.folder / "log.txt").read_text(errors="replace").strip().splitlines()
            reason = lines[-1] if lines else "it ended without a word"
            raise UsageError(f"`torch-python` failed: {reason}")
        return read_answers(path)


@contextmanager
def torch_peers(
    python: Path | None, *, draws: int, repeats: int, seconds: float, turn: float
) -> Iterator[TorchPeers | None]:
    """The process, while the block runs; None without a `python`.

    Each peer runs for at least `turn` seconds in each of `repeats` rounds, and for no longer than
    about `seconds` in all.

    Raises:
      UsageError: if `python` cannot be run.
    """
    if python is None:
        yield None
        return
    script = Path(__file__).with_name("torch_peers.py")
    threads = len(os.sched_getaffinity(0))
    options = {
        "threads": threads,
        "draws": draws,
        "repeats": repeats,
        "seconds": seconds,
        "turn": turn,
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    environment.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory() as name, open(Path(name, "log.txt"), "w") as log:
        try:
            process = subprocess.Popen(
                [str(python), str(script), *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        except OSError as error:
            raise UsageError(
                f"`torch-python` cannot be run: {python} ({error.strerror})."
            ) from error
        try:
            yield TorchPeers(process, Path(name))
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def asked_of(case: Case) -> tuple[str, ...]:
    """The methods that run on a case."""
    gauss_newton = GAUSS_NEWTON_METHODS if has_gauss_newton(case) else ()
    return ("DiagHessian", *gauss_newton, "Hutchinson", "XDiag") if case.full else ("DiagHessian",)


def save_case(path: Path, case: Case) -> None:
    """Weights, data and layers, for a reader that has neither JAX nor this project."""
    arrays = [np.asarray(layer[name]) for layer in case.params for name in ("kernel", "bias")]
    named: dict[str, Any] = {f"array{i}": array for i, array in enumerate(arrays)}
    about = {
        "layers": case.layers,
        "num_arrays": len(arrays),
        "piecewise_affine": gauss_newton_is_hessian(case),
        "methods": asked_of(case),
    }
    np.savez(
        path,
        about=json.dumps(about),
        inputs=np.asarray(case.batch[0]),
        labels=np.asarray(case.batch[1]),
        **named,
    )


def read_answers(path: Path) -> list[Answer]:
    """What the other process left beside a case."""
    said = json.loads(path.with_suffix(".found.json").read_text(encoding="utf-8"))
    with np.load(path.with_suffix(".found.npz")) as found:
        draws = {name: found[name].astype(np.float64) for name in found.files}
    versions = f"torch {said['torch']}, {said['threads']} threads"
    return [Answer(row, draws.get(row["id"]), said["gradient"], versions) for row in said["rows"]]
