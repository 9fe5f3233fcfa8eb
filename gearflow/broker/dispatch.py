"""Which sleeping worker is woken for a job, and who follows if that one does not come.

A sleeper is woken for each job that is queued. It is expected to grab within ``PATIENCE``; one that does
not is replaced by one more sleeper, then by two, then by all, and one that goes away, or takes something
else, at once. So there is no herd, and **a job waits beside a sleeping worker that could do it only while
a wake is pending**.

GRABs that wait a moment for a job, before they are answered with NO_JOB.

A worker that has NO_JOB goes to sleep (PRE_SLEEP), is woken (NOOP), and asks again: where the next job comes
soon, as from a client that makes one call after another, that is two packets each way and two turns of
waiting for nothing. So the answer waits for up to ``LINGER``, and a job that comes meanwhile is the answer.

Only of a worker that *expects* a job: one that was called within ``LINGER`` after the last NO_JOB, and whose
GRABs have not waited in vain since. A worker of several servers, which asks one after the other, is not held
up at one that has nothing for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

from gearflow.broker.functions import FunctionQueue
from gearflow.broker.session import Session

LINGER: Final = 0.002
"""Seconds: a few round trips on one machine, and less than a worker of several servers would miss."""


class Grabs:
    """The GRABs that wait: one of a session at most, the last thing that it said. Owns that table.

    Their sessions are in ``grabbers`` of each function that they offer.
    """

    def __init__(self) -> None:
        # By session: until when, and the kind of the GRAB. All wait as long, so that is the order.
        self.waiting: dict[Session, tuple[float, int]] = {}

    def wait(self, session: Session, kind: int, now: float) -> None:
        """Hold the answer back."""
        self.waiting[session] = now + LINGER, kind
        for function in session.abilities:
            function.grabbers[session] = None

    def pop(self, session: Session) -> int:
        """The kind of the session's GRAB, which does not wait any more."""
        for function in session.abilities:
            del function.grabbers[session]
        return self.waiting.pop(session)[1]

    def called(self, session: Session, now: float) -> None:
        """A worker without a job is called because there is one."""
        if now - session.no_job_at <= LINGER:
            session.expects = True

    def overdue(self, now: float) -> list[Session]:
        """The sessions whose GRABs have waited in vain."""
        sessions: list[Session] = []
        for session, (deadline, _) in self.waiting.items():
            if deadline > now:
                break
            session.expects = False
            sessions.append(session)
        return sessions

    def next_due(self) -> float | None:
        """When the next one has."""
        return next(iter(self.waiting.values()))[0] if self.waiting else None


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
