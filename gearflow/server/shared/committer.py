"""Group commit to a store that several servers share.

One group is at the store at a time, and the next one gathers meanwhile. A group is committed with the epochs
of the lots that this server owned when it was taken. There are these outcomes:

* It is kept. A job in it may have *joined* another server's job of its unique.
* It is *fenced*: this server has lost a lot. Entries of that lot are dropped, and the rest is committed.
* Nothing is kept. Then its changes are committed one by one, so that only those that do not fit are refused.
* The store is *away*, so the outcome may be unknown. The same group is committed again until it is known,
  which changes nothing if it was kept. After ``timeout`` the submitters in the group get an error, and new
  submissions are refused at once, until the store is back. Ends of jobs wait for it.

**Replay.** After a failover to a standby that had not received everything, commits that were confirmed may be
missing. So the groups of the last seconds are kept here. When the store's ``ready`` tells of another era, all
of them are committed again, in their order, before anything else.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from random import uniform
from time import time as unix_time
from typing import Final, TypeAlias

from gearflow.broker.handles import lot_of
from gearflow.broker.journal import Entry, Journal, StoreFault
from gearflow.broker.parser import Body
from gearflow.broker.storage import (
    Change,
    Done,
    Edited,
    Forgotten,
    JobPart,
    JobRecord,
    Joined,
    Ordered,
    Paused,
    Reserved,
    Setting,
    StoredJob,
    Ticked,
    Uncertain,
)
from gearflow.errors import StoreError
from gearflow.server.shared.lease import Lease
from gearflow.stores.shared import Away, Fenced, SharedStore

logger = logging.getLogger(__name__)

_MANY: Final = 1000
"""Entries for which a group does not wait any longer."""

_MOST: Final = 4000
"""Entries of a group at most."""

_MOST_BYTES: Final = 16 << 20
"""Bytes of the bodies in a group, above which it ends."""

_FAILURES: Final = 20
"""Changes of a group that fail in a row before the rest is refused without a try."""

_RING: Final = 64 << 20
"""Bytes of the groups that are kept for a replay."""

_OVERHEAD: Final = 500
"""Bytes that a change counts beside its body."""

_UNREACHABLE: Final = "the database cannot be reached"

_Outcome: TypeAlias = str | Joined | None


@dataclass(frozen=True, slots=True)
class SharedTimings:
    """Times of a shared store in seconds. They are not settings. Tests pass shorter ones."""

    linger: float = 0.01
    """For how long ends of jobs gather."""

    retry: float = 1.0
    """Before failed changes are written again, and the longest pause between two attempts to reach the
    store."""

    first_retry: float = 0.05
    """The first pause between two attempts to reach the store. Each further one is twice as long."""

    replay: float = 20.0
    """For how long confirmed groups are kept for a replay."""

    expire: float = 10.0
    """Between two removals of expired results."""


class SharedCommitter:
    """Writes the entries of one broker's journal. Owns the task that does it.

    Args:
        journal: The broker's journal.
        store: The store.
        lease: Which lots are this server's.
        look: Looks which lots are still this server's, after a group was fenced. Raises Away.
        timeout: Seconds that submitters wait for a store that is away.
        wake: Called to have the answers sent.
        time: The clock of the lease.
        timings: The times of group commit.
    """

    def __init__(
        self,
        journal: Journal,
        store: SharedStore,
        lease: Lease,
        look: Callable[[], Awaitable[None]],
        timeout: float,
        wake: Callable[[], None],
        time: Callable[[], float],
        timings: SharedTimings,
    ) -> None:
        self.on_certain: Callable[[], None] = _nothing  # called when the store is back
        self.on_other_history: Callable[[], None] = _nothing  # called when it may lack what was confirmed
        self.before_notify: Callable[[], None] = _nothing  # called before entries are done
        self._journal = journal
        self._store = store
        self._lease = lease
        self._look = look
        self._timeout = timeout
        self._wake = wake
        self._time = time
        self._timings = timings
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._waiting: deque[Entry] = deque()  # taken from the journal
        self._group: list[Entry] = []  # at the store
        self._group_bytes = 0
        self._is_uncertain = False  # jobs may be kept whose submitters got an error
        self._ring: deque[tuple[float, int, dict[int, int], list[Change]]] = deque()
        self._ring_bytes = 0
        self._era: Hashable = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._retry_timer: asyncio.TimerHandle | None = None
        self._busy = False
        self._closing = False
        self._task = self._loop.create_task(self._run(), name="gearflow shared commits")

    # ---------------------------------------------------------------------------- what the engine calls

    def commit(self) -> None:
        """Take the journal's entries, unless more of them may gather."""
        journal = self._journal
        if not journal.entries:
            return
        if self._busy:
            if self._journal.away is not None:
                self._refuse(journal.drain())
            return
        if self._closing or journal.flush_now or len(journal.entries) >= _MANY:
            if self._linger_timer is not None:
                self._linger_timer.cancel()
                self._linger_timer = None
            self._ready.set()
        elif self._linger_timer is None:
            self._linger_timer = self._loop.call_later(self._timings.linger, self._end_linger)

    def _end_linger(self) -> None:
        self._linger_timer = None
        self._ready.set()

    async def settle(self) -> None:
        """Wait until everything in the journal is committed, or refused."""
        reached = asyncio.Event()
        self._journal.keep(None, lambda _: reached.set())
        self._ready.set()
        await reached.wait()

    async def close(self) -> None:
        """Commit the rest of the journal, as far as that is possible within ``timeout``."""
        self._closing = True
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                while self._journal.has_failed or self._journal.entries or self._waiting or self._busy:
                    self._retry_failed()
                    await self.settle()
        self._task.cancel()
        for timer in (self._linger_timer, self._retry_timer):
            if timer is not None:
                timer.cancel()
        await asyncio.wait([self._task])

    def has_changes_of(self, lot: int) -> bool:
        """Whether a change of a job of this lot has not been committed or dropped yet."""
        changes = [*self._journal.pending(), *(change for change, _ in [*self._waiting, *self._group])]
        return any(_lot(change) == lot for change in changes if change is not None)

    # ------------------------------------------------------------------------------------------ groups

    async def _run(self) -> None:
        while True:
            await self._ready.wait()
            self._ready.clear()
            self._waiting.extend(self._journal.drain())
            self._busy = True
            if not self._waiting:
                await self._look_for_era()
            while self._waiting:
                await self._commit_group()
            self._busy = False
            if self._journal.entries:
                self.commit()

    async def _commit_group(self) -> None:
        """Commit the next group, however long that takes, and tell its entries."""
        entries, lots = self._take(), dict(self._lease.lots)
        self._group = entries
        try:
            entries = self._owned(entries, lots)
            if any(change is not None for change, _ in entries):
                outcomes = await self._settle_group(entries, lots)
            else:
                outcomes = [(done, None) for _, done in entries]
        except Exception as error:  # a bug: those that wait must get an answer
            logger.exception("a group could not be committed")
            outcomes = [(done, f"a fault of the server: {error!r}") for _, done in entries]
        self._group = []
        self._notify(outcomes)

    def _take(self) -> list[Entry]:
        """The entries of the next group."""
        entries: list[Entry] = []
        if len(self._waiting) <= _MOST:
            size = sum([_size(change) for change, _ in self._waiting])
            if size <= _MOST_BYTES:
                entries += self._waiting
                self._waiting.clear()
                self._group_bytes = size
                return entries
        size = 0
        while self._waiting and len(entries) < _MOST and size < _MOST_BYTES:
            entry = self._waiting.popleft()
            entries.append(entry)
            size += _size(entry[0])
        self._group_bytes = size
        return entries

    def _owned(self, entries: Sequence[Entry], lots: dict[int, int]) -> list[Entry]:
        """The entries that may be committed: none of a lot that is lost. The others get the reason.

        Afterwards ``lots`` has only those that are still this server's, and that these entries are about.
        """
        occurring = {_lot(change) for change, _ in entries if change is not None}
        for lot in list(lots):
            if lot not in occurring or self._lease.lots.get(lot) != lots[lot]:
                del lots[lot]
        if occurring <= {None, *lots}:
            return list(entries)
        owned: list[Entry] = []
        dropped = 0
        for change, done in entries:
            if change is None or _may_be_committed(change, lots, self._lease.leaving):
                owned.append((change, done))
                continue
            dropped += 1
            reason = "another server has adopted the job"
            known = not isinstance(change, StoredJob)
            owned.append((None, _reporting(done, reason if known else Uncertain(reason))))
        if dropped:
            logger.warning(
                "dropped changes of jobs that another server has adopted", extra={"changes": dropped}
            )
        return owned

    async def _settle_group(
        self, entries: list[Entry], lots: dict[int, int]
    ) -> list[tuple[Done | None, _Outcome]]:
        """Commit entries until their outcome is known. Those of lots that get lost meanwhile are dropped."""
        began, pause, was_sent = self._time(), self._timings.first_retry, False
        while True:
            changes = [change for change, _ in entries if change is not None]
            try:
                await self._catch_up()
                kept: Sequence[_Outcome] = await self._store.commit(lots, changes) if changes else ()
            except Fenced:
                with suppress(Away):
                    await self._look()
                if not any(self._lease.lots.get(lot) != epoch for lot, epoch in lots.items()):
                    await asyncio.sleep(pause)  # the beat could not tell yet
                entries = self._owned(entries, lots)
            except Away as error:
                was_sent |= error.sent
                if self._journal.away is None and self._time() - began >= self._timeout:
                    entries = self._begin_away(entries, str(error), was_sent=was_sent)
                await asyncio.sleep(pause * uniform(0.7, 1.0))
                pause = min(2 * pause, self._timings.retry)
                entries = self._owned(entries, lots)
            except StoreError as error:
                kept = await self._singly(changes, lots, str(error))
                break
            else:
                break
        self._end_away()
        if kept:
            self._journal.commits.add(self._time() - began)
            self._journal.kept += kept.count(None)
        if kept.count(None) < len(kept):
            changes = [change for change, how in zip(changes, kept, strict=True) if how is None]
        self._remember(lots, changes)
        outcomes = iter(kept)
        return [(done, None if change is None else next(outcomes)) for change, done in entries]

    async def _singly(self, changes: Sequence[Change], lots: Mapping[int, int], fault: str) -> list[_Outcome]:
        """Commit changes one by one. In the result, those that failed have their faults."""
        logger.error("cannot write to the store; what does not fit is refused", extra={"reason": fault})
        outcomes: list[_Outcome] = []
        failures = 0
        for change in changes:
            if failures >= _FAILURES:
                outcomes.append(fault)
                continue
            try:
                outcomes += await self._store.commit(_used([change], lots), [change])
                failures = 0
            except Away as error:
                outcomes.append(Uncertain(error) if error.sent else str(error))
            except StoreError as error:
                fault, failures = str(error), failures + 1
                outcomes.append(fault)
        return outcomes

    def _notify(self, outcomes: Sequence[tuple[Done | None, _Outcome]]) -> None:
        self.before_notify()
        for done, outcome in outcomes:
            if outcome is not None:
                self._is_uncertain |= isinstance(outcome, Uncertain)
            if done is not None:
                try:
                    done(outcome)
                except Exception:  # a bug: the others of the group must still get their answers
                    logger.exception("a journal entry could not be completed")
        while self._journal.ahead_faults:
            _, fault = self._journal.ahead_faults.pop()
            logger.error("cannot write a large body to the store", extra={"reason": fault})
        if self._journal.has_failed and self._retry_timer is None:
            self._retry_timer = self._loop.call_later(self._timings.retry, self._retry_failed)
        self._wake()

    def _retry_failed(self) -> None:
        """Commit the failed changes again that must be kept."""
        self._retry_timer = None
        for entry in self._journal.drain_failed():
            self._journal.add(*entry)
        self._journal.flush_now = True
        self.commit()

    # ------------------------------------------------------------------------------- a store that is away

    def _begin_away(self, entries: Sequence[Entry], reason: str, *, was_sent: bool) -> list[Entry]:
        """Submitters get an error from now on: first those of this group, in the order of their answers."""
        logger.error(
            "the store cannot be reached; background jobs are refused until it is back",
            extra={"reason": reason},
        )
        self._journal.away = StoreFault(unix_time(), f"{_UNREACHABLE}: {reason}")
        left = self._give_up(entries, was_sent=was_sent)
        waiting, self._waiting = self._waiting, deque()
        self._refuse([*waiting, *self._journal.drain()])
        return left

    def _end_away(self) -> None:
        if self._journal.away is not None:
            self._journal.away = None
            logger.warning("the store is back; background jobs are accepted again")
        if self._is_uncertain:
            self._is_uncertain = False
            self.on_certain()

    def _refuse(self, entries: Sequence[Entry]) -> None:
        """The submitters among these entries get an error. Ends of jobs wait for the store."""
        for change, done in entries:
            if change is None:
                self._notify([(done, None)])
            elif isinstance(change, StoredJob):
                self._notify([(done, _UNREACHABLE)])
            else:
                self._waiting.append((change, done))

    def _give_up(self, entries: Sequence[Entry], *, was_sent: bool) -> list[Entry]:
        """The submitters in a group get an error. The rest of the group waits for the store."""
        left: list[Entry] = []
        for change, done in entries:
            if change is None:
                self._notify([(done, None)])
            elif isinstance(change, StoredJob):
                self._notify([(done, Uncertain(_UNREACHABLE) if was_sent else _UNREACHABLE)])
            else:
                left.append((change, done))
        return left

    # ------------------------------------------------------------------------------------------ replay

    def check_era(self) -> None:
        """Find out soon whether commits may be missing, also if there is nothing to commit."""
        if not self._busy:
            self._ready.set()

    async def _look_for_era(self) -> None:
        try:
            await self._catch_up()
        except StoreError:  # the next beat asks for it again
            pass
        except Exception:  # a bug: groups must still be committed
            logger.exception("could not find out whether commits are missing")

    async def _catch_up(self) -> None:
        """Connect, and commit again what may be missing since the last time."""
        era = await self._store.ready()
        if era == self._era:
            return
        if self._era is not None:
            self.on_other_history()
        if self._era is not None and self._ring:
            logger.warning(
                "the database may lack the last commits; committing them again",
                extra={"groups": len(self._ring)},
            )
            for _, _, lots, changes in list(self._ring):
                owned = {lot: epoch for lot, epoch in lots.items() if self._lease.lots.get(lot) == epoch}
                mine = [change for change in changes if _may_be_committed(change, owned, lots)]
                again = list(map(_again, mine))
                if again:
                    await self._store.commit(_used(again, owned), again)
        self._era = era
        self._store.caught_up(era)

    def _remember(self, lots: dict[int, int], changes: list[Change]) -> None:
        now, size = self._time(), self._group_bytes
        self._ring.append((now, size, lots, changes))
        self._ring_bytes += size
        while self._ring and (self._ring[0][0] < now - self._timings.replay or self._ring_bytes > _RING):
            self._ring_bytes -= self._ring.popleft()[1]


