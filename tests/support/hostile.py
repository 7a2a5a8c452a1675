"""Files that nobody should trust, and how much memory reading them takes."""

import io
import json
import struct
import tracemalloc
import zipfile

import numpy as np


def npy(array, **pickled):
    """The bytes of a member that holds an array."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array), **pickled)
    return file.getvalue()


def npy_header(text, version=(1, 0)):
    """The bytes of a member's beginning that says whatever it likes."""
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(text)) + text.encode("latin1")


def write(path, members, compression=zipfile.ZIP_DEFLATED):
    """An archive of the named bytes, with the right checksums."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def members_of(path):
    """What an archive holds, by name."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def with_header(members, header):
    """The same members with another header."""
    return members | {"header.npy": npy(json.dumps(header))}


def header_of(members):
    """The header of an archive's members."""
    return json.loads(str(np.load(io.BytesIO(members["header.npy"]))))


def peak_memory(call):
    """Bytes that Python and NumPy held at most, beyond those before the call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
