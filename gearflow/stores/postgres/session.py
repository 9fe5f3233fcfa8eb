"""A session that a server keeps: its connection is made when it is needed, and made again when it was lost.

The settings of a session are set by a statement and not at the start, because PgBouncer refuses them there.
Then the session is asked for what tells one history of the database from another.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from gearflow.stores.postgres.errors import pooled
from gearflow.stores.postgres.schema import literal
from gearflow.stores.postgres.settings import PostgresSettings
from gearflow.stores.shared import Away
from gearflow.stores.sqlite.wal import Sync

if TYPE_CHECKING:
    from gearflow.stores.postgres.connection import DatabaseConnection

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
"""Seconds between two attempts to connect."""

_PINNED: Final = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}
"""Statistics of a table that is empty now and has a million rows a minute later are never right."""

_HISTORY: Final = (
    "(SELECT system_identifier FROM pg_control_system()), left(pg_walfile_name(pg_current_wal_lsn()), 8)"
)


_STALLED: Final = (
    "commits wait for a synchronous standby that is gone (wait_event SyncRep): start it, or take it out of "
    "synchronous_standby_names"
)

Row: TypeAlias = tuple[bytes | None, ...]
Rows: TypeAlias = list[Row]


class Query(NamedTuple):
    """A statement with its parameters in binary format."""

    sql: str
    types: tuple[int, ...] = ()  # OIDs of the parameters
    params: Sequence[bytes | None] = ()


class DatabaseSession:
    """One of the sessions of a server. Its calls wait for each other."""

    def __init__(
        self,
        settings: PostgresSettings,
        server: str,
        *,
        sync: Sync = "always",
        options: dict[str, str] | None = None,
        on_open: Callable[[DatabaseConnection], Sequence[str]] | None = None,
    ) -> None:
        """Does not connect.

        Args:
            settings: Of the store.
            server: The name of this server.
            sync: Whether commits wait for the disk.
            options: Settings of PostgreSQL.
            on_open: Called with each new connection. Returns statements to run on it.
        """
        self._settings = settings
        self._sync: Sync = sync
        self.timeout = settings.timeout
        """Seconds for one statement."""
        self._name = f"gearflow {server}"
        self._options = options or {}
        self._on_open = on_open
        self._lock = asyncio.Lock()
        self._connection: DatabaseConnection | None = None
        self._pause = 0.0
        self._stalled = False  # whether a commit of the former connection waited for a standby
        self.pid = 0
        """The process at the server that answered on the connection first."""
        self.history: tuple[str, ...] = ()
        """Of the database at the last connection: another one if confirmed commits may be missing."""

    async def run(self, *queries: Query, timeout: float | None = None) -> list[Rows]:
        """As ``DatabaseConnection.run``, on a connection that is made if need be."""
        async with self._lock:
            connection = await self._connected()
            try:
                rows = await connection.run(queries, timeout or self.timeout)
            except Away as error:
                if self._stalled:
                    raise Away(f"{error}; {_STALLED}", sent=error.sent) from None
                raise
            self._stalled = False
            return rows

    async def simple(self, sql: str, timeout: float | None = None) -> list[Rows]:
        """As ``DatabaseConnection.simple``."""
        async with self._lock:
            connection = await self._connected()
            return await connection.simple(sql, timeout or self.timeout)

    async def ready(self) -> tuple[str, ...]:
        """Connect if need be. The result is ``history``."""
        async with self._lock:
            await self._connected()
            return self.history

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _connected(self) -> DatabaseConnection:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        from gearflow.stores.postgres.connection import connect  # psycopg is an extra

        self._connection = None
        if self._pause:
            await asyncio.sleep(self._pause * random.uniform(0.5, 1.0))
        self._pause = min(max(2 * self._pause, _FIRST_PAUSE), _LONGEST_PAUSE)
        settings = self._settings
        connection = await connect(settings.conninfo, self._name, settings.schema, settings.connect_timeout)
        try:
            await self._set_up(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._pause = 0.0
        return connection

    async def _set_up(self, connection: DatabaseConnection) -> None:
        statements = self._on_open(connection) if self._on_open is not None else ()
        timeout = self._settings.timeout
        options = {
            "statement_timeout": f"{2 * timeout * 1000:.0f}",
            "idle_in_transaction_session_timeout": "2000",
            "tcp_keepalives_idle": "5",
            "tcp_keepalives_interval": "2",
            "tcp_keepalives_count": "3",
            "tcp_user_timeout": "5000",
            **_PINNED,
            **self._options,
        }
        commit = (
            "CASE WHEN current_setting('synchronous_commit') IN ('off', 'local') THEN 'on' "
            "ELSE current_setting('synchronous_commit') END"
            if self._sync == "always"
            else "'off'"
        )
        wanted = [f"set_config({literal(name)}, {literal(value)}, false)" for name, value in options.items()]
        wanted.append(f"set_config('synchronous_commit', {commit}, false)")
        # A crash may lose commits that did not wait for the disk.
        start = "''" if self._sync == "always" else "pg_postmaster_start_time()"
        sql = f"SELECT {_HISTORY}, {start}, pg_backend_pid(), {', '.join(wanted)}"
        rows = await connection.simple("; ".join((sql, *statements)), timeout)
        if self.pid:
            await self._end_former(connection)
        *history, pid = rows[0][0][:4]
        self.pid = int(pid or 0)
        self.history = tuple(str(value or b"", "ascii") for value in history)

    async def _end_former(self, connection: DatabaseConnection) -> None:
        """End the process of the former connection, which may still be at work. Then the outcome of what it
        did is settled, and what it has kept can be seen. Raises Away."""
        wait = int(self._settings.timeout * 500)
        former = (
            f"FROM pg_stat_activity WHERE pid = {self.pid} AND pid <> pg_backend_pid() "
            f"AND application_name = {literal(self._name)}"
        )
        (rows,) = await connection.simple(f"SELECT pg_terminate_backend(pid, {wait}), wait_event {former}")
        self._stalled = bool(rows) and rows[0][1] == b"SyncRep"
        if rows and rows[0][0] != b"t":  # which is also the answer if it ended by itself meanwhile
            (left,) = await connection.simple(f"SELECT 1 {former}")
            if left:
                raise Away("the former session is still at work", sent=False)


async def check_not_pooled(first: DatabaseSession, second: DatabaseSession) -> None:
    """Check that each session has a process of its own at the server.

    A pooler that shares them has the first free process answer each statement. So two open connections may be
    answered by one, and one connection by two.

    Raises:
        StoreError: Sessions are shared.
    """
    pids: list[int] = []
    for session in (first, second, first):
        ((row,),) = await session.simple("SELECT pg_backend_pid()")
        pids.append(int(row[0] or 0))
    if pids[0] == pids[1] or pids[0] != pids[2] or first.pid != pids[0] or second.pid != pids[1]:
        raise pooled()