def _lot(change: Change) -> int | None:
    """The lot of the job of a change, if only its owner may make it."""
    if isinstance(change, (StoredJob, JobRecord)):  # nearly all are
        return lot_of(change.number)
    if isinstance(change, Ticked):
        return lot_of(change.job.number) if change.job is not None else None
    return None if isinstance(change, (Paused, Reserved, Ordered, Setting)) else lot_of(change.number)


def _may_be_committed(change: Change, lots: Mapping[int, int], lost: Collection[int]) -> bool:
    """Whether a change is about a job of these lots, or one that any server may make."""
    lot = _lot(change)
    return lot is None or lot in lots or (isinstance(change, Forgotten) and lot not in lost)


def _again(change: Change) -> Change:
    """A change as it is committed again long after. A schedule that is there has gone on meanwhile."""
    if isinstance(change, Setting) and change.kind == "schedule" and change.value:
        return Ticked(change.name, b"", change.value, None)
    return change


def _used(changes: Sequence[Change], lots: Mapping[int, int]) -> dict[int, int]:
    """The lots that changes are about, with their epochs."""
    used = {_lot(change) for change in changes}
    return {lot: epoch for lot, epoch in lots.items() if lot in used}


def _size(change: Change | None) -> int:
    if isinstance(change, Ticked):
        return _OVERHEAD + len(change.value) + _size(change.job)
    body: Body | int = 0
    if isinstance(change, StoredJob):
        body = change.workload
    elif isinstance(change, (JobRecord, JobPart)):
        body = change.body
    elif isinstance(change, Setting):
        body = change.value
    elif isinstance(change, Edited) and change.workload is not None:
        body = change.workload
    return _OVERHEAD + (len(body) if not isinstance(body, int) else 0)


def _reporting(done: Done | None, reason: str) -> Done | None:
    return partial(_report, done, reason) if done is not None else None


def _report(done: Done, reason: str, _: _Outcome) -> None:
    done(reason)


def _nothing() -> None:
    pass
