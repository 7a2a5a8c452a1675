"""Reads thousands of damaged patches and masks under a limit on memory.

    python fuzz_files.py FOLDER COUNT

A file is damaged in one of two ways: bytes of it are changed, or it is rewritten with other
contents and the right checksums. A process that takes too much memory ends with a MemoryError, one
that meets any other exception than a ValueError with that.
"""

import json
import resource
import sys
from pathlib import Path

import numpy as np
from hostile import members_of, write

import sapsel_jax as sap

HEADROOM = 512 * 2**20
BEFORE = {"a": np.arange(400, dtype=np.float32), "b": np.arange(30.0)}
AFTER = {"a": np.where(np.arange(400) % 90, BEFORE["a"], -1), "b": BEFORE["b"] + 1}
MASK = {name: leaf % 3 == 0 for name, leaf in BEFORE.items()}


def limit_memory():
    """No more than now, and a little."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    allowed = pages * resource.getpagesize() + HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
    try:
        np.ones(2 * HEADROOM, np.uint8)
    except MemoryError:
        return
    raise RuntimeError("The limit on memory is not in force.")


def mutated(content, rng):
    """Some bytes changed, left out, put in, repeated, or put elsewhere."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        start = int(rng.integers(len(content) + 1))
        length = int(rng.integers(1, 1 + rng.choice([1, 4, 40, 400])))
        noise = rng.integers(0, 256, length, np.uint8).tobytes()
        extreme = bytes([rng.choice([0, 127, 128, 255])]) * length
        other = int(rng.integers(len(content) + 1))
        match rng.integers(6):
            case 0:
                content[start : start + length] = noise[: len(content[start : start + length])]
            case 1:
                content[start : start + length] = extreme[: len(content[start : start + length])]
            case 2:
                del content[start : start + length]
            case 3:
                content[start:start] = noise
            case 4:
                content[start : start + length] = content[other : other + length]
            case 5:
                del content[start:]
    return bytes(content)


def same(got, want):
    """Whether two trees have the same bits."""
    return all(np.asarray(got[name]).tobytes() == np.asarray(want[name]).tobytes() for name in want)


def patched(path):
    """Whether the patch in a file does what it did."""
    return same(sap.apply_patch(BEFORE, sap.load_patch(path)), AFTER)


def masked(path):
    """Whether the mask in a file is what it was."""
    return same(sap.load_mask(path, BEFORE), MASK)


def main(folder, count):
    """Prints how many files were refused and how many were read to the same values."""
    rng = np.random.default_rng(0)
    path = folder / "whole"
    sap.save_patch(path, sap.make_patch(BEFORE, AFTER))
    patch, patch_members = path.read_bytes(), members_of(path)
    sap.save_mask(path, MASK)
    mask = path.read_bytes()
    if not masked(path):
        raise RuntimeError("A whole file is not read.")
    limit_memory()
    counts = {"refused": 0, "same": 0}
    for trial in range(count):
        path = folder / f"damaged{trial % 7}"
        read = masked if trial % 3 == 0 else patched
        if trial % 3 == 2:
            name = rng.choice(list(patch_members))
            write(path, patch_members | {name: mutated(patch_members[name], rng)})
        else:
            path.write_bytes(mutated(mask if read is masked else patch, rng))
        try:
            if not read(path):
                raise RuntimeError(f"Trial {trial} was read to other values.")
            counts["same"] += 1
        except ValueError as error:
            if path.name not in str(error) and not str(error).startswith("`patch` "):
                raise RuntimeError(f"Trial {trial} was refused without its name.") from error
            counts["refused"] += 1
    print(json.dumps(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
