"""Files of patches and masks that were written to do harm, or damaged in any way."""

import functools
import json
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hostile import (
    header_of,
    members_of,
    npy,
    npy_header,
    peak_memory,
    with_header,
    write,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import sapsel_jax as sap
from sapsel_jax._base import archives
from sapsel_jax._updates.patches import check_patch

FUZZ = Path(__file__).parents[1] / "support" / "fuzz_files.py"
BEFORE = {"a": np.arange(40, dtype=np.float32), "b": np.arange(3.0)}
AFTER = {"a": np.where(np.arange(40) % 9, BEFORE["a"], -1), "b": np.array([0, 1, 9.0])}
MASK = {"a": np.arange(40) % 3 == 0, "b": np.array([True, False, True])}
MEGABYTE = 2**20


@pytest.fixture
def patch_file(tmp_path):
    path = tmp_path / "a.patch"
    sap.save_patch(path, sap.make_patch(BEFORE, AFTER))
    return path


@pytest.fixture
def mask_file(tmp_path):
    path = tmp_path / "a.mask"
    sap.save_mask(path, MASK)
    return path


def check_refused(path, load, saved_by):
    """A ValueError that names the file, after next to no memory."""

    def call():
        with pytest.raises(ValueError, match="`path` must name") as raised:
            load(path)
        assert str(raised.value) == f"`path` must name a file that `{saved_by}` wrote; got {path}."

    assert peak_memory(call) < 40 * MEGABYTE


check_no_patch = functools.partial(check_refused, load=sap.load_patch, saved_by="save_patch")
check_no_mask = functools.partial(
    check_refused, load=functools.partial(sap.load_mask, like=MASK), saved_by="save_mask"
)


def leaf(members, place=0, **parts):
    """The members with other entries in one leaf of a patch's header."""
    names = ("path", "shape", "dtype", "count", "coding", "num_bytes")
    header = header_of(members)
    old = dict(zip(names, header["leaves"][place], strict=True))
    header["leaves"][place] = list((old | parts).values())
    return with_header(members, header)


ZEROS = npy(np.zeros(24 * MEGABYTE, np.uint8))  # 25 kB as a file
GAPS = npy(np.full(8 * MEGABYTE, 128, np.uint8))  # one gap without an end
PATCHES = {
    "more entries than memory": lambda m: leaf(m, shape=[2**35], coding="bits", num_bytes=2**32),
    "a position for each of many bits": lambda m: (
        leaf(m, shape=[192 * MEGABYTE], coding="bits", num_bytes=24 * MEGABYTE)
        | {"positions.npy": ZEROS}
    ),
    "many positions without values": lambda m: (
        leaf(
            m,
            shape=[24 * MEGABYTE],
            coding="gaps",
            count=24 * MEGABYTE,
            num_bytes=24 * MEGABYTE,
        )
        | {"positions.npy": ZEROS}
    ),
    "much to be decompressed": lambda m: (
        leaf(m, shape=[6 * MEGABYTE], count=6 * MEGABYTE) | {"old.npy": ZEROS}
    ),
    "a gap without end": lambda m: (
        leaf(m, coding="gaps", num_bytes=8 * MEGABYTE) | {"positions.npy": GAPS}
    ),
    "an array that says it is large": lambda m: (
        m | {"old.npy": npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (2**40,), }")}
    ),
    "an array of many axes": lambda m: (
        m
        | {
            "old.npy": npy_header(
                "{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776, 1048576), }"
            )
        }
    ),
    "an array in another version": lambda m: m | {"old.npy": npy_header("{", (2, 0))},
    "an array of objects": lambda m: m | {"old.npy": npy(np.array([{}]), allow_pickle=True)},
    "an array of reals": lambda m: m | {"old.npy": npy(np.zeros(5))},
    "no array": lambda m: m | {"old.npy": b"text"},
    "a pickle": lambda m: m | {"header.npy": pickle.dumps({})},
    "a header that says it is long": lambda m: (
        m
        | {"header.npy": npy_header("{'descr': '<U999999999', 'fortran_order': 0, 'shape': (), }")}
    ),
    "a long header": lambda m: m | {"header.npy": npy(" " * 6 * MEGABYTE)},
    "a deep header": lambda m: m | {"header.npy": npy("[" * 100_000)},
    "a header of several texts": lambda m: m | {"header.npy": npy(["{}", "{}"])},
    "a header of numbers": lambda m: m | {"header.npy": npy(7)},
    "one member more": lambda m: m | {"other.npy": npy(np.zeros(3))},
    "one member less": lambda m: {name: m[name] for name in m if name != "new.npy"},
    "many members": lambda m: m | {f"{i}.npy": b"" for i in range(2000)},
    "a negative size": lambda m: leaf(m, shape=[-40]),
    "a size that is no integer": lambda m: leaf(m, shape=[40.0]),
    "a size past 63 bits": lambda m: leaf(m, shape=[2**40, 2**40]),
    "a count that is a bool": lambda m: leaf(m, place=1, count=True),
    "another coding": lambda m: leaf(m, coding="words"),
    "one count more": lambda m: leaf(m, count=6),
    "a dtype of objects": lambda m: leaf(m, dtype="object"),
    "a dtype with fields": lambda m: leaf(m, dtype="f4,f4"),
    "a dtype without bytes": lambda m: leaf(m, dtype="V0"),
    "a dtype of 16 bytes": lambda m: leaf(m, dtype="longdouble"),
    "a path that is no text": lambda m: leaf(m, path=7),
    "a short fingerprint": lambda m: with_header(m, header_of(m) | {"before": "00"}),
    "a fingerprint that is no text": lambda m: with_header(m, header_of(m) | {"after": 7}),
    "no leaves": lambda m: with_header(m, header_of(m) | {"leaves": None}),
    "another kind": lambda m: with_header(m, header_of(m) | {"kind": "sapsel_jax patch 9"}),
}


@pytest.mark.parametrize("name", PATCHES)
def test_a_hostile_patch_is_refused_before_memory_is_taken_for_it(patch_file, name):
    members = members_of(patch_file)
    write(patch_file, members)
    sap.load_patch(patch_file)  # written like this it is right
    write(patch_file, PATCHES[name](members))
    check_no_patch(patch_file)


MASKS = {
    "more entries than memory": lambda m: with_header(
        m, header_of(m) | {"leaves": [["a", [2**40]], ["b", [3]]]}
    ),
    "much to be decompressed": lambda m: m | {"bits.npy": ZEROS},
    "an array that says it is large": lambda m: (
        m
        | {
            "bits.npy": npy_header(
                "{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776,), }"
            )
        }
    ),
    "an array of objects": lambda m: m | {"bits.npy": npy(np.array([{}]), allow_pickle=True)},
    "a long header": lambda m: m | {"header.npy": npy(" " * 6 * MEGABYTE)},
    "one member more": lambda m: m | {"other.npy": npy(np.zeros(3))},
    "no leaves": lambda m: with_header(m, header_of(m) | {"leaves": 7}),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_hostile_mask_is_refused_before_memory_is_taken_for_it(mask_file, name):
    members = MASKS[name](members_of(mask_file))
    write(mask_file, members)
    if name == "more entries than memory":  # a right mask, of another model
        with pytest.raises(ValueError, match=re.escape("at 'a' they are bool[1099511627776] and")):
            sap.load_mask(mask_file, MASK)
    else:
        check_no_mask(mask_file)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_ways_of_compression_are_refused(patch_file, method):
    write(patch_file, members_of(patch_file), method)
    check_no_patch(patch_file)


def test_what_the_archive_says_of_itself_is_checked(patch_file):
    whole = patch_file.read_bytes()
    directory = whole.index(b"PK\x01\x02")
    for offset, value in {
        8: b"\x01",  # encrypted
        24: b"\xff\xff\xff\x7f",  # a member of 2 GB
        16: b"\x00\x00\x00\x00",  # another checksum
    }.items():
        changed = bytearray(whole)
        changed[directory + offset : directory + offset + len(value)] = value
        patch_file.write_bytes(changed)
        check_no_patch(patch_file)
    for damaged in (
        whole + b"more",  # something after the end
        whole[:-2] + b"\x04\x00text",  # a comment
        whole[:-10] + b"\xff\xff\xff\x00" + whole[-6:],  # a directory of 16 MB
        b"",
        whole[-22:],
    ):
        patch_file.write_bytes(damaged)
        check_no_patch(patch_file)


def test_the_longer_records_of_large_archives_are_read(patch_file, monkeypatch):
    """Past 4 GB an archive ends otherwise; here it does so at any size."""
    members = members_of(patch_file)
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    write(patch_file, members)
    whole = patch_file.read_bytes()
    assert whole[-42:-38] == b"PK\x06\x07"
    assert sap.load_patch(patch_file).num_changed == 6
    for place, value in (
        (-98 + 40, 2**31),  # a directory of 2 GB
        (-34, 5),  # the longer record elsewhere
    ):
        changed = bytearray(whole)
        changed[place : place + 8] = value.to_bytes(8, "little")
        patch_file.write_bytes(changed)
        check_no_patch(patch_file)


def test_two_members_of_one_name_are_refused(patch_file):
    members = members_of(patch_file)
    with (
        zipfile.ZipFile(patch_file, "a") as archive,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        archive.writestr("old.npy", members["old.npy"])
    check_no_patch(patch_file)


def test_no_code_in_a_file_is_run(patch_file, mask_file, tmp_path):
    class Touch:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "run",))

    bad = npy(np.array([Touch()]), allow_pickle=True)
    for path, check in ((patch_file, check_no_patch), (mask_file, check_no_mask)):
        members = members_of(path)
        for name in members:
            write(path, members | {name: bad})
            check(path)
    assert not (tmp_path / "run").exists()
    assert pickle.loads(pickle.dumps(Touch())) is None
    assert (tmp_path / "run").exists()  # unpickling it would have done that


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 2**70)
    | st.floats()
    | st.sampled_from(["a", "bits", "gaps", "float32", "complex128", "V8", "x" * 64, "0" * 64]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.just("kind"), inner),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_any_header_gives_a_patch_that_fits_together_or_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "header.patch"
    sap.save_patch(path, sap.make_patch(BEFORE, AFTER))
    members = members_of(path)
    header = header_of(members)
    place, value = data.draw(st.integers(0, 15)), data.draw(json_values)
    if place < 12:
        header["leaves"][place // 6][place % 6] = value
    else:
        header[("kind", "before", "after", "leaves")[place - 12]] = value
    write(path, with_header(members, header))
    try:
        patch = sap.load_patch(path)
    except ValueError:
        with pytest.raises(ValueError, match=re.escape(f"wrote; got {path}.")):
            sap.load_patch(path)
    else:
        check_patch(patch)


def test_what_compresses_too_well_to_be_believed_is_stored_as_it_is(tmp_path, monkeypatch):
    """A constant in the place of a constant: honest, and a thousand times larger than its file."""
    monkeypatch.setattr(archives, "ALWAYS_TAKEN", MEGABYTE // 2)
    before, after = np.zeros(MEGABYTE // 8), np.ones(MEGABYTE // 8)
    path = tmp_path / "a.patch"
    sap.save_patch(path, sap.make_patch(before, after))
    assert path.stat().st_size > 2 * MEGABYTE
    np.testing.assert_array_equal(sap.apply_patch(before, sap.load_patch(path)), after)
    write(path, members_of(path))
    assert path.stat().st_size < 20_000
    check_no_patch(path)
    sap.save_patch(path, sap.make_patch(before[:10_000], after[:10_000]))
    assert path.stat().st_size < 4_000
    assert sap.load_patch(path).num_changed == 10_000


def test_a_mask_takes_no_more_memory_than_its_model(tmp_path, monkeypatch):
    """However well it compresses."""
    monkeypatch.setattr(archives, "ALWAYS_TAKEN", 10_000)
    path, like = tmp_path / "a.mask", np.ones(2**20, bool)
    sap.save_mask(path, like)
    assert path.stat().st_size < 2_000
    assert sap.load_mask(path, like).all()

    def call():
        with pytest.raises(ValueError, match="the same shapes"):
            sap.load_mask(path, np.ones(3))

    assert peak_memory(call) < 100_000


def test_reading_takes_memory_like_the_patch_itself(tmp_path):
    size = 2 * MEGABYTE
    before = np.zeros(size, np.int8)
    for step in (1, 9, 40):
        after = before.copy()
        after[::step] = np.random.default_rng(0).integers(1, 127, after[::step].size)
        path = tmp_path / "a.patch"
        sap.save_patch(path, sap.make_patch(before, after))
        kept = 8 * after[::step].size + 2 * after[::step].size
        assert peak_memory(functools.partial(sap.load_patch, path)) < 2 * kept + size + 40 * 2**20


@pytest.mark.slow
def test_four_thousand_mutated_files_are_read_to_the_same_values_or_refused(tmp_path):
    """In a process that may take 512 MiB more than it has at the start."""
    done = subprocess.run(
        [sys.executable, FUZZ, tmp_path, "4000"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads(done.stdout)
    assert counts["refused"] > 3000
    assert counts["refused"] + counts["same"] == 4000
