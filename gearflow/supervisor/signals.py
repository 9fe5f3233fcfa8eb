"""Signals that come twice.

Some send one to the process and to its group, as ``timeout`` does. What comes again within a moment is the
echo of the first one.

Whether the terminal is still there: SIGHUP says that it is gone, unless an operator sends it.
"""

import math
import os
import signal
import time
from collections.abc import Callable
from typing import Final

_ECHO: Final = 0.05
"""Seconds in which the same signal is no second one. Nobody presses Ctrl-C twice that fast."""


class Echoes:
    """Tells a signal from its echo: the same one, at once. Owns state.

    Args:
        clock: In seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard: dict[int, float] = {}

    def has(self, number: int) -> bool:
        """A signal that has come is an echo. One that is not may have echoes from now on."""
        now = self._clock()
        is_echo = now - self._heard.get(number, -math.inf) < _ECHO
        if not is_echo:
            self._heard[number] = now
        return is_echo


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
