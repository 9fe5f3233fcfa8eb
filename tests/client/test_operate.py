"""What operators ask of gearflow's own server."""

import base64
from collections.abc import Callable

import pytest

from gearflow.client import Client, JobFailed, SyncClient
from gearflow.client.operate import (
    bulk,
    dead_letter,
    dead_letters,
    jobs,
    metrics,
    pause,
    purge,
    purge_dead,
    replay,
    server_info,
)
from gearflow.errors import ServerError, UnknownJob, UnsupportedByServer
from gearflow.protocol.jobs import JobFilter
from tests.client.conftest import Working
from tests.client.test_client import as_told, upper


async def test_the_server_says_what_it_is(bundled: str) -> None:
    async with Client([bundled]) as client:
        info = await server_info(client)
        assert info == await server_info(client, server=bundled)
        assert "gearflow:dead" in info.functions


async def test_dead_letters_can_be_read_replayed_and_purged(
    bundled: str, fresh: Callable[..., str], working: Working
) -> None:
    function = fresh()
    async with Client([bundled]) as client:
        async with working(bundled, function, as_told):
            handles = [await client.submit_background(function, b"%d" % n) for n in range(3)]
            for handle in handles:
                with pytest.raises(JobFailed):
                    await client.result(handle, 20)
        letters = await dead_letters(client, function)
        assert [letter.handle for letter in letters] == [str(handle) for handle in handles]
        rest = await dead_letters(client, function, after=str(handles[0]), limit=1)
        assert rest == letters[1:2]
        letter = await dead_letter(client, str(handles[2]))
        assert (base64.b64decode(letter.payload), letter.text) == (b"2", "2")
        assert (await replay(client, str(handles[0]))).jobs == 1
        assert (await client.info(handles[0])).state == "waiting"
        assert await purge_dead(client, str(handles[1])) == 1
        assert (await replay(client, function=function)).jobs == 1
        assert await dead_letters(client, function) == ()
        with pytest.raises(UnknownJob):
            await replay(client, str(handles[1]))
        assert await purge_dead(client, function=function) == 0


async def test_jobs_are_listed_page_by_page(bundled: str, function: str) -> None:
    async with Client([bundled]) as client:
        handles = [str(await client.submit_background(function, b"%d" % n)) for n in range(3)]
        select = JobFilter(function=function, states=("waiting", "dead"))
        first = await jobs(client, select, limit=2, payload=10)
        rest = await jobs(client, select, limit=2, after=first.next)
        assert [(each.job.handle, each.payload) for each in first.jobs] == [
            (handles[0], "0"),
            (handles[1], "1"),
        ]
        assert [each.job.handle for each in rest.jobs] == handles[2:]
        assert rest.next == ""
        assert handles[0] in {each.job.handle for each in (await jobs(client, limit=1000)).jobs}
        with pytest.raises(ServerError, match="no next of a page"):
            await jobs(client, after="?")


async def test_all_jobs_that_match_are_cancelled_replayed_or_purged(
    bundled: str, fresh: Callable[..., str], working: Working
) -> None:
    function = fresh()
    select = JobFilter(function=function)
    async with Client([bundled]) as client:
        async with working(bundled, function, as_told):
            for number in range(3):
                with pytest.raises(JobFailed):
                    await client.result(await client.submit_background(function, b"%d" % number), 20)
        (group,) = (await bulk(client, "errors", select)).errors
        assert (group.function, group.count) == (function, 3)
        with pytest.raises(ServerError, match="3 jobs match now, more than 2"):
            await bulk(client, "replay", select, expected=2)
        one = JobFilter(function=function, text=group.handle)
        assert (await bulk(client, "purge", one)).done == 1
        assert (await bulk(client, "replay", select, expected=2)).done == 2
        assert (await bulk(client, "count", select)).matched == 2
        assert (await bulk(client, "cancel", select)).done == 2
        assert [job.state for job in await dead_letters(client, function)] == []


async def test_waiting_jobs_can_be_held_back_and_purged(bundled: str, function: str) -> None:
    async with Client([bundled]) as client:
        handles = [await client.submit_background(function, b"") for _ in range(3)]
        await pause(client, function)
        await pause(client, function, paused=False)
        assert await purge(client, function) == 3
        assert (await client.info(handles[0])).state == "cancelled"


async def test_other_servers_are_not_asked(gearmand: str) -> None:
    async with Client([gearmand]) as client:
        with pytest.raises(UnsupportedByServer, match="gearflow:dead"):
            await dead_letters(client)


def test_code_without_an_event_loop_asks_through_its_client(bundled: str) -> None:
    with SyncClient([bundled]) as client:
        assert client.run(server_info).version


async def test_what_a_server_has_counted_can_be_read(
    bundled: str, function: str, fresh: Callable[..., str], working: Working
) -> None:
    other = fresh()
    async with Client([bundled]) as client:
        async with working(bundled, function, upper):
            assert await (await client.submit(function, b"a")).result(20) == b"A"
        async with working(bundled, function, as_told):
            failed = await client.submit_background(function, b"fail")
            with pytest.raises(JobFailed):
                await client.result(failed, 20)
        await client.submit_background(other, b"")
        found = await metrics(client, [function, other])
        one, two = sorted(found.functions, key=lambda counted: counted.submitted, reverse=True)
        assert (one.function, one.submitted, one.started, one.succeeded, one.dead) == (function, 2, 2, 1, 1)
        assert (sum(one.wait.counts), sum(one.run.counts), one.oldest) == (2, 2, None)
        assert (two.function, two.submitted, two.waiting, two.started) == (other, 1, (0, 1, 0), 0)
        assert two.oldest is not None
        assert found.connections <= found.accepted
        assert min(found.received, found.sent) > 0
        names = [counted.function for counted in (await metrics(client)).functions]
        assert {function, other} <= set(names)
        assert names == sorted(names)
