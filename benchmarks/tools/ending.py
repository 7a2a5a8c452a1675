"""How a command ends early: in one sentence, with an exit code that says why.

This module imports nothing that takes long, so that Ctrl-C works while the others are imported.
"""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from benchmarks.tools.errors import UsageError


class Terminated(KeyboardInterrupt):
    """A signal other than Ctrl-C's asked the command to stop; its number is the argument."""


def stop_in_order() -> None:
    """Lets SIGTERM and SIGHUP end this process as Ctrl-C does, after it has tidied up."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # SIGHUP is not known everywhere
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _stop)


def finish(code: int) -> None:
    """Ends this process. Nothing is left to tidy up, so signals need not interrupt that."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    sys.exit(code)


@contextlib.contextmanager
def noting(left: Callable[[], str]) -> Iterator[None]:
    """Adds to what interrupts the block what it leaves behind."""
    try:
        yield
    except (KeyboardInterrupt, OSError) as error:
        error.add_note(left())
        raise


def exit_code(work: Callable[[], None]) -> int:
    """Does the work; where it ends early, prints one sentence. Returns the exit code.

    It is 2 for bad input and for files that cannot be read or written, 130 after Ctrl-C, 143 after
    SIGTERM.
    """
    try:
        work()
        sys.stdout.flush()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = "" if error.filename is None else f": {error.filename}"
        told = [f"{error.strerror or error}{where}", *_notes(error)]
        print(f"error: {'; '.join(told)}.", file=sys.stderr)
        _let_go_of_output()
        return 2
    except KeyboardInterrupt as stop:
        (number,) = stop.args if isinstance(stop, Terminated) else (signal.SIGINT,)
        word = "interrupted" if number == signal.SIGINT else "terminated"
        print(f"{word}; {'; '.join(_notes(stop)) or 'nothing was written'}.", file=sys.stderr)
        return 128 + number
    return 0


def _notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


def _let_go_of_output() -> None:
    """So that output which cannot be written is not tried once more when Python exits."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            sys.stdout.close()


def _stop(number: int, frame: FrameType | None) -> None:
    raise Terminated(number)
