"""What a person did that the benchmarks cannot do, told in one sentence."""

import sys
from collections.abc import Collection


class UsageError(Exception):
    """Bad input: its text is one sentence for the person at the command line."""


def note(words: str) -> None:
    """Tells the person at the command line what a run found and mended by itself."""
    print(f"note: {words}", file=sys.stderr)


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """One of a few words."""
    if value not in choices:
        raise UsageError(f"`{name}` must be one of {', '.join(choices)}; got '{value}'.")


def check_share(name: str, value: float) -> None:
    """A share of something, that is neither nothing nor all of it."""
    if not 0 < value < 1:
        raise UsageError(f"`{name}` must lie between 0 and 1; got {value:g}.")


def check_at_least(name: str, value: int, minimum: int) -> None:
    """A count."""
    if value < minimum:
        raise UsageError(f"`{name}` must be at least {minimum}; got {value}.")
