"""Where the records of a folder come from: by which commands, on which software."""

import dataclasses
import functools
import json
import platform
import shlex
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import tyro

from benchmarks.tools.errors import UsageError
from benchmarks.tools.folders import write_whole

FILE = "origin.json"
PREFIX = ("python", "-m", "benchmarks")
HERE = ("output", "data_dir", "cache")
"""Options that say where things are on this machine; no figure depends on them."""


class Origin(NamedTuple):
    """What is known of a folder's records beside the records.

    Attributes:
      commands: that made them, in the order they were first run.
      software: versions, and the device, where the last of these commands was first run.
      facts: what the report tells beside the records.
    """

    commands: tuple[str, ...]
    software: dict[str, str]
    facts: dict[str, Any]

    @property
    def command(self) -> str:
        """All commands, to stand between backquotes."""
        return "` and `".join(self.commands)

    def versions(self, *names: str) -> str:
        """Some of the software, such as `jax 0.10.2, numpy 2.3.1`."""
        return ", ".join(f"{name} {self.software[name]}" for name in names)


class Options(Protocol):
    """The options of a command that leaves a report."""

    def report(self, folder: Path, origin: Origin) -> None:
        """Writes pictures and pages from what stands in the folder."""


T = TypeVar("T")


def command_line(options: Any) -> str:
    """The command with these options, as a person would type it."""
    words = [*PREFIX, type(options).__name__.lower()]
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name not in HERE and value != field.default:
            words.append(f"--{field.name.replace('_', '-')}")
            several = value if isinstance(value, tuple) else (value,)
            words += [] if value is True else [str(each) for each in several]
    return shlex.join(words)


def name_of(command: str) -> str:
    """The subcommand that a command runs."""
    return shlex.split(command)[len(PREFIX)]


def add_origin(folder: Path, options: Any, facts: Callable[[], dict[str, Any]] = dict) -> None:
    """Notes what is about to add records to a folder, unless it did so before.

    Args:
      folder: of the records.
      options: of the command.
      facts: what the report tells beside the records; found once for a folder.
    """
    command = command_line(options)
    before = read_origin(folder) if (folder / FILE).exists() else Origin((), {}, facts())
    if command not in before.commands:
        commands = (*before.commands, command)
        after = before._replace(commands=commands, software=_software())
        write_whole(folder / FILE, json.dumps(after._asdict(), indent=2) + "\n")


def read_origin(folder: Path) -> Origin:
    """What `add_origin` noted.

    Raises:
      UsageError: if the folder holds no such file, or one that is damaged.
    """
    path = folder / FILE
    try:
        origin = Origin(**json.loads(path.read_bytes()))
        return origin._replace(commands=tuple(origin.commands))
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{path} must say which commands made the folder; it does not.") from error


def write_report(options: Options, folder: Path) -> None:
    """Writes the report of everything in a folder, whichever command added it.

    Args:
      options: of any of its commands; where things are on this machine is taken from them.
      folder: of the records.
    """
    origin = read_origin(folder)
    # Without `--output` and the like, so it is parsed as it was written.
    words = [shlex.split(command)[len(PREFIX) + 1 :] for command in origin.commands]
    whole = functools.reduce(_both, [tyro.cli(type(options), args=each) for each in words])
    here = {name: getattr(options, name) for name in HERE if hasattr(options, name)}
    dataclasses.replace(whole, **here).report(folder, origin)  # type: ignore[type-var]


def _both(first: T, second: T) -> T:
    """The options of two commands: what either names of a list, and else what the second says.

    None in place of a list names everything.
    """
    changes = {}
    for field in dataclasses.fields(first):  # type: ignore[arg-type]
        old, new = getattr(first, field.name), getattr(second, field.name)
        if isinstance(old, tuple) and isinstance(new, tuple):
            joined = dict.fromkeys((*old, *new))
            numbers = all(isinstance(each, (int, float)) for each in joined)
            changes[field.name] = tuple(sorted(joined) if numbers else joined)
        elif not isinstance(old, tuple) and not isinstance(new, tuple):
            changes[field.name] = new
        else:
            changes[field.name] = None
    return dataclasses.replace(first, **changes)  # type: ignore[type-var]


def _software() -> dict[str, str]:
    packages = {name: version(name) for name in ("jax", "flax", "optax", "numpy")}
    return {"Python": platform.python_version(), **packages, "device": jax.devices()[0].device_kind}
