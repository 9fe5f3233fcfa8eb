"""A store that several servers share, in memory. It can be slow, unreachable, or lose its answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Mapping, Sequence
from uuid import uuid4

from gearflow.broker.handles import lot_of
from gearflow.broker.lifecycle import payload_key
from gearflow.broker.storage import (
    Answer,
    Change,
    DeadOf,
    DeadTotal,
    EndedOf,
    Forgotten,
    HeadOf,
    JobOf,
    JobRecord,
    Joined,
    LatestOf,
    Ordered,
    Overtaken,
    PartsOf,
    Paused,
    Question,
    RecordOf,
    Renumbered,
    Reserved,
    Setting,
    StoredJob,
    Ticked,
    WholeRecordOf,
)
from gearflow.protocol.group_info import GroupInfo, GroupServer
from gearflow.protocol.uniques import is_fresh
from gearflow.stores import MemoryStore
from gearflow.stores.shared import (
    Away,
    Beat,
    Fenced,
    Lot,
    Order,
    OtherLot,
    ServerRow,
    SharedContents,
    Slice,
    SlotShare,
    SlotWish,
    StartWish,
)


class Truth:
    """The database."""

    def __init__(self) -> None:
        self.memory = MemoryStore(keep_bytes=None)
        self.live: dict[int, StoredJob] = {}
        self.lots: dict[int, tuple[str | None, int, int]] = {}  # owner, epoch, beat
        self.servers: dict[str, tuple[str, int]] = {}  # address, beat
        self.orders: list[Order] = []
        self.paused: set[bytes] = set()
        self.changed = 0
        self.settings: dict[tuple[str, bytes], tuple[bytes, int]] = {}  # value, last change
        self.last_setting = 0
        self.slots: dict[tuple[bytes, str], dict[str, tuple[int, int]]] = {}  # by server: held, and wanted
        self.starts: dict[tuple[bytes, str], float] = {}
        self.last_lot = 0
        self.last_order = 0
        self.stores: list[FakeStore] = []

    def notify(self) -> None:
        """Tell all servers that something has happened."""
        for store in self.stores:
            if store.on_notify is not None:
                store.on_notify()

    def holder(self, job: StoredJob) -> int | None:
        """The live job that has the unique of this one."""
        key = _key(job)
        if key is None:
            return None
        return next((other.number for other in self.live.values() if _key(other) == key), None)

    def keep(self, lots: Mapping[int, int], change: Change) -> str | Joined | None:
        """Make one change."""
        if isinstance(change, StoredJob):
            holder = self.holder(change)
            if holder is not None and holder != change.number:
                return Joined(holder)
            self.live[change.number] = change
        elif isinstance(change, Ticked):
            return self.tick(lots, change)
        elif isinstance(change, (Paused, Ordered, Reserved, Setting)):
            self.note(change)
            return None
        else:
            if lot_of(change.number) not in lots and isinstance(change, Forgotten):
                if change.number in self.live:
                    return None
            elif isinstance(change, (JobRecord, Forgotten)):
                self.live.pop(change.number, None)
        self.memory.write([change])
        job = self.memory.job(change.number)
        if job is not None and self.memory.ended(change.number) is None:
            self.live[change.number] = job
        return None

    def note(self, change: Paused | Ordered | Reserved | Setting) -> None:
        """Make a change that is about no job of a server's, and notify the servers."""
        if isinstance(change, Paused):
            (self.paused.add if change.paused else self.paused.discard)(change.function)
            self.changed += 1
        elif isinstance(change, Ordered):
            self.last_order += 1
            self.orders.append(Order(self.last_order, change.number, change.verb))
        elif isinstance(change, Setting):
            self.set(change)
        self.notify()

    def set(self, setting: Setting) -> None:
        """Set or remove a setting."""
        name, kind, value = setting
        if self.settings.get((kind, name), (b"", 0))[0] != value:
            self.last_setting += 1
            self.settings[kind, name] = value, self.last_setting

    def tick(self, lots: Mapping[int, int], tick: Ticked) -> str | Joined | None:
        """Compare and set a schedule, and keep its job."""
        now, _ = self.settings.get(("schedule", tick.name), (b"", 0))
        kept = tick.job is not None and self.memory.job(tick.job.number) is not None
        if now != tick.before:
            ended = tick.job is not None and self.memory.ended(tick.job.number) is not None
            return None if now == tick.value or kept or ended else Overtaken(now)
        self.set(Setting(tick.name, "schedule", tick.value))
        return None if tick.job is None else self.keep(lots, tick.job)

    def settings_since(self, last: int) -> list[Setting]:
        """The settings that were changed after a change."""
        return [
            Setting(name, kind, value)
            for (kind, name), (value, changed) in self.settings.items()
            if changed > last and (value or last)
        ]


