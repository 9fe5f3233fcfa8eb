"""The job server: a broker behind a listening socket.

``Engine`` runs on one asyncio event loop and owns the broker, the peers and the timer. ``JobServer`` is
what users hold: ``async with`` runs an engine on the caller's own loop; under trio, and with plain
``with``, on a loop in a thread of its own (uvloop where it is installed).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Final, Self, Unpack

import anyio.to_thread

from gearflow.broker import Broker, Session
from gearflow.broker.storage import Store
from gearflow.runtime.eventloop import can_use_uvloop, new_event_loop
from gearflow.security.tls import BadCertificate, server_context
from gearflow.server import admin, tls
from gearflow.server.connection import ServerConnection
from gearflow.server.persistence import GroupCommitter, open_store
from gearflow.server.settings import ServerOptions, ServerSettings
from gearflow.server.tls import TlsTransport

logger = logging.getLogger(__name__)

_LONGEST_NAP: Final = 60.0
"""Seconds between looks at the clock while jobs are delayed: a changed wall clock goes unnoticed so long."""

_SWEEP: Final = 1.0
"""Seconds between looks at packets that have not come whole."""

_INTRODUCTION: Final = 30.0
"""Seconds that a connection has to say the token, if there is one to be said."""

_SPARE_FILES: Final = 64
"""Open files that the process keeps for its own use: the log, the event loop, and whatever embeds us."""

_YOUNG: Final = 25_000
"""Objects between two collections of a server's process: a pause of a few milliseconds."""

_FAREWELL: Final = 1.0
"""Seconds that a stopping server gives its peers to take what was already written to them."""


