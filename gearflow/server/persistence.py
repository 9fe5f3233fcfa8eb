"""What the broker wants kept, written in groups; and the store's own needs: syncs, and expiry.

The store is written on the event loop, all that a turn of it has brought as one group, before anything
that the turn has to say is sent. (A writer in a thread has to fight the loop for the interpreter's lock
with every statement.) What takes long is the disk, and that waits in a thread, where it holds nobody up:

* ``always``: a group counts when the disk has it. While one is on its way, the next one gathers.
* ``batch``: a group counts when it is written, which survives the death of the server, not that of the
  machine. The server syncs ``_BATCH`` seconds later.
* ``off``: the disk catches up when the system pleases.

What nobody waits for, as most ends of jobs, may linger a moment, so that more of it is written at once.

A group that cannot be written is tried again entry by entry, so that only what does not fit is refused. The
log says so when that begins, and when it is over, and not of each group.

A disk that did not take what was written is not asked again: the kernel may have dropped it, and would now
say that all is well. From then on no job is kept, and so none is acknowledged; what becomes of those that are
there is written as with ``off``. The next server finds out what the file has.

A thread that waits for the disk, so that the event loop need not.

There is one kind of work for it, so one queue and one callback hand it over: an executor with its two
futures would take a tenth of the time that a quick disk takes.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Final

from gearflow.broker.journal import Entry, Journal
from gearflow.broker.storage import Forgotten, Store, StoredJob
from gearflow.errors import StoreError
from gearflow.server.settings import FILE_NAME, MEMORY_KEEP_BYTES, ServerSettings
from gearflow.stores import MemoryStore, SqliteStore, Sync


class SyncThread:
    """Has ``work`` done in a thread, which begins when that is asked for first. Owns the thread."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._asked: SimpleQueue[asyncio.Future[None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def ask(self) -> asyncio.Future[None]:
        """Have the work done once; what is returned ends with it, or with what it raised."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="gearflow-disk", daemon=True)
            self._thread.start()
        done = self._loop.create_future()
        self._asked.put(done)
        return done

    def close(self) -> None:
        """End the thread, after what it was asked for."""
        if self._thread is not None:
            self._asked.put(None)
            self._thread.join()

    def _serve(self) -> None:
        while (done := self._asked.get()) is not None:
            try:
                self._work()
            except Exception as error:  # noqa: BLE001  (it belongs to who asked)
                self._tell(done.set_exception, error)
            else:
                self._tell(done.set_result, None)

    def _tell(self, end: Callable[..., None], outcome: Exception | None) -> None:
        with suppress(RuntimeError):  # the loop is closed, and nobody waits
            self._loop.call_soon_threadsafe(end, outcome)


logger = logging.getLogger(__name__)

_BATCH: Final = 1.0
"""Seconds between a write and its sync, with ``batch``."""

_SLOW: Final = 10.0
"""Seconds between two looks of the store after itself where nothing else asks for one."""

_AGAIN: Final = 1.0
"""Seconds after which what could not be written is tried again."""

_LULL: Final = 10.0
"""Seconds without a refusal after which a fault is over as soon as something is written: on a disk that is
nearly full, large jobs are refused among small ones that are kept."""

_LINGER: Final = 0.01
"""Seconds that the ends of jobs may gather for: those that a dying server has not written are run again."""

_MANY: Final = 1000
"""Entries that are written at once in any case."""

_IN_VAIN: Final = 20
"""Changes that could not be written, one after the other; the others of their group are not tried then."""

_EXPIRE: Final = 500
"""Records that are removed in one go: a few milliseconds. After as many changes it is looked for some,
however little time has passed, so that no more come than go."""


def open_store(settings: ServerSettings) -> Store:
    """The store that the settings ask for; its folder is made if need be.

    Raises:
        StoreError: It cannot be used.
    """
    if settings.data is None:
        return MemoryStore(keep_bytes=settings.keep_bytes or MEMORY_KEEP_BYTES)
    try:
        settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{error.strerror or error}; name another with --data"
        raise StoreError(f"the folder {settings.data} for jobs cannot be made: {reason}") from error
    return SqliteStore(settings.data / FILE_NAME, keep_bytes=settings.keep_bytes, sync=settings.sync)


class GroupCommitter:
    """Keeps what is in one broker's journal. ``wake`` has ``commit`` called again soon."""

    def __init__(self, journal: Journal, store: Store, sync: Sync, wake: Callable[[], None]) -> None:
        self._journal = journal
        self._store = store
        self._sync = sync
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._disk = SyncThread(store.sync)
        self._at_disk: asyncio.Future[None] | None = None
        self._group: list[Entry] = []  # what waits for the disk
        self._sync_timer: asyncio.TimerHandle | None = None
        self._again: asyncio.TimerHandle | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._expiry = self._loop.call_later(_SLOW, self._expire)
        self._written = 0  # changes, since it was last looked for what has expired
        self._broken: str | None = None  # why the disk is not asked any more
        self._fault: str | None = None  # why something could not be written, as the log says
        self._fault_seen = 0.0  # when that was so last, on the loop's clock
        self._refused = 0  # jobs, for that

    def commit(self) -> None:
        """Write what has gathered, and tell the broker."""
        journal = self._journal
        if not journal.entries or self._group or self._may_linger():
            return
        entries = journal.drain()
        if self._broken is not None:
            entries = _without_jobs(entries, self._broken)
        changes = [change for change, _ in entries if change is not None]
        if not changes:
            self._tell(entries, None)
            return
        try:
            self._store.write(changes)
        except StoreError as error:
            journal.failed_group = entries
            entries = self._write_singly(entries, error)
        else:
            if self._fault is not None and self._broken is None:
                self._look_for_end_of_fault(self._fault)
        self._written += len(changes)
        if self._written >= _EXPIRE:
            self._expire_after(0)
        if self._store.durable and self._broken is None:
            if self._sync == "always":
                self._group = entries
                self._start_sync()
                return
            if self._sync_timer is None:
                self._sync_timer = self._loop.call_later(
                    _BATCH if self._sync == "batch" else _SLOW, self._sync_later
                )
        self._tell(entries, None)

    async def settle(self) -> None:
        """Wait until the disk has what was written."""
        if self._at_disk is not None:
            await asyncio.wait([self._at_disk])

    def _may_linger(self) -> bool:
        """Whether more may gather, as nobody waits for what is there; a timer ends that."""
        if self._journal.flush_now or len(self._journal.entries) >= _MANY:
            if self._linger is not None:
                self._linger.cancel()
                self._linger = None
            return False
        if self._linger is None:
            self._linger = self._loop.call_later(_LINGER, self._hurry)
        return True

    def _hurry(self) -> None:
        self._linger = None
        self._journal.flush_now = True
        self._wake()

    async def close(self) -> None:
        """Write what is left, and let go of the store."""
        for timer in (self._expiry, self._sync_timer, self._again, self._linger):
            if timer is not None:
                timer.cancel()
        if self._at_disk is not None:
            await asyncio.wait([self._at_disk])
        self._try_again()
        self._group = []
        self._sync = "off"
        while self._journal.entries:
            self._journal.flush_now = True
            self.commit()
        if self._sync_timer is not None:
            self._sync_timer.cancel()
        self._disk.close()
        self._store.close()

    def _tell(self, entries: list[Entry], error: str | None) -> None:
        """Tell the broker of each entry that it is kept, or why not."""
        for _, done in entries:
            if done is not None:
                try:
                    done(error)
                except Exception:  # a bug; the others of the group must still get their answers
                    logger.exception("an entry of the journal could not be dealt with")
        self._journal.failed_group = ()
        self._after()

    def _after(self) -> None:
        if self._journal.has_failed and self._again is None:
            self._again = self._loop.call_later(_AGAIN, self._try_again)
        if self._journal.entries:
            self._wake()

    def _write_singly(self, entries: list[Entry], error: StoreError) -> list[Entry]:
        """Write what can be written of a group, and tell the others that it cannot; those that are kept."""
        self._tell_of_fault(str(error))
        kept: list[Entry] = []
        for (change, done), fault in self._one_by_one(entries, str(error)):
            if fault is None:
                kept.append((change, done))
            else:
                self._refused += isinstance(change, StoredJob)
                kept.append(_refused(done, fault))
        return kept

    def _one_by_one(self, entries: list[Entry], fault: str) -> Iterator[tuple[Entry, str | None]]:
        """Write what can be written of a group that cannot as a whole; each entry with its fault, if any."""
        in_vain = 0
        for entry in entries:
            if (change := entry[0]) is None:
                yield entry, None
                continue
            try:
                if in_vain >= _IN_VAIN:
                    raise StoreError(fault)
                self._store.write([change])
            except StoreError as error:
                fault, in_vain = str(error), in_vain + 1
                yield entry, fault
            else:
                in_vain = 0
                yield entry, None

    def _tell_of_fault(self, fault: str) -> None:
        self._fault_seen = self._loop.time()
        if fault != self._fault:
            logger.error("cannot write to the store; what does not fit is refused", extra={"reason": fault})
            self._fault = fault

    def _look_for_end_of_fault(self, fault: str) -> None:
        if self._loop.time() - self._fault_seen >= _LULL:
            fields = {"reason": fault, "refused_jobs": self._refused}
            logger.warning("what comes is written to the store again", extra=fields)
            self._fault, self._refused = None, 0

    def _try_again(self) -> None:
        """Write what could not be written before, as far as that goes."""
        self._again = None
        entries = self._journal.drain_failed()
        left: list[Entry] = []
        for start in range(0, len(entries), _MANY):
            written, not_yet = self._write_again(entries[start : start + _MANY])
            left += not_yet
            self._tell(written, None)
            if not written:  # there is no room at all
                left += entries[start + _MANY :]
                break
        self._journal.put_back(left)
        self._after()

    def _write_again(self, entries: list[Entry]) -> tuple[list[Entry], list[Entry]]:
        """Those that are written now, and those that still cannot be."""
        try:
            self._store.write([change for change, _ in entries if change is not None])
        except StoreError as error:
            found = list(self._one_by_one(entries, str(error)))
            return (
                [entry for entry, fault in found if fault is None],
                [entry for entry, fault in found if fault is not None],
            )
        return entries, []

    # ---------------------------------------------------------------------------------------- the disk

    def _start_sync(self) -> None:
        self._at_disk = self._disk.ask()
        self._at_disk.add_done_callback(self._synced)

    def _synced(self, done: asyncio.Future[None]) -> None:
        self._at_disk = None
        entries, self._group = self._group, []
        if (error := done.exception()) is not None:
            self._broken = str(error)
            logger.error(
                "the disk did not take what was written: background jobs are refused from now on",
                extra={"reason": self._broken},
            )
            self._take_back(entries)
            entries = _without_jobs(entries, self._broken)
        self._tell(entries, None)
        self._wake()

    def _take_back(self, entries: list[Entry]) -> None:
        """Remove jobs whose submitters get an ERROR from the store. They must not run after a restart."""
        changes = [Forgotten(change.number) for change, _ in entries if isinstance(change, StoredJob)]
        try:
            self._store.write(changes)
        except StoreError as error:
            logger.error("refused jobs may still run after a restart", extra={"reason": str(error)})

    def _sync_later(self) -> None:
        self._sync_timer = None
        if self._broken is not None:
            return
        if self._at_disk is None:
            self._start_sync()
        else:  # what it began before may not have all
            self._sync_timer = self._loop.call_later(_BATCH, self._sync_later)

    # ------------------------------------------------------------------------------------------ expiry

    def _expire(self) -> None:
        more = False
        try:
            more = self._store.expire(time.time(), _EXPIRE)
        except StoreError as error:
            logger.warning("cannot remove what has expired", extra={"reason": str(error)})
        self._expire_after(0.02 if more else _SLOW)

    def _expire_after(self, seconds: float) -> None:
        self._written = 0
        self._expiry.cancel()
        self._expiry = self._loop.call_later(seconds, self._expire)


def _without_jobs(entries: list[Entry], fault: str) -> list[Entry]:
    """Entries of which those that keep a job are refused.

    Nothing else is: all that a loss of power could take is what became of a job, which then runs again.
    """
    return [
        _refused(done, fault) if isinstance(change, StoredJob) else (change, done) for change, done in entries
    ]


def _refused(done: Callable[[str | None], None] | None, fault: str) -> Entry:
    """An entry without a change, in place of one that is not kept. It only reports the fault."""
    return None, partial(_tell_fault, done, fault) if done is not None else None


def _tell_fault(done: Callable[[str | None], None], fault: str, error: str | None) -> None:
    """Tell of a change that it could not be written, whatever became of the others."""
    done(fault)
