"""Reads all entries of a schema whose servers are stopped."""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator, Sequence
from typing import Final
from uuid import uuid4

from gearflow.broker.handles import LOT_BITS
from gearflow.broker.storage import (
    HeadOf,
    JobOf,
    JobPart,
    JobRecord,
    Renumbered,
    Setting,
    StoredJob,
    WholeRecordOf,
    size_of,
)
from gearflow.errors import StoreError
from gearflow.stores.copying.entries import GROUP, GROUP_BYTES, CopyGroup, CopyPhase, CopyProgress
from gearflow.stores.postgres import arrays
from gearflow.stores.postgres.arrays import bigint, read_int, read_real
from gearflow.stores.postgres.migration import LIVE_LEASES, Moved, moved_of, prepare
from gearflow.stores.postgres.reads import QuestionReader, read_renumbered, read_settings
from gearflow.stores.postgres.rows import SIZE
from gearflow.stores.postgres.schema import literal, quoted
from gearflow.stores.postgres.session import DatabaseSession, Query, Rows
from gearflow.stores.postgres.settings import PostgresSettings

_PAGE: Final = 50_000  # numbers of results that are read at a time


class PostgresSource:
    """A ``CopySource`` that is a schema in PostgreSQL."""

    name: bytes
    renumbered: Sequence[Renumbered]

    def __init__(self, settings: PostgresSettings) -> None:
        self._settings = settings
        self._schema = quoted(settings.schema)
        self._session = DatabaseSession(settings, f"copy {uuid4()}")
        self._reader = QuestionReader(self._session, self._schema, settings.large)
        self._order: array[int] | None = None

    async def open(self) -> None:
        await prepare(self._session, self._settings.schema)
        ((name,),) = (await self._session.simple(f"SELECT name FROM {self._schema}.meta"))[0]
        self.name = name or b""
        self.renumbered = await read_renumbered(self._session, self._schema)

    async def close(self) -> None:
        self._session.close()

    # --------------------------------------------------------------------------------------- its mark

    async def begin(self, target: str, key: str) -> tuple[str, bool]:
        """Marks first and looks for servers then. A server that starts registers first and looks then."""
        meta = f"{self._schema}.meta"
        mark = Moved(str(uuid4()), key, False)
        sql = (
            f"UPDATE {meta} SET moved = {literal(mark.text())} WHERE moved IS NULL; SELECT moved FROM {meta}"
        )
        rows = (await self._session.simple(sql))[-1]
        moved = moved_of(rows[0][0])
        assert moved is not None
        if moved.to != key:
            what = "were copied" if moved.done else "are being copied"
            raise StoreError(
                f"the jobs of the schema {self._settings.schema} {what} to {moved.to}, where they would run "
                f"as well; to copy them elsewhere still, run: UPDATE {meta} SET moved = NULL"
            )
        is_new = moved.id == mark.id
        servers = (
            await self._session.simple(
                f"SELECT address FROM {self._schema}.servers WHERE seen > clock_timestamp() - "
                f"lease * {LIVE_LEASES} * interval '1 s' ORDER BY address"
            )
        )[0]
        if servers:
            if is_new:
                await self.give_up()
            names = ", ".join(str(row[0] or b"", "utf-8", "replace") for row in servers)
            raise StoreError(
                f"servers use the schema {self._settings.schema}: {names}; stop them first (one that died "
                f"counts for {LIVE_LEASES} leases)"
            )
        await self._session.simple(f"UPDATE {self._schema}.lots SET owner = NULL, epoch = epoch + 1")
        self._moved = moved
        return moved.id, is_new

    async def give_up(self) -> None:
        await self._session.simple(f"UPDATE {self._schema}.meta SET moved = NULL")

    async def end(self) -> None:
        text = literal(self._moved._replace(done=True).text())
        await self._session.simple(f"UPDATE {self._schema}.meta SET moved = {text}")

    # ------------------------------------------------------------------------------------ its contents

    async def ranges(self) -> Sequence[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        after = 0
        tables = ("jobs", "records", "stream_parts")
        while True:
            firsts = " UNION ALL ".join(
                f"(SELECT number FROM {self._schema}.{table} WHERE number >= $1 ORDER BY number LIMIT 1)"
                for table in tables
            )
            rows = await self._run(f"SELECT min(number) FROM ({firsts}) AS f", after)
            if not rows or rows[0][0] is None:
                return found
            lot = read_int(rows[0][0]) >> LOT_BITS
            after = (lot + 1) << LOT_BITS
            lasts = " UNION ALL ".join(
                f"(SELECT number FROM {self._schema}.{table} WHERE number < $1 ORDER BY number DESC LIMIT 1)"
                for table in tables
            )
            rows = await self._run(f"SELECT max(number) FROM ({lasts}) AS l", after)
            found.append((lot << LOT_BITS, read_int(rows[0][0])))

    async def total(self) -> int | None:
        return None

    async def paused(self) -> Sequence[bytes]:
        rows = await self._run(f"SELECT function FROM {self._schema}.paused ORDER BY 1")
        return [row[0] or b"" for row in rows]

    async def settings(self) -> tuple[Sequence[Setting], Sequence[str]]:
        return await read_settings(self._session, self._schema), ()

    async def groups(self, progress: CopyProgress) -> AsyncIterator[CopyGroup]:
        if progress.phase == CopyPhase.JOBS:
            async for group in self._jobs(progress):
                progress = group.progress
                yield group
            progress = progress._replace(phase=CopyPhase.PARTS, after=0, position=-1)
            yield CopyGroup(progress)
        if progress.phase == CopyPhase.PARTS:
            async for group in self._parts(progress):
                progress = group.progress
                yield group
            progress = progress._replace(phase=CopyPhase.RESULTS, after=0, position=-1)
            yield CopyGroup(progress)
        if progress.phase == CopyPhase.RESULTS:
            async for group in self._results(progress):
                yield group

    async def _run(self, sql: str, *params: int) -> Rows:
        types = [arrays.BIGINT] * len(params)
        (rows,) = await self._session.run(Query(sql, tuple(types), [bigint(each) for each in params]))
        return rows

    async def _jobs(self, progress: CopyProgress) -> AsyncIterator[CopyGroup]:
        page = (
            f"SELECT number, {SIZE.format('workload')}, dead FROM {self._schema}.jobs WHERE number > $1 "
            f"ORDER BY number LIMIT {GROUP}"
        )
        while rows := await self._run(page, progress.after):
            taken = _first_of([read_int(row[1]) for row in rows])
            answers = await self._reader.answer([JobOf(read_int(row[0])) for row in rows[:taken]])
            jobs: list[tuple[StoredJob, bool]] = []
            faults: list[str] = []
            for (number, _, is_dead), job in zip(rows, answers, strict=False):
                dead = is_dead == b"\1"
                progress = progress._replace(after=read_int(number))
                if isinstance(job, StoredJob):
                    jobs.append((job, dead))
                    progress = progress._replace(jobs=progress.jobs + (not dead), dead=progress.dead + dead)
                else:
                    faults.append(f"job {read_int(number)}: {job}")
                    progress = progress._replace(damaged=progress.damaged + 1)
            yield CopyGroup(progress, jobs=jobs, damaged=faults)

    async def _parts(self, progress: CopyProgress) -> AsyncIterator[CopyGroup]:
        parts = f"{self._schema}.stream_parts"
        next_one = f"SELECT number FROM {parts} WHERE number > $1 ORDER BY number LIMIT 1"
        of_one = (
            f"SELECT run, position, body FROM {parts} WHERE number = $1 AND position > $2 AND "
            f"run = (SELECT max(run) FROM {parts} WHERE number = $1) ORDER BY position LIMIT 64"
        )
        progress = progress._replace(after=progress.after - (progress.position >= 0))
        while found := await self._run(next_one, progress.after):
            number, position = read_int(found[0][0]), progress.position
            while rows := await self._run(of_one, number, position):
                taken = rows[: _first_of([len(row[2] or b"") for row in rows])]
                some = [JobPart(number, read_int(row[1]), row[2] or b"", read_int(row[0])) for row in taken]
                position = some[-1].position
                count = progress.parts + sum(part.position > 0 for part in some)
                progress = progress._replace(after=number, position=position, parts=count)
                yield CopyGroup(progress, parts=some)
            progress = progress._replace(after=number, position=-1)

    async def _results(self, progress: CopyProgress) -> AsyncIterator[CopyGroup]:
        """In the order in which the jobs ended. ``after`` counts them."""
        order = await self._order_of_results()
        sizes = f"SELECT {SIZE.format('body')}, dead FROM {self._schema}.records WHERE number = $1"
        while numbers := order[progress.after : progress.after + GROUP]:
            queries = [Query(sizes, (arrays.BIGINT,), (bigint(number),)) for number in numbers]
            rows = [found[0] if found else (None, None) for found in await self._session.run(*queries)]
            taken = numbers[: _first_of([read_int(row[0]) for row in rows])]
            answers = await self._reader.answer([WholeRecordOf(number) for number in taken])
            letters = [number for number, row in zip(taken, rows, strict=False) if row[1] == b"\1"]
            heads = dict(zip(letters, await self._reader.answer(list(map(HeadOf, letters))), strict=True))
            results: list[JobRecord] = []
            faults: list[str] = []
            for number, record in zip(taken, answers, strict=True):
                if not isinstance(record, JobRecord):
                    faults.append(f"the result of job {number}: {record}")
                    continue
                letter = heads.get(number)
                if isinstance(letter, StoredJob):
                    record = record._replace(letter=letter._replace(workload=size_of(letter.workload)))
                results.append(record)
            progress = progress._replace(
                after=progress.after + len(taken),
                results=progress.results + len(results),
                damaged=progress.damaged + len(faults),
            )
            yield CopyGroup(progress, results=results, damaged=faults)

    async def _order_of_results(self) -> array[int]:
        """The numbers of all results, in the order in which the jobs ended. 24 bytes each."""
        numbers, ended = array("q"), array("d")
        page = (
            f"SELECT number, ended FROM {self._schema}.records WHERE number > $1 "
            f"ORDER BY number LIMIT {_PAGE}"
        )
        while rows := await self._run(page, numbers[-1] if numbers else 0):
            numbers.extend(read_int(row[0]) for row in rows)
            ended.extend(read_real(row[1]) for row in rows)
        return array("q", (numbers[place] for place in sorted(range(len(numbers)), key=ended.__getitem__)))


def _first_of(sizes: Sequence[int]) -> int:
    """How many of these make a group: at least one."""
    total = 0
    for count, size in enumerate(sizes):
        total += size
        if total > GROUP_BYTES:
            return max(1, count)
    return len(sizes)
