"""A server as a member of a group: it shows that it is alive, adopts the jobs of dead servers, and carries
out what the others ask for.

A beat goes to the store ``BEATS`` times in a lease. Its answer says what this server owns, what the others
own, and what has changed. A notification from another server only makes the next beat come earlier.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Final

from gearflow.broker import Broker
from gearflow.broker.core import ServerGroup
from gearflow.broker.handles import lot_of
from gearflow.errors import StoreError
from gearflow.protocol.group_info import GroupInfo
from gearflow.server.shared.committer import SharedCommitter, SharedTimings
from gearflow.server.shared.lease import BEATS, Lease, Roster
from gearflow.server.shared.limits import GroupLimits
from gearflow.stores.shared import Away, Beat, Lot, OtherLot, SharedContents, SharedStore

logger = logging.getLogger(__name__)

LOTS: Final = 8
"""Lots of a server. When it dies, several others can share its jobs."""

_AT_ONCE: Final = 250
"""Adopted jobs that are queued in one turn of the event loop."""

_EXPIRED: Final = 500
"""Expired results that are removed at a time."""

_SOONEST: Final = 0.02
"""Seconds between two beats, however many notifications come."""


class Member:
    """Owns the tasks that keep a server in its group.

    Args:
        broker: The broker.
        store: The store. It is open.
        contents: What it had when it was opened.
        lease: Which lots are this server's.
        committer: Writes the broker's journal.
        wake: Called to have the answers of the broker sent.
        time: The clock of the broker and of the lease.
        timings: Time limits.
    """

    def __init__(
        self,
        broker: Broker,
        store: SharedStore,
        contents: SharedContents,
        lease: Lease,
        committer: SharedCommitter,
        wake: Callable[[], None],
        time: Callable[[], float],
        timings: SharedTimings,
    ) -> None:
        self._broker = broker
        self._store = store
        self._lease = lease
        self._committer = committer
        self._wake = wake
        self._time = time
        self._timings = timings
        self._roster = Roster(lease.seconds)
        self._name = contents.name.decode()
        self._changed = contents.changed
        self._fault: str | None = None
        self._carried: set[int] = set()  # orders that are carried out
        self._fresh: set[int] = set()  # lots that new jobs get numbers of
        self._beating = asyncio.Lock()
        self._early = asyncio.Event()  # a beat is wanted now
        self._holding = False
        self._loading: dict[int, asyncio.Task[None]] = {}  # by lot
        self._adopting: asyncio.Task[None] | None = None
        self._loaded = 0  # jobs that were adopted
        self._tasks: set[asyncio.Task[None]] = set()
        committer.on_certain = broker.ownership.resolve
        committer.before_notify = self.check
        store.on_notify = self._notified
        self._limits = GroupLimits(
            broker, store, wake, time, lambda: len(broker.group.servers) if broker.group is not None else 1
        )
        committer.on_other_history = self._limits.reset
        self._curious: list[Callable[[GroupInfo | StoreError], None]] = []  # who asks for the group
        broker.group_facts = self._show_group
        self._set_clock(contents.clock)
        self._pause(contents.paused)
        broker.core.settings.load(contents.settings)

    async def start(self) -> None:
        """Own lots, and begin to beat. Raises StoreError."""
        await self._take_lots()
        await self._beat()
        self._spawn(self._beat_always())
        self._spawn(self._expire_always())
        self._spawn(self._limits.run())

    async def stop(self) -> None:
        """Beat and adopt no more."""
        self._store.on_notify = None
        tasks = [*self._tasks, *self._loading.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _notified(self) -> None:
        self._early.set()
        self._limits.look()

    def check(self) -> None:
        """Hold the kept jobs if the lease is in doubt. The log has a line when that begins and ends."""
        self._broker.hold_after(self._lease.deadline, self._time())
        holds = self._time() >= self._lease.deadline
        if holds != self._holding:
            self._holding = holds
            if holds:
                logger.warning("the lease is in doubt; jobs of the store are held")
            else:
                logger.warning("the lease holds again; jobs of the store are given out")

    async def look(self) -> None:
        """Beat now, to know which lots are still this server's. Raises Away."""
        await self._beat_once()

    def _show_group(self, answer: Callable[[GroupInfo | StoreError], None]) -> None:
        """Answer a question about the group. Those that come meanwhile get the same answer."""
        self._curious.append(answer)
        if len(self._curious) == 1:
            self._spawn(self._find_out())

    async def _find_out(self) -> None:
        found: GroupInfo | StoreError
        try:
            found = await self._store.group()
        except StoreError as error:
            found = error
        curious, self._curious = self._curious, []
        for answer in curious:
            answer(found)
        self._wake()

    # -------------------------------------------------------------------------------------------- beats

    async def _beat_always(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._lease.seconds / BEATS):
                    await self._early.wait()
                    await asyncio.sleep(_SOONEST)
            except TimeoutError:
                pass
            self._early.clear()
            await self._beat()

    async def _beat(self) -> None:
        """Beat. A fault is logged once."""
        try:
            await self._beat_once()
        except StoreError as error:
            if self._fault != str(error):
                self._fault = str(error)
                logger.warning("a beat did not reach the store", extra={"reason": self._fault})
        except Exception:  # a bug: the next beat must come
            logger.exception("a beat could not be completed")
        else:
            self._fault = None
        self.check()

    async def _beat_once(self) -> None:
        async with self._beating:
            sent = self._time()
            carried = self._carried
            beat = await self._store.beat(sorted(carried))
            now = self._time()
            self._carried = self._carried - carried
            self._apply(beat, sent, now)
            self._wake()
            if len(self._fresh) < LOTS:
                await self._take_lots()
            gone = self._roster.gone(beat.servers, now) - {lot.owner for lot in beat.others}
            if gone:
                await self._store.forget(sorted(gone))
            if beat.changed != self._changed:
                self._pause(await self._store.paused())
                self._broker.core.handles.renumber(await self._store.renumbered())
                self._changed = beat.changed
        self._committer.check_era()
        self.check()
        self._wake()

    def _apply(self, beat: Beat, sent: float, now: float) -> None:
        broker = self._broker
        broker.clock.now = now
        self._set_clock(beat.clock - (now - sent) / 2)
        news = self._lease.confirm(sent, now, beat)
        if news.lost:
            logger.warning("other servers have adopted jobs of this one", extra={"lots": len(news.lost)})
            self._limits.reset()
        for lot in news.lost:
            self._lose(lot)
        broker.hold_after(self._lease.deadline, now)
        for gained in news.gained:
            self._own(gained)
        servers = self._roster.alive(beat.servers, self._store.server, now)
        me = self._store.server
        address = next((row.address for row in servers if row.server == me), "")
        addresses = tuple(sorted({row.address for row in servers}))
        by_server = {row.server: row.address for row in servers}
        owners = {lot.number: by_server[lot.owner] for lot in beat.others if lot.owner in by_server}
        broker.group = ServerGroup(self._name, me, addresses, address, owners)
        for order in beat.orders:
            lot = lot_of(order.number)
            if order.id not in self._carried and lot in self._lease.lots and lot not in self._loading:
                self._carried.add(order.id)
                broker.carry_out(order.number, order.verb)
        if beat.all_settings:
            broker.reload_settings(beat.settings)
        else:
            broker.change_settings(beat.settings)
        if news.adoptable and (self._adopting is None or self._adopting.done()):
            self._adopting = self._spawn(self._adopt(news.adoptable))
        broker.core.handles.turn()

    def _set_clock(self, unix: float) -> None:
        self._broker.clock.offset = unix - self._time()

    def _pause(self, names: frozenset[bytes]) -> None:
        """These functions are paused at all servers, and no others."""
        functions, dispatcher = self._broker.functions, self._broker.dispatcher
        for name in names - functions.paused.keys():
            dispatcher.pause(functions.ensure(name), True)
        for name in functions.paused.keys() - names:
            dispatcher.pause(functions.ensure(name), False)

    # --------------------------------------------------------------------------------------------- lots

    async def _take_lots(self) -> None:
        lots = await self._store.take_lots(LOTS - len(self._fresh))
        self._lease.own(lots, self._time())
        numbers = [lot.number for lot in lots]
        self._fresh.update(numbers)
        self._broker.core.handles.own(numbers)

    def _lose(self, lot: int) -> None:
        self._fresh.discard(lot)
        loading = self._loading.pop(lot, None)
        if loading is not None:
            loading.cancel()
        left = asyncio.Event()
        self._broker.ownership.disown(lot, left.set)  # from here on none of its jobs is given out
        self._spawn(self._leave(lot, left))

    async def _leave(self, lot: int, left: asyncio.Event) -> None:
        """A lot can be adopted again when nothing of it is here."""
        await left.wait()
        await self._committer.settle()
        # A large body may be on its way, or the store be away.
        while self._committer.has_changes_of(lot):  # noqa: ASYNC110
            await asyncio.sleep(self._timings.retry)
        self._lease.left(lot)

    def _own(self, lot: Lot) -> None:
        """Own a lot that has been adopted, and queue its jobs."""
        self._lease.own([lot], self._time())
        self._broker.core.handles.own([lot.number], fresh=False)
        task = self._spawn(self._load(lot.number))
        self._loading[lot.number] = task
        task.add_done_callback(lambda _: self._loading.pop(lot.number, None))

    async def _adopt(self, lots: Sequence[OtherLot]) -> None:
        """Adopt lots, one after the other, so that several servers share those of a dead one."""
        adopted, before = 0, self._loaded
        for lot in random.sample(lots, len(lots)):
            try:
                epoch = await self._store.adopt(lot)
            except StoreError as error:  # the next beat shows whether it is this server's
                logger.warning("cannot adopt a lot now", extra={"lot": lot.number, "reason": str(error)})
                return
            if epoch is None or lot.number in self._lease.lots:
                continue
            self._own(Lot(lot.number, epoch))
            adopted += 1
            await asyncio.wait([self._loading[lot.number]])
        if adopted:
            jobs = self._loaded - before
            logger.warning("adopted jobs of other servers", extra={"lots": adopted, "jobs": jobs})

    async def _load(self, lot: int) -> None:
        """Queue the jobs of a lot in slices, between which others are served."""
        self._broker.ownership.begin_read()
        try:
            await self._load_slices(lot)
        finally:
            self._broker.ownership.end_read()

    async def _load_slices(self, lot: int) -> None:
        after = 0
        while lot in self._lease.lots:
            try:
                async for some in self._store.jobs_of(lot, after):
                    for start in range(0, len(some.jobs), _AT_ONCE):
                        jobs = some.jobs[start : start + _AT_ONCE]
                        self.check()
                        self._broker.ownership.adopt(jobs, some.parts)
                        after = jobs[-1].number
                        self._loaded += len(jobs)
                        self._wake()
                        await asyncio.sleep(0)
            except Away:
                await asyncio.sleep(self._timings.retry)
            else:
                return

    # ------------------------------------------------------------------------------------------- expiry

    async def _expire_always(self) -> None:
        while True:
            await asyncio.sleep(self._timings.expire * random.uniform(0.5, 1.0))
            try:
                while await self._store.expire(_EXPIRED):  # noqa: ASYNC110  (others go first)
                    await asyncio.sleep(_SOONEST)
            except Away:
                pass
            except Exception as error:  # noqa: BLE001  (a fault of one server or table must not end it)
                logger.warning("cannot remove expired results", extra={"reason": str(error)})

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a task of the group has failed", exc_info=error)
