"""The rows that the study keeps, and the files they stand in."""

from pathlib import Path
from typing import ClassVar, NamedTuple

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from benchmarks.tools.records import Journal, Row


class TimeRow(Row):
    """An operation at one size of a sweep."""

    key: ClassVar = ("sweep", "size", "operation")

    sweep: str
    size: PositiveInt
    operation: str
    entries: PositiveInt
    seconds: PositiveFloat
    """The median of the runs."""
    runs: list[PositiveFloat]
    argument_bytes: NonNegativeInt | None
    extra_bytes: NonNegativeInt | None
    """Of the results and of what a program holds meanwhile; None for what is no program."""


class DeviceRow(Row):
    """A program compiled for so many virtual devices."""

    key: ClassVar = ("operation", "devices")

    operation: str
    devices: PositiveInt
    floating_point_operations: PositiveFloat
    """Of one device; those of a loop's body count once."""
    argument_bytes: NonNegativeInt
    extra_bytes: NonNegativeInt
    collectives: list[str]


class PaperRow(Row):
    """A part of unlearning compiled for a transformer that is nowhere in memory."""

    key: ClassVar = ("blocks", "part")

    blocks: PositiveInt
    part: str
    entries: PositiveInt
    devices: PositiveInt
    argument_bytes: NonNegativeInt
    result_bytes: NonNegativeInt
    reused_bytes: NonNegativeInt
    """Of the results, in the place of arguments."""
    temporary_bytes: NonNegativeInt
    ideal_bytes: NonNegativeInt
    """An even share of all arguments."""
    trace_seconds: NonNegativeFloat
    compile_seconds: NonNegativeFloat
    collectives: list[str]


class Journals(NamedTuple):
    """The files of a folder."""

    times: Journal
    devices: Journal
    paper: Journal


def open_journals(folder: Path) -> Journals:
    """The files of a folder."""
    return Journals(
        Journal(folder / "results.jsonl", TimeRow),
        Journal(folder / "devices.jsonl", DeviceRow),
        Journal(folder / "paper.jsonl", PaperRow),
    )