class FakeStore:
    """One server's connection to the truth."""

    large = 1 << 20

    def __init__(self, truth: Truth, address: str = "127.0.0.1:0") -> None:
        self.truth = truth
        self.address = address
        self.server = str(uuid4())
        self.on_notify: Callable[[], None] | None = None
        self.is_away = False
        self.loses_answers = False
        self.era: Hashable = 1
        self.seen_settings = 0
        truth.stores.append(self)

    async def _reach(self) -> None:
        await asyncio.sleep(0)
        if self.is_away:
            raise Away("no route to host", sent=False)

    async def _answered(self) -> None:
        await asyncio.sleep(0)
        if self.loses_answers:
            raise Away("the connection was reset", sent=True)

    async def open(self) -> SharedContents:
        await self._reach()
        self.truth.servers[self.server] = self.address, 0
        self.truth.notify()
        return SharedContents(
            b"00c0ffee",
            frozenset(self.truth.paused),
            self.truth.changed,
            time.time(),
            settings=await self.settings(),
        )

    async def migrate(self) -> str:
        return "nothing to do"

    async def ready(self) -> Hashable:
        await self._reach()
        return self.era

    async def group(self) -> GroupInfo:
        await self._reach()
        truth = self.truth
        owners = [owner for owner, _, _ in truth.lots.values()]
        servers = (
            GroupServer(address=address, server=server, lots=owners.count(server))
            for server, (address, _) in truth.servers.items()
        )
        return GroupInfo(group="00c0ffee", servers=tuple(servers), jobs=len(truth.live))

    def caught_up(self, era: Hashable) -> None:
        """All of it is there always."""

    async def take_lots(self, count: int) -> Sequence[Lot]:
        await self._reach()
        truth = self.truth
        taken = range(truth.last_lot + 1, truth.last_lot + 1 + count)
        truth.last_lot += count
        truth.lots.update(dict.fromkeys(taken, (self.server, 1, 0)))
        await self._answered()
        return [Lot(lot, 1) for lot in taken]

    async def commit(
        self, lots: Mapping[int, int], changes: Sequence[Change]
    ) -> Sequence[str | Joined | None]:
        await self._reach()
        for lot, epoch in lots.items():
            if self.truth.lots.get(lot, (None, 0, 0))[:2] != (self.server, epoch):
                raise Fenced(f"lot {lot} is lost")
        outcomes = [self.truth.keep(lots, change) for change in changes]
        await self._answered()
        return outcomes

    async def write_ahead(self, change: StoredJob | JobRecord) -> None:
        await self._reach()

    async def answer(self, questions: Sequence[Question]) -> Sequence[Answer]:
        await self._reach()
        return [self._answer(question) for question in questions]

    def _answer(self, question: Question) -> Answer:
        memory = self.truth.memory
        match question:
            case JobOf() | HeadOf():
                return memory.job(question.number)
            case RecordOf() | WholeRecordOf():
                return memory.ended(question.number)
            case LatestOf():
                return memory.latest(question.function, question.unique)
            case DeadOf():
                return memory.dead(question.function, question.after, question.limit, question.descending)
            case DeadTotal():
                return memory.dead_total()
            case EndedOf():
                return memory.ended_before(question)
            case PartsOf():
                return memory.parts(question.number, question.after, question.limit_bytes, question.limit)

    async def beat(self, done: Sequence[int]) -> Beat:
        await self._reach()
        truth = self.truth
        for lot, (owner, epoch, beat) in truth.lots.items():
            if owner == self.server:
                truth.lots[lot] = owner, epoch, beat + 1
        address, beats = truth.servers[self.server]
        truth.servers[self.server] = address, beats + 1
        truth.orders = [order for order in truth.orders if order.id not in done]
        mine = {lot for lot, (owner, _, _) in truth.lots.items() if owner == self.server}
        answer = Beat(
            [Lot(lot, truth.lots[lot][1]) for lot in sorted(mine)],
            [OtherLot(lot, *row) for lot, row in truth.lots.items() if lot not in mine],
            [ServerRow(server, address, "1", beat) for server, (address, beat) in truth.servers.items()],
            truth.changed,
            time.time(),
            [order for order in truth.orders if lot_of(order.number) in mine],
            truth.settings_since(self.seen_settings),
            all_settings=self.seen_settings == 0,
        )
        self.seen_settings = truth.last_setting
        await self._answered()
        return answer

    async def settings(self) -> Sequence[Setting]:
        await self._reach()
        return self.truth.settings_since(0)

    async def renumbered(self) -> Sequence[Renumbered]:
        return ()

    async def paused(self) -> frozenset[bytes]:
        await self._reach()
        return frozenset(self.truth.paused)

    async def adopt(self, lot: OtherLot) -> int | None:
        await self._reach()
        if self.truth.lots.get(lot.number) != (lot.owner, lot.epoch, lot.beat):
            return None
        self.truth.lots[lot.number] = self.server, lot.epoch + 1, lot.beat + 1
        await self._answered()
        return lot.epoch + 1

    async def jobs_of(self, lot: int, after: int) -> AsyncIterator[Slice]:
        await self._reach()
        numbers = sorted(number for number in self.truth.live if lot_of(number) == lot and number > after)
        for some in _pieces(numbers, 100):
            await self._reach()
            parts = self.truth.memory.load().parts
            yield Slice([self.truth.live[number] for number in some if number in self.truth.live], parts)

    async def expire(self, limit: int) -> bool:
        await self._reach()
        return self.truth.memory.expire(time.time(), limit)

    async def share(self, wishes: Sequence[SlotWish]) -> Sequence[SlotShare]:
        await self._reach()
        shares: list[SlotShare] = []
        for limit, key, slots, most, total in wishes:
            rows = self.truth.slots.setdefault((limit, key), {})
            rows.pop(self.server, None)
            held = max(min(slots, most, total - sum(held for held, _ in rows.values())), 0)
            shares.append(SlotShare(held, any(wants for _, wants in rows.values())))
            if slots:
                rows[self.server] = held, slots - held
            if shares[-1].is_wanted or held < slots:
                self.truth.notify()
        await self._answered()
        return shares

    async def contested(self) -> Sequence[tuple[bytes, str]]:
        await self._reach()
        return [
            name
            for name, rows in self.truth.slots.items()
            if rows.get(self.server, (0, 0))[0]
            and any(wants for server, (_, wants) in rows.items() if server != self.server)
        ]

    async def starts(self, wishes: Sequence[StartWish]) -> Sequence[float]:
        await self._reach()
        firsts: list[float] = []
        for limit, key, seconds in wishes:
            firsts.append(max(self.truth.starts.get((limit, key), 0.0), time.time()))
            self.truth.starts[limit, key] = firsts[-1] + seconds
        await self._answered()
        return firsts

    async def forget(self, servers: Sequence[str]) -> None:
        for server in servers:
            self.truth.servers.pop(server, None)
            for rows in self.truth.slots.values():
                rows.pop(server, None)

    async def release(self) -> None:
        await self._reach()
        for lot, (owner, epoch, beat) in self.truth.lots.items():
            if owner == self.server:
                self.truth.lots[lot] = None, epoch + 1, beat
        self.truth.servers.pop(self.server, None)
        for rows in self.truth.slots.values():
            rows.pop(self.server, None)
        self.truth.notify()

    async def close(self) -> None:
        """Nothing is open."""


def _key(job: StoredJob) -> tuple[bytes, bytes] | None:
    if not job.unique or is_fresh(job.unique):
        return None
    if job.unique == b"-":
        return None if isinstance(job.workload, int) else (job.function, payload_key(job.workload))
    return job.function, job.unique


def _pieces(numbers: Sequence[int], size: int) -> Iterable[Sequence[int]]:
    return (numbers[start : start + size] for start in range(0, len(numbers), size))
