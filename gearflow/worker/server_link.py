"""One server: a connection to it whenever that is possible, and endless attempts to reconnect.

The log tells of an outage once, when it begins, and once when it is over.
"""

import logging
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import anyio

from gearflow.backoff import Backoff
from gearflow.client import Security, ServerAddress
from gearflow.client.transport import Unreachable, open_stream
from gearflow.protocol.heartbeat import Timeouts
from gearflow.worker.connection import WorkerConnection
from gearflow.worker.session import Refusal, WorkerSession
from gearflow.worker.settings import WorkerSettings
from gearflow.worker.slots import ServerSlots, SlotAllocator

if TYPE_CHECKING:
    from gearflow.worker.batch import BatchLane
    from gearflow.worker.discovery import Discovery
    from gearflow.worker.runner import Runner


class ServerLink:
    """Keeps one server connected. Owns its connection and its lane."""

    def __init__(
        self,
        address: ServerAddress,
        security: Security,
        settings: WorkerSettings,
        functions: Sequence[bytes],
        slots: SlotAllocator,
        runner: "Runner",
        answer: float,
        discovery: "Discovery",
        batch: "BatchLane | None" = None,
    ) -> None:
        self.address = address
        self.batch = batch  # that the jobs from here are for, if the connection is that of a batch task
        self.max_workload = settings.max_workload
        self.connection: WorkerConnection | None = None  # while there is one
        self.is_registered = False  # the server knows the functions
        self.outage: str | None = None  # why the server cannot be reached, as logged
        self.is_found = False  # a group has named the address
        self.is_leaving = False  # the group names it no more
        self.group = self.server = ""  # where the connection leads to, if that is a server of a group
        self._discovery = discovery
        self._twin: ServerLink | None = None  # leads to the same server, and takes the jobs
        self._go_on = anyio.Event()  # when it does no longer
        self._scope: anyio.CancelScope | None = None  # while it is kept
        self._security = security
        self._settings = settings
        self._functions = functions
        self._slots = slots if batch is None else batch.slots
        self._runner = runner
        self._timeouts = Timeouts(
            connect=settings.connect_timeout,
            answer=answer,
            heartbeat=settings.heartbeat,
            release=settings.release_timeout,
        )
        self._backoff = Backoff(settings.first_retry, max(settings.first_retry, settings.longest_retry))
        self._failures = 0
        self._lane: ServerSlots | None = None  # that of the last connection

    async def keep(self) -> None:
        """Connect, serve, and start again when that ends, until nothing new is to be taken."""
        with anyio.CancelScope() as self._scope:
            while not self._has_ended:
                reason = await self._serve_once()
                if self._has_ended:
                    return
                if self._twin is not None:
                    await self._go_on.wait()
                    continue
                self._failures += 1
                self._warn_of_outage(reason)
                await anyio.sleep(self._backoff.delay(self._failures, random.random()))

    def offers(self, function: str) -> bool:
        """Whether jobs of a function come by this connection."""
        return function.encode() in self._functions

    @property
    def _has_ended(self) -> bool:
        """Whether nothing new is to be taken from here."""
        return self._slots.stopped or self.is_leaving

    @property
    def takes_jobs(self) -> bool:
        """Whether it is connected, and takes jobs, or will when it is registered."""
        return self.connection is not None and not self.connection.is_retired

    @property
    def counts(self) -> bool:
        """Whether it is one of the servers that the worker wants jobs from."""
        return self._twin is None and not self.is_leaving

    def recognized(self, group: str, server: str) -> None:
        """The server is gearflow's own, and perhaps one of a group."""
        self.group, self.server = group, server
        if group:
            self._discovery.recognized(self)

    def stand_by(self, twin: "ServerLink") -> None:
        """Another link leads to the same server: take no jobs as long as it does."""
        self._twin = twin
        self._go_on = anyio.Event()
        if self.connection is not None:
            self._log(logging.DEBUG, "another address leads to the same server", other=str(twin.address))
            self.connection.retire(f"{twin.address} leads to the same server")

    def step_in(self, lost: "ServerLink") -> None:
        """Another link has lost its connection. Connect again if this one stands by for it."""
        if self._twin is lost:
            self._twin = None
            self._go_on.set()

    def leave(self) -> None:
        """Take no more jobs, and end when those that came from here have ended."""
        self.is_leaving = True
        if self.connection is not None:
            self.connection.retire("its group does not name it any more")
        elif self._scope is not None:
            self._scope.cancel()

    async def flush(self) -> None:
        """Return when the server has handled all that was sent to it, or is gone."""
        if self.connection is not None:
            await self.connection.flush()

    @property
    def is_out_of_jobs(self) -> bool:
        """The server has said so since it was last asked again."""
        return self._lane is not None and self._lane.is_empty

    def ask_again(self) -> None:
        """What the server has said before about jobs counts no more: ask it once more, if it is there."""
        if self._lane is not None:
            self._lane.ask_again()

    async def _serve_once(self) -> str:
        """One connection from beginning to end; returns why it ended."""
        try:
            stream = await open_stream(self.address, self._security, self._timeouts.connect)
        except Unreachable as error:
            return str(error)
        async with stream:
            connection = WorkerConnection(stream, self, self._runner)
            self.connection = connection
            try:
                await connection.serve(self._timeouts)
            finally:
                self.connection = None
                self.is_registered = False
                connection.close()
                self._runner.lost(connection)
                self._discovery.lost(self)
                self.group = self.server = ""
            return connection.reason

    def session(self, wake: Callable[[], None]) -> tuple[ServerSlots, WorkerSession]:
        """The state of a new connection."""
        lane = self._lane = ServerSlots(self._slots, wake)
        client_id, poll = self._settings.client_id.encode(), self._settings.poll
        reports = bool(self._runner.resumable) or self.is_found  # it may be a server that is known
        slots = self._slots.slots
        return lane, WorkerSession(lane, self._functions, client_id, poll, reports=reports, slots=slots)

    def registered(self) -> None:
        """The server has taken the registration: it is back, if it was away."""
        self._failures = 0
        self.outage = None
        self.is_registered = True
        self._log(logging.INFO, "registered with a server")
        assert self.connection is not None  # it calls this
        self._runner.registered(self.connection)

    def declined(self) -> None:
        """A job came that is not run."""
        self._slots.finished()

    def refused(self, refusal: Refusal) -> None:
        """The server refused something."""
        self._log(
            logging.INFO,
            "the server refused %s (%s: %s)",
            refusal.what,
            refusal.code.decode("utf-8", "replace"),
            refusal.text.decode("utf-8", "replace"),
        )

    def _warn_of_outage(self, reason: str) -> None:
        if self.outage is not None:
            return
        self.outage = reason
        self._log(
            logging.WARNING,
            "no connection to %s (%s); trying again until there is one",
            self.address,
            reason,
            reason=reason,
        )

    def _log(self, level: int, message: str, *args: object, **fields: object) -> None:
        """Log a record about the server. A server that comes and goes all the time is a burst."""
        extra = {"server": str(self.address), **fields}
        self._runner.log.log(level, message, *args, cause=(message, self.address), extra=extra)
