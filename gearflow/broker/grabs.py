"""GRABs that wait a moment for a job, before they are answered with NO_JOB.

A worker that has NO_JOB goes to sleep (PRE_SLEEP), is woken (NOOP), and asks again: where the next job comes
soon, as from a client that makes one call after another, that is two packets each way and two turns of
waiting for nothing. So the answer waits for up to ``LINGER``, and a job that comes meanwhile is the answer.

Only of a worker that *expects* a job: one that was called within ``LINGER`` after the last NO_JOB, and whose
GRABs have not waited in vain since. A worker of several servers, which asks one after the other, is not held
up at one that has nothing for it.
"""

from __future__ import annotations

from typing import Final

from gearflow.broker.sessions import Session

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
