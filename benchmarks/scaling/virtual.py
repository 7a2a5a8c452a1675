"""A process of its own, as the number of virtual devices is fixed when JAX starts.

`python -m benchmarks.scaling.virtual devices gradient` prints a row of JSON for each result, and
`python -m benchmarks.scaling.virtual paper 24 2048 16 32000 512 selection` does, too.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.scaling.transformer import Size

NUM_DEVICES = 8


def on_devices(operation: str) -> Iterator[dict[str, Any]]:
    """The rows of an operation on several numbers of devices."""
    return _rows("devices", operation)


def on_paper(size: Size, part: str) -> Iterator[dict[str, Any]]:
    """The row of a part of unlearning for a transformer."""
    return _rows("paper", *map(str, size), part)


def _rows(*task: str) -> Iterator[dict[str, Any]]:
    """The rows of a task, each as soon as its process has it."""
    command = [sys.executable, "-m", "benchmarks.scaling.virtual", *task]
    settings = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(NUM_DEVICES)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | settings) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                yield json.loads(line)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise RuntimeError(f"{shlex.join(command)} ended with {process.returncode}.")


def main(task: str, *words: str) -> None:
    """Prints the rows of a task."""
    from benchmarks.scaling import devices, on_paper

    if task == "devices":
        rows = devices.measure(words)
    else:
        *numbers, part = words
        rows = on_paper.measure(Size(*map(int, numbers)), (part,))
    for row in rows:
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
