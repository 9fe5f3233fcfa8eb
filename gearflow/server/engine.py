"""A job server on one asyncio event loop: the broker, its connections, and the timers between them.

Each turn of the loop brings bytes to the broker. ``flush`` runs once at the end of the turn: it commits what
the broker wants kept, then writes the outboxes.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import socket
import ssl
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Final

from gearflow.broker import Broker, Session, SizeLimits
from gearflow.broker.storage import Store, StorePort
from gearflow.broker.watching import SLOW
from gearflow.errors import RemoteProtocolError
from gearflow.protocol.metrics import Metrics, MetricsRequest
from gearflow.protocol.rights import Tokens
from gearflow.runtime.log_bursts import BurstLog
from gearflow.security.tls import BadCertificate, server_context
from gearflow.security.tokens import BadTokens, exposed, read_tokens
from gearflow.server import admin, tls
from gearflow.server.connection import NOT_GEARMAN, ServerConnection
from gearflow.server.loading import FollowedPort, Loading
from gearflow.server.persistence import CommitTimings, GroupCommitter, open_store, store_state
from gearflow.server.settings import ServerSettings
from gearflow.server.shared.committer import SharedTimings
from gearflow.server.shared.persistence import SharedPersistence, lease_time, open_shared_store
from gearflow.server.tls import TlsTransport
from gearflow.stores.shared import SharedStore

logger = logging.getLogger(__name__)

_TURN: Final = 0.005
"""Seconds after which a turn of the broker is late: work that takes longer goes on in a later turn."""

_TRIM: Final = 1.0
"""Seconds after the start of long work, in which memory becomes free that the system should have."""

_WRITES: Final = 500
"""Connections that are written to before others get their turn, which takes a few milliseconds."""

_SPARE_FILES: Final = 64
"""Open files that the process keeps for its own use: the log, the event loop, and the embedding program."""

_AT_ONCE: Final = 100
"""Connections that are closed in one turn of the event loop because their packets are overdue."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Time limits of a server in seconds. They are not settings. Tests pass shorter ones."""

    history: bool = True
    """Whether the minutes of the history are written. Tests that count the writes of a store go without."""

    clock_check: float = 1.0
    """Time between looks at the wall clock, which may be set at any time."""

    packet_check: float = 1.0
    """Time between checks for packets that have not arrived whole."""

    authentication: float = 30.0
    """Time for a connection to send the token, if the server has one."""

    handshake: float = 10.0
    """Time for a client's part of the TLS handshake."""

    last_read: float = 10.0
    """Time for a peer to read what was already written to it when its connection ends."""

    last_write: float = 1.0
    """Time for peers to read what was already written to them when the server stops."""

    shortest_run: float = SizeLimits().shortest_run
    """The shortest time limit of a run that a worker can set (CAN_DO_TIMEOUT)."""

    commit: CommitTimings = field(default_factory=CommitTimings)

    shared: SharedTimings = field(default_factory=SharedTimings)


