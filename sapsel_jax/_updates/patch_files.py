"""Patches as files: how positions are packed, and how a file is read without trusting it."""

import math
import os
from typing import Any

import numpy as np

from sapsel_jax._base.archives import Archive, load_archive, save_archive, sizes_of
from sapsel_jax._base.bits import dtype_named, word_of
from sapsel_jax._updates.patches import LeafPatch, Patch, check_patch

FILE_KIND = "sapsel_jax patch 1"

LONGEST_GAP = 9
"""Bytes that a gap between two positions may take: 63 bits."""

BLOCK = 2**20


def save_patch(path: str | os.PathLike[str], patch: Patch) -> None:
    """Writes a patch to a file: the position, the old and the new bits of each changed entry.

    Positions are stored as one bit per entry of the leaf, or as the gaps between them with one byte
    or more each, whichever is smaller. The file is first written beside its final place and then
    renamed: an interrupted call leaves no part of a patch at `path`.

    Args:
      path: where to write, replacing what is there.
      patch: a `Patch`, from `make_patch`.

    Returns:
      None.

    Raises:
      TypeError: if `patch` is no `Patch`.
      ValueError: if the patch is damaged.
      OSError: if the file cannot be written.

    Cost: about 9 to 10 bytes for each changed entry, where 1 % of float32 parameters changed.

    Source: own.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> patch = sap.make_patch(jnp.zeros(9), jnp.zeros(9).at[4].set(1.0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     sap.save_patch(folder + "/a.patch", patch)
      ...     print(sap.load_patch(folder + "/a.patch").num_changed)
      1
    """
    check_patch(patch)
    packed = [_pack(leaf.positions, math.prod(leaf.shape)) for leaf in patch.leaves]
    header = {
        "kind": FILE_KIND,
        "before": patch.before,
        "after": patch.after,
        "leaves": [
            [leaf.path, list(leaf.shape), leaf.dtype, leaf.positions.size, coding, positions.size]
            for leaf, (coding, positions) in zip(patch.leaves, packed, strict=True)
        ],
    }
    save_archive(
        path,
        header,
        stands_alone=True,
        positions=_join([positions for _, positions in packed]),
        old=_join([leaf.old for leaf in patch.leaves]),
        new=_join([leaf.new for leaf in patch.leaves]),
    )


def load_patch(path: str | os.PathLike[str]) -> Patch:
    """Reads a patch that `save_patch` wrote.

    No code in the file is run. A damaged file is refused by its checksums. A hostile file is
    refused before it takes more than 32 times its size in memory, or more than 16 MiB if it is
    small.

    Args:
      path: the file.

    Returns:
      A `Patch`. `apply_patch` and `revert_patch` compare its fingerprints with the parameters.

    Raises:
      ValueError: if the file is damaged or no patch.
      OSError: if the file cannot be read.

    Cost: one pass over the file; memory for the changed entries.

    Source: own.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> before = {"w": jnp.zeros(3)}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     patch = sap.make_patch(before, {"w": jnp.array([0.0, 2.0, 0.0])})
      ...     sap.save_patch(folder + "/a.patch", patch)
      ...     print(sap.apply_patch(before, sap.load_patch(folder + "/a.patch")))
      {'w': Array([0., 2., 0.], dtype=float32)}
    """
    return load_archive(path, _read, arrays=("positions", "old", "new"), saved_by="save_patch")


