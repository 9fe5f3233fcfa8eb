"""Lots: who owns them, signs of life, and what becomes of those of a server that shows none.

A beat changes rows that no group waits for (see ``schema``), so it is answered even if a group is not.
Adoption waits for the end of a group of the owner. If that does not come, the owner's sessions are ended: a
dead machine cannot do it.

A standby that is promoted may lack lots that this server has taken shortly before. They are put back with the
first beat there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final
from uuid import UUID

from gearflow.broker.handles import LOT_BITS
from gearflow.broker.storage import StoredParts
from gearflow.stores.postgres import arrays
from gearflow.stores.postgres.arrays import bigint, integer, read_int
from gearflow.stores.postgres.errors import Locked, pooled
from gearflow.stores.postgres.reads import SETTINGS, setting_of
from gearflow.stores.postgres.rows import JOB, SHORT, SIZE, job_of
from gearflow.stores.postgres.schema import STEPS, literal
from gearflow.stores.postgres.session import DatabaseSession, Query, Row, Rows
from gearflow.stores.postgres.settings import PostgresSettings
from gearflow.stores.shared import Beat, Lot, Order, OtherLot, ServerRow, Slice

_SLICE: Final = 1000  # jobs
_ATTEMPTS: Final = 3  # at the lock of a lot
_ORDERS: Final = 1000  # in one beat


_FIRST: Final = 1
"""The number of a transaction that is greater than that of the rows of ``kinds.SET`` which no beat brings."""


class Lots:
    """The lots of one server."""

    def __init__(
        self,
        beats: DatabaseSession,
        adopter: DatabaseSession,
        settings: PostgresSettings,
        schema: str,
        server: str,
        channel: str,
        code: int = len(STEPS),
    ) -> None:
        """``schema`` is quoted. ``adopter`` is a session with a limit for locks. ``code`` is the version of
        the tables that this code makes."""
        self._beats = beats
        self._adopter = adopter
        self._schema = schema
        self._server = server
        self._mine: dict[int, int] = {}  # the epochs of this server's lots, as it knows
        self._history: tuple[str, ...] = ()  # of the database that knew them
        self._settings_of = 0  # the process at the server that has answered with settings
        self._settings_since = 0  # transactions before this one had committed by then
        me = literal(server)
        self._register = (
            f"INSERT INTO {schema}.servers (server, address, version, code, lease) VALUES ({me}, "
            f"{literal(settings.address)}, {literal(settings.version)}, {code}, {settings.lease!r}) "
            "ON CONFLICT (server) DO UPDATE SET beat = servers.beat + 1, seen = clock_timestamp()"
        )
        self._beat = "; ".join(
            (
                f"UPDATE {schema}.lots SET beat = beat + 1 WHERE owner = {me} RETURNING lot, epoch",
                self._register,
                f"SELECT lot, owner, epoch, beat FROM {schema}.lots WHERE owner IS DISTINCT FROM {me}",
                f"SELECT server, address, version, beat FROM {schema}.servers",
                (
                    "SELECT changed, extract(epoch FROM clock_timestamp()), pg_backend_pid(), "
                    f"pg_snapshot_xmin(pg_current_snapshot()) FROM {schema}.meta"
                ),
                (
                    f"SELECT id, number, verb FROM {schema}.orders AS o WHERE EXISTS (SELECT 1 "
                    f"FROM {schema}.lots AS l WHERE l.owner = {me} AND l.lot = o.number >> {LOT_BITS}) "
                    f"ORDER BY id LIMIT {_ORDERS}"
                ),
                SETTINGS.format(schema) + " WHERE changed >= ",
            )
        )
        self._release = "; ".join(
            (
                (
                    f"WITH mine AS MATERIALIZED (SELECT lot FROM {schema}.lots WHERE owner = {me} "
                    f"ORDER BY lot FOR UPDATE) UPDATE {schema}.lots AS l SET owner = NULL, "
                    "epoch = epoch + 1 FROM mine WHERE l.lot = mine.lot"
                ),
                (
                    f"DELETE FROM {schema}.lots AS l WHERE owner IS NULL AND NOT EXISTS (SELECT 1 "
                    f"FROM {schema}.jobs AS j WHERE j.number >= l.lot::bigint << {LOT_BITS} "
                    f"AND j.number < (l.lot::bigint + 1) << {LOT_BITS})"
                ),
                f"DELETE FROM {schema}.slots WHERE server = {me}",
                f"DELETE FROM {schema}.servers WHERE server = {me}",
                f"SELECT pg_notify({literal(channel)}, 'lots')",
            )
        )
        self._adopt = (
            f"WITH wanted AS MATERIALIZED (SELECT lot FROM {schema}.lots WHERE lot = $1 AND epoch = $2 "
            f"AND beat = $3 FOR UPDATE) UPDATE {schema}.lots AS l SET owner = $4, epoch = epoch + 1, "
            "beat = beat + 1 FROM wanted WHERE l.lot = wanted.lot RETURNING epoch"
        )
        self._jobs = (
            f"SELECT {JOB}, {SIZE.format('workload')}, "
            f"CASE WHEN octet_length(workload) <= {SHORT} THEN workload END FROM {schema}.jobs "
            f"WHERE number > $1 AND number < $2 AND NOT dead ORDER BY number LIMIT {_SLICE}"
        )
        self._parts = (
            "SELECT number, run, coalesce(min(position) FILTER (WHERE position > 0), 0), max(position), "
            f"sum(octet_length(body))::bigint FROM {schema}.stream_parts WHERE number > $1 AND number <= $2 "
            "GROUP BY number, run ORDER BY number, run"
        )

    async def register(self) -> None:
        """Show other servers and their clients that this one is there."""
        await self._beats.simple(self._register)

    async def take(self, count: int) -> list[Lot]:
        """Own new lots, as ``SharedStore.take_lots``."""
        sequence = f"{self._schema}.lot_numbers"
        lots: list[Lot] = []
        while (
            len(lots) < count
        ):  # there may be lots that were put back, above the last number of the sequence
            (rows,) = await self._beats.simple(
                f"INSERT INTO {self._schema}.lots (lot, owner) SELECT nextval({literal(sequence)}), "
                f"{literal(self._server)}::uuid FROM generate_series(1, {count - len(lots):d}) "
                "ON CONFLICT (lot) DO NOTHING RETURNING lot, epoch"
            )
            lots += [_lot(row) for row in rows]
        self._mine.update(lots)
        return lots

    async def beat(self, done: Sequence[int]) -> Beat:
        """Show that this server is alive, as ``SharedStore.beat``."""
        sql = self._beat
        if done:
            ids = ", ".join(map(str, done))
            sql = f"DELETE FROM {self._schema}.orders WHERE id IN ({ids}); {sql}"
        while True:
            history = await self._beats.ready()
            # A new connection may be to another database, whose transactions have other numbers.
            is_new = self._settings_of != self._beats.pid
            since = max(self._settings_since, _FIRST) if not is_new else _FIRST
            results = (await self._beats.simple(f"{self._put_back(history)}{sql}'{since}'"))[-7:]
            if self._beats.history == history:  # and not connected to another database in between
                break
        lots, _, others, servers, ((changed, clock, pid, before),), orders, settings = results
        if _number(pid) != self._beats.pid:
            raise pooled()
        self._settings_of, self._settings_since = _number(pid), _number(before)
        mine = [_lot(row) for row in lots]
        self._mine, self._history = dict(mine), history
        return Beat(
            mine,
            [_other(row) for row in others],
            [_server(row) for row in servers],
            _number(changed),
            float(clock or 0),
            [Order(_number(id_), _number(number), _text(verb)) for id_, number, verb in orders],
            [setting_of(row) for row in settings],
            all_settings=is_new,
        )

    def _put_back(self, history: tuple[str, ...]) -> str:
        """The statement that puts back lots which another history of the database may lack."""
        if history == self._history or not self._history or not self._mine:
            return ""
        owner = f"{literal(self._server)}::uuid"
        rows = ", ".join(f"({lot}, {owner}, {epoch})" for lot, epoch in self._mine.items())
        lots = f"{self._schema}.lots (lot, owner, epoch)"
        return f"INSERT INTO {lots} VALUES {rows} ON CONFLICT (lot) DO NOTHING; "

    async def adopt(self, lot: OtherLot) -> int | None:
        """Own a lot that has had no beat since, as ``SharedStore.adopt``."""
        query = Query(
            self._adopt,
            (arrays.INT, arrays.BIGINT, arrays.BIGINT, arrays.UUID),
            (integer(lot.number), bigint(lot.epoch), bigint(lot.beat), UUID(self._server).bytes),
        )
        for attempt in range(_ATTEMPTS):
            try:
                (rows,) = await self._adopter.run(query)
            except Locked:
                if attempt == _ATTEMPTS - 1 or lot.owner is None:
                    raise
                await self._end_sessions(lot.owner)
            else:
                return read_int(rows[0][0]) if rows else None
        raise AssertionError

    async def _end_sessions(self, owner: str) -> None:
        await self._adopter.simple(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
            f"AND application_name = {literal('gearflow ' + owner)}"
        )

    async def jobs_of(self, lot: int, after: int) -> AsyncIterator[Slice]:
        """The jobs of a lot that are to run, as ``SharedStore.jobs_of``."""
        end = (lot + 1) << LOT_BITS
        types = (arrays.BIGINT, arrays.BIGINT)

        async def read(sql: str, after: int, last: int) -> Rows:
            return (await self._adopter.run(Query(sql, types, (bigint(after), bigint(last)))))[0]

        after = max(after, (lot << LOT_BITS) - 1)
        rows = await read(self._jobs, after, end)
        while rows:
            last = read_int(rows[-1][0])
            parts = await read(self._parts, after, last)
            following = asyncio.create_task(read(self._jobs, last, end))  # while these are decoded and queued
            following.add_done_callback(_retrieve)
            await asyncio.sleep(0)  # it is sent
            jobs = [job_of(row, row[-1] if row[-1] is not None else read_int(row[-2])) for row in rows]
            yield Slice(jobs, dict(map(_parts, parts)))
            rows, after = await following, last

    async def release(self) -> None:
        """Give all lots back, as ``SharedStore.release``."""
        await self._beats.simple(self._release)


def _retrieve(task: asyncio.Task[Rows]) -> None:
    """A fault of what nobody waits for any more is of no interest."""
    if not task.cancelled():
        task.exception()


def _number(value: bytes | None) -> int:
    return int(value or b"0")


def _text(value: bytes | None) -> str:
    return str(value or b"", "utf-8", "replace")


def _lot(row: Row) -> Lot:
    return Lot(_number(row[0]), _number(row[1]))


def _other(row: Row) -> OtherLot:
    number, owner, epoch, beat = row
    return OtherLot(
        _number(number), _text(owner) if owner is not None else None, _number(epoch), _number(beat)
    )


def _server(row: Row) -> ServerRow:
    server, address, version, beat = row
    return ServerRow(_text(server), _text(address), _text(version), _number(beat))


def _parts(row: Row) -> tuple[int, StoredParts]:
    number, run, first, last, size = map(read_int, row)
    return number, StoredParts(first, last, size, run)
