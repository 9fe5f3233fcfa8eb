"""Writes groups of changes, and finds out how each change went.

An insert that did nothing has met a row: of its own number, if an earlier attempt was kept, or of its key, if
another server has the live job of its unique. If neither is there any more, the other job has just ended, and
the job is inserted again.

A tick that did nothing has met another value of its setting, or its own from an earlier attempt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID, uuid4

from gearflow.broker.storage import (
    Change,
    Forgotten,
    JobRecord,
    Joined,
    Overtaken,
    Revived,
    StoredJob,
    Ticked,
)
from gearflow.errors import StoreError
from gearflow.stores.postgres import arrays, kinds
from gearflow.stores.postgres.arrays import bigint, bigints, byteas, integer, ints, read_int, uuids
from gearflow.stores.postgres.errors import Collided
from gearflow.stores.postgres.groups import WRITES_NOTICES, Ahead, Splitter, StatementRows, finish
from gearflow.stores.postgres.kinds import Kind, Statement
from gearflow.stores.postgres.rows import key_of
from gearflow.stores.postgres.session import DatabaseSession, Query, Rows
from gearflow.stores.shared import Away

_ATTEMPTS: Final = 4  # after collisions with other transactions
_INSERTS: Final = 8  # of a job whose unique ends elsewhere again and again

FIND: Final = (
    "SELECT u.number, coalesce(j.number, r.number), k.number FROM unnest($1, $2) AS u (number, key) "
    "LEFT JOIN {0}.jobs AS j ON j.number = u.number LEFT JOIN {0}.records AS r ON r.number = u.number "
    "LEFT JOIN {0}.jobs AS k ON k.key = u.key"
)
"""Which of these jobs are there, or have ended, and which jobs have their keys. ``{0}`` is the schema."""
FIND_TYPES: Final = (arrays.BIGINTS, arrays.UUIDS)

Outcome = str | Joined | None


class Writer:
    """Writes groups on a session of its own, and large bodies on another."""

    def __init__(
        self, session: DatabaseSession, bodies: DatabaseSession, schema: str, server: UUID, piece: int
    ) -> None:
        """``schema`` is quoted. ``piece`` is the size of the pieces of large bodies."""
        self._session = session
        self._bodies = bodies
        self._schema = schema
        self._server = server.bytes
        self._piece = piece
        self._splitter = Splitter()
        self._statements: dict[tuple[bool, tuple[int, ...]], Statement] = {}
        self._find = FIND.format(schema)
        self._values = (
            "SELECT u.place, s.value FROM unnest($1, $2) AS u (place, name) "
            f"LEFT JOIN {schema}.settings AS s ON s.kind = 'schedule' AND s.name = u.name"
        )
        self._kept = (
            f"SELECT u.number, j.number, r.number FROM unnest($1) AS u (number) "
            f"LEFT JOIN {schema}.jobs AS j ON j.number = u.number "
            f"LEFT JOIN {schema}.records AS r ON r.number = u.number"
        )

    async def commit(self, lots: Mapping[int, int], changes: Sequence[Change]) -> tuple[list[Outcome], bool]:
        """Commit a group, as ``SharedStore.commit``. Also whether other servers should look at it."""
        outcomes: list[Outcome] = [None] * len(changes)
        parts = self._splitter.split(lots, changes)
        if parts:
            counts = await self._write(lots, parts)
            try:
                await self._look_into(lots, changes, parts, counts, outcomes)
            except Away as error:
                raise Away(str(error), sent=True) from None  # all else of the group is kept
        self._splitter.forget_ahead(changes)
        return outcomes, any(kind in part.rows for part in parts for kind in WRITES_NOTICES)

    async def write_ahead(self, change: StoredJob | JobRecord) -> None:
        """Write a large body in pieces, as ``SharedStore.write_ahead``."""
        body = change.body if isinstance(change, JobRecord) else change.workload
        assert not isinstance(body, int)
        view = memoryview(body).cast("B")
        name = uuid4().bytes
        await self._bodies.run(
            Query(
                f"INSERT INTO {self._schema}.bodies (pieces, number) VALUES ($1, $2)",
                (arrays.UUID, arrays.BIGINT),
                (name, bigint(change.number)),
            )
        )
        for place, start in enumerate(range(0, len(view), self._piece)):
            await self._bodies.run(
                Query(
                    f"INSERT INTO {self._schema}.pieces (pieces, place, bytes) VALUES ($1, $2, $3)",
                    (arrays.UUID, arrays.INT, arrays.BYTEA),
                    (name, integer(place), bytes(view[start : start + self._piece])),
                )
            )
        self._splitter.add_ahead(change, Ahead(body, name, len(view)))

    def drop_ahead(self, change: StoredJob | JobRecord) -> None:
        """The change will not come. Its pieces are removed some time."""
        self._splitter.forget_ahead([change])

    # ------------------------------------------------------------------------------------- its steps

    async def _write(self, lots: Mapping[int, int], parts: Sequence[StatementRows]) -> list[dict[Kind, int]]:
        """Write the statements, and return how many changes of each counted kind were done."""
        built = [self._query(lots, part) for part in parts]
        for attempt in range(_ATTEMPTS):
            try:
                results = await self._session.run(*(query for query, _ in built))
                break
            except Collided:
                if attempt == _ATTEMPTS - 1:
                    raise
        else:
            raise AssertionError
        return [
            dict(zip(counted, map(read_int, rows[0]), strict=False))
            for (_, counted), rows in zip(built, results, strict=True)
        ]

    def _query(self, lots: Mapping[int, int], part: StatementRows) -> tuple[Query, tuple[Kind, ...]]:
        finish(part)
        occurring = sorted(part.rows, key=lambda kind: kind.place)
        shapes = [
            kind.alone if kind.alone is not None and len(part.rows[kind]) == 1 else kind for kind in occurring
        ]
        name = (part.fenced, tuple(shape.place for shape in shapes))
        statement = self._statements.get(name)
        if statement is None:
            statement = kinds.statement(shapes, self._schema, fenced=part.fenced)
            self._statements[name] = statement
        params: list[bytes | None] = []
        if part.fenced:
            params += [ints(list(lots)), bigints(list(lots.values())), self._server]
        try:
            for kind, shape in zip(occurring, shapes, strict=True):
                params += shape.params(part.rows[kind])
        except OverflowError as error:
            raise StoreError(f"a number does not fit into its column: {error}") from error
        counted = tuple(kind for kind in occurring if kind.counted)
        return Query(statement.sql, statement.types, params), counted

    async def _look_into(
        self,
        lots: Mapping[int, int],
        changes: Sequence[Change],
        parts: Sequence[StatementRows],
        counts: Sequence[Mapping[Kind, int]],
        outcomes: list[Outcome],
    ) -> None:
        """Find out how the changes went that did not find what they need."""
        for part, found in zip(parts, counts, strict=True):
            for kind, count in found.items():
                places = part.watched[kind]
                if count < len(places):
                    await self._explain(lots, changes, kind, places, outcomes)

    async def _explain(
        self,
        lots: Mapping[int, int],
        changes: Sequence[Change],
        kind: Kind,
        places: Sequence[int],
        outcomes: list[Outcome],
    ) -> None:
        """Not all of these changes found what they need.

        A job that ends in this group, or is forgotten, is known to be kept before. It may be gone by now, and
        must not come back.
        """
        if kind in (kinds.TICK, kinds.ADD):
            await self._explain_ticks(lots, changes, places, outcomes)
            return
        if kind is kinds.FORGET_OTHER:
            await self._explain_purged(changes, places, outcomes)
            return
        ends = Forgotten if kind is kinds.LETTER else JobRecord | Forgotten
        ended = {change.number for change in changes if isinstance(change, ends)}
        places = [place for place in places if _number(changes[place]) not in ended]
        if not places:
            return
        if kind not in (kinds.INSERT, kinds.INSERT_LARGE):
            await self._explain_missing(changes, places, outcomes)
            return
        await self._insert_again(lots, {place: _job_of(changes[place]) for place in places}, outcomes)

    async def _insert_again(
        self, lots: Mapping[int, int], jobs: Mapping[int, StoredJob], outcomes: list[Outcome]
    ) -> None:
        """Find out what jobs have met, by their places, and insert those again that have met nothing."""
        for _ in range(_INSERTS):
            again = await self._joined(jobs, outcomes)
            if not again:
                return
            jobs = {place: jobs[place] for place in again}
            await self._write(lots, self._splitter.split(lots, list(jobs.values())))
        for place in await self._joined(jobs, outcomes):
            outcomes[place] = "other jobs with the same unique begin and end all the time; submit it again"

    async def _joined(self, jobs: Mapping[int, StoredJob], outcomes: list[Outcome]) -> list[int]:
        """Find the rows that inserts have met. Returns those that have met none."""
        by_number: dict[int, int] = {}
        keys: list[bytes | None] = []
        for place, job in jobs.items():
            by_number[job.number] = place
            keys.append(key_of(job.function, job.unique, job.workload))
        params = (bigints(list(by_number)), uuids(keys))
        (rows,) = await self._session.run(Query(self._find, FIND_TYPES, params))
        again: list[int] = []
        for number, own, other in rows:
            place = by_number[read_int(number)]
            if own is not None:
                outcomes[place] = None
            elif other is not None:
                outcomes[place] = Joined(read_int(other))
            else:
                again.append(place)
        return again

    async def _explain_ticks(
        self,
        lots: Mapping[int, int],
        changes: Sequence[Change],
        places: Sequence[int],
        outcomes: list[Outcome],
    ) -> None:
        """Some of these ticks did nothing, or not all.

        If the setting has the value of the tick, it is kept, now or by an earlier attempt. Its job is kept
        too, unless another job had its unique. If the setting has another value, the tick may still have been
        kept by an earlier attempt, before somebody else changed the setting. Then its job is there.
        """
        ended = {change.number for change in changes if isinstance(change, JobRecord | Forgotten)}
        ticks = {place: tick for place in places if isinstance(tick := changes[place], Ticked)}
        names = list({tick.name for tick in ticks.values()})
        params = (bigints(range(len(names))), byteas(names))
        (rows,) = await self._session.run(Query(self._values, (arrays.BIGINTS, arrays.BYTEAS), params))
        values = {names[read_int(place)]: value or b"" for place, value in rows}
        kept = _kept_ticks(changes, values)
        jobs = {
            place: tick.job
            for place, tick in ticks.items()
            if tick.job is not None and tick.job.number not in ended
        }
        found: list[Outcome] = [None] * len(changes)
        again = await self._joined(jobs, found) if jobs else []
        for place, tick in ticks.items():
            if place in kept:
                outcomes[place] = found[place]
            elif place not in jobs or place in again or found[place] is not None:
                outcomes[place] = Overtaken(values[tick.name])
        left = {place: jobs[place] for place in again if place in kept}
        if left:
            await self._write(lots, self._splitter.split(lots, list(left.values())))
            await self._insert_again(lots, left, outcomes)

    async def _explain_purged(
        self, changes: Sequence[Change], places: Sequence[int], outcomes: list[Outcome]
    ) -> None:
        """Some of these were no dead letters. Those that are there were replayed, others were purged."""
        by_number = {_number(changes[place]): place for place in places}
        for number, job, record in await self._find_kept(list(by_number)):
            if job is not None or record is not None:
                outcomes[by_number[read_int(number)]] = f"job {read_int(number)} was replayed meanwhile"

    async def _find_kept(self, numbers: Sequence[int]) -> Rows:
        """By number, whether jobs and records are there."""
        query = Query(self._kept, (arrays.BIGINTS,), (bigints(numbers),))
        (rows,) = await self._session.run(query)
        return rows

    async def _explain_missing(
        self, changes: Sequence[Change], places: Sequence[int], outcomes: list[Outcome]
    ) -> None:
        """Some of these jobs were not there. If one has a result, an earlier attempt was kept."""
        by_number: dict[int, int] = {}
        for place in places:
            by_number[_number(changes[place])] = place
        for number, job, record in await self._find_kept(list(by_number)):
            if job is None and record is None:
                name = read_int(number)
                outcomes[by_number[name]] = (
                    f"job {name} is not in the store any more, or its workload never was"
                )


def _kept_ticks(changes: Sequence[Change], values: Mapping[bytes, bytes]) -> set[int]:
    """The places of the ticks that have led to these values of their settings, the last ones of a group."""
    kept: set[int] = set()
    values = dict(values)
    for place in range(len(changes) - 1, -1, -1):
        tick = changes[place]
        if isinstance(tick, Ticked) and values.get(tick.name) == tick.value:
            kept.add(place)
            values[tick.name] = tick.before
    return kept


def _job_of(change: Change) -> StoredJob:
    assert isinstance(change, StoredJob)
    return change


def _number(change: Change) -> int:
    assert isinstance(change, StoredJob | JobRecord | Revived | Forgotten)
    return change.number
