"""A logger for events that others cause, and that may come in any number.

The first ``FEW`` records of a cause within a second are logged as they are. If more come, that is a burst:
its records are counted. The last one with the count follows after a second, then after longer and longer
periods up to ``LONGEST``, until a period passes without one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping
from typing import Final

FEW: Final = 5
"""Records of one cause within a second that are logged as they are."""

LONGEST: Final = 10.0
"""The longest period for which a burst is counted, in seconds."""

MOST: Final = 100
"""Causes that have counts of their own at a time. More of them share one."""

_SECOND: Final = 1.0


class _Burst:
    """The records of one cause in the present period."""

    __slots__ = ("begun", "last", "left_out", "logged", "period")

    def __init__(self, now: float) -> None:
        self.begun = now
        self.period = _SECOND
        self.logged = 0
        self.left_out = 0
        self.last: tuple[int, str, tuple[object, ...], Mapping[str, object]] = (0, "", (), {})


class BurstLog:
    """Logs events, and counts the rest of a burst. Owns the counts. Single-threaded.

    Args:
        logger: Where the records go.
        time: A monotonic clock, in seconds.
        call_later: Calls a function once after so many seconds.
    """

    def __init__(
        self,
        logger: logging.Logger,
        time: Callable[[], float],
        call_later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self._logger = logger
        self._time = time
        self._call_later = call_later
        self._bursts: dict[Hashable, _Burst] = {}
        self._is_timed = False

    def log(
        self,
        level: int,
        message: str,
        *args: object,
        cause: Hashable = None,
        extra: Mapping[str, object] | None = None,
        exc_info: BaseException | None = None,
    ) -> bool:
        """Log a record as ``Logger.log`` does, unless it belongs to a burst. Returns whether it does not.

        Records with the same ``cause`` belong together. By default that is the message without its arguments.
        """
        if not self._logger.isEnabledFor(level):
            return True
        burst = self._burst(message if cause is None else cause)
        if burst.logged < FEW:
            burst.logged += 1
            self._logger.log(level, message, *args, extra=extra, exc_info=exc_info)
            return True
        burst.left_out += 1
        burst.last = level, message, args, extra or {}
        return False

    def warning(self, message: str, *args: object, **fields: object) -> None:
        """Log a warning with these fields."""
        self.log(logging.WARNING, message, *args, extra=fields)

    def flush(self) -> None:
        """Log all counts now, and forget them."""
        now = self._time()
        for burst in self._bursts.values():
            self._log_count(burst, now)
        self._bursts.clear()

    def _burst(self, cause: Hashable) -> _Burst:
        if cause not in self._bursts and len(self._bursts) >= MOST:
            cause = None
        burst = self._bursts.get(cause)
        if burst is None:
            burst = self._bursts[cause] = _Burst(self._time())
            self._set_timer()
        return burst

    def _set_timer(self) -> None:
        if not self._is_timed and self._bursts:
            self._is_timed = True
            self._call_later(_SECOND, self._on_timer)

    def _on_timer(self) -> None:
        """End the periods that are over."""
        self._is_timed = False
        now = self._time()
        for cause, burst in list(self._bursts.items()):
            if now < burst.begun + burst.period:
                continue
            if burst.left_out:
                self._log_count(burst, now)
                burst.begun = now
                burst.period = min(2 * burst.period, LONGEST)
            else:
                del self._bursts[cause]
        self._set_timer()

    def _log_count(self, burst: _Burst, now: float) -> None:
        if not burst.left_out:
            return
        level, message, args, extra = burst.last
        fields = {**extra, "count": burst.left_out, "seconds": round(now - burst.begun, 1)}
        self._logger.log(level, "repeated: " + message, *args, extra=fields)
        burst.left_out = 0
