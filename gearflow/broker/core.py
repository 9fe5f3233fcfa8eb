"""The state that all parts of a broker share."""

from __future__ import annotations

from gearflow.broker.functions import Functions
from gearflow.broker.handles import Handles
from gearflow.broker.job import JobTable, QueuedJob
from gearflow.broker.journal import Journal
from gearflow.broker.limits import SizeLimits
from gearflow.broker.outgoing import Outgoing
from gearflow.broker.session import Session
from gearflow.broker.storage import Store
from gearflow.broker.timers import Clock, JobTimeouts, TimerQueue
from gearflow.broker.turns import Turns


class Core:
    """Jobs, functions and sessions, what is pending, and what is on its way out. Plain state without
    decisions."""

    def __init__(self, handle_prefix: bytes, limits: SizeLimits, store: Store | None, version: str) -> None:
        self.limits = limits
        self.store = store
        self.version = version
        self.clock = Clock()
        self.turns = Turns()
        self.sessions: dict[Session, None] = {}
        self.jobs = JobTable()
        self.functions = Functions(limits)
        self.outgoing = Outgoing(self.clock)
        self.journal = Journal(store)
        self.handles = Handles(handle_prefix, self.journal)
        self.timers = TimerQueue()
        self.timeouts = JobTimeouts()

    def find(self, handle: bytes) -> QueuedJob | None:
        """The job of that handle, if it is not over."""
        number = self.handles.number(handle)
        return self.jobs.by_number.get(number) if number is not None else None
