"""Which sleeping worker is woken for a job, and who follows if that one does not come.

A sleeper is woken for each job that is queued. It is expected to grab within ``PATIENCE``; one that does
not is replaced by one more sleeper, then by two, then by all, and one that goes away, or takes something
else, at once. So there is no herd, and **a job waits beside a sleeping worker that could do it only while
a wake is pending**.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

from gearflow.broker.queues import FunctionQueue
from gearflow.broker.sessions import Session

PATIENCE: Final = 0.02
"""Seconds a woken worker has to grab before another is woken: over a round trip, under a human's notice."""

_ALL: Final = sys.maxsize
_NEXT_MORE: Final = {1: 2, 2: _ALL, _ALL: _ALL}
"""How many sleepers follow those that were woken and did not grab."""


class Waking:
    """The sleepers that were sent a NOOP and have not answered it. Owns that table; ``noop`` sends one."""

    def __init__(self, noop: Callable[[Session], None]) -> None:
        self._noop = noop
        # By session: deadline, the function it was woken for, and how many follow it. All have the same
        # patience, so the order of waking is the order of the deadlines.
        self.pending: dict[Session, tuple[float, FunctionQueue, int]] = {}

    def sleep(self, session: Session) -> None:
        """A worker with nothing to do goes to sleep."""
        session.asleep = True
        for function in session.abilities:
            function.sleepers[session] = None

    def rise(self, session: Session) -> None:
        """A worker does not sleep any more."""
        session.asleep = False
        for function in session.abilities:
            del function.sleepers[session]

    def wake(self, function: FunctionQueue, now: float, more: int = 1) -> None:
        """Wake the longest sleeper, and ``more`` others if it does not grab in time. There must be one."""
        session = next(iter(function.sleepers))
        self.rise(session)
        function.wakes += 1
        self.pending[session] = (now + PATIENCE, function, more)
        self._noop(session)

    def answered(self, session: Session, now: float) -> None:
        """A woken worker has done something about it; another is woken if its job waits all the same."""
        _, function, _ = self.pending.pop(session)
        function.wakes -= 1
        if function.waiting > function.wakes and function.sleepers:
            self.wake(function, now)

    def tick(self, now: float) -> None:
        """Replace those whose time is over."""
        while self.pending:
            session, (deadline, function, more) = next(iter(self.pending.items()))
            if deadline > now:
                return
            del self.pending[session]
            function.wakes -= 1
            if function.waiting:
                for _ in range(min(more, len(function.sleepers))):
                    self.wake(function, now, _NEXT_MORE[more])

    def next_due(self) -> float | None:
        """When ``tick`` has something to do."""
        return next(iter(self.pending.values()))[0] if self.pending else None