def _read(header: Any, archive: Archive) -> Patch:
    if header["kind"] != FILE_KIND:
        raise ValueError("The file is of another kind.")
    # What the header says is made consistent first, and only then read at the sizes it gives.
    parts, num_positions, num_values = [], 0, 0
    for path, sizes, name, count, coding, num_bytes in header["leaves"]:
        shape, itemsize = sizes_of(sizes), dtype_named(name).itemsize
        count, num_bytes = sizes_of([count, num_bytes])
        size = math.prod(shape)
        if size >= 2**63 or not isinstance(path, str):
            raise ValueError("A leaf is impossible.")
        if coding not in ("bits", "gaps") or count > min(size, 8 * num_bytes):
            raise ValueError("The positions do not fit their leaf.")
        if coding == "bits" and num_bytes != -(-size // 8):
            raise ValueError("There is not one bit for each entry.")
        parts.append((path, shape, name, count, coding, num_bytes, itemsize))
        num_positions += num_bytes
        num_values += count * itemsize
    archive.check_believable(num_positions + 2 * num_values)
    sources = {
        "positions": archive.read("positions", num_positions),
        "old": archive.read("old", num_values),
        "new": archive.read("new", num_values),
    }

    def take(name: str, num_bytes: int) -> np.ndarray:
        taken, sources[name] = np.split(sources[name], [num_bytes])
        return taken

    leaves = []
    for path, shape, dtype, count, coding, num_bytes, itemsize in parts:
        positions = _unpack(take("positions", num_bytes), math.prod(shape), count, coding)
        word = word_of(itemsize)
        words = [
            take(side, count * itemsize).view(word).reshape(count, itemsize // word.itemsize)
            for side in ("old", "new")
        ]
        leaves.append(LeafPatch(path, shape, dtype, positions, *words))
    patch = Patch(tuple(leaves), *(_hexadecimal(header[side]) for side in ("before", "after")))
    check_patch(patch)
    return patch


def _hexadecimal(fingerprint: Any) -> str:
    if not isinstance(fingerprint, str) or len(bytes.fromhex(fingerprint)) != 32:
        raise ValueError("A fingerprint is none.")
    return fingerprint


def _join(parts: list[np.ndarray]) -> np.ndarray:
    flat = [np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in parts]
    return np.concatenate(flat or [np.zeros(0, np.uint8)])


def _pack(positions: np.ndarray, size: int) -> tuple[str, np.ndarray]:
    """The positions as bits or as gaps, whichever takes fewer bytes."""
    gaps = np.diff(positions, prepend=-1) - 1
    lengths = np.ones(gaps.size, np.int64)
    while (longer := gaps >> (7 * lengths) > 0).any():
        lengths += longer
    if lengths.sum() >= -(-size // 8):
        selected = np.zeros(size, bool)
        selected[positions] = True
        return "bits", np.packbits(selected)
    # Seven bits of a gap to a byte, the lowest first; the high bit says that more follow.
    starts = np.cumsum(lengths) - lengths
    packed = np.zeros(lengths.sum(), np.uint8)
    for digit in range(lengths.max(initial=0)):
        own = lengths > digit
        more = (lengths[own] > digit + 1) * 128
        packed[starts[own] + digit] = (gaps[own] >> (7 * digit)) % 128 + more
    return "gaps", packed


def _unpack(packed: np.ndarray, size: int, count: int, coding: str) -> np.ndarray:
    """The positions, of which there must be `count`."""
    if coding == "bits":
        selected = np.unpackbits(packed, count=size).view(bool)
        if np.count_nonzero(selected) != count:
            raise ValueError("The header says another number of positions.")
        return np.flatnonzero(selected)
    positions, filled, start = np.zeros(count, np.int64), 0, 0
    while (
        start < packed.size
    ):  # a block at a time, so that it takes little memory beside the result
        block = packed[start : start + BLOCK]
        ends = np.flatnonzero(block < 128)
        lengths = np.diff(ends, prepend=-1)
        if not 0 < lengths.max(initial=0) <= LONGEST_GAP or filled + ends.size > count:
            raise ValueError("A gap is too long, or there are too many.")
        for digit in range(lengths.max()):
            own = np.flatnonzero(lengths > digit)
            digits = block[ends[own] + 1 - lengths[own] + digit] % 128
            positions[filled + own] += digits.astype(np.int64) << (7 * digit)
        filled, start = filled + ends.size, start + int(ends[-1]) + 1
    if filled != count:
        raise ValueError("The header says another number of positions.")
    positions += 1
    np.cumsum(positions, out=positions)
    return positions - 1
