"""Whether the terminal is still there: SIGHUP says that it is gone, unless an operator sends it."""

import os
from typing import Final

_PATH: Final = "/dev/tty"


class Terminal:
    """The terminal that controlled this process when this was made, if there was one."""

    def __init__(self) -> None:
        self._was_there = _is_there()

    def is_gone(self) -> bool:
        """There was one, and it was closed."""
        return self._was_there and not _is_there()


def _is_there() -> bool:
    try:
        os.close(os.open(_PATH, os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
