"""Signals that come twice, and whether the terminal is still there.

Some programs send a signal to the process and to its group, as ``timeout`` does. The same signal within a
moment is the echo of the first one. SIGHUP means that the terminal is gone, unless an operator sends it.
"""

import math
import os
import signal
import time
from collections.abc import Callable
from typing import Final

_ECHO: Final = 0.05
"""A signal that repeats within this time (seconds) is ignored. Nobody presses Ctrl-C twice that fast."""


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


def _is_there() -> bool:
    try:
        os.close(os.open(_PATH, os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


class Terminal:
    """The terminal that controls this process, if there is one when this is made.

    Where SIGHUP is ignored then, as ``nohup`` has it, the end of the terminal does not matter. ``is_there``
    returns whether a terminal controls this process now.
    """

    def __init__(self, is_there: Callable[[], bool] = _is_there) -> None:
        self._is_there = is_there
        self._matters = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and is_there()

    def is_gone(self) -> bool:
        """There was one that mattered, and it was closed."""
        return self._matters and not self._is_there()
