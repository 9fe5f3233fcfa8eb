"""The port to where jobs live while the server is down, and where what became of them is kept.

The broker and the shell around it write ``Change`` values, in groups: all of a group is kept, or nothing.
What is asked for is answered at once, on the caller's thread; only ``sync`` may be called from another.
Bodies of ``large`` bytes or more would take too long for that. They are written and read in steps, and the
caller does other work between two steps.

Times are Unix time. A job's number is the last part of its handle.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from enum import Enum, IntEnum
from typing import Final, NamedTuple, Protocol, Self, TypeAlias

from gearflow.broker.parser import Body
from gearflow.errors import StoreError


class JobOutcome(IntEnum):
    """How a job ended; all but the first two are dead letters, if the job was a background job."""

    COMPLETED = 0  # WORK_COMPLETE; the body is the result
    CANCELLED = 1  # by somebody who may
    FAILED = 2  # WORK_FAIL: its worker did not say why
    RAISED = 3  # WORK_EXCEPTION; the body is what the worker said, or the server of a time limit
    WORKERS_DIED = 4  # too many runs were cut off, the last because its worker went away
    EXPIRED = 5  # it had not started when its time was over


class StoredJob(NamedTuple):
    """A job that is to run. As a change: keep it.

    A workload that is a number stays at the store: so many bytes are there.
    """

    number: int
    function: bytes
    unique: bytes  # as submitted
    priority: int
    submitted: float
    due: float  # not to run before; 0: at once
    reducer: bytes | None
    options: bytes  # JSON: what the submission asked for, and the progress of an earlier run; or empty
    attempt: int  # runs that have begun and count
    deaths: int  # runs that were cut off
    workload: Body | int


class Rescheduled(NamedTuple):
    """A kept job is to run again, or was handed on."""

    number: int
    due: float
    attempt: int
    deaths: int
    options: bytes | None = None  # as those of StoredJob; None: as they were


class JobPart(NamedTuple):
    """A part of a background job, to be kept beside it and beside what becomes of it.

    The store may have the job, or not: one in memory has none that is live. A part of position 0 is empty. It
    says that this run has begun, and ``parts`` never returns it.
    """

    number: int
    position: int  # from 1, ascending
    body: Body
    run: int = 1


class PartsDropped(NamedTuple):
    """The parts of a job before a position are not needed any more. Without a position none is.

    A few more may stay where they lie together. The position of the last part is known, also if it is gone.
    The same holds for all parts of a job that is ``Forgotten`` or ``Revived``, and when its record expires.
    """

    number: int
    below: int | None = None


class JobRecord(NamedTuple):
    """What became of a job. As a change: the job is not to run any more, and this is to be kept.

    ``letter`` is there for a dead letter: the job as it can be replayed (its workload a number where the
    store has it already). The ``notes`` are JSON: what else the worker said on the way. A body that is a
    number stays at the store: so many bytes are there. Only the store makes such records.
    """

    number: int
    function: bytes
    unique: bytes
    outcome: JobOutcome
    body: Body | int
    submitted: float
    started: float  # the last run; 0: none
    ended: float
    attempt: int
    deaths: int
    worker: bytes  # who ran it last
    notes: bytes
    expires: float  # not kept any longer than that
    letter: StoredJob | None = None


def size_of(body: Body | int) -> int:
    """Bytes of a body, which may be at the store."""
    return body if isinstance(body, int) else len(body)


class Forgotten(NamedTuple):
    """Neither the job nor what became of it is of interest any more.

    Of a job that has just ended also its names, by which somebody may ask before this is written.
    """

    number: int
    function: bytes = b""
    unique: bytes = b""


class Revived(NamedTuple):
    """A dead letter is to run again, as if it had just been submitted; what became of it is forgotten."""

    number: int
    options: bytes | None = None  # as those of StoredJob; None: as they were


class Reserved(NamedTuple):
    """Numbers below this one may have been given to jobs."""

    below: int


class Paused(NamedTuple):
    """No jobs of a function are to be given out, or they are again."""

    function: bytes
    paused: bool


class Ordered(NamedTuple):
    """The owner of a job is to do something about it. Only a store of several servers has this change."""

    number: int
    verb: str  # "cancel", "replay", or "edit" with what is to be changed


class Edited(NamedTuple):
    """A kept job that does not run has other options, or another workload."""

    number: int
    priority: int
    due: float
    options: bytes  # as those of StoredJob
    workload: Body | None = None  # None: as it was


class Freed(NamedTuple):
    """The unique of a kept job does not lead to it any more, so that another one can have it."""

    number: int


HISTORY: Final = "history"
"""The kind of a setting that is a minute of a server's history (``broker.history``). It is that server's own.
Others do not get it, and it is not copied to another store. A shared store forgets it after a day."""


class Setting(NamedTuple):
    """What was set under a kind and a name, in place of what was there. Without a value nothing is set."""

    name: bytes
    kind: str  # "schedule", ``HISTORY``, or one of those in ``rules``
    value: bytes  # JSON


class Ticked(NamedTuple):
    """The time of a schedule has come: the setting has a new value, and its job is kept, or neither.

    Without a job the tick is skipped. In a store of several servers it is only kept if the setting still has
    the value from ``before``, or has this value already. Else it is ``Overtaken``. An empty ``before`` stands
    for a setting that is not there. Then there is no job.
    """

    name: bytes
    before: bytes
    value: bytes
    job: StoredJob | None


Change: TypeAlias = (
    StoredJob
    | Rescheduled
    | JobPart
    | PartsDropped
    | JobRecord
    | Forgotten
    | Revived
    | Reserved
    | Paused
    | Ordered
    | Edited
    | Freed
    | Setting
    | Ticked
)


class Joined(NamedTuple):
    """A job was not kept, because another server has the live job of its unique. Its number is this one."""

    number: int


class Uncertain(str):
    """Why a change may or may not have been kept: its outcome is not known."""

    __slots__ = ()


class Overtaken(str):
    """Why a change was not kept: somebody else has changed the same before."""

    __slots__ = ("value",)

    value: bytes
    """What the setting has now. Empty: it is gone."""

    def __new__(cls, value: bytes) -> Self:
        self = super().__new__(cls, "another server has changed it before")
        self.value = value
        return self


Done: TypeAlias = Callable[[str | Joined | None], None]
"""Called with None once a change is kept, else with the reason why it is not. A ``StoredJob`` may also be
``Joined``. A ``Ticked`` too: then its setting is kept, and the job of its unique is another one."""


class StoredParts(NamedTuple):
    """What a store has of the parts of a job. All but ``run`` are 0 if only the start of a run is there."""

    first: int  # the position of the first part; after ``last`` if none is there
    last: int
    size: int  # bytes of all
    run: int  # of the last part


class Renumbered(NamedTuple):
    """Jobs that were copied from another store have new numbers. Handles of that store are still good."""

    name: bytes  # of the other store
    first: int  # number there
    last: int
    add: int  # to a number there, to get the number here


class Contents(NamedTuple):
    """What a store holds when a server starts."""

    name: bytes  # part of every handle: no two stores have the same
    reserved: int  # numbers below this one may have been given to jobs
    jobs: Iterator[StoredJob]  # in the order of their numbers; to be iterated to the end, once
    paused: tuple[bytes, ...] = ()  # functions of which no jobs are to be given out
    parts: Mapping[int, StoredParts] = {}  # by number, of the jobs that have any
    renumbered: Sequence[Renumbered] = ()
    settings: Sequence[Setting] = ()
    expected: int = 0  # jobs, as far as the store knows their number before they are read


class DamagedEntry(StoreError):
    """One job or one result is not what was written. Everything else can be read.

    (Not public, because clients treat it like every refusal.)
    """

    def __init__(self, text: str, number: int, function: bytes = b"", unique: bytes = b"") -> None:
        """``text`` has the fault and the remedy. The names are those in the entry, and may be wrong."""
        super().__init__(text)
        self.number = number
        self.function = function
        self.unique = unique
        self.position = 0  # of the last part that is damaged, if it is parts


class JobOf(NamedTuple):
    """A kept job or dead letter, with its whole workload. The answer is a ``StoredJob`` or None."""

    number: int


class HeadOf(NamedTuple):
    """As ``JobOf``. A long workload may be its length."""

    number: int


class RecordOf(NamedTuple):
    """What became of a job, without ``letter``: a ``JobRecord`` or None. A large body is its length."""

    number: int


class WholeRecordOf(NamedTuple):
    """As ``RecordOf``, with the whole body."""

    number: int


class LatestOf(NamedTuple):
    """What became of the last job of that unique that ended, as ``RecordOf``."""

    function: bytes
    unique: bytes


class DeadOf(NamedTuple):
    """Dead letters of a function, or of all, with a number above ``after``: the first so many.

    The answer is a sequence of ``JobRecord`` and ``DamagedEntry``. A large body is its length. In descending
    order the numbers are below ``after``. 0 then stands for a number above all others.
    """

    function: bytes | None
    after: int
    limit: int
    descending: bool = False


class EndPlace(NamedTuple):
    """A place among the jobs that have ended. Only its store knows what the numbers mean. None is 0."""

    time: float
    number: int


class EndedOf(NamedTuple):
    """Jobs that have ended, the last one first: up to so many before a place. The answer is an ``EndedPage``,
    which may have fewer of them and a ``next``, because the store looks at a limited number of jobs."""

    function: bytes | None  # None: of all
    outcomes: tuple[JobOutcome, ...]
    before: EndPlace | None  # None: behind all
    until: float | None  # Unix time: jobs that ended then or later may be left out
    limit: int


class EndedEntry(NamedTuple):
    """A job that has ended. A large body is its length."""

    place: EndPlace
    record: JobRecord | DamagedEntry
    dead: bool


class EndedPage(NamedTuple):
    """Jobs that have ended, at about how many the store has looked, and how many there are before that."""

    entries: Sequence[EndedEntry]
    next: EndPlace | None  # None: these are all
    looked: int
    left: int | None  # None: the store does not know


class PartsOf(NamedTuple):
    """The positions and bodies of kept parts above a position, in order, as ``Store.parts``."""

    number: int
    after: int
    limit_bytes: int
    limit: int = 64


class DeadTotal(NamedTuple):
    """The number of dead letters."""


Question: TypeAlias = (
    JobOf | HeadOf | RecordOf | WholeRecordOf | LatestOf | DeadOf | DeadTotal | EndedOf | PartsOf
)

Answer: TypeAlias = (
    StoredJob
    | JobRecord
    | Sequence[JobRecord | DamagedEntry]
    | EndedPage
    | Sequence[tuple[int, Body]]
    | int
    | StoreError
    | None
)
"""The answer to a question. A fault is an answer too."""


class Pending(Enum):
    """The type of ``PENDING``."""

    PENDING = "pending"


PENDING: Final = Pending.PENDING
"""The answer comes later."""


class StorePort(Protocol):
    """What the journal needs of a store, whichever it is."""

    @property
    def shared(self) -> bool:
        """Whether other servers have jobs at the store too."""
        ...

    @property
    def durable(self) -> bool:
        """Whether the store survives a restart. Then a background job is acknowledged only once kept."""
        ...

    @property
    def large(self) -> int:
        """Bytes from which a body is written ahead of its change."""
        ...

    def ask(self, question: Question, done: Callable[[Answer], None]) -> Answer | Pending:
        """Answer a question at once, or return ``PENDING`` and call ``done`` with the answer later."""
        ...

    def write_ahead(self, change: StoredJob | JobRecord, done: Callable[[str | None], None]) -> None:
        """Write the large body of a change, then call ``done``, with the reason if it could not be written.
        Until the change is written, nobody sees the body."""
        ...

    def reopen(self) -> None:
        """After a failed sync, make sure that everything written survives a loss of power. Raises
        StoreError."""
        ...


class Store(Protocol):
    """Where jobs and results live. One server at a time owns it."""

    durable: bool
    """Whether what it has is there after a restart; then a background job is acknowledged once it is kept."""

    @property
    def large(self) -> int:
        """Bytes from which a body is written and read in steps."""
        ...

    @property
    def busy(self) -> bool:
        """Whether ``write`` would wait for the disk now."""
        ...

    @property
    def behind(self) -> bool:
        """Whether long work should wait until the disk has what was written. ``sync`` gets it there."""
        ...

    @property
    def full(self) -> bool:
        """Whether all writes should wait until the disk has what was written. Only if it is ``behind``."""
        ...

    @property
    def untidy(self) -> bool:
        """Whether ``tidy`` has something to do."""
        ...

    def load(self) -> Contents:
        """What is there; called once, first.

        Raises:
            StoreError: It cannot be read, is damaged, or belongs to a later version.
        """
        ...

    def write(self, changes: Sequence[Change]) -> None:
        """Keep all changes, or none; they hold in the order given.

        Raises:
            StoreError: Nothing of it is kept.
        """
        ...

    def write_ahead(self, change: StoredJob | JobRecord) -> Iterator[None]:
        """Write the body of a change in steps. Then ``write`` the change. Until that, nobody sees the body.

        Raises:
            StoreError: It does not fit. What is there of it will be removed.
        """
        ...

    def drop_ahead(self, change: StoredJob | JobRecord) -> None:
        """The body that was written ahead of this change is not needed, if there is one."""
        ...

    def tidy(self) -> Iterator[None]:
        """Remove bodies that nobody needs any more, in steps. Raises StoreError."""
        ...

    def sync(self) -> None:
        """Have what was written before survive a loss of power. May be called in another thread.

        Raises:
            StoreError: It may not survive that.
        """
        ...

    def reopen(self) -> None:
        """After a failed sync, make sure that everything written is there and survives a loss of power.

        Raises:
            StoreError: It does not, so ``sync`` goes on failing.
        """
        ...

    def job(self, number: int) -> StoredJob | None:
        """A kept job or dead letter, with its whole workload. Raises StoreError, as ``DamagedEntry`` if it is
        damaged."""
        ...

    def head(self, number: int) -> StoredJob | None:
        """A kept job or dead letter. A long workload may be its length. Raises StoreError."""
        ...

    def fetch(self, number: int) -> Generator[None, None, StoredJob | None]:
        """As ``job``, in steps, after which the job is returned."""
        ...

    def ended(self, number: int) -> JobRecord | None:
        """What became of a job, without ``letter``. A large body is its length. Raises as ``job``."""
        ...

    def fetch_result(self, number: int) -> Generator[None, None, JobRecord | None]:
        """As ``ended``, with the whole body, in steps, after which the record is returned."""
        ...

    def latest(self, function: bytes, unique: bytes) -> JobRecord | None:
        """What became of the last job of that unique that ended, as ``ended``."""
        ...

    def dead(
        self, function: bytes | None, after: int, limit: int, descending: bool = False
    ) -> Sequence[JobRecord | DamagedEntry]:
        """Dead letters of a function, or of all, with a number above ``after``: the first so many.

        In descending order the numbers are below ``after``, if it is not 0. A large body is its length.
        One whose record is damaged is there as its error.

        Raises:
            StoreError: They cannot be read.
        """
        ...

    def dead_total(self) -> int:
        """The number of dead letters. Raises StoreError."""
        ...

    def ended_before(self, question: EndedOf) -> EndedPage:
        """Jobs that have ended, the last one first.

        Raises:
            StoreError: They cannot be read. A single one that is damaged is there as its error, or left out
                if nothing of it can be read.
        """
        ...

    def parts(self, number: int, after: int, limit_bytes: int, limit: int = 64) -> Sequence[tuple[int, Body]]:
        """The positions and bodies of kept parts above a position, in order: the first so many.

        Args:
            number: The number of the job, which may have ended.
            after: The position.
            limit_bytes: Bytes of all of them. The first one is there even if it is larger.
            limit: The number of them.

        Raises:
            StoreError: They cannot be read, as ``DamagedEntry`` if the next ones are damaged. Those after its
                ``position`` may be sound.
        """
        ...

    def expire(self, now: float, limit: int) -> bool:
        """Remove up to ``limit`` records whose time is over, or that are too many: of these the oldest.

        A few more may go where they lie together.

        Returns:
            Whether there are more to remove.
        """
        ...

    def close(self) -> None:
        """Let go of it; what was written stays."""
        ...
