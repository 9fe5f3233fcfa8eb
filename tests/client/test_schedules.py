"""Schedules from code, on gearflow's server: both faces, one server and several."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from gearflow import Cron, Every, UnknownSchedule, UnsupportedByServer, task
from gearflow.client import Client, SyncClient
from gearflow.client.schedules import apply_schedules, schedule_of
from gearflow.errors import NoServer, PayloadInvalid, ServerError
from gearflow.protocol.schedules import ScheduleSpec
from gearflow.server import JobServer
from tests.ports import free_port

DAILY = Cron("0 9 * * 1-5", tz="Europe/Berlin")


@task(name="tests.report")
def report(id: int, color: str = "red") -> None:  # noqa: A002
    """Never runs: no worker serves it."""


@pytest.fixture
def address() -> Iterator[str]:
    with JobServer(port=0) as server:
        yield server.address


async def test_a_schedule_can_be_put_read_paused_and_deleted(address: str) -> None:
    async with Client([address]) as client:
        schedules = client.schedules
        await schedules.put("report-42", report, DAILY, args={"id": 42})
        info = await schedules.get("report-42", times=3)
        assert (info.schedule.function, info.schedule.payload) == (report.name, '{"id":42,"color":"red"}')
        assert (info.origin, info.paused, info.has_worker) == ("client", False, False)
        expected = [one.at for one in DAILY.plan().upcoming(datetime.now(UTC).timestamp(), 3)]
        assert list(info.next) == expected
        await schedules.put("report-42", report, Every(hours=1), args={"id": 42, "color": "blue"})
        assert [info.schedule.when.every for info in await schedules.list()] == [3600]
        assert (await schedules.pause("report-42")).paused
        assert not (await schedules.resume("report-42")).paused
        await schedules.delete("report-42")
        assert await schedules.list() == []
        with pytest.raises(UnknownSchedule, match="'report-42'"):
            await schedules.get("report-42")


async def test_jobs_can_be_made_now_and_for_the_past(address: str) -> None:
    async with Client([address]) as client:
        await client.schedules.put("report-42", report, Cron("0 9 * * *"), args={"id": 42})
        handle = await client.schedules.trigger("report-42")
        assert (await client.info(handle)).state == "waiting"
        start = datetime(2026, 11, 1, 9, tzinfo=UTC)
        made = await client.schedules.backfill("report-42", start, start + timedelta(days=2))
        assert (made.jobs, made.joined) == (3, 0)
        again = await client.schedules.backfill("report-42", start, start + timedelta(days=3))
        assert (again.jobs, again.joined) == (1, 3)
        with pytest.raises(ValueError, match="has no time zone"):
            await client.schedules.backfill("report-42", datetime(2026, 11, 1))


def test_the_blocking_face_does_the_same(address: str) -> None:
    with SyncClient([address]) as client:
        schedules = client.schedules
        schedules.put("report-42", report, Cron("0 9 * * *"), args={"id": 42})
        schedules.put("other", "php.function", Every(minutes=1))
        assert [info.schedule.name for info in schedules.list()] == ["other", "report-42"]
        assert [info.schedule.name for info in schedules.list(function=report.name)] == ["report-42"]
        assert schedules.list(origin="elsewhere") == []
        assert schedules.pause("report-42").paused
        assert not schedules.resume("report-42").paused
        assert client.info(schedules.trigger("report-42")).function == report.name
        start = datetime(2026, 11, 1, tzinfo=UTC)
        assert schedules.backfill("report-42", start, start + timedelta(days=1)).jobs == 1
        schedules.delete("report-42")
        assert schedules.get("other").schedule.payload == "{}"


async def test_the_last_part_of_a_name_is_enough_if_no_other_has_it(address: str) -> None:
    async with Client([address]) as client:
        for name in ("shop.nightly", "shop.weekly", "blog.weekly", "nightly-2"):
            await client.schedules.put(name, "f", Every(hours=1))
        assert (await client.schedules.get("nightly", times=2)).schedule.name == "shop.nightly"
        with pytest.raises(UnknownSchedule, match=r"'blog\.weekly' or 'shop\.weekly'"):
            await client.schedules.delete("weekly")
        with pytest.raises(UnknownSchedule, match=r"did you mean 'shop\.nightly'"):
            await client.schedules.get("shop.nihgtly")


async def test_what_is_not_valid_is_refused_before_it_is_sent(address: str) -> None:
    async with Client([address]) as client:
        with pytest.raises(PayloadInvalid):
            await client.schedules.put("x", report, DAILY, args={"id": "many"})
        with pytest.raises(TypeError):
            await client.schedules.put("x", report, DAILY)
        assert await client.schedules.list() == []


async def test_a_schedule_of_another_origin_is_not_replaced(address: str) -> None:
    async with Client([address]) as client:
        await client.schedules.put("mine", "f", Every(hours=1))
        for prune in (False, True):
            with pytest.raises(ServerError, match="mine"):
                await apply_schedules(client, specs("mine"), origin="code:shop", prune=prune)


def specs(*names: str, hours: int = 1) -> list[ScheduleSpec]:
    return [schedule_of(name, "f", Every(hours=hours)) for name in names]


async def test_applying_twice_changes_nothing_and_prunes_only_its_own_origin(address: str) -> None:
    async with Client([address]) as client:
        await client.schedules.put("mine", "f", Every(hours=1))
        await apply_schedules(client, specs("other"), origin="code:blog")

        async def applied(*names: str, hours: int = 1, **how: bool) -> dict[str, tuple[str, ...]]:
            (done,) = await apply_schedules(client, specs(*names, hours=hours), origin="code:shop", **how)
            return {kind: names for kind, names in done.changes.model_dump().items() if names}

        assert await applied("a", "b", dry_run=True) == {"created": ("a", "b")}
        assert await applied("a", "b") == {"created": ("a", "b")}
        assert await applied("a", "b") == {"unchanged": ("a", "b")}
        assert await applied("b", hours=2) == {"changed": ("b",)}
        assert await applied("b", hours=2, prune=True, dry_run=True) == {
            "unchanged": ("b",),
            "removed": ("a",),
        }
        assert await applied("b", hours=2, prune=True) == {"unchanged": ("b",), "removed": ("a",)}
        assert await applied(prune=True) == {"removed": ("b",)}
        assert [info.schedule.name for info in await client.schedules.list()] == ["mine", "other"]


async def test_each_of_several_servers_has_the_schedules_that_hash_to_it() -> None:
    names = [f"schedule-{number}" for number in range(20)]
    with JobServer(port=0) as one, JobServer(port=0) as two:
        async with Client([one.address, two.address]) as both, Client([two.address, one.address]) as turned:
            for name in names:
                await both.schedules.put(name, "f", Every(hours=1))
                await turned.schedules.put(name, "f", Every(hours=1))  # the order does not matter
            assert [info.schedule.name for info in await turned.schedules.list()] == sorted(names)
            for name in names:
                assert (await turned.schedules.pause(name)).paused
            for address in (one.address, two.address):
                async with Client([address]) as client:
                    assert 0 < len(await client.schedules.list()) < len(names)
            done = await apply_schedules(both, specs("x", "y", "z"), origin="code:shop", prune=True)
            assert sorted(name for server in done for name in server.changes.created) == ["x", "y", "z"]


async def test_a_schedule_that_is_on_a_wrong_server_is_reported_and_pruned() -> None:
    names = [f"schedule-{number}" for number in range(20)]
    with JobServer(port=0) as one, JobServer(port=0) as two:
        async with Client([one.address]) as client:
            await apply_schedules(client, specs(*names), origin="code:shop")
        async with Client([one.address, two.address]) as client:
            done = await apply_schedules(client, specs(*names), origin="code:shop")
            moved = {name for server in done for name in server.elsewhere}
            assert moved
            assert moved == {name for server in done for name in server.changes.created}
            await apply_schedules(client, specs(*names), origin="code:shop", prune=True)
            assert [info.schedule.name for info in await client.schedules.list()] == sorted(names)


async def test_where_a_schedule_belongs_is_not_guessed_while_a_server_is_away(address: str) -> None:
    async with Client([address, f"127.0.0.1:{(port := free_port())}"]) as client:
        with pytest.raises(NoServer, match=str(port)):
            await client.schedules.put("x", "f", Every(hours=1))


async def test_other_servers_are_not_asked(gearmand: str) -> None:
    async with Client([gearmand]) as client:
        with pytest.raises(UnsupportedByServer, match="gearflow:schedule"):
            await client.schedules.put("x", "f", Every(hours=1))
        with pytest.raises(UnsupportedByServer, match="gearflow:schedules"):
            await client.schedules.list()
