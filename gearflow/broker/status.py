"""What clients ask about jobs and about their connection, and rows for the text protocol."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from gearflow.broker.core import Core
from gearflow.broker.function_table import Functions
from gearflow.broker.handles import Handles
from gearflow.broker.job import HIGH, LOW, NORMAL, JobState, JobTable, QueuedJob
from gearflow.broker.parser import Body, integer, name_in
from gearflow.broker.session import Session
from gearflow.protocol.admin import FunctionPriorities, FunctionStatus, JobRow, WorkerRow
from gearflow.protocol.constants import HEADER, MAX_CLIENT_ID, RES, PacketType

_NO_PROGRESS: Final = (b"0", b"0")

_OPTIONS: Final = frozenset({b"exceptions", b"gearflow"})


class StatusHandlers:
    """Handles the packets that ask, or set something for the connection."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._outgoing = core.outgoing

    def get_status(self, session: Session, kind: int, body: Body) -> None:
        """GET_STATUS, by handle."""
        handle = name_in(body)
        job = self._core.find(handle)
        self._outgoing.respond(session, PacketType.STATUS_RES, handle, *_status(job))

    def get_status_unique(self, session: Session, kind: int, body: Body) -> None:
        """GET_STATUS_UNIQUE. If several functions have the unique, the newest job counts, as in gearmand."""
        unique = name_in(body)
        job = self._core.jobs.newest(unique)
        clients = b"%d" % (len(job.clients) if job else 0)
        self._outgoing.respond(session, PacketType.STATUS_RES_UNIQUE, unique, *_status(job), clients)

    def echo(self, session: Session, kind: int, body: Body) -> None:
        """ECHO_REQ."""
        self._outgoing.send_in_pieces(session, HEADER.pack(RES, PacketType.ECHO_RES, len(body)), body)

    def option(self, session: Session, kind: int, body: Body) -> None:
        """OPTION_REQ."""
        set_option(self._core, session, bytes(body))

    def set_client_id(self, session: Session, kind: int, body: Body) -> None:
        """SET_CLIENT_ID."""
        session.client_id = name_in(body)[:MAX_CLIENT_ID]


def set_option(core: Core, session: Session, option: bytes) -> None:
    """Set an option of a connection, and answer."""
    name = option.lower()
    if name not in _OPTIONS:
        core.outgoing.error(session, b"UNKNOWN_OPTION", b"Server does not recognize given option")
        return
    if name == b"exceptions":
        session.exceptions = True
    else:
        session.gearflow = True
        if core.group is not None:
            group, server = core.group.name.encode(), core.group.server.encode()
            core.outgoing.respond(session, PacketType.OPTION_RES, option, group, server)
            return
    core.outgoing.respond(session, PacketType.OPTION_RES, option)


def _status(job: QueuedJob | None) -> tuple[bytes, bytes, bytes, bytes]:
    if job is None:
        return b"0", b"0", b"0", b"0"
    running = b"1" if job.state is JobState.RUNNING else b"0"
    progress = (job.details.progress if job.details is not None else None) or _NO_PROGRESS
    numerator, denominator = (b"%d" % (integer(number) & 0xFFFF_FFFF) for number in progress)
    return b"1", running, numerator, denominator


# ------------------------------------------------------------------------------- rows for the text protocol
#
# A table may take several turns. It has what there was when it was asked for, as it is when its row is made.


def functions(known: Functions) -> Iterator[FunctionStatus]:
    """Each function, with its jobs and workers."""
    for function in list(known.by_name.values()):
        yield FunctionStatus(function.name, function.total, function.running, function.workers)


def priorities(known: Functions) -> Iterator[FunctionPriorities]:
    """Each function, with its waiting jobs by priority; delayed jobs count as normal ones."""
    for function in list(known.by_name.values()):
        high, normal, low = map(function.waiting_of, (HIGH, NORMAL, LOW))
        yield FunctionPriorities(function.name, high, normal + len(function.delayed), low, function.workers)


def connections(sessions: Iterable[Session]) -> Iterator[WorkerRow]:
    """Each connection, with the functions that it offers."""
    for session in list(sessions):
        names = tuple(function.name for function in reversed(session.abilities))  # newest first, as gearmand
        yield WorkerRow(session.fd, session.address, session.client_id, names)


def jobs(table: JobTable, handles: Handles) -> Iterator[JobRow]:
    """Each job that is not over. A job that nobody wants is ignored: it ends with its run."""
    for job in list(table.by_number.values()):
        if job.state is not JobState.OVER:
            handle = handles.handle(job.number)
            yield JobRow(handle, retries=0, ignored=not job.wanted, background=job.background)


def uniques(table: JobTable) -> Iterator[bytes]:
    """The unique of each job that is not over; b"" for those without."""
    for job in list(table.by_number.values()):
        if job.state is not JobState.OVER:
            yield job.unique
