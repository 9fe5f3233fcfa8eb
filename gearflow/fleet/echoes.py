"""Signals that come twice.

Some send one to the process and to its group, as ``timeout`` does. What comes again within a moment is the
echo of the first one.
"""

import math
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
