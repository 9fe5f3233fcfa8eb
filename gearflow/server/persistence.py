"""Group commit: writes the broker's journal to the store in groups, syncs it, and removes expired results.

The event loop writes a group: all changes of one turn, before any answer of that turn is sent. (A writer
thread would compete with the loop for the interpreter's lock at every statement.) Only the sync takes long,
so it waits for the disk in a thread. ``sync`` decides when a group counts as kept:

* ``always``: when the disk has it. The next group gathers meanwhile.
* ``batch``: when it is written. It then survives the death of the server, but not that of the machine. The
  sync follows ``CommitTimings.batch`` seconds later.
* ``off``: when it is written. The system decides when the disk has it.

If much is written, the sync comes earlier, and if the disk is far behind, the next group waits for it. So the
log of the store does not grow without a limit.

Changes that nobody waits for, such as most ends of jobs, gather for a moment before they are written.

A large body is written and read in steps, one in each turn of the event loop, so that others do not wait for
it. So are the removals of large bodies.

If a group cannot be written, its entries are written one by one, so that only those that do not fit are
refused. The log has one line when a fault begins and one when it is over.

A failed sync is not repeated. The kernel may have dropped the data and would then report success. From then
on no job is kept, and so none is acknowledged (``Journal.closed``). Ends of jobs are still written, as with
``off``. The next server that opens the file checks what it holds. So does this one if it is asked to reopen
it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Final

from gearflow.broker.journal import Entry, Journal, StoreFault
from gearflow.broker.storage import (
    Change,
    Done,
    Forgotten,
    JobRecord,
    Joined,
    Setting,
    Store,
    StoredJob,
    Ticked,
    size_of,
)
from gearflow.errors import StoreError
from gearflow.protocol.metrics import StoreState
from gearflow.server.settings import FILE_NAME, MEMORY_KEEP_BYTES, ServerSettings
from gearflow.stores import MemoryStore, SqliteStore, Sync

logger = logging.getLogger(__name__)

_MANY: Final = 1000
"""Entries after which a group is written at once."""

_FAILURES: Final = 20
"""Changes of a group that fail in a row before the rest is refused without a try."""

_EXPIRE: Final = 500
"""Results that are removed at a time, which takes a few milliseconds. The next removal comes after as many
changes at the latest, so that results are removed as fast as they come."""


@dataclass(frozen=True, slots=True)
class CommitTimings:
    """Times of group commit in seconds. They are not settings. Tests pass shorter ones."""

    batch: float = 1.0
    """From a write to its sync, with ``batch``."""

    idle: float = 10.0
    """Between two syncs with ``off``, in which the store may only shorten its log, and between two removals
    of expired results."""

    expire_more: float = 0.02
    """Between two removals while more results are expired."""

    retry: float = 1.0
    """Before failed changes are written again."""

    fault_over: float = 10.0
    """A fault is over after a write if nothing was refused for this time. On a nearly full disk, large jobs
    are refused while small ones fit."""

    busy: float = 0.002
    """Between two looks whether the store can be written without a wait for the disk."""

    behind: float = 0.01
    """Between two looks whether the disk has caught up with large bodies."""

    linger: float = 0.01
    """For how long ends of jobs gather. A server that is killed meanwhile runs these jobs again."""


def open_store(settings: ServerSettings) -> Store:
    """Open the store of the settings, and create its folder if it is missing.

    Raises:
        StoreError: The store cannot be used.
    """
    if settings.data is None:
        return MemoryStore(keep_bytes=settings.keep_bytes or MEMORY_KEEP_BYTES)
    try:
        settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{error.strerror or error}; name another with --data"
        raise StoreError(f"the folder {settings.data} for jobs cannot be made: {reason}") from error
    return SqliteStore(settings.data / FILE_NAME, keep_bytes=settings.keep_bytes, sync=settings.sync)


def store_state(settings: ServerSettings) -> StoreState:
    """The state of the store, as far as the file system tells."""
    if settings.data is None:
        return StoreState(sync=settings.effective_sync if settings.postgres is not None else "")
    file = settings.data / FILE_NAME
    try:
        size = sum(
            part.stat().st_size for part in (file, file.with_name(f"{file.name}-wal")) if part.exists()
        )
        system = os.statvfs(settings.data)
    except OSError:  # the folder is gone, which the next commit reports
        return StoreState(sync=settings.sync)
    free, room = system.f_bavail * system.f_frsize, system.f_blocks * system.f_frsize
    return StoreState(sync=settings.sync, size=size, free=free, room=room)


class SyncThread:
    """Runs ``work`` in a thread, which starts at the first request. Owns the thread.

    One queue and one callback pass on a request. An executor with its two futures would cost a tenth of the
    time that a fast disk takes.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._requests: SimpleQueue[asyncio.Future[None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def request(self) -> asyncio.Future[None]:
        """Run the work once. The future ends with it, and has its exception."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="gearflow-disk", daemon=True)
            self._thread.start()
        done = self._loop.create_future()
        self._requests.put(done)
        return done

    def close(self) -> None:
        """End the thread after its last request."""
        if self._thread is not None:
            self._requests.put(None)
            self._thread.join()

    def _serve(self) -> None:
        while (done := self._requests.get()) is not None:
            try:
                self._work()
            except Exception as error:  # noqa: BLE001  (the future has it)
                self._answer(done.set_exception, error)
            else:
                self._answer(done.set_result, None)

    def _answer(self, end: Callable[..., None], outcome: Exception | None) -> None:
        with suppress(RuntimeError):  # the loop is closed, so nobody waits
            self._loop.call_soon_threadsafe(end, outcome)


class GroupCommitter:
    """Writes the entries of one broker's journal. Owns the store from here on.

    Args:
        journal: The broker's journal.
        store: The store that keeps it.
        sync: When a group counts as kept. See the module.
        wake: Called to have ``commit`` called again soon.
        timings: The times of group commit.
    """

    def __init__(
        self,
        journal: Journal,
        store: Store,
        sync: Sync,
        wake: Callable[[], None],
        timings: CommitTimings | None = None,
    ) -> None:
        self._journal = journal
        self._store = store
        self._sync = sync
        self._wake = wake
        self._timings = timings or CommitTimings()
        self._loop = asyncio.get_running_loop()
        self._thread = SyncThread(store.sync)
        self._syncing: asyncio.Future[None] | None = None
        self._group: list[Entry] = []  # entries that wait for the sync
        self._group_began = 0.0  # when the write of these began
        self._group_changes = 0
        self._sync_timer: asyncio.TimerHandle | None = None
        self._retry_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._busy_timer: asyncio.TimerHandle | None = None
        self._expire_timer = self._loop.call_later(self._timings.idle, self._expire)
        self._written = 0  # changes since the last removal of expired results
        self._fault: str | None = None  # why a change could not be written, as logged
        self._fault_seen = 0.0  # when that happened last, on the loop's clock
        self._refused = 0  # jobs that the fault refused
        self._work_handle: asyncio.Handle | None = None  # the next step of long work
        self._behind = False  # the disk was, after the last group
        self._closing = False
        self._tidying = False
        self._start_tidying()

    def commit(self) -> None:
        """Write the journal's entries as a group, and notify the broker."""
        journal = self._journal
        if journal.work and self._work_handle is None:
            self._work_handle = self._loop.call_soon(self._work)
        if not journal.entries or self._group or self._must_wait():
            return
        entries = journal.drain()
        if journal.closed is not None:
            entries = self._without_jobs(entries, journal.closed.reason)
        changes = [change for change, _ in entries if change is not None]
        if not changes:
            self._notify(entries)
            return
        began = self._loop.time()
        try:
            self._store.write(changes)
        except StoreError as error:
            journal.failed_group = entries
            entries = self._write_singly(entries, error)
        else:
            if self._fault is not None and journal.closed is None:
                self._check_fault_over(self._fault)
        self._written += len(changes)
        if self._written >= _EXPIRE:
            self._expire_after(0)
        self._start_tidying()
        if not (self._store.durable and journal.closed is None and self._must_sync(entries)):
            self._count(began, len(changes))
            self._notify(entries)
        else:
            self._group_began, self._group_changes = began, len(changes)

    def _count(self, began: float, changes: int) -> None:
        """So many changes are kept that were written from this time on."""
        if self._store.durable:
            self._journal.commits.add(self._loop.time() - began)
            self._journal.kept += changes

    def _must_wait(self) -> bool:
        """Whether the next group must not be written yet. The end of a sync, or a timer, ends that."""
        if (self._sync == "always" and self._syncing is not None) or self._may_linger():
            return True
        if self._store.busy or self._is_full():
            if self._busy_timer is None:
                self._busy_timer = self._loop.call_later(self._timings.busy, self._end_busy)
            return True
        return False

    def _is_full(self) -> bool:
        """Whether the disk is so far behind that nothing more may be written until it has caught up."""
        if not self._behind or self._closing or self._journal.closed is not None or not self._store.full:
            return False
        if self._syncing is None:
            self._start_sync()
        return True

    def _end_busy(self) -> None:
        self._busy_timer = None
        self._wake()

    async def settle(self) -> None:
        """Wait for a sync that is in progress."""
        if self._syncing is not None:
            await asyncio.wait([self._syncing])

    async def close(self) -> None:
        """Write the rest of the journal, and close the store."""
        self._closing = True
        self._cancel_calls()
        await self.settle()
        self._retry()
        while self._journal.work:
            self._step()
        self._group = []
        self._sync = "off"
        while self._journal.entries:
            self._journal.flush_now = True
            self.commit()
        self._cancel_calls()
        self._thread.close()
        self._store.close()

    def _cancel_calls(self) -> None:
        """Cancel what the event loop is to call later."""
        for handle in (
            self._expire_timer,
            self._sync_timer,
            self._retry_timer,
            self._linger_timer,
            self._busy_timer,
            self._work_handle,
        ):
            if handle is not None:
                handle.cancel()

    # ------------------------------------------------------------------------------------------- groups

    def _may_linger(self) -> bool:
        """Whether more entries may gather because nobody waits for these. A timer ends that."""
        if self._journal.flush_now or len(self._journal.entries) >= _MANY:
            if self._linger_timer is not None:
                self._linger_timer.cancel()
                self._linger_timer = None
            return False
        if self._linger_timer is None:
            self._linger_timer = self._loop.call_later(self._timings.linger, self._end_linger)
        return True

    def _end_linger(self) -> None:
        self._linger_timer = None
        self._journal.flush_now = True
        self._wake()

    def _notify(self, entries: list[Entry]) -> None:
        """Notify the broker that entries are done."""
        for _, done in entries:
            if done is not None:
                try:
                    done(None)
                except Exception:  # a bug: the others of the group must still get their answers
                    logger.exception("a journal entry could not be completed")
        self._journal.failed_group = ()
        self._continue()

    # ------------------------------------------------------------------------------------------ long work

    def _work(self) -> None:
        """Do a step of long work, and the next one in another turn."""
        if self._store.busy:
            self._work_handle = self._loop.call_later(self._timings.busy, self._work)
            return
        if self._store.behind and self._journal.closed is None:
            if self._syncing is None:
                self._start_sync()
            self._work_handle = self._loop.call_later(self._timings.behind, self._work)
            return
        self._step()
        self._work_handle = self._loop.call_soon(self._work) if self._journal.work else None
        self._wake()

    def _step(self) -> None:
        work = self._journal.work
        steps = work.popleft()
        try:
            next(steps)
        except StopIteration:
            pass
        except Exception:  # a bug: other work must still be done
            logger.exception("long work at the store could not be completed")
        else:
            work.append(steps)
        while self._journal.ahead_faults:
            change, fault = self._journal.ahead_faults.pop()
            self._log_fault(fault)
            self._refused += isinstance(change, StoredJob)

    def _start_tidying(self) -> None:
        if self._store.untidy and not self._tidying:
            self._tidying = True
            self._journal.begin(self._tidy())

    def _tidy(self) -> Iterator[None]:
        with suppress(StoreError):  # again with the next group
            yield from self._store.tidy()
        self._tidying = False

    def _continue(self) -> None:
        if self._journal.has_failed and self._retry_timer is None:
            self._retry_timer = self._loop.call_later(self._timings.retry, self._retry)
        if self._journal.entries:
            self._wake()

    # ----------------------------------------------------------------------------------- failed writes

    def _write_singly(self, entries: list[Entry], error: StoreError) -> list[Entry]:
        """Write a failed group one by one. In the result, entries that failed report their fault."""
        self._log_fault(str(error))
        written: list[Entry] = []
        for (change, done), fault in self._one_by_one(entries, str(error)):
            if fault is None:
                written.append((change, done))
            else:
                self._refused += isinstance(change, StoredJob)
                written.append(self._refusal((change, done), fault))
        return written

    def _one_by_one(self, entries: list[Entry], fault: str) -> Iterator[tuple[Entry, str | None]]:
        """Write entries one by one. Yields each with its fault, or None if it was written."""
        failures = 0
        for entry in entries:
            if (change := entry[0]) is None:
                yield entry, None
                continue
            try:
                if failures >= _FAILURES:
                    raise StoreError(fault)
                self._store.write([change])
            except StoreError as error:
                fault, failures = str(error), failures + 1
                yield entry, fault
            else:
                failures = 0
                yield entry, None

    def _without_jobs(self, entries: list[Entry], fault: str) -> list[Entry]:
        """The entries, with those that keep a job refused.

        Other changes are not refused. A loss of power could only take the ends of jobs, which then run again.
        """
        return [self._refusal(entry, fault) if _keeps_job(entry[0]) else entry for entry in entries]

    def _refusal(self, entry: Entry, fault: str) -> Entry:
        """An entry without a change, which reports the fault when it is done."""
        change, done = entry
        if isinstance(change, StoredJob):
            self._store.drop_ahead(change)
        return None, partial(_report_fault, done, fault) if done is not None else None

    def _log_fault(self, fault: str) -> None:
        self._fault_seen = self._loop.time()
        if fault != self._fault:
            logger.error("cannot write to the store; what does not fit is refused", extra={"reason": fault})
            self._fault = fault

    def _check_fault_over(self, fault: str) -> None:
        if self._loop.time() - self._fault_seen >= self._timings.fault_over:
            fields = {"reason": fault, "refused_jobs": self._refused}
            logger.warning("the store can be written again", extra=fields)
            self._fault, self._refused = None, 0

    def _retry(self) -> None:
        """Write the failed changes that must be written, as many as fit."""
        self._retry_timer = None
        entries = self._journal.drain_failed()
        left: list[Entry] = []
        entries = self._without_large(entries)
        for start in range(0, len(entries), _MANY):
            written, failed = self._write_again(entries[start : start + _MANY])
            left += failed
            self._notify(written)
            if not written:  # nothing fits
                left += entries[start + _MANY :]
                break
        self._journal.put_back(left)
        self._continue()

    def _without_large(self, entries: list[Entry]) -> list[Entry]:
        """The entries, without those whose large bodies are now written ahead of them."""
        small: list[Entry] = []
        for change, done in entries:
            if isinstance(change, JobRecord) and done and size_of(change.body) >= self._store.large:
                self._journal.keep_ahead(change, done)
            else:
                small.append((change, done))
        return small

    def _write_again(self, entries: list[Entry]) -> tuple[list[Entry], list[Entry]]:
        """Write failed entries. Returns those written, and those that failed again."""
        try:
            self._store.write([change for change, _ in entries if change is not None])
        except StoreError as error:
            tried = list(self._one_by_one(entries, str(error)))
            return (
                [entry for entry, fault in tried if fault is None],
                [entry for entry, fault in tried if fault is not None],
            )
        return entries, []

    # ---------------------------------------------------------------------------------------- the sync

    def _must_sync(self, entries: list[Entry]) -> bool:
        """Have what was written synced in time. Whether these entries wait for that."""
        self._behind = self._store.behind
        if self._sync == "always":
            self._group = entries
            self._start_sync()
            return True
        if self._behind and self._syncing is None:
            self._start_sync()
        if self._sync_timer is None:
            seconds = self._timings.batch if self._sync == "batch" else self._timings.idle
            self._sync_timer = self._loop.call_later(seconds, self._sync_later)
        return False

    def _start_sync(self) -> None:
        self._syncing = self._thread.request()
        self._syncing.add_done_callback(self._on_synced)

    def _sync_later(self) -> None:
        self._sync_timer = None
        if self._journal.closed is not None:
            return
        if self._syncing is None:
            self._start_sync()
        else:  # the sync in progress may not include the last writes
            self._sync_timer = self._loop.call_later(self._timings.batch, self._sync_later)

    def _on_synced(self, done: asyncio.Future[None]) -> None:
        self._syncing = None
        entries, self._group = self._group, []
        if entries:
            self._count(self._group_began, self._group_changes)
        if (error := done.exception()) is not None:
            reason = str(error)
            self._journal.closed = StoreFault(time.time(), reason)
            logger.error(
                "the disk could not be synced; background jobs are refused from now on",
                extra={"reason": reason},
            )
            self._undo_jobs(entries)
            entries = self._without_jobs(entries, reason)
        self._notify(entries)
        self._wake()

    def _undo_jobs(self, entries: list[Entry]) -> None:
        """Remove refused jobs from the store, so that they do not run after a restart."""
        changes: list[Change] = []
        for change, _ in entries:
            if isinstance(change, StoredJob):
                changes.append(Forgotten(change.number))
            elif isinstance(change, Ticked) and change.job is not None:  # it is tried again
                changes += Setting(change.name, "schedule", change.before), Forgotten(change.job.number)
        try:
            self._store.write(changes)
        except StoreError as error:
            logger.error("refused jobs may still run after a restart", extra={"reason": str(error)})

    # ------------------------------------------------------------------------------------------ expiry

    def _expire(self) -> None:
        if self._store.busy:
            self._expire_after(self._timings.expire_more)
            return
        more = False
        try:
            more = self._store.expire(time.time(), _EXPIRE)
        except StoreError as error:
            logger.warning("cannot remove expired results", extra={"reason": str(error)})
        self._expire_after(self._timings.expire_more if more else self._timings.idle)

    def _expire_after(self, seconds: float) -> None:
        self._written = 0
        self._expire_timer.cancel()
        self._expire_timer = self._loop.call_later(seconds, self._expire)


def _keeps_job(change: Change | None) -> bool:
    """Whether a change keeps a new job, which may be refused."""
    return isinstance(change, StoredJob) or (isinstance(change, Ticked) and change.job is not None)


def _report_fault(done: Done, fault: str, _: str | Joined | None) -> None:
    done(fault)
