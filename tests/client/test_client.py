"""The client against real servers: C gearmand and gearflow's own."""

import math
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from gearflow.client import Admin, Client, ClientJob, JobFailed, Priority
from gearflow.errors import ConnectionLost, LocalProtocolError, QueueFull, UnsupportedByServer
from gearflow.protocol.packets import (
    JobAssign,
    Packet,
    WorkComplete,
    WorkData,
    WorkException,
    WorkFail,
    WorkStatus,
    WorkWarning,
)
from tests.client.conftest import Working


def upper(job: JobAssign) -> list[Packet]:
    return [WorkComplete(job.handle, job.workload.upper())]


def in_parts(job: JobAssign) -> list[Packet]:
    return [
        WorkData(job.handle, b"a"),
        WorkStatus(job.handle, b"1", b"2"),
        WorkWarning(job.handle, b"careful"),
        WorkData(job.handle, b"b"),
        WorkComplete(job.handle, b"whole"),
    ]


def as_told(job: JobAssign) -> list[Packet]:
    if job.workload == b"fail":
        return [WorkFail(job.handle)]
    return [WorkException(job.handle, b"because")]


async def test_a_result_comes_back(any_server: str, function: str, working: Working) -> None:
    async with working(any_server, function, upper), Client([any_server]) as client:
        job = await client.submit(function, b"a\0b")
        assert await job.result(5) == b"A\0B"
        assert job.done
        assert str(job.server) == any_server


async def test_many_jobs_at_once_get_each_its_own_result(
    any_server: str, function: str, working: Working
) -> None:
    results: dict[int, bytes] = {}

    async def one(client: Client, n: int) -> None:
        job = await client.submit(function, b"job %d" % n)
        results[n] = await job.result(20)

    async with (
        working(any_server, function, upper),
        Client([any_server]) as client,
        anyio.create_task_group() as tasks,
    ):
        for n in range(300):
            tasks.start_soon(one, client, n)
    assert results == {n: b"JOB %d" % n for n in range(300)}


async def test_of_200_callers_100_give_up_and_the_others_get_their_results(
    any_server: str, function: str, working: Working
) -> None:
    results: dict[int, bytes] = {}
    given_up: list[int] = []

    async def one(client: Client, n: int, scope: anyio.CancelScope) -> None:
        with scope:
            job = await client.submit(function, b"job %d" % n)
            results[n] = await job.result(20)
            return
        given_up.append(n)

    async with Client([any_server]) as client:
        scopes = [anyio.CancelScope() for _ in range(200)]
        async with anyio.create_task_group() as tasks:
            for n, scope in enumerate(scopes):
                tasks.start_soon(one, client, n, scope)
            for scope in scopes[:100:2]:  # before anything was sent
                scope.cancel()
            await client.echo(b"the others have been acknowledged")
            for scope in scopes[1:100:2]:
                scope.cancel()
            async with working(any_server, function, upper):
                with anyio.fail_after(20):
                    while len(results) < 100:
                        await client.echo(b"")
        assert sorted(given_up) == list(range(100))
        assert results == {n: b"JOB %d" % n for n in range(100, 200)}


async def test_events_come_in_order_before_the_end(any_server: str, function: str, working: Working) -> None:
    async with working(any_server, function, in_parts), Client([any_server]) as client:
        job = await client.submit(function, b"")
        with anyio.fail_after(20):
            events = [event async for event in job.events()]
        *expected, _ = in_parts(JobAssign(job.handle.encode(), b"", b""))
        assert events == expected
        assert await job.result() == b"whole"


async def test_failures_say_why_where_the_worker_did(
    any_server: str, function: str, working: Working
) -> None:
    async with working(any_server, function, as_told), Client([any_server]) as client:
        silent = await client.submit(function, b"fail")
        with pytest.raises(JobFailed, match="without saying why") as failed:
            await silent.result(5)
        assert failed.value.exception is None
        telling = await client.submit(function, b"raise")
        with pytest.raises(JobFailed, match="because") as failed:
            await telling.result(5)
        assert failed.value.exception == b"because"


async def test_waiting_too_long_leaves_the_job_running_and_attached(
    any_server: str, function: str, working: Working
) -> None:
    async with Client([any_server]) as client:
        job = await client.submit(function, b"x")
        with pytest.raises(TimeoutError, match="it runs on") as late:
            await job.result(0.01)
        assert job.handle in str(late.value)
        assert function in str(late.value)
        async with working(any_server, function, upper):
            assert await job.result(5) == b"X"


async def test_a_cancelled_wait_leaves_the_job_attached(
    any_server: str, function: str, working: Working
) -> None:
    async with Client([any_server]) as client:
        job = await client.submit(function, b"x")
        with anyio.move_on_after(0.01):
            await job.result()
        async with working(any_server, function, upper):
            assert await job.result(5) == b"X"