class Engine:
    """A running server on the current event loop. Owns the broker, the peers, the timer."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.peers: dict[Session, ServerConnection] = {}
        self.scratch = memoryview(
            bytearray(tls.SIZE if settings.tls_cert else 0)
        )  # what came is handled at once
        self._loop = asyncio.get_running_loop()
        self.time: Callable[[], float] = self._loop.time
        self._tls = self._read_tls()
        store = open_store(settings)
        try:
            self._take_over(store)
        except BaseException:
            store.close()
            raise
        self._committer = GroupCommitter(self.broker.journal, store, settings.sync, self._schedule)
        self._stopping = False
        self.port = 0
        self.congested = 0  # peers for which as much waits as may
        self._listener: asyncio.Server | None = None
        self._empty = asyncio.Event()  # no connections; looked at only when stopping
        self.flushing = False  # a flush is on its way
        self._sweep: asyncio.TimerHandle | None = None  # for packets that do not come whole
        self._most_connections = min(settings.max_connections or sys.maxsize, _most_connections())
        self._timer_due = 0.0  # uvloop's timers do not tell
        self._timer: asyncio.TimerHandle | None = None

    def _take_over(self, store: Store) -> None:
        """Make the broker, and give it what the store has. Raises StoreError."""
        contents = store.load()
        token = self.settings.token
        self.broker = Broker(
            b"H:%b-%b:" % (socket.gethostname()[:32].encode(), contents.name),
            lambda line: admin.answer(self.broker, line),
            self.settings.limits,
            store,
            token.get_secret_value().encode() if token is not None else None,
            admin.server_version(),
        )
        self._held_grabs = self.broker.outgoing.held_grabs.by_session
        self._partials = self.broker.parser.partials
        self._set_clock()
        collecting = gc.isenabled()
        gc.disable()  # nothing of it is garbage
        try:
            self.restored = self.broker.restore(contents)
        finally:
            if collecting:
                gc.enable()

    async def start(self) -> None:
        """Listen. Raises OSError where that is not possible (the port is taken, the address is not ours)."""
        settings = self.settings
        self._committer.commit()
        await self._committer.settle()
        try:
            self._listener = await self._loop.create_server(
                self._new_protocol, settings.host, settings.port, backlog=settings.backlog
            )
        except OSError:
            await self._committer.close()
            raise
        self.port = self._listener.sockets[0].getsockname()[1]
        self._set_clock()
        logger.info("listening", extra={"host": settings.host, "port": self.port})

    async def stop(self) -> None:
        """Stop listening and close all connections, whatever they wait for; what is kept stays."""
        assert self._listener is not None
        self._listener.close()
        self.flush()
        self._stopping = True
        for timer in (self._timer, self._sweep):
            if timer is not None:
                timer.cancel()
        for peer in list(self.peers.values()):
            peer.close()
        self._settle()
        try:
            async with asyncio.timeout(_FAREWELL):
                await self._empty.wait()
        except TimeoutError:
            for peer in list(self.peers.values()):
                peer.abort()
        await self._committer.close()
        logger.info("stopped", extra={"host": self.settings.host, "port": self.port})

    def reload_tls(self) -> None:
        """Read the files of TLS again, for connections to come; where one is bad, all stay as they are."""
        try:
            self._tls = self._read_tls()
        except BadCertificate as error:
            logger.error("TLS stays as it is", extra={"reason": str(error)})
        else:
            logger.info("the files of TLS were read again", extra={"cert": str(self.settings.tls_cert)})

    def _read_tls(self) -> ssl.SSLContext | None:
        """How to speak TLS, if it is to be spoken. Raises BadCertificate."""
        settings = self.settings
        if settings.tls_cert is None:
            return None
        return server_context(settings.tls_cert, settings.tls_key, settings.tls_ca)

    def _new_protocol(self) -> asyncio.BaseProtocol:
        """What a connection that was accepted is spoken to with."""
        return (
            ServerConnection(self)
            if self._tls is None
            else TlsTransport(self, ServerConnection(self), self._tls)
        )

    def accept(self, peer: ServerConnection, transport: asyncio.BaseTransport) -> Session:
        """A connection was made; one too many is closed again, and logged."""
        address = transport.get_extra_info("peername")
        name = address[0] if address else "-"
        session = self.broker.connected(transport.get_extra_info("socket").fileno(), name)
        self.peers[session] = peer
        if len(self.peers) > self._most_connections:
            fields = {"peer": name, "limit": self._most_connections}
            logger.warning("refused a connection: there are as many as may be", extra=fields)
            transport.close()
        elif session in self.broker.auth.unauthenticated:
            self.call_later(_INTRODUCTION, partial(self._close_unauthenticated, session))
        return session

    def forget(self, session: Session) -> None:
        """Remove the peer of a closed connection and notify the broker."""
        del self.peers[session]
        self._settle()
        if not self._stopping:  # else its jobs are not handed on: they are found at the next start
            self.broker.disconnected(session, self.time())
            self.schedule_flush()

    def post(self, call: Callable[[], None]) -> None:
        """Have something called on the event loop, from any thread."""
        self._loop.call_soon_threadsafe(call)

    def call_later(self, seconds: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        """Have something called on the event loop after a time."""
        return self._loop.call_later(seconds, call)

    def _close_unauthenticated(self, session: Session) -> None:
        if session in self.broker.auth.unauthenticated:
            self.peers[session].refuse(
                f"nothing was said for {_INTRODUCTION:g} s",
                "refused a connection that does not know the token",
            )

    def _settle(self) -> None:
        if not self.peers:
            self._empty.set()
        else:
            self._empty.clear()

    def schedule_flush(self) -> None:
        """Have the outboxes written once for all that this turn of the event loop brings."""
        broker = self.broker
        outgoing = broker.outgoing
        if (outgoing.dirty or broker.journal.entries or self._held_grabs) and not self.flushing:
            self._schedule()
        if self._partials or outgoing.notices:
            self._look_after()

    def _schedule(self) -> None:
        if not self.flushing:
            self.flushing = True
            self._loop.call_soon(self.flush)

    def _look_after(self) -> None:
        """What is rare: log what the broker noticed, and see to packets that have not come whole."""
        if self.broker.outgoing.notices:
            self._log_notices()
        if self._partials and self._sweep is None:
            self._sweep = self._loop.call_later(_SWEEP, self._close_overdue)

    def flush(self) -> None:
        """Have kept what is to be kept, then write all outboxes."""
        self.flushing = False
        broker = self.broker
        if broker.journal.entries:
            self._committer.commit()
        if broker.submissions.ready_to_resume:
            self._resume()
        self._write()
        if self._partials or broker.outgoing.notices:
            self._look_after()
        due = self.broker.next_due()
        if due is not None and (self._timer is None or due < self._timer_due):
            self._set_timer(due)

    def _write(self) -> None:
        """Write the outboxes that have something in them."""
        outgoing = self.broker.outgoing
        dirty, outgoing.dirty = outgoing.dirty, []
        for session in dirty:
            peer = self.peers.get(session)
            if peer is not None:
                peer.flush()

    def _resume(self) -> None:
        """Go on with what sessions sent while their submissions were at the store."""
        submissions = self.broker.submissions
        ready, submissions.ready_to_resume = submissions.ready_to_resume, {}
        for session in ready:
            if session in self.peers:
                if self.congested:
                    self._write()  # so that who is dirty afterwards was fed by this peer
                self.peers[session].resume()

    def _log_notices(self) -> None:
        for notice in self.broker.outgoing.notices:
            fields = {"subject": notice.subject.decode(errors="replace")}
            if notice.session is not None:
                fields["peer"] = notice.session.address
            logger.warning(notice.text, extra=fields)
        self.broker.outgoing.notices.clear()

    def _close_overdue(self) -> None:
        """Look after packets that do not come whole; goes on as long as there are any."""
        self._sweep = None
        for session in self.broker.parser.overdue(self.time()):
            self.peers[session].refuse("a packet did not come whole in time")
        if self._partials:
            self._sweep = self._loop.call_later(_SWEEP, self._close_overdue)

    def _set_timer(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = min(due, self.time() + _LONGEST_NAP)
        self._timer = self._loop.call_at(self._timer_due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._set_clock()
        self.broker.tick(self.time())
        self.schedule_flush()
        due = self.broker.next_due()
        if due is not None:
            self._set_timer(due)

    def _set_clock(self) -> None:
        self.broker.clock.offset = time.time() - self.time()


class JobServer:
    """A Gearman job server that runs for the duration of a block.

        async with JobServer(port=0) as server:  # on asyncio's loop; under trio in a thread of its own
            ...server.address...

        with JobServer(port=0) as server:  # in a thread of its own
            ...

    Without ``data=``, jobs live in memory and are gone when the block ends. With it they live in a file in
    that folder, and a server that you start with it later has them. Pass settings as a ``ServerSettings``, as
    keywords, or both. Keywords take precedence.

    Args:
        settings: The settings. You can also pass each of its fields as a keyword.

    Attributes:
        settings: The settings that apply.

    Raises:
        OSError: On entering, if the port is taken or the address is not this machine's.
        StoreError: On entering, if the job file cannot be used.
        ValueError: On entering, if a TLS file cannot be used.
        pydantic.ValidationError: On construction, if a setting is unknown or out of range.
    """

    def __init__(self, settings: ServerSettings | None = None, /, **overrides: Unpack[ServerOptions]) -> None:
        base = settings.model_dump() if settings else {}
        self.settings: ServerSettings = ServerSettings.model_validate({**base, **overrides})
        self._engine: Engine | None = None
        self._thread: _EngineThread | None = None

    @property
    def host(self) -> str:
        """The address on which the server listens."""
        return self.settings.host

    @property
    def port(self) -> int:
        """The port on which the server listens. Before it runs, the port of its settings."""
        return self._engine.port if self._engine else self.settings.port

    @property
    def restored(self) -> int:
        """The number of jobs that were in the file when the server started."""
        return self._engine.restored if self._engine else 0

    @property
    def address(self) -> str:
        """``host:port``, for clients and workers."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def reload_tls(self) -> None:
        """Read the TLS files again, for new connections. You can call it from any thread.

        If a file cannot be used, the server logs that, and all settings stay as they are. Open connections
        stay.
        """
        if self._engine is not None and self.settings.tls_cert is not None:
            self._engine.post(self._engine.reload_tls)

    async def __aenter__(self) -> Self:
        if _in_asyncio():
            self._engine = Engine(self.settings)
            await self._engine.start()
        else:
            await anyio.to_thread.run_sync(self.__enter__)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._thread is not None:
            with anyio.CancelScope(shield=True):  # bounded: see _FAREWELL
                await anyio.to_thread.run_sync(self.__exit__)
        elif self._engine is not None:
            engine, self._engine = self._engine, None
            with anyio.CancelScope(shield=True):
                await engine.stop()

    def __enter__(self) -> Self:
        thread = _EngineThread(self.settings)
        self._engine = thread.start()
        self._thread = thread
        return self

    def __exit__(self, *_: object) -> None:
        thread, self._thread, self._engine = self._thread, None, None
        if thread is not None:
            thread.stop()


