"""How every test of an error reads: what is called, the kind of error, its whole message."""

from collections.abc import Callable
from typing import Any

import pytest


def refuses(call: Callable[[], Any], kind: type[BaseException], message: str) -> None:
    """Checks that a call ends in an error of this kind with exactly this message."""
    with pytest.raises(kind) as raised:
        call()
    assert str(raised.value) == message
