"""How a command ends early: in one sentence, with an exit code that says why.

This module imports nothing that takes long, so that Ctrl-C works while the others are imported.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from benchmarks.tools.errors import UsageError

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # SIGHUP is not known everywhere


_noticed = threading.Event()
"""Whether what a signal raised has come out of the work that it was to stop."""


class Stopped(KeyboardInterrupt):
    """A signal asked the command to stop; its number is the argument."""


def stop_in_order() -> None:
    """Lets Ctrl-C, SIGTERM and SIGHUP end this process after it has tidied up."""
    sys.unraisablehook = _dropped
    for name in SIGNALS:
        number = getattr(signal, name, None)
        as_ever = (signal.SIG_DFL, signal.default_int_handler)
        if number is not None and signal.getsignal(number) in as_ever:
            signal.signal(number, _stop)


def finish(code: int) -> None:
    """Ends this process. Nothing is left to tidy up, so signals need not interrupt that."""
    for name in SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if code > 128:
        # XLA's threads may still be at work; taking the interpreter down under them can crash.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Stands around a command's work, as close as can be, to notice that a signal stops it."""
    try:
        yield
    except KeyboardInterrupt:
        _noticed.set()
        raise


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
    SIGTERM, 129 after SIGHUP. Other errors are the program's own: their traceback ends it with 1.
    """
    try:
        with stoppable():
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
        (number,) = stop.args if isinstance(stop, Stopped) else (signal.SIGINT,)
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
    if _importing(frame):
        # An exception here could end the process inside a compiled module.
        _ask_again(0.05, number)
        return
    # Should something catch what is raised here, as some callbacks of compiled code do.
    _ask_again(2.0, number)
    raise Stopped(number)


def _dropped(unraisable: Any) -> None:
    """Python drops what is raised in a destructor or while it collects garbage."""
    if isinstance(unraisable.exc_value, Stopped):
        _ask_again(0.05, *unraisable.exc_value.args)
    else:
        sys.__unraisablehook__(unraisable)


def _ask_again(seconds: float, number: int) -> None:
    def ask() -> None:
        if not _noticed.is_set():
            os.kill(os.getpid(), number)

    timer = threading.Timer(seconds, ask)
    timer.daemon = True
    timer.start()


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
