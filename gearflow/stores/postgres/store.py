"""A ``SharedStore`` in PostgreSQL.

A server has six sessions: one writes groups, one carries beats and notices, one answers questions, one
adopts, one does what nobody waits for, and one shares limits. So none of them waits for the work of another.
The last three are opened when they are needed.

psycopg is imported when a session is opened.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from gearflow.broker.storage import (
    Answer,
    Change,
    JobRecord,
    Joined,
    Question,
    Renumbered,
    Setting,
    StoredJob,
)
from gearflow.errors import StoreError
from gearflow.protocol.group_info import GroupInfo
from gearflow.stores.postgres.facts import DatabaseFacts
from gearflow.stores.postgres.lots import Lots
from gearflow.stores.postgres.migration import check_code, check_not_moved, prepare
from gearflow.stores.postgres.reads import QuestionReader, read_history, read_renumbered, read_settings
from gearflow.stores.postgres.schema import STEPS, Step, literal, quoted
from gearflow.stores.postgres.session import DatabaseSession, check_not_pooled
from gearflow.stores.postgres.settings import PostgresSettings
from gearflow.stores.postgres.shares import Shares
from gearflow.stores.postgres.upkeep import Upkeep
from gearflow.stores.postgres.writer import Writer
from gearflow.stores.shared import (
    Away,
    Beat,
    Lot,
    OtherLot,
    SharedContents,
    Slice,
    SlotShare,
    SlotWish,
    StartWish,
)

if TYPE_CHECKING:
    from gearflow.stores.postgres.connection import DatabaseConnection

_LOCK_TIMEOUT: Final = {"lock_timeout": "500"}  # ms
_CHANNEL_BYTES: Final = 63


class PostgresStore:
    """One server's part of the database. Use it on one asyncio loop."""

    def __init__(self, settings: PostgresSettings, steps: Sequence[Step] = STEPS) -> None:
        """Does not connect. ``steps`` make the tables."""
        self._steps = steps
        self.server = str(uuid := uuid4())
        self.on_notify: Callable[[], None] | None = None
        self._settings = settings
        self._schema = schema = quoted(settings.schema)
        channel = f"gearflow {settings.schema}".encode()[:_CHANNEL_BYTES].decode(errors="ignore")
        self._channel = channel
        self._writes = DatabaseSession(settings, self.server, sync=settings.sync)
        self._beats = DatabaseSession(settings, self.server, on_open=self._listen)
        self._reads = DatabaseSession(
            settings, self.server, sync=settings.sync
        )  # its history is the writer's
        self._adopts = DatabaseSession(settings, self.server, options=_LOCK_TIMEOUT)
        self._rest = DatabaseSession(settings, self.server, options=_LOCK_TIMEOUT)
        self._limits = DatabaseSession(settings, self.server)
        self.sessions = (
            self._writes,
            self._beats,
            self._reads,
            self._adopts,
            self._rest,
            self._limits,
        )
        self._writer = Writer(self._writes, self._rest, schema, uuid, settings.piece)
        self._reader = QuestionReader(self._reads, schema, settings.large)
        self._lots = Lots(self._beats, self._adopts, settings, schema, self.server, channel, len(steps))
        self._shares = Shares(self._limits, schema, self.server)
        self._upkeep = Upkeep(self._rest, schema)
        self._facts = DatabaseFacts(self._rest, settings.schema, schema)
        self._era: Hashable = None  # in which everything is there that was confirmed
        self._notices: set[asyncio.Task[None]] = set()

    @property
    def large(self) -> int:
        return self._settings.large

    async def open(self) -> SharedContents:
        """Connect, make or check the schema, and register this server.

        Raises:
            StoreError: The database cannot be used. The message has the remedy.
        """
        try:
            await self._beats.ready()
            await self._writes.ready()
            await check_not_pooled(self._beats, self._writes)
            await prepare(self._beats, self._settings.schema, self._steps)
            await self._lots.register()
            (rows,) = await self._beats.simple(
                "SELECT name, changed, extract(epoch FROM clock_timestamp()), moved, version, oldest "
                f"FROM {self._schema}.meta FOR SHARE"
            )
            try:
                version, oldest = (int(value or 0) for value in rows[0][4:])
                check_code(version, oldest, self._settings.schema, self._steps)
                check_not_moved(rows[0][3], self._settings.schema)
            except StoreError:
                await self._lots.release()
                raise
            paused = await self.paused()
            renumbered = await self.renumbered()
            set_before = await self.settings()
            prefix = f"{self._settings.address} ".encode()
            history = await read_history(self._reads, self._schema, prefix)
        except BaseException:
            await self.close()
            raise
        self._era = self._writes.history
        name, changed, clock = rows[0][:3]
        return SharedContents(
            name or b"",
            paused,
            int(changed or 0),
            float(clock or 0),
            renumbered,
            set_before,
            history,
            prefix,
        )

    async def migrate(self) -> str:
        """Make or update the tables, without a start of this server. Raises StoreError."""
        await self._beats.ready()
        await prepare(self._beats, self._settings.schema, self._steps)
        return f"the schema {self._settings.schema} is up to date"

    async def ready(self) -> tuple[str, ...]:
        """Connect, if need be. The result is the database system and its timeline."""
        if self._beats.history[:2] != self._writes.history[:2]:  # this session missed a failover
            self._writes.close()
        return await self._writes.ready()

    def caught_up(self, era: Hashable) -> None:
        self._era = era

    async def take_lots(self, count: int) -> Sequence[Lot]:
        return await self._lots.take(count)

    async def commit(
        self, lots: Mapping[int, int], changes: Sequence[Change]
    ) -> Sequence[str | Joined | None]:
        outcomes, is_news = await self._writer.commit(lots, changes)
        if is_news:
            self._notify()
        return outcomes

    async def write_ahead(self, change: StoredJob | JobRecord) -> None:
        await self._writer.write_ahead(change)

    def drop_ahead(self, change: StoredJob | JobRecord) -> None:
        """The change whose body was written ahead will not come."""
        self._writer.drop_ahead(change)

    async def answer(self, questions: Sequence[Question]) -> Sequence[Answer]:
        answers = await self._reader.answer(questions)
        if self._reads.history != self._era:
            self._reads.close()
            self._noticed()
            raise Away("after a failover the last commits are being written again", sent=False)
        return answers

    async def beat(self, done: Sequence[int]) -> Beat:
        return await self._lots.beat(done)

    async def paused(self) -> frozenset[bytes]:
        (rows,) = await self._reads.simple(f"SELECT encode(function, 'hex') FROM {self._schema}.paused")
        return frozenset(bytes.fromhex(str(row[0] or b"", "ascii")) for row in rows)

    async def settings(self) -> tuple[Setting, ...]:
        return await read_settings(self._reads, self._schema)

    async def renumbered(self) -> tuple[Renumbered, ...]:
        return await read_renumbered(self._reads, self._schema)

    async def adopt(self, lot: OtherLot) -> int | None:
        return await self._lots.adopt(lot)

    def jobs_of(self, lot: int, after: int) -> AsyncIterator[Slice]:
        return self._lots.jobs_of(lot, after)

    async def expire(self, limit: int, now: float | None = None) -> bool:
        """As ``SharedStore.expire``. ``now`` is the database's clock unless it is given."""
        return await self._upkeep.expire(limit, now)

    async def group(self) -> GroupInfo:
        await self._rest.ready()
        return await self._facts.find()

    async def forget(self, servers: Sequence[str]) -> None:
        names = ", ".join(map(literal, servers))
        await self._rest.ready()
        await self._rest.simple(
            f"WITH gone AS (DELETE FROM {self._schema}.servers AS s WHERE s.server IN ({names}) "
            f"AND NOT EXISTS (SELECT 1 FROM {self._schema}.lots WHERE owner = s.server) RETURNING s.server) "
            f"DELETE FROM {self._schema}.slots AS s USING gone WHERE s.server = gone.server"
        )

    async def share(self, wishes: Sequence[SlotWish]) -> Sequence[SlotShare]:
        shares = await self._shares.share(wishes)
        if any(
            share.is_wanted or share.held < wish.slots for wish, share in zip(wishes, shares, strict=True)
        ):
            self._notify()
        return shares

    async def contested(self) -> Sequence[tuple[bytes, str]]:
        return await self._shares.contested()

    async def starts(self, wishes: Sequence[StartWish]) -> Sequence[float]:
        return await self._shares.starts(wishes)

    async def release(self) -> None:
        await self._lots.release()

    async def close(self) -> None:
        if self._notices:
            await asyncio.wait(self._notices, timeout=self._settings.timeout)
        for session in self.sessions:
            session.close()

    def _listen(self, connection: DatabaseConnection) -> Sequence[str]:
        connection.on_notify = self._noticed
        return (f"LISTEN {quoted(self._channel)}",)

    def _noticed(self) -> None:
        if self.on_notify is not None:
            self.on_notify()

    def _notify(self) -> None:
        """Tell the other servers. It is no matter if they do not hear it, for they see it in their beats."""

        async def notify() -> None:
            with suppress(StoreError):
                await self._reads.simple(f"SELECT pg_notify({literal(self._channel)}, 'news')")

        task = asyncio.get_running_loop().create_task(notify())
        self._notices.add(task)
        task.add_done_callback(self._notices.discard)
