"""Whether the terminal is still there: SIGHUP says that it is gone, unless an operator sends it."""

import os
import signal
from typing import Final

_PATH: Final = "/dev/tty"


class Terminal:
    """The terminal that controls this process, if there is one when this is made.

    Where SIGHUP is ignored then, as ``nohup`` has it, the end of the terminal does not matter.
    """

    def __init__(self) -> None:
        self._matters = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _is_there()

    def is_gone(self) -> bool:
        """There was one that mattered, and it was closed."""
        return self._matters and not _is_there()


def _is_there() -> bool:
    try:
        os.close(os.open(_PATH, os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