class Engine:
    """A running server on the current event loop. Owns the broker, the connections and the timers.

    Args:
        settings: The server's settings.
        timings: Its time limits.
        open_store: Opens the store.
        open_shared: Makes the store that several servers share, which is not connected yet.
        loading: Shows other threads how much of the file is read.

    Raises:
        StoreError: The store cannot be used.
        BadCertificate: A TLS file cannot be used.
        BadTokens: The file of tokens cannot be used.
    """

    def __init__(
        self,
        settings: ServerSettings,
        timings: Timings | None = None,
        open_store: Callable[[ServerSettings], Store] = open_store,
        open_shared: Callable[[ServerSettings, int], SharedStore] = open_shared_store,
        loading: Loading | None = None,
    ) -> None:
        self.settings = settings
        self.timings = timings or Timings()
        self.peers: dict[Session, ServerConnection] = {}
        self.port = 0
        self.congested = 0  # connections whose pending bytes are at the limit
        self.flushing = False  # a flush is scheduled
        self._flush = self.flush  # made once
        self.tls_buffer = memoryview(bytearray(tls.SIZE if settings.tls_cert else 0))  # shared by all
        self._loop = asyncio.get_running_loop()
        self.time: Callable[[], float] = self._loop.time
        self.log = BurstLog(logger, self.time, self.call_later)  # of what peers cause
        self._tls = self._read_tls()
        self._tokens = self._read_tokens()
        self.restored = 0
        self.is_serving = False
        self._loading = loading or Loading()
        self._committer: GroupCommitter | SharedPersistence
        if settings.postgres is None:
            with self._loading.going_on():
                store = open_store(settings)
                try:
                    self._load(store)
                except BaseException:
                    store.close()
                    raise
            self._committer = GroupCommitter(
                self.broker.journal, store, settings.sync, self._schedule, self.timings.commit
            )
        else:
            self.time = lease_time
            self._open_shared = open_shared  # ``start`` does it
        self.most_connections = min(settings.max_connections or sys.maxsize, _most_connections())
        self._listener: asyncio.Server | None = None
        self._leaving: set[ServerConnection] = set()  # not in ``peers`` any more, and not closed yet
        self._stopping = False
        self._lost: set[Session] = set()  # closed connections, of which not all input is handled
        self._all_closed = asyncio.Event()  # set when the last connection closes
        self._packet_timer: asyncio.TimerHandle | None = None
        self._trim_timer: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0  # uvloop's timers have no ``when``

    def _load(self, store: Store) -> None:
        """Make the broker and restore what the store has. Raises StoreError."""
        contents = store.load()
        self._use(self._make_broker(contents.name, FollowedPort(store, self._loading)))
        self._update_clock()
        collecting = gc.isenabled()
        gc.disable()  # none of the restored jobs is garbage
        try:
            self.restored = self.broker.restore(self._loading.followed(contents))
        finally:
            if collecting:
                gc.enable()

    def _make_broker(self, store_name: bytes, port: StorePort) -> Broker:
        return Broker(
            b"H:%b-%b:" % (socket.gethostname()[:32].encode(), store_name),
            lambda line: admin.answer(self.broker, line),
            replace(self.settings.limits, shortest_run=self.timings.shortest_run),
            port,
            self._tokens,
            admin.server_version(),
        )

    def _use(self, broker: Broker) -> None:
        """Serve with this broker."""
        self.broker = broker
        self.broker.core.totals.started = time.time()
        self.broker.core.store_state = partial(store_state, self.settings)
        self.broker.outgoing.unsent = self._unsent
        self.broker.watching.slow = min(SLOW, self.settings.max_pending_bytes // 2)
        self.broker.turns.is_late = lambda: self.time() - self.broker.clock.now > _TURN
        self._turns = self.broker.turns.waiting
        self._journal = broker.journal
        self._submissions = broker.submissions
        self._outgoing = broker.outgoing
        self._held_grabs = broker.outgoing.held_grabs.by_session
        self._partials = self.broker.parser.partials

    # ------------------------------------------------------------------------------------ start and stop

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: The port is taken, or the address is not this machine's.
            StoreError: The database cannot be used.
        """
        settings = self.settings
        if settings.postgres is None:
            self._committer.commit()
            await self._committer.settle()
        try:
            self._listener = await self._loop.create_server(
                self._new_protocol,
                settings.host,
                settings.port,
                backlog=settings.backlog,
                start_serving=False,
            )
        except OSError:
            if settings.postgres is None:
                await self._committer.close()
            raise
        self.port = self._listener.sockets[0].getsockname()[1]
        if settings.postgres is not None:
            try:
                await self._join_group()
            except BaseException:
                self._listener.close()
                raise
        await self._listener.start_serving()
        if self.timings.history:
            self.broker.core.history.begin(self.time())
        self._tick()
        self.is_serving = True
        logger.info("listening", extra={"host": settings.host, "port": self.port})

    async def _join_group(self) -> None:
        """Open the database that several servers share. Raises StoreError."""
        store = self._open_shared(self.settings, self.port)
        self._committer = persistence = SharedPersistence(
            store, self.settings, self._make_broker, self._wake, self.timings.shared
        )
        self._use(await persistence.start())

    async def stop(self) -> None:
        """Stop listening, close all connections, and close the store. Kept jobs stay in the store."""
        assert self._listener is not None
        self.is_serving = False
        await self._stop_listening(self._listener)
        if self.timings.history:
            for _ in self.broker.core.history.close():
                pass
        self.flush()
        while self._outgoing.dirty:
            self._write()
        self._stopping = True
        for timer in (self._timer, self._packet_timer, self._trim_timer):
            if timer is not None:
                timer.cancel()
        await self._close_connections()
        for pending in (self.peers, self._lost, self._turns):  # nothing more reaches the store
            pending.clear()
        await self._committer.close()
        self.log.flush()
        logger.info("stopped", extra={"host": self.settings.host, "port": self.port})

    async def _stop_listening(self, listener: asyncio.Server) -> None:
        """Stop listening. What is accepted is a connection then, which is closed like the others.

        asyncio needs two turns to make it, and loses it if the listener closes before the first one.
        """
        for accepting in listener.sockets:
            self._loop.remove_reader(accepting.fileno())  # does nothing on uvloop, which needs one turn
        await asyncio.sleep(0)
        listener.close()
        await asyncio.sleep(0)

    async def _close_connections(self) -> None:
        """Close all connections, and abort those that do not read what was written to them."""
        if not self.connections:
            return
        self._all_closed.clear()
        for peer in self._all_peers():
            peer.close()
        try:
            async with asyncio.timeout(self.timings.last_write):
                await self._all_closed.wait()
        except TimeoutError:
            for peer in self._all_peers():
                peer.abort()

    def _all_peers(self) -> list[ServerConnection]:
        return [*self.peers.values(), *self._leaving]

    # ---------------------------------------------------------------------------------------------- TLS

    def reload_tls(self) -> None:
        """Read the TLS files again for new connections. If one is bad, all settings stay as they are."""
        try:
            self._tls = self._read_tls()
        except BadCertificate as error:
            logger.error("cannot reload the TLS files", extra={"reason": str(error)})
        else:
            logger.info("reloaded the TLS files", extra={"cert": str(self.settings.tls_cert)})

    def _read_tls(self) -> ssl.SSLContext | None:
        """The TLS context, or None without TLS. Raises BadCertificate."""
        settings = self.settings
        if settings.tls_cert is None:
            return None
        return server_context(settings.tls_cert, settings.tls_key, settings.tls_ca)

    # ------------------------------------------------------------------------------------------- tokens

    def reload_tokens(self) -> None:
        """Read the file of tokens again. If it is bad, all tokens stay as they are.

        Connections whose token is gone or has lost a right are closed.
        """
        try:
            self._tokens = tokens = self._read_tokens()
        except BadTokens as error:
            logger.error("cannot reload the tokens", extra={"reason": str(error)})
            return
        if tokens is None or not hasattr(self, "broker"):  # it does not serve yet
            return
        gone = self.broker.guards.replace_tokens(tokens)
        for session in gone:
            if session in self.peers:
                self.peers[session].refuse("closed a connection whose token is gone or has lost a right")
            elif session in self._lost:  # what it had sent is not handled any more
                self._lost.discard(session)
                self.broker.disconnected(session, self.time())
        file = str(self.settings.token_file)
        logger.info("reloaded the tokens", extra={"file": file, "tokens": len(tokens), "closed": len(gone)})

    def _read_tokens(self) -> Tokens | None:
        """The tokens that are accepted. None means that none is needed. Raises BadTokens."""
        settings = self.settings
        if settings.token_file is not None:
            tokens = read_tokens(settings.token_file)
            if reason := exposed(settings.token_file):
                extra = {"file": str(settings.token_file), "reason": reason}
                logger.warning("the file of tokens is open to others", extra=extra)
            return tokens
        return Tokens.of(settings.token.get_secret_value().encode()) if settings.token is not None else None

    # -------------------------------------------------------------------------------------- connections

    def _new_protocol(self) -> asyncio.BaseProtocol:
        """The protocol for an accepted connection."""
        peer = ServerConnection(self)
        return peer if self._tls is None else TlsTransport(self, peer, self._tls)

    def accept(self, peer: ServerConnection, transport: asyncio.BaseTransport) -> Session:
        """Register a new connection."""
        address = transport.get_extra_info("peername")
        name = address[0] if address else "-"
        session = self.broker.connected(transport.get_extra_info("socket").fileno(), name)
        self.peers[session] = peer
        return session

    @property
    def closed(self) -> str | None:
        """Why the server accepts no background jobs. None if it does."""
        fault = self.broker.journal.refusal
        return fault.reason if fault is not None else None

    @property
    def connections(self) -> int:
        """The number of connections that are open, also those that only have to be written to."""
        return len(self.peers) + len(self._leaving)

    def _unsent(self, session: Session) -> int:
        """Bytes that wait until the peer of a session reads."""
        peer = self.peers.get(session)
        return peer.unsent if peer is not None else 0

    def on_leaving(self, peer: ServerConnection, session: Session, *, is_refused: bool) -> None:
        """A connection ends when its peer has read what was written to it. The broker does not wait."""
        self._leaving.add(peer)
        self._disconnect(session, is_refused=is_refused)

    def on_connection_lost(self, peer: ServerConnection, session: Session) -> None:
        """Remove the peer of a closed connection."""
        if session in self.peers:
            self._disconnect(session)
        self._leaving.discard(peer)
        if not self.connections:
            self._all_closed.set()

    def _disconnect(self, session: Session, *, is_refused: bool = False) -> None:
        """Notify the broker that a connection is over. What it had sent is handled, unless it is refused."""
        del self.peers[session]
        if not self._stopping:  # else its jobs stay with it, and the next start restores them
            if session.continues and not is_refused:
                self._lost.add(session)
            else:
                self.broker.disconnected(session, self.time())
            self.schedule_flush()

    # -------------------------------------------------------------------------- calls on the event loop

    @property
    def is_here(self) -> bool:
        """Whether this thread runs the server's event loop now."""
        with suppress(RuntimeError):
            return asyncio.get_running_loop() is self._loop
        return False

    def metrics(self, request: MetricsRequest) -> Future[Metrics]:
        """What the server has counted. You can use this from any thread."""
        found: Future[Metrics] = Future()
        self.post(lambda: self._measure(request, found))
        return found

    def _measure(self, request: MetricsRequest, found: Future[Metrics]) -> None:
        self.broker.metrics(request, found.set_result)
        self.schedule_flush()

    def post(self, call: Callable[[], None]) -> None:
        """Call something on the event loop. You can use this from any thread."""
        self._loop.call_soon_threadsafe(call)

    def call_later(self, seconds: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        """Call something on the event loop after a time."""
        return self._loop.call_later(seconds, call)

    def schedule_flush(self) -> None:
        """Flush once for everything that this turn of the event loop brings."""
        outgoing = self._outgoing
        if not self.flushing and (outgoing.dirty or self._held_grabs or self._journal.entries or self._turns):
            self.flushing = True
            self._loop.call_soon(self._flush)
        if self._partials or outgoing.notices:
            self._handle_rare()

    def _wake(self) -> None:
        """Have everything sent, and the timers looked at, after something else than input."""
        if hasattr(self, "broker"):
            self._schedule()

    def _schedule(self) -> None:
        if not self.flushing:
            self.flushing = True
            self._loop.call_soon(self._flush)

    def flush(self) -> None:
        """Proceed with long work, then commit and write. Called once a turn of the event loop."""
        self.flushing = False
        if self._turns:
            if self._outgoing.dirty or self._journal.entries:
                self.commit_and_write()  # what others have sent meanwhile does not wait for the long work
            self._proceed()
        self.commit_and_write()

    def commit_and_write(self) -> None:
        """Commit the journal, then write all outboxes."""
        if self._journal.entries:
            self._committer.commit()
        if self._submissions.ready_to_resume:
            self._resume()
        self._write()
        if self._turns or self._outgoing.dirty:
            self._schedule()
        if self._partials or self._outgoing.notices:
            self._handle_rare()
        due = self.broker.next_due()
        if due is not None and (self._timer is None or due < self._timer_due):
            self._set_timer(due)

    def _proceed(self) -> None:
        """Do the next share of the work that waits for its turn."""
        if self._trim_timer is None:
            self._trim_timer = self._loop.call_later(_TRIM, self._trim)
        session = self.broker.proceed(self.time())
        if session is None:
            return
        if session in self.peers:
            if self.congested:
                self._write()  # so that only this peer makes sessions dirty from here on
            self.peers[session].resume()
        elif session in self._lost:
            self._finish(session)

    def _trim(self) -> None:
        self._trim_timer = None
        trim = _malloc_trim()
        if trim is not None:
            trim(0)

    def _finish(self, session: Session) -> None:
        """Handle what a closed connection had sent, and then its end."""
        with suppress(RemoteProtocolError):
            self.broker.resume(session, self.time())
        if not session.continues:
            self._lost.discard(session)
            self.broker.disconnected(session, self.time())

    def _write(self) -> None:
        """Write the outboxes that are not empty, as many as one turn has time for."""
        outgoing = self._outgoing
        dirty, outgoing.dirty = outgoing.dirty, []
        if len(dirty) > _WRITES and not self.congested:
            dirty, outgoing.dirty = dirty[:_WRITES], dirty[_WRITES:]
        for session in dirty:
            peer = self.peers.get(session)
            if peer is not None:
                peer.flush()

    def _resume(self) -> None:
        """Parse the input that waited until a submission was committed."""
        submissions = self._submissions
        ready, submissions.ready_to_resume = submissions.ready_to_resume, {}
        for session in ready:
            if session in self.peers:
                if self.congested:
                    self._write()  # so that only this peer makes sessions dirty from here on
                self.peers[session].resume()

    # ---------------------------------------------------------------------- notices and partial packets

    def _handle_rare(self) -> None:
        """Log the broker's notices, and start the timer for partial packets."""
        if self._outgoing.notices:
            self._log_notices()
        if self._partials and self._packet_timer is None:
            self._packet_timer = self._loop.call_later(self.timings.packet_check, self._check_packets)

    def _log_notices(self) -> None:
        for notice in self._outgoing.notices:
            fields = {"subject": notice.subject.decode(errors="replace")}
            if notice.session is not None:
                fields["peer"] = notice.session.address
            self.log.warning(notice.text, *notice.arguments, **fields)
        self._outgoing.notices.clear()

    def _check_packets(self) -> None:
        """Close connections whose packet is overdue. Repeats while there are partial packets."""
        overdue = self.broker.parser.overdue(self.time())
        for session in overdue[:_AT_ONCE]:
            self.peers[session].refuse(NOT_GEARMAN, reason="a packet did not arrive whole in time")
        self._packet_timer = None
        if len(overdue) > _AT_ONCE:
            self._packet_timer = self._loop.call_later(0, self._check_packets)
        self._handle_rare()

    # ----------------------------------------------------------------------------- the broker's timers

    def _set_timer(self, due: float | None) -> None:
        """Have the broker's timers looked at when the next one is due. The wall clock may change before."""
        if self._stopping:
            return
        if self._timer is not None:
            self._timer.cancel()
        check = self.time() + self.timings.clock_check
        self._timer_due = min(due, check) if due is not None else check
        self._timer = self._loop.call_later(self._timer_due - self.time(), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._update_clock()
        self.broker.tick(self.time())
        self.schedule_flush()
        self._set_timer(self.broker.next_due())

    def _update_clock(self) -> None:
        if self.settings.postgres is None:  # else the clock of the database counts
            self.broker.clock.offset = time.time() - self.time()


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """The C library's function that gives free memory back to the system, if it has one.

    Without it the memory of 300,000 jobs that ended together stays with the process for the most part.
    """
    import ctypes  # for those servers only that have had long work

    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library than glibc
        return None
    return trim


def _most_connections() -> int:
    """The limit on open files of the process, less a few that the server needs itself."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(soft - _SPARE_FILES, 1) if soft != resource.RLIM_INFINITY else sys.maxsize
