"""Archives of arrays with a header: written whole or not at all, and read without trusting them.

A file says itself how much it holds. Every size is checked before memory is taken for it, so that
a small file cannot ask for much, and no code in a file is ever run.
"""

import json
import os
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding

T = TypeVar("T")

DIRECTORY_LIMIT = 4096
"""Bytes of the list of members; the longest that is written here takes a few hundred."""

ALWAYS_TAKEN = 16 * 2**20
"""Bytes that any file may hold once it is decompressed."""

LARGEST_RATIO = 32
"""Above `ALWAYS_TAKEN`, how many times its own size a file may hold. Real values compress less."""

CHUNK = 2**20


class Archive:
    """The members of an open archive, each read at the size that the reader expects."""

    def __init__(self, file: BinaryIO, arrays: Sequence[str]):
        self.num_bytes = file.seek(0, os.SEEK_END)
        _check_directory(file)
        self._zip = zipfile.ZipFile(file)
        self._members = {member.filename: member for member in self._zip.infolist()}
        if sorted(self._zip.namelist()) != sorted(f"{name}.npy" for name in ("header", *arrays)):
            raise ValueError("The archive has other members.")
        for member in self._members.values():
            if member.flag_bits & 1 or member.compress_type not in (
                zipfile.ZIP_STORED,
                zipfile.ZIP_DEFLATED,
            ):
                raise ValueError("A member is encrypted, or compressed in another way.")

    def check_believable(self, num_bytes: int) -> None:
        """No more bytes than a file of this size may hold."""
        if num_bytes > _believable(self.num_bytes):
            raise ValueError("The file says that it holds far more than its size.")

    def header(self) -> Any:
        """What `save_archive` was given as the header."""
        member = self._members["header.npy"]
        self.check_believable(member.file_size)
        with self._zip.open(member) as source:
            shape, dtype = _array_layout(source)
            if shape != () or dtype.kind != "U" or not 0 < dtype.itemsize <= member.file_size:
                raise ValueError("The header is not text.")
            return json.loads(str(_read_exactly(source, dtype.itemsize).view(dtype)[0]))

    def read(self, name: str, num_bytes: int) -> np.ndarray:
        """An array of that many bytes."""
        member = self._members[f"{name}.npy"]
        if not num_bytes <= member.file_size <= num_bytes + DIRECTORY_LIMIT:
            raise ValueError("A member has another size than the header says.")
        with self._zip.open(member) as source:
            if _array_layout(source) != ((num_bytes,), np.dtype(np.uint8)):
                raise ValueError("An array has another shape than the header says.")
            return _read_exactly(source, num_bytes)


def save_archive(
    path: str | os.PathLike[str], header: Any, *, stands_alone: bool = False, **arrays: np.ndarray
) -> None:
    """Writes beside the final place first, then renames.

    Several processes may write the same to one place: each writes it whole, the last one stays.

    Args:
      path: the file.
      header: anything that JSON can hold.
      stands_alone: whether the reader learns all sizes from the file. Such a file is stored without
        compression where it would otherwise be too small to be believed.
      arrays: uint8 vectors by name.
    """
    path = Path(path)
    # On several machines two processes may have the same number.
    partial = path.with_name(f".{path.name}.{jax.process_index()}.{os.getpid()}")
    contents = {"header": np.array(json.dumps(header)), **arrays}
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **contents)
            held = sum(array.nbytes + DIRECTORY_LIMIT for array in contents.values())
            if stands_alone and held > _believable(file.tell()):
                file.seek(0)
                file.truncate()
                np.savez(file, allow_pickle=False, **contents)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_archive(
    path: str | os.PathLike[str],
    read: Callable[[Any, Archive], T],
    *,
    arrays: Sequence[str],
    saved_by: str,
) -> T:
    """What `read(header, archive)` makes of a file; whatever it raises means another file."""
    with open(path, "rb") as file:
        try:
            archive = Archive(file, arrays)
            return read(archive.header(), archive)
        except MemoryError:  # the file may be right and the machine too small
            raise
        except Exception as error:  # a damaged archive raises a dozen types
            raise ValueError(
                f"`path` must name a file that `{saved_by}` wrote; got {os.fspath(path)}."
            ) from error


def sizes_of(values: Any) -> tuple[int, ...]:
    """Whole numbers of at least 0 from the header of a file: a shape, or counts."""
    if any(type(value) is not int or value < 0 for value in values):
        raise ValueError("The header has something else in the place of a size.")
    return tuple(values)


def placed(array: np.ndarray, like: Any) -> jax.Array:
    """On the devices of `like`, where that is spread over a mesh; each process places its part."""
    sharding = getattr(like, "sharding", None)
    with jax.enable_x64(True):  # so that eight bytes stay eight
        if isinstance(sharding, NamedSharding) and not sharding.is_fully_addressable:
            return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])
        return jax.device_put(array, sharding if isinstance(sharding, NamedSharding) else None)


def _believable(num_bytes: int) -> int:
    return max(ALWAYS_TAKEN, LARGEST_RATIO * num_bytes)


def _check_directory(file: BinaryIO) -> None:
    """The list of members is short, so that `zipfile` reads no more than a few of them."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - 98))
    start, tail = file.tell(), file.read()
    signature, *_, length, _, comment = struct.unpack("<4s4H2LH", tail[-22:])
    if signature != b"PK\x05\x06" or comment:
        raise ValueError("The file does not end as an archive does.")
    lengths = [length]
    if tail[-42:-38] == b"PK\x06\x07":  # past 4 GB a longer record stands before this one
        (place,) = struct.unpack("<Q", tail[-34:-26])
        if place != start:
            raise ValueError("The longer record is not where it belongs.")
        lengths += struct.unpack("<Q", tail[40:48])
    if max(lengths) > DIRECTORY_LIMIT:
        raise ValueError("The archive lists too many members.")


def _array_layout(source: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype, as the first bytes of a member say."""
    if np.lib.format.read_magic(source) != (1, 0):
        raise ValueError("The array is stored in another version of its format.")
    shape, _, dtype = np.lib.format.read_array_header_1_0(source)
    return shape, dtype


def _read_exactly(source: Any, num_bytes: int) -> np.ndarray:
    """So many bytes and no more; `zipfile` compares their checksum at the end."""
    array = np.empty(num_bytes, np.uint8)
    for start in range(0, num_bytes, CHUNK):
        part = array.data[start : start + CHUNK]
        if source.readinto(part) != len(part):
            raise ValueError("A member ends too early.")
    if source.read(1):
        raise ValueError("A member holds more than it says.")
    return array