async def test_callers_with_one_unique_share_one_run(
    any_server: str, function: str, working: Working
) -> None:
    runs: list[bytes] = []

    def count(job: JobAssign) -> list[Packet]:
        runs.append(job.workload)
        return in_parts(job)

    async with Client([any_server]) as client, Client([any_server]) as other:
        jobs: list[ClientJob] = [
            await client.submit(function, b"1", unique="same"),
            await client.submit(function, b"2", unique=b"same"),
            await other.submit(function, b"3", unique="same"),
        ]
        async with working(any_server, function, count):
            assert [await job.result(5) for job in jobs] == [b"whole"] * 3
        assert [[type(event) async for event in job.events()] for job in jobs] == [
            [WorkData, WorkStatus, WorkWarning, WorkData]
        ] * 3
    assert runs == [b"1"]


async def test_a_background_job_can_be_asked_about(
    any_server: str, function: str, fresh: Callable[..., str]
) -> None:
    unique = fresh("unique")
    async with Client([any_server]) as client:
        handle = await client.submit_background(function, b"x", unique=unique)
        for status in (
            await client.status(handle),
            await client.status(str(handle)),
            await client.status_by_unique(unique),
        ):
            assert (status.known, status.running) == (True, False)
        assert not (await client.status("H:nobody:1")).known
        assert not (await client.status_by_unique(fresh())).known


async def test_a_delayed_job_waits_at_the_server(any_server: str, function: str) -> None:
    async with Client([any_server]) as client:
        handle = await client.submit_background(function, b"x", at=4_000_000_000)
        assert (await client.status(handle)).known


async def test_gearmand_gives_a_delayed_job_no_priority(gearmand: str, function: str) -> None:
    async with Client([gearmand]) as client:
        with pytest.raises(UnsupportedByServer, match="normal priority, not high"):
            await client.submit_background(function, b"x", at=4_000_000_000, priority=Priority.HIGH)


async def test_gearflows_server_does(bundled: str, function: str) -> None:
    async with Client([bundled]) as client:
        handle = await client.submit_background(function, b"x", at=4e9 + 0.5, priority=Priority.HIGH)
        info = await client.info(handle)
        assert (info.state, info.due, info.priority) == ("delayed", 4e9 + 0.5, "high")


async def test_a_full_queue_is_an_error_of_its_own(any_server: str, function: str) -> None:
    async with Client([any_server]) as client:
        await client.submit_background(function, b"1")
        await Admin(any_server).max_queue(function, 1)
        with pytest.raises(QueueFull):
            await client.submit_background(function, b"2")


async def test_a_large_body_goes_through_both_ways(any_server: str, function: str, working: Working) -> None:
    workload = b"x" * (16 * 1024 * 1024)
    async with working(any_server, function, upper), Client([any_server]) as client:
        job = await client.submit(function, workload)
        assert await job.result(30) == workload.upper()


async def test_an_empty_function_and_an_empty_workload_are_legal(any_server: str) -> None:
    async with Client([any_server]) as client:
        job = await client.submit("", b"")
        assert job.cancel()


async def test_what_cannot_go_on_the_wire_is_refused_before_anything_is_sent() -> None:
    async with Client(["127.0.0.1:1"]) as client:  # nobody there: nothing is sent
        with pytest.raises(LocalProtocolError, match=r"has 64 bytes.*hash"):
            await client.submit("f", b"", unique="u" * 64)
        with pytest.raises(LocalProtocolError, match="contains a NUL"):
            await client.submit("f", b"", unique=b"a\0b")
        with pytest.raises(LocalProtocolError, match="contains a NUL"):
            await client.submit_background("f\0", b"")
        with pytest.raises(LocalProtocolError, match="no job handle"):
            await client.status("H" * 64)


async def test_a_worker_of_another_make_serves_it(reverser: tuple[str, str]) -> None:
    server, function = reverser
    async with Client([server]) as client:
        job = await client.submit(function, b"abc")
        assert (await job.result(10)).strip() == b"cba"


async def test_what_runs_beside_the_client_ends_with_it(any_server: str) -> None:
    started, ended = anyio.Event(), anyio.Event()

    async def beside() -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    async with Client([any_server]) as client:
        client.start_soon(beside)
        await started.wait()
    assert ended.is_set()
    with pytest.raises(ConnectionLost, match="the client is closed"):
        client.start_soon(beside)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan])
@pytest.mark.parametrize("option", ["connect_timeout", "answer_timeout", "heartbeat"])
def test_a_limit_that_makes_no_sense_is_refused(option: str, seconds: float) -> None:
    limits: dict[str, Any] = {option: seconds}
    with pytest.raises(ValueError, match=f"{option}=.* more than 0"):
        Client(**limits)