class _EngineThread:
    """An engine on an event loop in a thread of its own."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._started: Future[Engine] = Future()
        self._thread = threading.Thread(target=self._run, name="gearflow-server", daemon=True)

    def start(self) -> Engine:
        """Start it and wait until it listens. Raises as ``Engine.start``."""
        self._thread.start()
        return self._started.result()

    def stop(self) -> None:
        """Stop it and wait until it is gone."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        try:
            engine = Engine(self._settings)
            await engine.start()
        except BaseException as error:  # noqa: BLE001  (whatever it is, it belongs to who called start)
            self._started.set_exception(error)
            return
        self._started.set_result(engine)
        await self._stop.wait()
        await engine.stop()


def _in_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _most_connections() -> int:
    """The limit on open files of the process, less a few, which the server needs to refuse a connection."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(soft - _SPARE_FILES, 1) if soft != resource.RLIM_INFINITY else sys.maxsize


def tune_garbage_collection() -> None:
    """Tune Python's garbage collector for a process that only runs a job server.

    Reference counting frees jobs and sessions. Objects that survive a collection of young objects are hidden
    from the collector, so that each collection looks at ``_YOUNG`` objects at most, however many jobs wait.
    (This does not apply to asyncio's own loop, whose transports are cycles and would never be freed.) Call it
    only in a process of its own, because an application has its own settings.
    """

    def after(phase: str, info: Mapping[str, int]) -> None:
        if phase == "stop":
            gc.freeze()

    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 1000, 1000)
    if can_use_uvloop():
        gc.callbacks.append(after)
