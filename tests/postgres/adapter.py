"""A ``PostgresStore`` as a ``Store``, so that what is tested of every store is tested of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

import psycopg

from gearflow.broker.handles import LOT_BITS
from gearflow.broker.parser import Body
from gearflow.broker.storage import (
    Answer,
    Change,
    Contents,
    DamagedEntry,
    DeadOf,
    DeadTotal,
    EndedOf,
    EndedPage,
    HeadOf,
    JobOf,
    JobRecord,
    Joined,
    LatestOf,
    PartsOf,
    Question,
    RecordOf,
    StoredJob,
    StoredParts,
    WholeRecordOf,
)
from gearflow.errors import StoreError
from gearflow.stores.postgres.schema import STEPS, Step, quoted
from gearflow.stores.postgres.settings import PostgresSettings
from gearflow.stores.postgres.store import PostgresStore
from gearflow.stores.shared import OtherLot, SharedContents
from tests.postgres.cluster import Database

T = TypeVar("T")

LOT: Final = 0
"""Of the small numbers that the tests of every store use."""


def settings_for(database: Database, **fields: Any) -> PostgresSettings:
    given: dict[str, Any] = {"conninfo": database.conninfo, "address": "localhost:4730", "version": "1.0"}
    return PostgresSettings(**(given | fields))


class SyncStore:
    """Runs the store on a loop of its own, one call at a time.

    Once it is loaded it owns lot 0 and no other. Opened as a server does it, it owns a new lot.
    """

    durable = True
    busy = False
    behind = False
    full = False
    untidy = False

    def __init__(
        self,
        database: Database,
        *,
        new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
        steps: Sequence[Step] = STEPS,
        **fields: Any,
    ) -> None:
        self._database = database
        self._schema: str = fields.get("schema", "gearflow")
        self._loop = new_loop()
        self.store = PostgresStore(settings_for(database, **fields), steps)
        self._timeout = self.store.sessions[0].timeout
        self.lots: dict[int, int] = {}
        self.lot = LOT  # that ``load`` adopts
        self.contents: SharedContents

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(call)

    @property
    def large(self) -> int:
        return self.store.large

    def psql(self, sql: str) -> str:
        """What statements print. ``{s}`` is the schema."""
        return self._database.psql(sql.replace("{s}", quoted(self._schema)))

    @contextmanager
    def hold(self, sql: str, application: str = "test") -> Generator[Callable[[], None]]:
        """A transaction that has run these statements, until the block ends or it is told to commit."""
        conninfo = f"{self._database.conninfo} application_name='{application}'"
        with psycopg.connect(conninfo) as connection:
            connection.execute(sql.replace("{s}", quoted(self._schema)).encode())
            yield connection.commit
            with suppress(psycopg.OperationalError):  # somebody has ended it
                connection.rollback()

    def shorten(self, timeout: float | None) -> None:
        """Wait for an answer only so long from now on, or as long as before."""
        for session in self.store.sessions:
            session.timeout = timeout or self._timeout

    async def set_read_only(self) -> None:
        """As its sessions find the server after it was demoted."""
        for session in self.store.sessions[:3]:
            await session.simple("SET default_transaction_read_only = on")

    def open(self) -> None:
        self.contents = self.run(self.store.open())
        self.lots = dict(self.run(self.store.take_lots(1)))

    def number(self, n: int) -> int:
        """A number in its lot."""
        (lot,) = self.lots
        return lot << LOT_BITS | n

    def commit(self, *changes: Change) -> list[str | Joined | None]:
        return list(self.run(self.store.commit(self.lots, changes)))

    def load(self) -> Contents:
        contents = self.run(self.store.open())
        self.psql(f"INSERT INTO {{s}}.lots (lot) VALUES ({self.lot}) ON CONFLICT DO NOTHING")
        row = self.psql(f"SELECT owner, epoch, beat FROM {{s}}.lots WHERE lot = {self.lot}")
        owner, epoch, beat = row.split("\t")
        adopted = self.run(self.store.adopt(OtherLot(self.lot, owner or None, int(epoch), int(beat))))
        assert adopted is not None
        self.lots = {self.lot: adopted}
        jobs, parts = self.run(self._slices())
        return Contents(
            contents.name, 1, iter(jobs), tuple(contents.paused), parts, settings=contents.settings
        )

    async def _slices(self) -> tuple[list[StoredJob], Mapping[int, StoredParts]]:
        jobs: list[StoredJob] = []
        parts: dict[int, StoredParts] = {}
        async for part in self.store.jobs_of(self.lot, 0):
            jobs += part.jobs
            parts |= part.parts
        return jobs, parts

    def write(self, changes: Sequence[Change]) -> None:
        for outcome in self.commit(*changes):
            if outcome is not None:
                raise StoreError(str(outcome))

    def write_ahead(self, change: StoredJob | JobRecord) -> Iterator[None]:
        self.run(self.store.write_ahead(change))
        yield

    def drop_ahead(self, change: StoredJob | JobRecord) -> None:
        self.store.drop_ahead(change)

    def tidy(self) -> Iterator[None]:
        return iter(())

    def sync(self) -> None:
        """Nothing is to be done."""

    def reopen(self) -> None:
        """Nothing is to be done."""

    def ask(self, question: Question) -> Answer:
        (answer,) = self.run(self.store.answer([question]))
        if isinstance(answer, StoreError):
            raise answer
        return answer

    def job(self, number: int) -> StoredJob | None:
        return _job(self.ask(JobOf(number)))

    def head(self, number: int) -> StoredJob | None:
        return _job(self.ask(HeadOf(number)))

    def fetch(self, number: int) -> Generator[None, None, StoredJob | None]:
        yield
        return self.job(number)

    def ended(self, number: int) -> JobRecord | None:
        return _record(self.ask(RecordOf(number)))

    def fetch_result(self, number: int) -> Generator[None, None, JobRecord | None]:
        yield
        return _record(self.ask(WholeRecordOf(number)))

    def latest(self, function: bytes, unique: bytes) -> JobRecord | None:
        return _record(self.ask(LatestOf(function, unique)))

    def dead(
        self, function: bytes | None, after: int, limit: int, descending: bool = False
    ) -> Sequence[JobRecord | DamagedEntry]:
        answer: Any = self.ask(DeadOf(function, after, limit, descending))
        found: list[JobRecord | DamagedEntry] = answer
        return found

    def dead_total(self) -> int:
        total = self.ask(DeadTotal())
        assert isinstance(total, int)
        return total

    def ended_before(self, question: EndedOf) -> EndedPage:
        page = self.ask(question)
        assert isinstance(page, EndedPage)
        return page

    def parts(self, number: int, after: int, limit_bytes: int, limit: int = 64) -> Sequence[tuple[int, Body]]:
        answer: Any = self.ask(PartsOf(number, after, limit_bytes, limit))
        found: list[tuple[int, Body]] = answer
        return found

    def expire(self, now: float, limit: int) -> bool:
        return self.run(self.store.expire(limit, now))

    def close(self) -> None:
        if not self._loop.is_closed():
            self.run(self.store.close())
            self._loop.close()


def _job(answer: Answer) -> StoredJob | None:
    assert answer is None or isinstance(answer, StoredJob)
    return answer


def _record(answer: Answer) -> JobRecord | None:
    assert answer is None or isinstance(answer, JobRecord)
    return answer
