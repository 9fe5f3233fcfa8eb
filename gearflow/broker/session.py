"""What the broker keeps for one connection: its identity, its abilities, its requests, its outbox."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from gearflow.broker.dispatch import Wake
    from gearflow.broker.functions import FunctionQueue, ReadyFunctions, Sleep
    from gearflow.broker.job import QueuedJob
    from gearflow.broker.parser import Body, PacketParser
    from gearflow.broker.parts import LogReader, PartLog
    from gearflow.broker.storage import JobOutcome
    from gearflow.broker.suspects import Alone
    from gearflow.broker.watching import JobWatcher
    from gearflow.protocol.rights import Grant

LARGE: Final = 65536
"""Bytes from which a body is received into a buffer of its own, if it does not come at once."""

WHOLE: Final = 2 * LARGE
"""Bytes from which a body is sent by itself. Below, a copy costs less than another write."""

NEVER_NAMED: Final = b"-"
"""The name that ``workers`` shows for a connection that sent no SET_CLIENT_ID."""


class Session:
    """One connection, seen from the broker. Owns state; two sessions differ by identity alone.

    The shell writes the contents of ``outbox`` to the connection, in order, and empties it. ``has_large`` is
    set while the outbox has a body of ``WHOLE`` bytes or more, which must not be copied.
    """

    __slots__ = (
        "abilities",
        "address",
        "alone",
        "attached",
        "blocks_pipeline",
        "client_id",
        "continues",
        "events",
        "exceptions",
        "expects_job",
        "fd",
        "gearflow",
        "grant",
        "has_large",
        "has_read",
        "is_open",
        "last_event",
        "limits",
        "no_job_at",
        "number",
        "outbox",
        "overdue",
        "overran",
        "parser",
        "pending_writes",
        "places",
        "quiet",
        "raised",
        "readers",
        "ready",
        "receive",
        "resumable",
        "running",
        "set_aside",
        "since",
        "sleep",
        "slots",
        "texts",
        "waits",
        "watched",
        "woken",
    )

    # The broker sets these two.
    parser: PacketParser  # another one for connections that do not have all rights
    receive: Callable[[Session, bytes, float], None]  # until it has sent its token, not the parser's

    def __init__(self, fd: int, address: str) -> None:
        self.fd = fd
        self.address = address
        self.number = 0  # distinguishes it from all other connections of this run of the server
        self.is_open = True
        self.grant: Grant | None = None  # of its token, if that does not have all rights
        self.client_id = NEVER_NAMED
        self.exceptions = False  # whether it wants WORK_EXCEPTION rather than WORK_FAIL
        self.gearflow = False  # whether it knows gearflow's extensions
        self.outbox: list[Body] = []
        self.has_large = False
        self.continues = False  # what it has sent is handled further in a later turn
        # As a worker.
        self.abilities: dict[FunctionQueue, float] = {}  # with time limits (0: none), as registered
        self.ready: ReadyFunctions | None = None  # if it has offered many functions
        self.sleep: Sleep | None = None  # since its last PRE_SLEEP, if it sleeps
        self.woken: Wake | None = None  # by which it was woken, until it reacts
        self.alone: Alone | None = None  # why it gets no other job: see ``suspects``
        self.no_job_at = -inf  # when it was last sent NO_JOB
        self.expects_job = False  # its GRABs may be held for a moment: see ``dispatch``
        self.events = b""  # the handle of its call of ``gearflow:events``, if it made one
        self.overran = False  # the server took a job from it because of a time limit that it set
        self.raised = b""  # the handle of the last job that it ended with WORK_EXCEPTION
        self.quiet = False  # it is given no jobs: see ``quiet``
        self.set_aside: dict[bytes, float] = {}  # by name: abilities that it has when it is quiet no more
        self.since = 0.0  # when it first offered a function (Unix time)
        self.slots = 1  # jobs that it runs at once
        self.overdue: Mapping[str, int] = {}  # by function: runs that go on after the end of their job
        self.limits: Mapping[str, str] = {}  # by function: what its code declares, as a text
        self.texts: Mapping[str, str] = {}  # by function: its only parameter, which is the whole payload
        self.resumable: frozenset[bytes] = frozenset()  # functions that go on after the parts of a run
        self.running: dict[bytes, QueuedJob] = {}  # by handle, in the order they were assigned
        # As a client.
        self.attached: dict[QueuedJob, None] = {}
        self.pending_writes = 0  # submissions at the store: only background submissions may follow
        self.blocks_pipeline = 0  # so many of these may not be overtaken by anything
        self.waits: dict[bytes, CallWaiter] = {}  # its calls that wait for an end, by their handles
        self.readers: dict[bytes, LogReader] = {}  # its calls of ``gearflow:stream``, by their handles
        self.watched = 0  # bytes of events for its calls of ``gearflow:watch`` in its outbox
        self.last_event: tuple[int, int] = (0, 0)  # the place of the last one there, and its identity
        self.has_read = False  # it has made such a call
        self.places: dict[PartLog, None] = {}  # logs in which it is to become a reader

    @property
    def asleep(self) -> bool:
        """Whether it sleeps until it is woken."""
        return self.sleep is not None


class CallWaiter(Protocol):
    """A call that waits."""

    def stop(self) -> None:
        """Wait no longer."""


class ResultWaiter:
    """A call of ``gearflow:result`` or ``gearflow:watch`` that waits for the end of a job."""

    __slots__ = ("call", "job", "resume", "session", "watcher")

    def __init__(
        self,
        session: Session,
        call: bytes,
        job: QueuedJob,
        resume: Callable[[JobOutcome | None, Body], None],
        watcher: JobWatcher | None = None,
    ) -> None:
        self.session = session
        self.call = call  # its handle
        self.job = job
        self.resume = resume  # called when its end is kept, or with None when another server has the job
        self.watcher = watcher
        job.ensure_details().waiters[self] = None
        session.waits[call] = self

    def is_waiting(self) -> bool:
        """Whether it still waits for the job's end."""
        return self in self.job.ensure_details().waiters

    def stop(self) -> None:
        """Wait no longer."""
        details = self.job.ensure_details()
        details.waiters.pop(self, None)
        if self.watcher is not None:
            details.watchers.pop(self.watcher, None)
        self.session.waits.pop(self.call, None)
