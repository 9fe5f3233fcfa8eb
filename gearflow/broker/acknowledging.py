"""JOB_CREATED of calls, which wait a moment for what follows them.

A client that makes one call at a time does nothing with JOB_CREATED but wait for the end of its job. If the
end comes within ``LINGER``, both go out together: the server writes, and the client wakes, one time less
for each call. (TCP delays its acknowledgements for the same reason.)

A client that goes on when it has JOB_CREATED must not be slowed. It shows itself: it submits after it was
told alone and before any of its jobs has ended. Such a session is *eager*, and does not wait again.
"""

from __future__ import annotations

from typing import Final

from gearflow.broker.sessions import Session

LINGER: Final = 0.002
"""Seconds: more than a short job takes, and less than anybody notices."""


class Acknowledgements:
    """The JOB_CREATED that wait. Owns that table; a session in it has nothing in its outbox.

    Who puts the first packet into an outbox takes what waits there first (``pop``).
    """

    def __init__(self) -> None:
        # By session: until when, and the packet. All wait as long, so the order is that of the deadlines.
        self.waiting: dict[Session, tuple[float, bytes]] = {}

    def may_wait(self, session: Session) -> bool:
        """Whether the JOB_CREATED of the call that the session just made may wait."""
        if session.told:
            session.eager = len(session.attached) > session.told
            session.told = 0
        return not (session.eager or session.outbox or session in self.waiting)

    def wait(self, session: Session, packet: bytes, now: float) -> None:
        """Hold a packet back; the session's outbox is empty."""
        self.waiting[session] = now + LINGER, packet

    def pop(self, session: Session) -> bytes:
        """The packet that waits for the session; it does not any more."""
        return self.waiting.pop(session)[1]

    def overdue(self, now: float) -> list[Session]:
        """The sessions that have to be told now, though nothing has followed."""
        sessions: list[Session] = []
        for session, (deadline, _) in self.waiting.items():
            if deadline > now:
                break
            session.told = len(session.attached)
            sessions.append(session)
        return sessions

    def next_due(self) -> float | None:
        """When somebody has to be told."""
        return next(iter(self.waiting.values()))[0] if self.waiting else None
