"""Limits that hold for all servers of a group: this server's part of them.

Of each limit and key the broker needs slots, or starts of a rate, from the store. It notes which may need
others, and this task asks for them.

* A server wants a slot for each of its jobs that runs or waits. It gives back those that it does not need
  after ``linger``, or at once if another server wants some.
* If another server wants slots, a server that has more than its equal part gives back each slot that becomes
  free, and asks for it again a little later (``turn``). So the servers take turns.
* A server that gets fewer slots than it wants asks again when others have given some back. The notification
  for that may be lost, so it also asks every ``again`` seconds.
* Of a rate it takes the next starts for its waiting jobs, up to ``ahead`` seconds.

What it gives back it does not use from before it says so. What it is to get it uses once the store has said
so. So there are never too many, whatever fails in between.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from math import ceil
from typing import Final

from gearflow.broker import Broker
from gearflow.broker.buckets import Bucket
from gearflow.broker.shares import BucketName, LimitShares
from gearflow.errors import StoreError
from gearflow.stores.shared import SharedStore, SlotWish, StartWish

logger = logging.getLogger(__name__)

_AT_ONCE: Final = 500
"""Wishes of one request."""


@dataclass(frozen=True, slots=True)
class ShareTimings:
    """Times in seconds. They are not settings. Tests pass shorter ones."""

    again: float = 1.0
    """After which it asks again for slots that it did not get."""

    linger: float = 1.0
    """For how long slots that are not needed are held."""

    turn: float = 0.1
    """The time that other servers have to take slots that were given back for them."""

    ahead: float = 1.0
    """The time for which starts of a rate are taken."""

    retry: float = 0.2
    """The pause after the store could not be reached."""


class GroupLimits:
    """Owns what this server holds.

    Args:
        broker: The broker.
        store: The store.
        wake: Called to have the answers of the broker sent.
        time: The clock of the broker.
        servers: The number of live servers.
        timings: Times.
    """

    def __init__(
        self,
        broker: Broker,
        store: SharedStore,
        wake: Callable[[], None],
        time: Callable[[], float],
        servers: Callable[[], int],
        timings: ShareTimings = ShareTimings(),
    ) -> None:
        shares = broker.core.limiter.shares
        assert shares is not None  # the store is shared
        self._shares: LimitShares = shares
        self._broker = broker
        self._store = store
        self._wake = wake
        self._time = time
        self._servers = servers
        self._timings = timings
        self._held: dict[BucketName, int] = {}  # slots, as the store knows at least
        self._contested: set[BucketName] = set()  # that other servers want too
        self._unmet: dict[BucketName, None] = {}  # that this server wants more of
        self._not_before: dict[BucketName, float] = {}  # when it may ask for those that it has given back
        self._not_needed: dict[BucketName, float] = {}  # when it gives back those that it does not need
        self._due: list[tuple[float, BucketName]] = []  # a heap: when to look at what
        self._pending: dict[BucketName, None] = {}  # to be looked at now
        self._work = asyncio.Event()
        self._news = False  # another server may have given some back, or want some
        shares.on_note = self._work.set

    def look(self) -> None:
        """Another server has notified this one."""
        if self._held or self._unmet:
            self._news = True
            self._work.set()

    def reset(self) -> None:
        """The store may not know any more what this server holds. Nothing is used until it says so again."""
        for name in self._held:
            self._shares.set_slots(name, 0)
            self._pending[name] = None
        self._held.clear()
        self._work.set()

    async def run(self) -> None:
        """Ask for what is needed, until this is cancelled."""
        while True:
            try:
                due = self._due[0][0] - self._time() if self._due else None
                async with asyncio.timeout(due):
                    await self._work.wait()
            except TimeoutError:
                pass
            self._work.clear()
            try:
                await self._ask()
            except StoreError as error:
                logger.debug("limits cannot be shared now", extra={"reason": str(error)})
                await asyncio.sleep(self._timings.retry)
                self._work.set()
            except Exception:  # a bug: limits must not stop for ever
                logger.exception("limits could not be shared")
                await asyncio.sleep(self._timings.again)
                self._work.set()

    def _look_later(self, name: BucketName, seconds: float) -> float:
        """Look at a bucket later, and when that is."""
        due = self._time() + seconds
        heappush(self._due, (due, name))
        return due

    async def _ask(self) -> None:
        if self._news:
            self._news = False
            found = set(await self._store.contested()) if self._held else set[BucketName]()
            self._pending.update(dict.fromkeys(found - self._contested))
            self._contested = found
            self._pending.update(self._unmet)
        now = self._time()
        while self._due and self._due[0][0] <= now:
            self._pending[heappop(self._due)[1]] = None
        self._pending.update(dict.fromkeys(self._shares.take_noted()))
        slots: dict[BucketName, SlotWish] = {}
        starts: dict[BucketName, StartWish] = {}
        for name in self._pending:
            bucket = self._shares.bucket(name)
            if bucket is not None and bucket.limit.is_rate:
                start = self._start_wish(name, bucket)
                if start is not None:
                    starts[name] = start
            wish = self._slot_wish(name, bucket, now)
            if wish is not None:
                slots[name] = wish
        self._pending = {name: None for name in self._pending if name in slots or name in starts}
        for names in _sliced(slots):
            await self._share(names, [slots[name] for name in names])
        for names in _sliced(starts):
            await self._take_starts(names, [starts[name] for name in names])

    # --------------------------------------------------------------------------------------------- slots

    def _slot_wish(self, name: BucketName, bucket: Bucket | None, now: float) -> SlotWish | None:
        """What to ask for, if something is to change."""
        held = self._held.get(name, 0)
        running = wanted = total = 0
        if bucket is not None and not bucket.limit.is_rate and bucket.limit.spec is not None:
            running, total = len(bucket.jobs), bucket.limit.count
            wanted = running if bucket.limit.paused else min(running + bucket.waiting, total)
        if self._not_before.get(name, now) < now:
            self._not_before.pop(name, None)
        most = wanted
        equal_part = total // max(self._servers(), 1)
        if name in self._contested and held > max(running, equal_part):
            most = min(max(running, equal_part), wanted)
            if most < wanted:
                self._not_before[name] = self._look_later(name, self._timings.turn)
        elif self._not_before.get(name, 0.0) > now or (wanted < held and not self._is_over(name, now)):
            return None
        self._not_needed.pop(name, None)
        if wanted == most == held:
            self._unmet.pop(name, None)
            return None
        if most < held:
            self._shares.set_slots(name, most)
            self._held[name] = most
        return SlotWish(*name, wanted, most, total)

    def _is_over(self, name: BucketName, now: float) -> bool:
        """Whether slots that are not needed have been held for long enough."""
        due = self._not_needed.get(name)
        if due is None:
            due = self._not_needed[name] = self._look_later(name, self._timings.linger)
        return due <= now

    async def _share(self, names: list[BucketName], wishes: list[SlotWish]) -> None:
        shares = await self._store.share(wishes)
        self._broker.clock.now = self._time()
        for name, wish, share in zip(names, wishes, shares, strict=True):
            del self._pending[name]
            if share.held:
                self._held[name] = share.held
            else:
                self._held.pop(name, None)
            if share.is_wanted:
                self._contested.add(name)
            else:
                self._contested.discard(name)
            if share.held < wish.slots:
                self._unmet[name] = None
                self._look_later(name, self._timings.again)
            else:
                self._unmet.pop(name, None)
            bucket = self._shares.bucket(name)
            if bucket is not None and bucket.grant != share.held:
                self._shares.set_slots(name, share.held)
        self._wake()

    # ---------------------------------------------------------------------------------------------- rates

    def _start_wish(self, name: BucketName, bucket: Bucket) -> StartWish | None:
        """The starts to take, if all that were taken are used."""
        limit = bucket.limit
        if not bucket.is_awaited or limit.paused or bucket.has_starts(self._time()):
            return None
        count = max(min(bucket.waiting, ceil(self._timings.ahead / limit.interval)), 1)
        return StartWish(*name, count * limit.interval)

    async def _take_starts(self, names: list[BucketName], wishes: list[StartWish]) -> None:
        firsts = await self._store.starts(wishes)
        clock = self._broker.clock
        clock.now = self._time()
        for name, wish, first in zip(names, wishes, firsts, strict=True):
            del self._pending[name]
            begin = first - clock.offset
            self._shares.set_starts(name, begin, begin + wish.seconds)
        self._wake()


def _sliced(names: Iterable[BucketName]) -> list[list[BucketName]]:
    """The names in parts for one request each."""
    every = list(names)
    return [every[start : start + _AT_ONCE] for start in range(0, len(every), _AT_ONCE)]
