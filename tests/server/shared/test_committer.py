"""Groups at a shared store: kept, joined, fenced, refused, and of unknown outcome."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gearflow.broker.handles import LOT_BITS
from gearflow.broker.journal import Journal
from gearflow.broker.storage import (
    Change,
    Forgotten,
    JobOutcome,
    JobRecord,
    Joined,
    Overtaken,
    Paused,
    Setting,
    StoredJob,
    Ticked,
    Uncertain,
)
from gearflow.errors import StoreError
from gearflow.server.shared.committer import SharedCommitter, SharedTimings
from gearflow.server.shared.lease import Lease
from gearflow.stores.shared import Away, Fenced, Lot, SharedStore

Outcomes = Sequence[str | Joined | None]
Step = Callable[[Sequence[Change]], Outcomes]

QUICK = SharedTimings(linger=0.001, retry=0.01, first_retry=0.001)


@pytest.fixture
def anyio_backend() -> str:
    """The server runs on asyncio only."""
    return "asyncio"


def job(lot: int, number: int, unique: bytes = b"") -> StoredJob:
    return StoredJob(lot << LOT_BITS | number, b"f", unique, 1, 0.0, 0.0, None, b"", 0, 0, b"w")


def end(lot: int, number: int) -> JobRecord:
    whole = lot << LOT_BITS | number
    return JobRecord(whole, b"f", b"", JobOutcome.COMPLETED, b"r", 0, 0, 1, 1, 0, b"", b"", 1e12)


class ScriptedStore:
    """Keeps groups, as its script says. Without a script it keeps everything."""

    def __init__(self) -> None:
        self.groups: list[tuple[dict[int, int], list[Change]]] = []  # that were kept
        self.tries = 0
        self.script: list[Step] = []
        self.era: Hashable = 1
        self.is_away = False
        self.caught_up_with: Hashable = None

    async def ready(self) -> Hashable:
        return self.era

    def caught_up(self, era: Hashable) -> None:
        self.caught_up_with = era

    async def commit(self, lots: Mapping[int, int], changes: Sequence[Change]) -> Outcomes:
        self.tries += 1
        await asyncio.sleep(0)
        if self.is_away:
            raise Away("no route to host", sent=False)
        outcomes = self.script.pop(0)(changes) if self.script else [None] * len(changes)
        self.groups.append((dict(lots), list(changes)))
        return outcomes

    @property
    def kept(self) -> list[Change]:
        return [change for _, changes in self.groups for change in changes]


def away(*, sent: bool) -> Step:
    def step(_: Sequence[Change]) -> Outcomes:
        raise Away("the connection was reset", sent=sent)

    return step


def refused(text: str) -> Step:
    def step(_: Sequence[Change]) -> Outcomes:
        raise StoreError(text)

    return step


class Rig(SimpleNamespace):
    """A committer over a scripted store. Lots 1 and 2 are its server's, with epochs 1."""

    store: ScriptedStore
    journal: Journal
    lease: Lease
    committer: SharedCommitter
    told: list[tuple[object, object]]
    looked: list[list[Change]]  # what the store had when jobs in doubt were looked for

    def keep(self, name: object, change: Change | None) -> None:
        self.journal.keep(change, lambda outcome: self.told.append((name, outcome)))

    async def commit(self) -> None:
        self.committer.commit()
        await self.committer.settle()

    async def until(self, reached: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not reached():
                self.committer.commit()
                await asyncio.sleep(0.001)


@asynccontextmanager
async def rig(timeout: float = 20.0, look: Callable[[Rig], None] | None = None) -> AsyncGenerator[Rig]:
    store = ScriptedStore()
    port = cast(Any, SimpleNamespace(durable=True, large=1 << 20, shared=True))
    made = Rig(store=store, journal=Journal(port), lease=Lease(10.0), told=[], looked=[])
    made.lease.own([Lot(1, 1), Lot(2, 1)], 0.0)

    async def look_now() -> None:
        if look is not None:
            look(made)

    time = asyncio.get_running_loop().time
    shared = cast(SharedStore, store)
    made.committer = SharedCommitter(
        made.journal, shared, made.lease, look_now, timeout, lambda: None, time, QUICK
    )
    made.committer.on_certain = lambda: made.looked.append(made.store.kept)
    try:
        yield made
    finally:
        store.is_away = False
        await made.committer.close()


async def test_a_group_is_kept_under_the_epochs_of_its_lots_and_its_entries_are_told_in_order() -> None:
    async with rig() as r:
        r.keep("a", job(1, 1))
        r.keep("known", None)
        r.keep("b", job(2, 1))
        await r.commit()
        assert r.told == [("a", None), ("known", None), ("b", None)]
        assert r.store.groups == [({1: 1, 2: 1}, [job(1, 1), job(2, 1)])]


async def test_a_job_may_have_joined_another() -> None:
    async with rig() as r:
        r.store.script = [lambda changes: [None, Joined(77)]]
        r.keep("a", job(1, 1))
        r.keep("b", job(1, 2, b"u"))
        await r.commit()
        assert r.told == [("a", None), ("b", Joined(77))]


async def test_a_group_of_unknown_outcome_is_committed_again_and_told_once() -> None:
    async with rig() as r:
        r.store.script = [away(sent=True), away(sent=False)]
        r.keep("a", job(1, 1))
        await r.commit()
        assert r.told == [("a", None)]
        assert r.store.tries == 3


async def test_submitters_are_refused_while_the_store_is_away_and_ends_wait_for_it() -> None:
    async with rig(timeout=0.01) as r:
        r.store.is_away = True
        r.keep("a", job(1, 1))
        r.keep("end", end(1, 9))
        r.keep("b", job(1, 2))
        await r.until(lambda: r.journal.refusal is not None)
        r.keep("late", job(1, 3))
        r.keep("known", None)
        await r.until(lambda: len(r.told) == 4)
        assert [name for name, _ in r.told] == ["a", "b", "late", "known"]
        assert all("cannot be reached" in str(how) for _, how in r.told[:3])
        assert not any(isinstance(how, Uncertain) for _, how in r.told)  # it was never sent
        r.store.is_away = False
        await r.until(lambda: len(r.told) == 5)
        assert r.told[4] == ("end", None)
        assert r.store.kept == [end(1, 9)]
        r.keep("again", job(1, 4))
        await r.commit()
        assert r.told[5] == ("again", None)


async def test_jobs_that_may_be_kept_are_looked_for_when_the_store_is_back() -> None:
    async with rig(timeout=0.0) as r:
        r.store.script = [away(sent=True)]
        r.keep("a", job(1, 1))
        await r.until(lambda: r.told)
        assert isinstance(r.told[0][1], Uncertain)
        await r.until(lambda: r.looked)
        assert r.looked == [[]]
        r.keep("b", job(1, 2))
        await r.commit()
        assert len(r.looked) == 1


async def test_changes_of_a_lost_lot_are_dropped_and_the_rest_is_kept() -> None:
    def lose(r: Rig) -> None:
        r.lease.lots.pop(2, None)
        r.lease.leaving.add(2)

    async with rig(look=lose) as r:

        def fence(changes: Sequence[Change]) -> Outcomes:
            raise Fenced("a lot is lost")

        r.store.script = [fence]
        r.keep("a", job(1, 1))
        r.keep("lost", job(2, 1))
        r.keep("end", end(2, 9))
        await r.commit()
        (a, lost, ended) = r.told
        assert a == ("a", None)
        assert isinstance(lost[1], Uncertain)
        assert ended == ("end", "another server has adopted the job")
        assert r.store.groups == [({1: 1}, [job(1, 1)])]


async def test_a_lot_has_changes_until_they_are_dropped() -> None:
    async with rig() as r:
        r.journal.add(end(2, 9))
        r.lease.lots.pop(2)
        r.lease.leaving.add(2)
        assert r.committer.has_changes_of(2)
        assert not r.committer.has_changes_of(1)
        await r.commit()
        assert not r.committer.has_changes_of(2)
        assert not r.store.kept


async def test_only_the_change_that_does_not_fit_is_refused() -> None:
    async with rig() as r:

        def picky(changes: Sequence[Change]) -> Outcomes:
            if job(1, 2) in changes:
                raise StoreError("the disk is full")
            return [None] * len(changes)

        r.store.script = [picky] * 4
        for number in (1, 2, 3):
            r.keep(number, job(1, number))
        await r.commit()
        assert r.told == [(1, None), (2, "the disk is full"), (3, None)]


async def test_an_end_that_does_not_fit_is_written_when_it_does() -> None:
    async with rig() as r:
        r.store.script = [refused("the disk is full"), refused("the disk is full")]

        def recorded(outcome: object) -> None:
            r.told.append(("end", outcome))
            if outcome is not None:
                r.journal.add_failed(end(1, 1), recorded)

        r.journal.keep(end(1, 1), recorded)
        await r.until(lambda: ("end", None) in r.told)
        assert r.store.kept == [end(1, 1)]


async def test_confirmed_groups_are_committed_again_on_a_standby() -> None:
    async with rig() as r:
        r.store.script = [lambda changes: [None, Joined(5)]]
        r.keep("a", job(1, 1))
        r.keep("b", job(1, 2, b"u"))
        await r.commit()
        r.keep("end", end(1, 1))
        await r.commit()
        r.store.groups.clear()
        r.store.era = 2
        r.keep("c", job(1, 3))
        await r.commit()
        assert r.store.kept == [job(1, 1), end(1, 1), job(1, 3)]  # not what had joined another


async def test_a_standby_gets_the_confirmed_groups_also_if_nothing_is_committed() -> None:
    async with rig() as r:
        r.keep("a", job(1, 1))
        await r.commit()
        assert r.store.caught_up_with == 1
        r.store.groups.clear()
        r.store.era = 2
        r.committer.check_era()
        await r.until(lambda: r.store.caught_up_with == 2)
        assert r.store.kept == [job(1, 1)]


async def test_a_replay_leaves_out_lots_that_are_lost() -> None:
    async with rig() as r:
        r.keep("a", job(1, 1))
        r.keep("b", job(2, 1))
        await r.commit()
        r.lease.lots.pop(2)
        r.store.groups.clear()
        r.store.era = 2
        r.keep("c", job(1, 2))
        await r.commit()
        assert r.store.kept == [job(1, 1), job(1, 2)]


async def test_a_replay_sets_no_schedule_back() -> None:
    async with rig() as r:
        limit, removed = Setting(b"shopify", "limit", b"1"), Setting(b"old", "schedule", b"")
        tick = Ticked(b"nightly", b"1", b"2", job(1, 1))
        for change in (limit, removed, Setting(b"nightly", "schedule", b"1"), tick):
            r.keep(change, change)
        await r.commit()
        assert r.store.groups[0][0] == {1: 1}
        r.store.groups.clear()
        r.store.era = 2
        r.committer.check_era()
        await r.until(lambda: r.store.caught_up_with == 2)
        assert r.store.kept == [limit, removed, Ticked(b"nightly", b"", b"1", None), tick]


async def test_a_tick_of_a_lost_lot_is_dropped_and_one_without_a_job_is_not() -> None:
    async with rig() as r:
        r.lease.lots.pop(2)
        skipped = Ticked(b"weekly", b"1", b"2", None)
        r.keep("tick", Ticked(b"nightly", b"1", b"2", job(2, 1)))
        r.keep("skipped", skipped)
        await r.commit()
        assert r.store.groups == [({}, [skipped])]
        assert r.told == [("tick", "another server has adopted the job"), ("skipped", None)]


async def test_a_tick_that_was_overtaken_is_not_committed_again() -> None:
    async with rig() as r:
        r.store.script = [lambda changes: [Overtaken(b"3")]]
        r.keep("tick", Ticked(b"nightly", b"1", b"2", job(1, 1)))
        await r.commit()
        (outcome,) = [outcome for _, outcome in r.told]
        assert isinstance(outcome, Overtaken)
        assert outcome.value == b"3"
        r.store.groups.clear()
        r.store.era = 2
        r.keep("other", job(1, 2))
        await r.commit()
        assert r.store.kept == [job(1, 2)]


async def test_a_change_that_any_server_may_make_needs_no_lot() -> None:
    async with rig() as r:
        letter = 99 << LOT_BITS | 1  # of another server
        r.keep("pause", Paused(b"f", True))
        r.keep("purge", Forgotten(letter))
        await r.commit()
        assert r.store.groups == [({}, [Paused(b"f", True), Forgotten(letter)])]


async def test_a_bug_in_one_continuation_does_not_silence_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with rig() as r:

        def bug(_: object) -> None:
            raise ZeroDivisionError

        r.journal.keep(job(1, 1), bug)
        r.keep("b", job(1, 2))
        await r.commit()
        assert r.told == [("b", None)]
        assert "could not be completed" in caplog.text


async def test_a_bug_at_the_store_answers_everybody(caplog: pytest.LogCaptureFixture) -> None:
    async with rig() as r:

        def bug(changes: Sequence[Change]) -> Outcomes:
            raise RuntimeError("oops")

        r.store.script = [bug]
        r.keep("a", job(1, 1))
        await r.commit()
        assert "oops" in str(r.told[0][1])
        r.keep("b", job(1, 2))
        await r.commit()
        assert r.told[1] == ("b", None)
