"""What could not be written is written as soon as it fits."""

from collections.abc import Callable, Sequence

import anyio
import anyio.lowlevel
import pytest

from gearflow.broker import Broker, SizeLimits
from gearflow.broker.storage import Change, JobRecord, size_of
from gearflow.errors import StoreError
from gearflow.protocol import packets as p
from gearflow.protocol.codec import encode
from gearflow.server.persistence import CommitTimings, GroupCommitter
from gearflow.stores.memory import MemoryStore

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
    with anyio.fail_after(10):
        while not holds():
            await anyio.lowlevel.checkpoint()


async def test_an_end_that_does_not_fit_keeps_no_other_from_being_written() -> None:
    store = Narrow()
    broker = Broker(b"H:test:", lambda line: line, SizeLimits(), store, None)
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
