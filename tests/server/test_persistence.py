"""What could not be written is written as soon as it fits, and the log of a file does not grow for ever."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from gearflow.broker import Broker, SizeLimits
from gearflow.broker.journal import Journal
from gearflow.broker.local_port import LocalPort
from gearflow.broker.storage import Change, JobRecord, Joined, StoredJob, size_of
from gearflow.errors import StoreError
from gearflow.protocol import packets as p
from gearflow.protocol.codec import encode
from gearflow.server.persistence import CommitTimings, GroupCommitter
from gearflow.stores import SqliteStore, Sync
from gearflow.stores.memory import MemoryStore
from gearflow.stores.sqlite import wal
from gearflow.stores.sqlite.tuning import Tuning

pytestmark = pytest.mark.parametrize("anyio_backend", ["asyncio"])


class Narrow(MemoryStore):
    """A disk with room for ends of so many bytes."""

    durable = True
    room = 1000

    def write(self, changes: Sequence[Change]) -> None:
        if any(size_of(change.body) >= self.room for change in changes if isinstance(change, JobRecord)):
            raise StoreError("there is no room")
        super().write(changes)


async def until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not holds():
            await anyio.lowlevel.checkpoint()


async def test_an_end_that_does_not_fit_keeps_no_other_from_being_written() -> None:
    store = Narrow()
    broker = Broker(b"H:test:", lambda line: line, SizeLimits(), LocalPort(store), None)
    broker.restore(store.load())
    committer = GroupCommitter(broker.journal, store, "off", lambda: None, CommitTimings(retry=0.01))

    def commit() -> None:
        broker.journal.flush_now = True
        committer.commit()

    commit()
    client, worker = broker.connected(1, "client"), broker.connected(2, "worker")
    results = {number: b"x" * (500 if number == 7 else 5) for number in range(1, 31)}
    for _ in results:
        broker.receive(client, encode(p.SubmitJobBg(b"work", b"", b"x")), 0.0)
    commit()
    broker.receive(worker, encode(p.CanDo(b"work")), 0.0)
    store.room = 0
    for number, result in results.items():
        broker.receive(worker, encode(p.GrabJob()), 0.0)
        broker.receive(worker, encode(p.WorkComplete(b"H:test:%d" % number, result)), 0.0)
    commit()
    assert broker.journal.has_failed
    assert store.ended(1) is None
    store.room = 100
    await until(lambda: sum(store.ended(number) is not None for number in results) == 29)
    assert store.ended(7) is None
    assert broker.journal.has_failed
    store.room = 1000
    await until(lambda: not broker.journal.has_failed)
    ends = {number: store.ended(number) for number in results}
    assert {number: end.body for number, end in ends.items() if end is not None} == results
    await committer.close()


BODY = bytes(100_000)
SMALL = Tuning(checkpoint=1 << 20, blocking_checkpoint=2 << 20, stalling_checkpoint=4 << 20, log_file=100_000)
NEVER = CommitTimings(batch=3600.0, idle=3600.0)


class Written:
    """Jobs with long workloads, each in a group of its own if the committer lets it."""

    def __init__(self, store: SqliteStore, sync: Sync) -> None:
        self.kept = self.number = 0
        self._journal = Journal(LocalPort(store))
        self._loop = asyncio.get_running_loop()
        self.committer = GroupCommitter(self._journal, store, sync, self._wake, NEVER)

    def _wake(self) -> None:
        self._loop.call_soon(self.committer.commit)

    def add(self) -> None:
        self.number += 1
        job = StoredJob(self.number, b"work", b"", 1, 1.0, 0.0, None, b"", 0, 0, BODY)
        self._journal.keep(job, self._done)
        self.committer.commit()

    def _done(self, error: str | Joined | None) -> None:
        assert error is None
        self.kept += 1


@pytest.mark.parametrize("sync", ["always", "batch", "off"])
async def test_a_long_log_is_copied_before_the_timer_says_so(tmp_path: Path, sync: Sync) -> None:
    store = SqliteStore(tmp_path / "jobs.db", sync=sync, tuning=SMALL)
    written = Written(store, sync)
    longest = 0
    while store.log.length() > longest / 2:
        longest = max(longest, store.log.length())
        assert written.number < 200
        written.add()
        await until(lambda: written.kept == written.number)
    await written.committer.close()


async def test_a_log_has_a_limit_while_the_disk_is_too_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = threading.Event()
    sync_file = wal._fdatasync  # pyright: ignore[reportPrivateUsage]

    def wait_for_disk(fd: int) -> None:
        assert disk.wait(60)
        sync_file(fd)

    monkeypatch.setattr(wal, "_fdatasync", wait_for_disk)
    store = SqliteStore(tmp_path / "jobs.db", tuning=SMALL)
    written = Written(store, "batch")
    try:
        for _ in range(100):
            written.add()
            await anyio.lowlevel.checkpoint()
        assert SMALL.stalling_checkpoint < store.log.length() < SMALL.stalling_checkpoint + 2 * len(BODY)
        assert 0 < written.kept < 50
    finally:
        disk.set()
    await until(lambda: written.kept == written.number)
    await written.committer.close()
    with closing(SqliteStore(tmp_path / "jobs.db")) as again:
        assert [job.number for job in again.load().jobs] == [*range(1, 101)]
