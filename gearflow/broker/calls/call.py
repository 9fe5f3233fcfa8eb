"""One call of a reserved function, as a generator of its steps.

A call **yields** what it waits for, and is resumed when that has happened:

* ``KNOWN``: the store knows everything that has happened so far. An answer that speaks of the store needs
  that.
* ``Keep(changes)``: the changes are kept, or not. The value is a list with the reason for each that is not
  kept, and None for the others.
* ``Kept(number)``: a job, or its end, is kept, or could not be. Others may not wait as long.
* ``EndOf(job, timeout)``: the job has ended, and that is kept. The value is a ``JobEnd``, or ``LookAgain``.
* ``AllParts(log, after, waits)``: the caller was sent all parts of a job. It has ended, as for ``EndOf``.
* ``Ask(question)``: the store has answered. The value is the answer; a fault is raised.
* ``FromShell(find_out)``: the shell has found something out. The value is that; a fault is raised.
* ``Later(until)``: another server may have done something about its job meanwhile.
* ``TURN``: others had their turn, if this one is late. An answer about many things needs that, or about a
  large body.

It **returns** the answer: a message or its JSON in pieces, or a ``JobEnd`` to end exactly as a job ended, or
None if it has no end of its own. It **raises** ``CallFailed``; a ``StoreError`` counts as one.

A local store answers in the same turn. Another store answers later, and much may have happened meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar, cast

from pydantic import ValidationError

from gearflow.broker.core import Core
from gearflow.broker.dispatch import Dispatcher
from gearflow.broker.endings import Endings
from gearflow.broker.far_jobs import FarJobs
from gearflow.broker.job import HIGH, LOW, NORMAL, QueuedJob
from gearflow.broker.lifecycle import Lifecycle
from gearflow.broker.parser import Body
from gearflow.broker.parts import PartLog
from gearflow.broker.quiet import QuietWorkers
from gearflow.broker.redaction import Redaction
from gearflow.broker.rights import needed_by, refusal_text
from gearflow.broker.rules import Rules
from gearflow.broker.schedules import Scheduler
from gearflow.broker.session import Session
from gearflow.broker.storage import (
    Change,
    DamagedEntry,
    HeadOf,
    JobOf,
    JobOutcome,
    JobRecord,
    LatestOf,
    Question,
    RecordOf,
    StoredJob,
    WholeRecordOf,
)
from gearflow.broker.streams import Streams
from gearflow.broker.submission import Submissions
from gearflow.broker.watching import JobWatcher, Watching
from gearflow.errors import StoreError
from gearflow.protocol.constants import Priority
from gearflow.protocol.server_calls import Fault, JobName, Message

M = TypeVar("M", bound=Message)
T = TypeVar("T")

_MANY_FAULTS: Final = 100
"""Faults of a request from which on they are only counted. It takes 5 us to list one."""

ORDERED: Final = 10.0
"""Seconds that a call waits for what it has ordered from another server."""

LANES: Final = {Priority.HIGH: HIGH, Priority.NORMAL: NORMAL, Priority.LOW: LOW}
"""The lane of a function by priority."""


class _Known(Enum):
    KNOWN = "known"


KNOWN: Final = _Known.KNOWN


class _Turn(Enum):
    TURN = "turn"


TURN: Final = _Turn.TURN


class Keep(NamedTuple):
    """Changes to be kept, at least one."""

    changes: Sequence[Change]


class Kept(NamedTuple):
    """A job that is on its way to the store, or whose end is."""

    number: int


class Ask(NamedTuple):
    """A question to the store."""

    question: Question


class FromShell(NamedTuple):
    """Facts that the shell finds out, and passes on. It is called with what to pass them to, once."""

    find_out: Callable[[Callable[[Any], None]], None]


class EndOf(NamedTuple):
    """A job, and for how many seconds to wait for its end (None: without limit). The call may watch it."""

    job: QueuedJob
    timeout: float | None
    watcher: JobWatcher | None = None


class AllParts(NamedTuple):
    """The parts of a job after a position, or from now on (None). The worker may wait for this reader."""

    log: PartLog
    after: int | None
    waits: bool


class JobEnd(NamedTuple):
    """How a job ended."""

    outcome: JobOutcome
    body: Body
    function: bytes = b""
    """The function of the job, if that is known."""


class Later(NamedTuple):
    """To be resumed soon, and at a certain Unix time at the latest."""

    until: float | None = None


class FarJob(NamedTuple):
    """A job that has not ended, and that another server has."""

    stored: StoredJob


class LookAgain(NamedTuple):
    """Another server has the job now. The caller was sent its parts up to a position."""

    after: int


Wait: TypeAlias = _Known | _Turn | Keep | Kept | Ask | FromShell | EndOf | AllParts | Later
Steps: TypeAlias = Generator[Wait, Any, Message | list[bytes] | JobEnd | None]


class CallFailed(Exception):
    """A request cannot be served."""

    def __init__(self, kind: Any, message: str) -> None:
        super().__init__(message)
        self.fault = Fault(type=kind, message=message)


@dataclass(frozen=True, slots=True)
class ServerCall:
    """One call: its connection, its handle, and its workload."""

    session: Session
    handle: bytes
    workload: bytes

    def read(self, kind: type[M]) -> M:
        """The request. Raises CallFailed, also if the connection has no right to it."""
        request, grant = read(kind, self.workload), self.session.grant
        if grant is not None and not (needed := needed_by(request)) & grant.rights:
            text = refusal_text("this call", needed, grant.rights)
            raise CallFailed("gearflow:forbidden", text)
        return request


@dataclass(frozen=True, slots=True)
class BrokerParts:
    """The parts of a broker that calls read and change."""

    core: Core
    streams: Streams
    watching: Watching
    endings: Endings
    dispatcher: Dispatcher
    lifecycle: Lifecycle
    submissions: Submissions
    far: FarJobs
    schedules: Scheduler
    rules: Rules
    redaction: Redaction
    quiet: QuietWorkers

    def ask(self, question: Question) -> Generator[Wait, Any, Any]:
        """Ask the store. Raises StoreError, and CallFailed if there is no store."""
        self.check_kept()
        return (yield Ask(question))

    def check_kept(self) -> None:
        """Raise CallFailed if there is no store."""
        if not self.core.journal.exists:
            raise CallFailed("gearflow:refused", "this server keeps nothing of jobs that have ended")

    def number(self, handle: str) -> int:
        """The number in a handle. Raises CallFailed."""
        number = self.core.handles.number(handle.encode())
        if number is None:
            raise CallFailed("gearflow:unknown", f"{handle} is no handle of this server's")
        return number

    def name_of(self, number: int) -> JobName:
        """The name of the job of that number."""
        return JobName(handle=self.core.handles.handle(number).decode())

    def live_job(self, name: JobName) -> QueuedJob | None:
        """The named job, if it has not ended."""
        if name.handle is not None:
            job = self.core.find(name.handle.encode())
            return None if job is None or job.cancelled else job
        function = self.core.functions.by_name.get((name.function or "").encode())
        return self.core.jobs.find(function, (name.unique or "").encode())

    def known(self, handle: str | None, function: str | None, unique: str | None) -> Wait:
        """Until the store knows what has happened so far to the job of that handle or unique."""
        number = self.number(handle) if handle is not None else None
        key = (function or "").encode(), (unique or "").encode()
        ahead = self.core.journal.end_ahead(number, *key)
        return KNOWN if ahead is None else Kept(ahead)

    def record(
        self, name: JobName, seen: FarJob | None = None
    ) -> Generator[Wait, Any, JobRecord | FarJob | None]:
        """How the named job ended; None if it has not, or while its end is on its way to the store. A large
        body may be its length. If another server has it, that.

        Args:
            name: The name.
            seen: The job if another server had it before.

        Raises:
            CallFailed: There is none.
            StoreError: The store cannot be read.
        """
        number = self.number(name.handle) if name.handle is not None else None
        key = (name.function or "").encode(), (name.unique or "").encode()
        if self.core.journal.has_end(number, *key):
            return None
        record: JobRecord | FarJob | None = self.core.journal.failed_end(number, *key)
        try:
            if record is None:
                question = RecordOf(number) if number is not None else LatestOf(*key)
                record = yield from self.ask(question)
            if record is None and number is not None:
                record = yield from self._far_job(number)
        except DamagedEntry:
            raise
        except StoreError:
            if seen is None:
                raise
            return seen  # the call waits in any case
        if isinstance(record, JobRecord) and record.expires <= self.core.clock.unix():
            record = None
        if not isinstance(record, JobRecord) and (
            self.live_job(name) is not None or self.core.journal.has_end(number, *key)
        ):
            return None  # it has come while the store was asked
        if record is not None:
            return record
        if seen is not None:
            text = f"job {name.handle} has ended, and what became of it is not kept"
            raise CallFailed("gearflow:unknown", text)
        shown = (
            f"job {name.handle}"
            if number is not None
            else f"job of {name.function} with the unique {name.unique!r}"
        )
        text = f"there is no {shown}: it never was, or what became of it is not kept any more"
        raise CallFailed("gearflow:unknown", text)

    def _far_job(self, number: int) -> Generator[Wait, Any, JobRecord | FarJob | None]:
        """A job of which the store had no record. If another server has it, that."""
        if not self.core.journal.shared:
            return None
        stored: StoredJob | None = yield from self.ask(HeadOf(number))
        if stored is not None:
            return FarJob(stored)
        record: JobRecord | None = yield from self.ask(RecordOf(number))
        return record  # if it has ended between the questions

    def end_of(self, session: Session, record: JobRecord) -> Generator[Wait, None, JobEnd | None]:
        """The end of a job for a client, with its whole body. None if it or the client is gone meanwhile.

        A large body is read in steps. Until then the client's next requests wait, so that no more is read
        for it than it has room for. Raises StoreError.
        """
        if not isinstance(record.body, int):
            return JobEnd(record.outcome, record.body, record.function)
        self.submissions.block(session)
        try:
            whole = yield from self.whole(WholeRecordOf(record.number), session)
        finally:
            self.submissions.unblock(session)
        if not isinstance(whole, JobRecord) or isinstance(whole.body, int):
            return None
        return JobEnd(whole.outcome, whole.body, whole.function)

    def whole(
        self, question: JobOf | WholeRecordOf, client: Session | None = None
    ) -> Generator[Wait, Any, StoredJob | JobRecord | None]:
        """The answer with its whole body, which a local store reads in turns. None if it or the client is
        gone. Raises StoreError."""
        self.check_kept()
        steps = self.core.journal.read(question)
        if steps is None:
            return (yield from self.ask(question)) if client is None or client.is_open else None
        answer = yield from in_turns(steps, client)
        if isinstance(answer, StoreError):
            raise answer
        return cast("StoredJob | JobRecord | None", answer)  # as it was asked


def in_turns(
    steps: Generator[None, None, T], client: Session | None = None
) -> Generator[Wait, None, T | None]:
    """Take steps in as many turns as they need. Returns what they return, or None if the client has left."""
    while client is None or client.is_open:
        try:
            next(steps)
        except StopIteration as end:
            return cast(T, end.value)
        yield TURN
    return None


def read(kind: type[M], text: bytes) -> M:
    """A request, validated. An empty text is an empty request; one trailing NUL is ignored. Raises
    CallFailed."""
    try:
        return kind.model_validate_json(text.removesuffix(b"\0") or b"{}")
    except ValidationError as error:
        raise CallFailed("gearflow:invalid", f"the request cannot be read: {_faults(error)}") from None


def _faults(error: ValidationError) -> str:
    """The first faults of a request, or only their number if it takes long to list them."""
    if error.error_count() > _MANY_FAULTS:
        return f"it has {error.error_count()} faults"
    return "; ".join(
        f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" if fault["loc"] else fault["msg"]
        for fault in error.errors(include_url=False, include_input=False)[:5]
    )
