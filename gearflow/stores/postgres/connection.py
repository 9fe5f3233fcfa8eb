"""One connection to PostgreSQL on an asyncio loop, by libpq's own functions.

There is no cursor, no task and no cancellation on the way: a statement is sent, and a callback of the loop
reads its result. Statements are prepared once on each connection. Several in one call share a transaction.

**Deadlines.** A statement without an answer in time closes the socket. Cancelling it would need the server
that does not answer, and a lost network is not reported.

**Connecting.** libpq would resolve names while nothing else runs, as psycopg holds the interpreter lock. So
the loop resolves them, and each address is tried by itself.

psycopg is imported with this module only, because it is an extra of the installation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from gearflow.errors import StoreError
from gearflow.stores.postgres.addresses import find_addresses, place_of, with_service
from gearflow.stores.postgres.errors import READ_ONLY, failed, refused
from gearflow.stores.postgres.session import Query, Rows
from gearflow.stores.postgres.watch import Watch
from gearflow.stores.shared import Away

try:
    from psycopg import OperationalError, ProgrammingError, pq
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
except ImportError as _error:
    raise StoreError(
        f"a store in PostgreSQL needs psycopg ({_error}); pip install 'gearflow[postgres]'"
    ) from _error

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn, PGresult

OLDEST: Final = 14
"""The oldest version of PostgreSQL that has all that is used here."""

_BINARY: Final = 1
_PREPARED: Final = 200  # statements on one connection; there are not that many

_FINAL: Final = (
    "password authentication failed",
    "no password supplied",
    "authentication failed for user",
    "no pg_hba.conf entry",
    "does not exist",
    "is not permitted to log in",
    "permission denied for database",
    "unsupported startup parameter",
    "does not support SSL",
    "certificate verify failed",
)
"""In errors of a connection that another attempt would not help. libpq does not tell their codes."""


class DatabaseConnection:
    """An open connection. It runs one call at a time, and is of no use after an ``Away``."""

    def __init__(self, raw: PGconn, schema: str) -> None:
        """``raw`` is connected."""
        raw.nonblocking = 1
        self._raw = raw
        self._schema = schema
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._results: list[PGresult] = []
        self._pipelined = False
        self._prepared: dict[str, bytes] = {}
        self.closed = False
        self.on_notify: Callable[[], None] | None = None
        """Called when a NOTIFY has come."""
        # uvloop reports a reset once, and the first read may return the bytes that came before it. TLS may
        # have taken more from the socket than the first read returns.
        self._reads = 2 if raw.ssl_in_use or type(self._loop).__module__.startswith("uvloop") else 1
        self._watch = Watch(raw.socket)
        self._watch.on_read(self._read)

    @property
    def pid(self) -> int:
        """Of the server process, as the peer says."""
        return self._raw.backend_pid

    async def run(self, queries: Sequence[Query], timeout: float) -> list[Rows]:
        """Run statements in one transaction, and return their rows in binary format.

        Raises:
            Away: The connection is closed. The transaction may have been committed, if it was ``sent``.
            StoreError: Nothing of it is kept.
        """
        for query in queries:
            if query.sql not in self._prepared:
                await self._prepare(query, timeout)
        if len(queries) == 1:
            (query,) = queries
            send = partial(
                self._raw.send_query_prepared,
                self._prepared[query.sql],
                query.params,
                [_BINARY] * len(query.params),
                _BINARY,
            )
            results = await self._exchange(send, timeout)
        else:
            results = await self._exchange(partial(self._send_all, queries), timeout, pipelined=True)
        return [_rows(result) for result in results]

    async def simple(self, sql: str, timeout: float = 30.0) -> list[Rows]:
        """Run statements without parameters, in one transaction. The results are text."""
        send = partial(self._raw.send_query, sql.encode())
        return [_rows(result) for result in await self._exchange(send, timeout)]

    def close(self) -> None:
        """Close it. A call that waits for an answer gets ``Away``."""
        self._lose("the connection is closed")

    async def _prepare(self, query: Query, timeout: float) -> None:
        if len(self._prepared) >= _PREPARED:
            self._prepared.clear()
            await self.simple("DEALLOCATE ALL", timeout)
        name = b"s%d" % len(self._prepared)
        send = partial(self._raw.send_prepare, name, query.sql.encode(), query.types)
        try:
            await self._exchange(send, timeout)
        except Away as error:
            raise Away(str(error), sent=False) from None
        self._prepared[query.sql] = name

    def _send_all(self, queries: Sequence[Query]) -> None:
        raw = self._raw
        raw.enter_pipeline_mode()
        for sql, _, params in queries:
            raw.send_query_prepared(self._prepared[sql], params, [_BINARY] * len(params), _BINARY)
        raw.pipeline_sync()

    async def _exchange(
        self, send: Callable[[], None], timeout: float, *, pipelined: bool = False
    ) -> list[PGresult]:
        assert self._waiter is None, "a connection runs one call at a time"
        if self.closed:
            raise Away("PostgreSQL: the connection is closed", sent=False)
        self._results = []
        self._pipelined = pipelined
        waiter = self._waiter = self._loop.create_future()
        deadline = self._loop.call_later(timeout, self._expire, timeout)
        try:
            try:
                send()
                self._write()
            except OperationalError as error:
                self._lose(str(error))
            await waiter
        except asyncio.CancelledError:
            self.close()  # its answer would be taken for that of the next statement
            raise
        finally:
            deadline.cancel()
            self._waiter = None
        if pipelined:
            self._raw.exit_pipeline_mode()
        results, self._results = self._results, []
        for result in results:
            if result.status == pq.ExecStatus.FATAL_ERROR:
                raise self._failure(result)
        return results

    def _failure(self, result: PGresult) -> StoreError:
        code = str(result.error_field(pq.DiagnosticField.SQLSTATE) or b"", "ascii")
        message = str(result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"", "utf-8", "replace")
        detail = str(result.error_field(pq.DiagnosticField.MESSAGE_DETAIL) or b"", "utf-8", "replace")
        error = failed(code, f"{message} ({detail})" if detail else message, self._schema)
        if isinstance(error, Away):
            self.close()
            if code == READ_ONLY:
                return Away(f"{error}; it is a standby, or has just become one", sent=False)
        return error

    # -------------------------------------------------------------------------------- on the loop

    def _write(self) -> None:
        """Give the kernel what it takes. Waits for the rest."""
        if self.closed:
            return
        try:
            self._watch.on_write(self._write if self._raw.flush() else None)
        except OperationalError as error:
            self._lose(str(error))

    def _read(self) -> None:
        raw = self._raw
        try:
            for _ in range(self._reads):
                raw.consume_input()
            if self._waiter is not None and not self._waiter.done():
                self._collect(self._waiter)
            notified = False
            while raw.notifies() is not None:
                notified = True
        except OperationalError as error:
            self._lose(str(error))
            return
        if notified and self.on_notify is not None:
            self.on_notify()

    def _collect(self, waiter: asyncio.Future[None]) -> None:
        raw = self._raw
        while not raw.is_busy():
            result = raw.get_result()
            if result is None:
                if not self._pipelined:
                    waiter.set_result(None)
                    return
            elif result.status == pq.ExecStatus.PIPELINE_SYNC:
                waiter.set_result(None)
                return
            else:
                self._results.append(result)

    def _expire(self, timeout: float) -> None:
        self._lose(f"no answer within {timeout:g} s")

    def _lose(self, reason: str) -> None:
        """Close the socket. A call that waits for an answer gets ``Away``."""
        if not self.closed:
            self.closed = True
            self._watch.close()
            self._raw.finish()
        if self._waiter is not None and not self._waiter.done():
            for result in self._results:  # what the server said before it closed the connection
                if message := result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY):
                    reason = str(message, "utf-8", "replace")
            self._waiter.set_exception(Away(f"PostgreSQL: {reason.strip().splitlines()[0]}", sent=True))


def _rows(result: PGresult) -> Rows:
    columns = range(result.nfields)
    return [tuple([result.get_value(row, column) for column in columns]) for row in range(result.ntuples)]


# ------------------------------------------------------------------------------------------- connecting


async def connect(
    conninfo: str, name: str, schema: str, timeout: float, *, keepalive: float = 5.0
) -> DatabaseConnection:
    """Connect to the first address that takes writes.

    Args:
        conninfo: As libpq reads it.
        name: The application's name, by which others find the session.
        schema: For errors.
        timeout: Seconds for each address.
        keepalive: Seconds after which an idle connection is probed.

    Raises:
        Away: No server can be reached. Another attempt may succeed.
        StoreError: Another attempt would fail in the same way.
    """
    try:
        params = {key: str(value) for key, value in conninfo_to_dict(conninfo).items() if value is not None}
    except ProgrammingError as error:
        raise StoreError(f"--postgres is not a connection string of libpq: {str(error).strip()}") from None
    params = with_service(params)
    if params.get("target_session_attrs") not in ("read-write", "primary"):
        params["target_session_attrs"] = "read-write"
    params |= {"application_name": name, "client_encoding": "UTF8"}
    params.setdefault("tcp_user_timeout", "5000")
    params.setdefault("keepalives_idle", f"{keepalive:.0f}")
    params.setdefault("keepalives_interval", "2")
    params.setdefault("keepalives_count", "3")
    params.pop("connect_timeout", None)  # libpq applies it only where it waits itself
    failures: list[str] = []
    refusals = 0
    for attempt in await find_addresses(params, timeout, failures):
        try:
            async with asyncio.timeout(timeout):
                raw = await _connect_one(attempt)
        except TimeoutError:
            failures.append(f"{place_of(attempt)}: no answer within {timeout:g} s")
        except OperationalError as error:
            message = " ".join(str(error).split())
            refusals += any(text in message for text in _FINAL)
            failures.append(message)
        else:
            if raw.server_version < OLDEST * 10_000:
                version = raw.server_version // 10_000
                raw.finish()
                raise StoreError(f"gearflow needs PostgreSQL {OLDEST} or later, and this is {version}")
            return DatabaseConnection(raw, schema)
    if refusals == len(failures):
        raise refused("; ".join(failures))
    raise Away(f"PostgreSQL cannot be reached ({'; '.join(failures)})", sent=False)


async def _connect_one(params: dict[str, str]) -> PGconn:
    raw = pq.PGconn.connect_start(make_conninfo("", **params).encode())
    try:
        while True:
            if raw.status == pq.ConnStatus.BAD:
                raise OperationalError(raw.get_error_message())
            status = raw.connect_poll()
            if status == pq.PollingStatus.OK:
                return raw
            if status == pq.PollingStatus.FAILED:
                raise OperationalError(raw.get_error_message())
            await _ready(raw.socket, to_write=status == pq.PollingStatus.WRITING)
    except BaseException:
        raw.finish()
        raise


async def _ready(fd: int, *, to_write: bool) -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def done() -> None:
        if not future.done():
            future.set_result(None)

    watch = Watch(fd)
    (watch.on_write if to_write else watch.on_read)(done)
    try:
        await future
    finally:
        watch.close()
