"""Lots: signs of life, adoption, and what an adopter reads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from gearflow.broker.storage import JobPart, Ordered, Paused, StoredJob, StoredParts
from gearflow.stores.postgres.errors import Locked
from gearflow.stores.shared import Fenced, Lot, OtherLot, ServerRow
from tests.postgres.adapter import SyncStore
from tests.postgres.cluster import eventually
from tests.stores.values import a_dead_letter, a_job


def seen(store: SyncStore, lot: int) -> OtherLot:
    """A lot as another server sees it."""
    (found,) = [found for found in store.run(store.store.beat([])).others if found.number == lot]
    return found


def read_all(store: SyncStore, lot: int, after: int = 0) -> tuple[list[StoredJob], dict[int, StoredParts]]:
    async def read() -> tuple[list[StoredJob], dict[int, StoredParts]]:
        jobs: list[StoredJob] = []
        parts: dict[int, StoredParts] = {}
        async for found in store.store.jobs_of(lot, after):
            jobs += found.jobs
            parts |= found.parts
        return jobs, parts

    return store.run(read())


def test_a_beat_says_what_is_there(one: SyncStore, other: SyncStore) -> None:
    ((mine, epoch),) = one.lots.items()
    ((its, _),) = other.lots.items()
    first, second = one.run(one.store.beat([])), one.run(one.store.beat([]))
    assert first.lots == second.lots == [Lot(mine, epoch)]
    assert first.others == [OtherLot(its, other.store.server, 1, 0)]
    assert [row._replace(beat=0) for row in sorted(first.servers)] == sorted(
        ServerRow(store.store.server, "localhost:4730", "1.0", 0) for store in (one, other)
    )
    assert first.clock <= second.clock
    before = seen(other, mine)
    one.run(one.store.beat([]))
    assert seen(other, mine) == before._replace(beat=before.beat + 1)


def test_a_lot_without_a_beat_since_is_adopted_once(one: SyncStore, other: SyncStore) -> None:
    ((lot, epoch),) = one.lots.items()
    found = seen(other, lot)
    one.run(one.store.beat([]))
    assert other.run(other.store.adopt(found)) is None
    found = seen(other, lot)
    assert other.run(other.store.adopt(found)) == epoch + 1
    assert other.run(other.store.adopt(found)) is None
    assert one.run(one.store.beat([])).lots == []
    assert Lot(lot, epoch + 1) in other.run(other.store.beat([])).lots


def test_an_adopter_reads_the_jobs_that_are_to_run(one: SyncStore, other: SyncStore) -> None:
    (lot,) = one.lots
    number = one.number
    jobs = [a_job(number(n), b"x" * (n % 2 * 2000), due=float(n), reducer=b"r") for n in range(1, 2500)]
    one.commit(*jobs)
    one.commit(a_dead_letter(number(7), 2000), JobPart(number(8), 1, b"ab"), JobPart(number(8), 2, b"c"))
    one.commit(JobPart(number(2400), 0, b""))
    found, parts = read_all(other, lot)
    short = [job._replace(workload=2000 if job.workload else b"") for job in jobs if job.number != number(7)]
    assert found == short
    assert parts == {number(8): StoredParts(1, 2, 3, 1), number(2400): StoredParts(0, 0, 0, 1)}
    assert read_all(other, lot, number(2490))[0] == short[-9:]
    assert read_all(other, lot + 1)[0] == []


def test_lots_that_are_given_back_are_nobodys_and_empty_ones_are_gone(
    one: SyncStore, other: SyncStore
) -> None:
    ((lot, epoch),) = one.lots.items()
    ((empty, _),) = one.run(one.store.take_lots(1))
    one.commit(a_job(one.number(1)))
    one.run(one.store.release())
    beat = other.run(other.store.beat([]))
    assert [found._replace(beat=0) for found in beat.others] == [OtherLot(lot, None, epoch + 1, 0)]
    assert empty not in [found.number for found in beat.others]
    assert [row.server for row in beat.servers] == [other.store.server]
    with pytest.raises(Fenced):
        one.commit(a_job(one.number(2)))
    assert other.run(other.store.adopt(seen(other, lot))) == epoch + 2
    assert read_all(other, lot)[0] == [a_job(one.number(1))]


def test_a_beat_does_not_wait_for_a_group_that_hangs(one: SyncStore) -> None:
    """Both are about the same row."""
    ((lot, epoch),) = one.lots.items()
    with one.hold(f"SELECT {{s}}.fence('{{{lot}}}', '{{{epoch}}}', '{one.store.server}')"):
        assert one.run(one.store.beat([])).lots != []
        assert one.commit(a_job(one.number(1))) == [None]


def test_an_adopter_ends_the_sessions_of_an_owner_that_holds_a_lot(
    one: SyncStore, other: SyncStore, make: Callable[..., SyncStore]
) -> None:
    ((lot, epoch),) = one.lots.items()
    lock = f"SELECT 1 FROM {{s}}.lots WHERE lot = {lot} FOR KEY SHARE"
    with one.hold(lock, application=f"gearflow {one.store.server}"):
        assert other.run(other.store.adopt(seen(other, lot))) == epoch + 1
    third = make()
    with other.hold(lock, application="something else"), pytest.raises(Locked):
        third.run(third.store.adopt(seen(third, lot)))


def test_a_group_that_comes_after_its_adopter_waits_and_is_fenced(one: SyncStore) -> None:
    (lot,) = one.lots
    update = f"UPDATE {{s}}.lots SET epoch = epoch + 1, owner = NULL WHERE lot = {lot}"
    failures: list[BaseException] = []

    def write() -> None:
        try:
            one.commit(a_job(one.number(1)))
        except Fenced as error:
            failures.append(error)

    lock = f"SELECT 1 FROM {{s}}.lots WHERE lot = {lot} FOR UPDATE; {update}"
    with one.hold(lock) as commit:
        writing = threading.Thread(target=write)
        writing.start()
        waits = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%fence%'"
        )
        eventually(lambda: one.psql(waits) == "1", "the group waits for the adopter")
        commit()
        writing.join(20)
    assert len(failures) == 1
    assert one.psql("SELECT count(*) FROM {s}.jobs") == "0"


@pytest.mark.parametrize("what", ["lots", "pause", "order"])
def test_others_are_notified(one: SyncStore, other: SyncStore, what: str) -> None:
    noticed = asyncio.Event()

    async def wait() -> None:
        await asyncio.wait_for(noticed.wait(), 20)

    other.store.on_notify = noticed.set
    if what == "lots":
        one.run(one.store.release())
    elif what == "pause":
        one.commit(Paused(b"resize", True))
    else:
        one.commit(Ordered(one.number(1), "cancel"))
    one.close()  # not before its notices are sent
    other.run(wait())


def test_what_expires_goes_at_any_server(one: SyncStore, other: SyncStore) -> None:
    one.commit(a_job(one.number(1)), a_dead_letter(one.number(2), b"x" * 2000))
    assert other.run(other.store.expire(100)) is False
    assert one.job(one.number(2)) is None
    assert one.job(one.number(1)) is not None
    assert one.psql("SELECT count(*) FROM {s}.records") == "0"
