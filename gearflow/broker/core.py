"""The state that all parts of a broker share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

from gearflow.broker.counts import ServerCounts
from gearflow.broker.function_table import Functions
from gearflow.broker.handles import Handles, lot_of
from gearflow.broker.history import History
from gearflow.broker.job import JobTable, QueuedJob
from gearflow.broker.journal import Journal
from gearflow.broker.limiter import Limiter
from gearflow.broker.limits import SizeLimits
from gearflow.broker.live_numbers import LiveNumbers
from gearflow.broker.outgoing import Outgoing
from gearflow.broker.recent_ends import RecentEnds
from gearflow.broker.session import Session
from gearflow.broker.settings import Settings
from gearflow.broker.storage import DamagedEntry, StorePort
from gearflow.broker.timers import Clock, JobTimeouts, TimerQueue
from gearflow.broker.turns import Turns
from gearflow.errors import StoreError
from gearflow.protocol.group_info import GroupInfo
from gearflow.protocol.metrics import StoreState

GroupFacts: TypeAlias = Callable[[Callable[[GroupInfo | StoreError], None]], None]
"""Finds out about the group, and passes that on, or why it cannot. The shell provides it."""


class ServerGroup(NamedTuple):
    """The group of a server. The shell replaces it when it changes.

    Attributes:
        name: The same at all servers of the group, and at no other.
        server: Distinguishes this server from all others. It is a new one at each start.
        servers: The addresses of all live servers, as clients and workers reach them.
        address: That of this server among them.
        owners: The addresses of other live servers by the lots that they own.
    """

    name: str
    server: str
    servers: tuple[str, ...]
    address: str = ""
    owners: Mapping[int, str] = {}

    def owner(self, number: int) -> str:
        """The address of the other server that has the job of that number; empty if it is not known."""
        return self.owners.get(lot_of(number), "")


class Core:
    """Jobs, functions and sessions, what is pending, and what is on its way out. Plain state without
    decisions."""

    def __init__(
        self, handle_prefix: bytes, limits: SizeLimits, store: StorePort | None, version: str
    ) -> None:
        self.limits = limits
        self.version = version
        self.group: ServerGroup | None = None
        self.group_facts: GroupFacts | None = None
        self.store_state: Callable[[], StoreState] = StoreState  # the shell replaces it
        self.clock = Clock()
        self.turns = Turns()
        self.sessions: dict[Session, None] = {}
        self.jobs = JobTable()
        self.functions = Functions(limits)
        self.totals = ServerCounts()
        self.outgoing = Outgoing(self.clock)
        self.journal = Journal(store)
        self.handles = Handles(handle_prefix, self.journal)
        self.live = LiveNumbers(self.jobs, self.handles)
        self.limiter = Limiter(self.clock, self.turns, self.sessions, self.journal, self.outgoing)
        self.recent_ends = RecentEnds() if self.journal.shared else None
        self.timers = TimerQueue()
        self.timeouts = JobTimeouts()
        self.settings = Settings()
        self.history = History(self.clock, self.functions, self.journal, self.turns)
        self.damaged: dict[int, str] = {}  # by number: the faults of a job or result that were reported

    def find(self, handle: bytes) -> QueuedJob | None:
        """The job of that handle, if it is not over."""
        number = self.handles.number(handle)
        return self.jobs.by_number.get(number) if number is not None else None

    def report(self, fault: StoreError) -> None:
        """Log that the store could not be read. Damage of a job or result is logged once."""
        text = str(fault)
        if not isinstance(fault, DamagedEntry):
            self.outgoing.notify(text, None, b"")
        elif text not in (known := self.damaged.get(fault.number, "")):
            self.damaged[fault.number] = f"{known}\n{text}".strip()
            handle = self.handles.handle(fault.number)
            function = fault.function.decode(errors="replace") or "an unknown function"
            self.outgoing.notify(f"job {handle.decode()} of {function}: {text}", None, handle)
