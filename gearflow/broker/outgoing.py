"""What leaves the broker: packets in the outboxes of sessions, and notices for operators."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from gearflow.broker.parser import Body
from gearflow.broker.session import LARGE, WHOLE, Session
from gearflow.broker.timers import Clock
from gearflow.broker.turns import MANY, Steps
from gearflow.protocol.constants import HEADER, RES, PacketType

LINGER: Final = 0.002
"""Seconds that a GRAB is held: a few round trips on one machine, and too short for a worker of several
servers to lose anything."""

_NO_JOB: Final = HEADER.pack(RES, PacketType.NO_JOB, 0)

_WORK_FAIL: Final = int(PacketType.WORK_FAIL)
_WORK_EXCEPTION: Final = int(PacketType.WORK_EXCEPTION)


class Notice(NamedTuple):
    """Something that operators should read in the log. ``text`` is a format for ``arguments``."""

    text: str
    arguments: tuple[object, ...]
    session: Session | None
    subject: bytes


class HeldGrabs:
    """GRABs whose answer is held for a moment, at most one of a session. Owns that table.

    The sessions are also in ``waiting_grabs`` of each function that they offer. A GRAB is held until a job
    comes, until ``LINGER`` is over, or until the session is sent anything else, since answers keep the order
    of the requests.
    """

    def __init__(self) -> None:
        # By session: the deadline, and the packet type of the GRAB. All are held equally long, so the order
        # of the table is the order of the deadlines.
        self.by_session: dict[Session, tuple[float, int]] = {}

    def hold(self, session: Session, kind: int, now: float) -> None:
        """Hold the answer to a GRAB."""
        self.by_session[session] = now + LINGER, kind
        for function in session.abilities:
            function.waiting_grabs[session] = None

    def pop(self, session: Session) -> int:
        """End the hold; the packet type of the GRAB."""
        for function in session.abilities:
            del function.waiting_grabs[session]
        return self.by_session.pop(session)[1]

    def expired(self, now: float) -> list[Session]:
        """The sessions whose time is over. Their next GRABs are not held."""
        sessions: list[Session] = []
        for session, (deadline, _) in self.by_session.items():
            if deadline > now:
                break
            session.expects_job = False
            sessions.append(session)
        return sessions

    def next_due(self) -> float | None:
        """When the next hold is over."""
        return next(iter(self.by_session.values()))[0] if self.by_session else None


def _none(_: Session) -> int:
    return 0


class Outgoing:
    """Sends packets. Owns the list of sessions whose outboxes are not empty, and the notices.

    The shell says how many bytes are ``unsent`` that it took from the outbox of a session.
    """

    def __init__(self, clock: Clock) -> None:
        self.dirty: list[Session] = []
        self.notices: list[Notice] = []
        self.unsent: Callable[[Session], int] = _none
        self.held_grabs = HeldGrabs()
        self._held = self.held_grabs.by_session
        self._clock = clock

    def send(self, session: Session, packet: bytes) -> None:
        """Send bytes. A GRAB of the session that is held is answered first."""
        if session in self._held:
            self.release_grab(session)
        outbox = session.outbox
        if not outbox:
            self.dirty.append(session)
        outbox.append(packet)

    def release_grab(self, session: Session) -> None:
        """Answer the session's GRAB with NO_JOB if it is held."""
        if session in self._held:
            self.held_grabs.pop(session)
            self.send_no_job(session)

    def send_no_job(self, session: Session) -> None:
        """Answer a GRAB with NO_JOB."""
        session.no_job_at = self._clock.now
        self.send(session, _NO_JOB)

    def respond(self, session: Session, kind: PacketType, *fields: bytes) -> None:
        """Send a packet of a few fields."""
        body = b"\0".join(fields)
        self.send(session, HEADER.pack(RES, kind, len(body)) + body)

    def error(self, session: Session, code: bytes, text: bytes) -> None:
        """Send ERROR."""
        self.respond(session, PacketType.ERROR, code, text)

    def send_in_pieces(self, session: Session, head: bytes, *pieces: Body) -> None:
        """Send a packet without copying the pieces of its body."""
        self.send(session, head)
        session.outbox += pieces
        session.has_large = session.has_large or max(map(len, pieces)) >= WHOLE

    def relay(self, clients: Iterable[Session], kind: int, body: Body) -> None:
        """Send a packet about a job to each client that is attached to it."""
        size = len(body)
        head = HEADER.pack(RES, kind, size)
        if size < LARGE:
            packet = head + body
            for client in clients:
                outbox = client.outbox
                if not outbox:
                    self.dirty.append(client)
                outbox.append(packet)
        else:
            for client in clients:
                self.send_in_pieces(client, head, body)

    def relay_end(self, clients: Iterable[Session], kind: int, handle: bytes, body: Body) -> None:
        """Send clients how their job ended: an exception only to those that asked for exceptions."""
        if kind != _WORK_EXCEPTION:
            self.relay(clients, kind, body)
            return
        self.relay([client for client in clients if client.exceptions], kind, body)
        self.relay([client for client in clients if not client.exceptions], _WORK_FAIL, handle)

    def relay_end_in_steps(self, clients: Iterable[Session], kind: int, handle: bytes, body: Body) -> Steps:
        """Send many clients how their job ended."""
        some: list[Session] = []
        for client in clients:
            if client.is_open:
                some.append(client)
            if len(some) == MANY:
                self.relay_end(some, kind, handle, body)
                some.clear()
                yield
        self.relay_end(some, kind, handle, body)

    def notify(self, text: str, session: Session | None, subject: bytes, *arguments: object) -> None:
        """Have something logged. Notices of the same text have the same cause, whatever its arguments."""
        self.notices.append(Notice(text, arguments, session, subject))
