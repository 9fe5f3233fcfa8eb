"""The state that all parts of a broker share."""

from __future__ import annotations

from gearflow.broker.functions import Functions
from gearflow.broker.group import ServerGroup
from gearflow.broker.handles import Handles
from gearflow.broker.job import JobTable, QueuedJob
from gearflow.broker.journal import Journal
from gearflow.broker.limits import SizeLimits
from gearflow.broker.outgoing import Outgoing
from gearflow.broker.session import Session
from gearflow.broker.storage import DamagedEntry, StorePort
from gearflow.broker.timers import Clock, JobTimeouts, TimerQueue
from gearflow.broker.turns import Turns
from gearflow.errors import StoreError


class Core:
    """Jobs, functions and sessions, what is pending, and what is on its way out. Plain state without
    decisions."""

    def __init__(
        self, handle_prefix: bytes, limits: SizeLimits, store: StorePort | None, version: str
    ) -> None:
        self.limits = limits
        self.version = version
        self.group: ServerGroup | None = None
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
