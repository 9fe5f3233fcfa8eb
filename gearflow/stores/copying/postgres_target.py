"""Writes copied entries into a schema in PostgreSQL, which may have jobs of its own.

The jobs get numbers of lots of their own. These lots are not in the table ``lots`` before all entries are
there, so no server adopts them. A group and the progress are one transaction, which fails if the progress is
not that of the group before. So a group whose outcome is not known can be written again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Any, Final
from uuid import UUID, uuid4

from gearflow.broker.handles import LOT_BITS
from gearflow.broker.parser import Body
from gearflow.broker.storage import JobPart, JobRecord, Renumbered, Setting, StoredJob, size_of
from gearflow.errors import StoreError
from gearflow.stores.copying.entries import CopyGroup, CopyPhase, CopyProgress, CopySource, composed
from gearflow.stores.postgres import arrays
from gearflow.stores.postgres.arrays import (
    bigint,
    bigints,
    byteas,
    floats,
    integer,
    ints,
    read_int,
    smallints,
    texts,
    uuids,
)
from gearflow.stores.postgres.migration import check_not_moved, prepare
from gearflow.stores.postgres.reads import read_settings
from gearflow.stores.postgres.rows import key_of, token_of
from gearflow.stores.postgres.schema import literal, quoted
from gearflow.stores.postgres.session import DatabaseSession, Query
from gearflow.stores.postgres.settings import PostgresSettings
from gearflow.stores.shared import Away

_ATTEMPTS: Final = 8
"""To write a group. A database that fails over is away for some seconds."""

_Column = tuple[str, int, Callable[[Any], bytes]]

_JOBS: Final[Sequence[_Column]] = (
    ("number", arrays.BIGINTS, bigints),
    ("key", arrays.UUIDS, uuids),
    ("submitted", arrays.FLOATS, floats),
    ("due", arrays.FLOATS, floats),
    ("attempt", arrays.INTS, ints),
    ("deaths", arrays.INTS, ints),
    ("priority", arrays.SMALLINTS, smallints),
    ("dead", arrays.SMALLINTS, smallints),
    ("function", arrays.BYTEAS, byteas),
    ("uniq", arrays.BYTEAS, byteas),
    ("reducer", arrays.BYTEAS, byteas),
    ("options", arrays.BYTEAS, byteas),
    ("workload", arrays.BYTEAS, byteas),
    ("pieces", arrays.UUIDS, uuids),
    ("size", arrays.BIGINTS, bigints),
)
_RECORDS: Final[Sequence[_Column]] = (
    ("number", arrays.BIGINTS, bigints),
    ("expires", arrays.FLOATS, floats),
    ("token", arrays.BIGINTS, bigints),
    ("submitted", arrays.FLOATS, floats),
    ("started", arrays.FLOATS, floats),
    ("ended", arrays.FLOATS, floats),
    ("attempt", arrays.INTS, ints),
    ("deaths", arrays.INTS, ints),
    ("outcome", arrays.SMALLINTS, smallints),
    ("dead", arrays.SMALLINTS, smallints),
    ("function", arrays.BYTEAS, byteas),
    ("uniq", arrays.BYTEAS, byteas),
    ("worker", arrays.BYTEAS, byteas),
    ("notes", arrays.BYTEAS, byteas),
    ("body", arrays.BYTEAS, byteas),
    ("pieces", arrays.UUIDS, uuids),
    ("size", arrays.BIGINTS, bigints),
)
_PARTS: Final[Sequence[_Column]] = (
    ("number", arrays.BIGINTS, bigints),
    ("run", arrays.INTS, ints),
    ("position", arrays.BIGINTS, bigints),
    ("body", arrays.BYTEAS, byteas),
)
_OTHERWISE: Final = {
    "key": "CASE WHEN EXISTS (SELECT 1 FROM {s}.jobs AS k WHERE k.key = u.key) THEN NULL ELSE u.key END",
    "dead": "u.dead <> 0",
    "token": "nullif(u.token, 0)",
    "size": "nullif(u.size, 0)",
}
"""A job whose unique has a live job there keeps running beside it, as it was acknowledged."""


class PostgresTarget:
    """A ``CopyTarget`` that is a schema in PostgreSQL."""

    def __init__(self, settings: PostgresSettings) -> None:
        self._settings = settings
        self._schema = quoted(settings.schema)
        self._session = DatabaseSession(settings, f"copy {uuid4()}")
        self.description = f"the schema {settings.schema} in PostgreSQL"
        self.key = ""

    async def open(self) -> None:
        await prepare(self._session, self._settings.schema)
        sql = f"SELECT name, moved, current_database() FROM {self._schema}.meta"
        name, moved, database = (await self._session.simple(sql))[0][0]
        check_not_moved(moved, self._settings.schema)
        self.key = str(name or b"", "ascii")
        self.description += f"'s database {str(database or b'', 'utf-8')}"

    async def close(self) -> None:
        self._session.close()

    # ------------------------------------------------------------------------------------- a new copy

    async def begin(self, copy: str, source: CopySource) -> CopyProgress:
        self._copy = copy
        self._older = source.renumbered
        if self.key.encode() in {source.name, *(each.name for each in source.renumbered)}:
            raise StoreError(
                f"these jobs were copied from {self.description} before; copy them to another --schema"
            )
        query = Query(
            f"SELECT id, lot, lots, done FROM {self._schema}.copies WHERE name = $1",
            (arrays.BYTEA,),
            (source.name,),
        )
        (rows,) = await self._session.run(query)
        for id_, lot, lots, done in rows:
            if id_ == UUID(copy).bytes:
                break
            if done is not None:
                raise StoreError(
                    f"these jobs were copied to {self.description} already, and would run twice; to copy "
                    f"them still, run: DELETE FROM {self._schema}.copies WHERE id = '{UUID(bytes=id_)}'"
                )
            await self._remove(id_ or b"", read_int(lot), read_int(lots))
        else:
            await self._create(source)
        return await self._read()

    async def _create(self, source: CopySource) -> None:
        ranges = await source.ranges()
        count = (max(last for _, last in ranges) >> LOT_BITS) + 1 if ranges else 1
        lot = await self._take(count)
        query = Query(
            f"INSERT INTO {self._schema}.copies (id, name, lot, lots, progress) VALUES ($1, $2, $3, $4, $5)",
            (arrays.UUID, arrays.BYTEA, arrays.INT, arrays.INT, arrays.TEXT),
            (
                UUID(self._copy).bytes,
                source.name,
                integer(lot),
                integer(count),
                CopyProgress().text().encode(),
            ),
        )
        await self._session.run(query)

    async def _take(self, count: int) -> int:
        """The first of so many lots, one after the other."""
        sequence = literal(f"{self._schema}.lot_numbers")
        while True:
            sql = f"SELECT nextval({sequence}) FROM generate_series(1, {count:d})"
            (rows,) = await self._session.simple(sql)
            lots = [int(row[0] or 0) for row in rows]
            if lots[-1] - lots[0] == count - 1:
                return lots[0]

    async def _remove(self, copy: bytes, lot: int, lots: int) -> None:
        """Remove a copy that did not end, as its source has been used since."""
        first, last = bigint(lot << LOT_BITS), bigint(((lot + lots) << LOT_BITS) - 1)
        types = (arrays.BIGINT, arrays.BIGINT)
        for table in ("jobs", "records", "stream_parts"):
            sql = f"DELETE FROM {self._schema}.{table} WHERE number BETWEEN $1 AND $2"
            await self._session.run(Query(sql, types, (first, last)))
        sql = (
            f"WITH gone AS (DELETE FROM {self._schema}.bodies WHERE number BETWEEN $1 AND $2 "
            f"RETURNING pieces) DELETE FROM {self._schema}.pieces AS p USING gone "
            "WHERE p.pieces = gone.pieces"
        )
        await self._session.run(Query(sql, types, (first, last)))
        await self._session.run(
            Query(f"DELETE FROM {self._schema}.copies WHERE id = $1", (arrays.UUID,), (copy,))
        )

    async def _read(self) -> CopyProgress:
        """What is there of this copy."""
        query = Query(
            f"SELECT name, lot, lots, progress FROM {self._schema}.copies WHERE id = $1",
            (arrays.UUID,),
            (UUID(self._copy).bytes,),
        )
        (((name, lot, lots, progress),),) = await self._session.run(query)
        self._name = name or b""
        self._lot, self._lots = read_int(lot), read_int(lots)
        self._progress = CopyProgress.of(str(progress or b"", "utf-8"))
        return self._progress

    # --------------------------------------------------------------------------------------- its groups

    async def write(self, group: CopyGroup) -> None:
        add = self._lot << LOT_BITS
        jobs = await self._job_rows(
            [(job._replace(number=job.number + add), dead) for job, dead in group.jobs]
        )
        records = await self._record_rows([each._replace(number=each.number + add) for each in group.results])
        parts = [_part_row(part._replace(number=part.number + add)) for part in group.parts]
        queries: list[Query] = []
        if jobs:
            queries.append(self._insert("jobs", _JOBS, jobs, "ORDER BY u.key"))
        if parts:
            queries.append(self._insert("stream_parts", _PARTS, parts, "ON CONFLICT DO NOTHING"))
        if records:
            numbers = bigints([row[0] for row in records])
            sql = f"DELETE FROM {self._schema}.records WHERE number = ANY ($1)"
            queries.append(Query(sql, (arrays.BIGINTS,), (numbers,)))
            queries.append(self._insert("records", _RECORDS, records))
        await self._advance(group.progress, queries)

    async def settings(self) -> Sequence[Setting]:
        return await read_settings(self._session, self._schema)

    async def finish(
        self, paused: Sequence[bytes], settings: Sequence[Setting], progress: CopyProgress
    ) -> None:
        s = self._schema
        add = self._lot << LOT_BITS
        newer = [Renumbered(self._name, 1, (self._lots << LOT_BITS) - 1, add)]
        names = [
            Query(
                f"INSERT INTO {s}.renumbered (name, first, last, add) VALUES ($1, $2, $3, $4) "
                "ON CONFLICT (name, first) DO UPDATE SET last = excluded.last, add = excluded.add",
                (arrays.BYTEA, arrays.BIGINT, arrays.BIGINT, arrays.BIGINT),
                (each.name, bigint(each.first), bigint(each.last), bigint(each.add)),
            )
            for each in composed(self._older, newer)
        ]
        columns = (
            texts([setting.kind for setting in settings]),
            byteas([setting.name for setting in settings]),
            byteas([setting.value for setting in settings]),
        )
        await self._advance(
            progress._replace(phase=CopyPhase.END),
            [
                *names,
                Query(
                    f"INSERT INTO {s}.paused (function) SELECT unnest($1) ON CONFLICT DO NOTHING",
                    (arrays.BYTEAS,),
                    (byteas(paused),),
                ),
                Query(
                    f"INSERT INTO {s}.settings AS s (kind, name, value) "
                    "SELECT u.* FROM unnest($1, $2, $3) AS u (kind, name, value) ORDER BY u.kind, u.name "
                    "ON CONFLICT (kind, name) DO UPDATE SET value = excluded.value, removed = NULL, "
                    "changed = excluded.changed WHERE s.value = ''",
                    (arrays.TEXTS, arrays.BYTEAS, arrays.BYTEAS),
                    columns,
                ),
                Query(
                    f"INSERT INTO {s}.lots (lot) SELECT l FROM generate_series($1, $2) AS l WHERE EXISTS ("
                    f"SELECT 1 FROM {s}.jobs AS j WHERE j.number >= l::bigint << {LOT_BITS} "
                    f"AND j.number < (l::bigint + 1) << {LOT_BITS})",
                    (arrays.INT, arrays.INT),
                    (integer(self._lot), integer(self._lot + self._lots - 1)),
                ),
                Query(f"UPDATE {s}.meta SET changed = changed + 1"),
                Query(
                    f"UPDATE {s}.copies SET done = clock_timestamp() WHERE id = $1",
                    (arrays.UUID,),
                    (UUID(self._copy).bytes,),
                ),
            ],
        )

    async def _advance(self, progress: CopyProgress, queries: Sequence[Query]) -> None:
        """Write a group with its progress. Raises StoreError."""
        before = self._progress
        swap = Query(
            f"WITH moved AS (UPDATE {self._schema}.copies SET progress = $1 WHERE id = $2 AND progress = $3 "
            "RETURNING 1) SELECT 1 / count(*) FROM moved",
            (arrays.TEXT, arrays.UUID, arrays.TEXT),
            (progress.text().encode(), UUID(self._copy).bytes, before.text().encode()),
        )
        fault = StoreError("nothing was tried")
        for attempt in range(_ATTEMPTS):
            try:
                await self._session.run(swap, *queries)
            except StoreError as error:
                fault = error
            else:
                self._progress = progress
                return
            if isinstance(fault, Away):
                await asyncio.sleep(min(4.0, 0.25 * 2**attempt))
            try:
                now = await self._read()
            except Away as error:
                fault = error
                continue
            if now == progress:
                return
            if now != before:
                raise StoreError(f"another process copies the same jobs to {self.description}") from fault
        raise fault

    def _insert(
        self, table: str, columns: Sequence[_Column], rows: Sequence[tuple[Any, ...]], rest: str = ""
    ) -> Query:
        names = [name for name, _, _ in columns]
        values = ", ".join(_OTHERWISE.get(name, f"u.{name}") for name in names).replace("{s}", self._schema)
        params = ", ".join(f"${place}" for place in range(1, len(names) + 1))
        encoded = [
            encode(column) for (_, _, encode), column in zip(columns, zip(*rows, strict=True), strict=True)
        ]
        return Query(
            f"INSERT INTO {self._schema}.{table} ({', '.join(names)}) SELECT {values} "
            f"FROM unnest({params}) AS u ({', '.join(names)}) {rest}",
            tuple(kind for _, kind, _ in columns),
            encoded,
        )

    async def _job_rows(self, jobs: Iterable[tuple[StoredJob, bool]]) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = []
        keys: set[bytes] = set()
        for job, dead in jobs:
            key = None if dead else key_of(job.function, job.unique, job.workload)
            if key in keys:
                key = None
            elif key is not None:
                keys.add(key)
            number, function, unique, priority, submitted, due, reducer, options, attempt, deaths, body = job
            assert not isinstance(body, int)
            head = number, key, submitted, due, attempt, deaths, priority, int(dead)
            kept = await self._body(number, body, of_result=False)
            rows.append((*head, function, unique, reducer, options, *kept))
        return rows

    async def _record_rows(self, records: Iterable[JobRecord]) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = []
        for record in records:
            body, unique = record.body, record.unique
            assert not isinstance(body, int)
            rows.append(
                (
                    record.number,
                    record.expires,
                    token_of(record.function, unique) if unique else 0,
                    record.submitted,
                    record.started,
                    record.ended,
                    record.attempt,
                    record.deaths,
                    int(record.outcome),
                    int(record.letter is not None),
                    record.function,
                    unique,
                    record.worker,
                    record.notes,
                    *await self._body(record.number, body, of_result=True),
                )
            )
        return rows

    async def _body(
        self, number: int, body: Body, *, of_result: bool
    ) -> tuple[Body | None, bytes | None, int]:
        """The last columns of its row. A large body is written in pieces, of which it has the name."""
        size = size_of(body)
        if size < self._settings.large:
            return body, None, 0
        seed = f"{self._copy} {number} {of_result:d}".encode()
        name = blake2b(seed, digest_size=16).digest()  # the same if it is written again
        await self._repeat(
            f"INSERT INTO {self._schema}.bodies (pieces, number) VALUES ($1, $2) "
            "ON CONFLICT (pieces) DO UPDATE SET made = clock_timestamp()",
            (arrays.UUID, arrays.BIGINT),
            (name, bigint(number)),
        )
        view = memoryview(body).cast("B")
        piece = self._settings.piece
        for place, start in enumerate(range(0, size, piece)):
            await self._repeat(
                f"INSERT INTO {self._schema}.pieces (pieces, place, bytes) VALUES ($1, $2, $3) "
                "ON CONFLICT DO NOTHING",
                (arrays.UUID, arrays.INT, arrays.BYTEA),
                (name, integer(place), bytes(view[start : start + piece])),
            )
        return None, name, size

    async def _repeat(self, sql: str, types: tuple[int, ...], params: tuple[bytes, ...]) -> None:
        """Run a statement, which may run twice."""
        for attempt in range(_ATTEMPTS):
            try:
                await self._session.run(Query(sql, types, params))
            except Away:
                if attempt == _ATTEMPTS - 1:
                    raise
                await asyncio.sleep(min(4.0, 0.25 * 2**attempt))
            else:
                return


def _part_row(part: JobPart) -> tuple[int, int, int, Body]:
    return part.number, part.run, part.position, part.body
