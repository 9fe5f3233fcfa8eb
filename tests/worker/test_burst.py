"""Workers that end by themselves when no server has a job."""

import logging
from collections.abc import Callable
from contextlib import suppress

import anyio
import pytest

from gearflow.client import Client, connect
from gearflow.errors import NoServer
from gearflow.protocol.packets import GrabJobUniq, NoJob, Noop, Packet, PreSleep, WorkComplete
from gearflow.tasks import Retry, task
from gearflow.worker import Worker
from tests.ports import free_port
from tests.worker.scripted import Peer, scripted_server

Fresh = Callable[..., str]


async def test_it_does_what_there_is_and_ends(any_server: str, function: str) -> None:
    seen: list[int] = []

    @task(name=function)
    async def note(number: int) -> None:
        seen.append(number)

    with anyio.fail_after(10):
        async with connect(any_server):
            for number in range(50):
                await note.abackground(number)
        worker = Worker([note], servers=[any_server], burst=True, concurrency=4)
        await worker.run()
    assert (sorted(seen), worker.done, worker.failed) == (list(range(50)), 50, 0)


async def test_without_jobs_it_ends_at_once(any_server: str, function: str) -> None:
    @task(name=function)
    def nothing() -> None: ...

    with anyio.fail_after(10):
        worker = Worker([nothing], servers=[any_server], burst=True)
        await worker.run()
    assert worker.done == 0


async def test_it_does_what_its_own_runs_put_on_any_queue(gearmand: str, bundled: str, fresh: Fresh) -> None:
    ended: list[int] = []

    @task(name=fresh("countdown"))
    async def countdown(number: int) -> None:
        ended.append(number)
        if number:
            async with connect(bundled if number % 2 else gearmand):
                await countdown.abackground(number - 1)

    with anyio.fail_after(10):
        async with connect(gearmand):
            await countdown.abackground(9)
        await Worker([countdown], servers=[gearmand, bundled], burst=True).run()
    assert ended == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]


async def test_it_does_the_further_runs_of_what_failed(any_server: str, function: str) -> None:
    attempts = 0

    @task(name=function, retries=Retry(3, backoff=0))
    async def fails_twice() -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise ValueError(attempts)

    with anyio.fail_after(10):
        async with connect(any_server):
            await fails_twice.abackground()
        worker = Worker([fails_twice], servers=[any_server], burst=True)
        await worker.run()
    assert (attempts, worker.done, worker.failed) == (3, 1, 0)


async def test_it_waits_for_a_job_that_it_holds(gearmand: str, function: str) -> None:
    attempts = 0

    @task(name=function, retries=Retry(2, backoff=0.05))
    async def fails_once() -> int:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise ValueError
        return attempts

    with anyio.fail_after(10):
        async with connect(gearmand):
            job = await fails_once.asubmit()
            await Worker([fails_once], servers=[gearmand], burst=True).run()
            assert await job == 2


async def test_a_server_that_was_asked_before_a_run_ended_is_asked_again(function: str) -> None:
    """It may have got a job by that run, though it was not heard of yet."""

    @task(name=function)
    async def nothing() -> None: ...

    with anyio.fail_after(10):
        async with scripted_server() as server, anyio.create_task_group() as tasks:
            tasks.start_soon(Worker([nothing], servers=[server.address], burst=True, concurrency=1).run)
            peer = await server.accept()
            await peer.register()
            await peer.assign(function.encode(), b"{}")
            await peer.expect_a(WorkComplete)
            await peer.expect_a(GrabJobUniq)  # written with the result
            await peer.send(NoJob())
            await peer.expect_a(GrabJobUniq)  # since the first may have been answered before the run ended
            await peer.send(NoJob())
            assert await peer.rest() == [PreSleep()]


async def test_a_server_that_calls_in_vain_does_not_keep_it(function: str) -> None:
    """As gearmand 1.1 does: see ``gearflow.worker.slots``."""

    @task(name=function)
    async def nothing() -> None: ...

    async def call_in_vain(peer: Peer) -> None:
        with suppress(anyio.EndOfStream):  # the worker has gone
            await peer.register()
            await peer.send(NoJob())
            while True:
                grabs = isinstance(await peer.expect_a(Packet), GrabJobUniq)
                await peer.send(NoJob() if grabs else Noop())

    with anyio.fail_after(10):
        async with (
            scripted_server() as one,
            scripted_server() as other,
            anyio.create_task_group() as tasks,
        ):
            worker = Worker([nothing], servers=[one.address, other.address], burst=True)
            tasks.start_soon(worker.run)
            for server in (one, other):
                tasks.start_soon(call_in_vain, await server.accept())


async def test_a_server_that_is_not_there_is_given_up(bundled: str, function: str) -> None:
    @task(name=function)
    async def nothing() -> None: ...

    with anyio.fail_after(10):
        async with connect(bundled):
            await nothing.abackground()
        servers = [f"127.0.0.1:{free_port()}", bundled]
        worker = Worker([nothing], servers=servers, burst=True, connect_timeout=1.0)
        await worker.run()
    assert worker.done == 1


async def test_without_any_server_that_is_what_is_raised(function: str) -> None:
    @task(name=function)
    async def nothing() -> None: ...

    address = f"127.0.0.1:{free_port()}"
    with anyio.fail_after(10), pytest.raises(NoServer) as caught:
        await Worker([nothing], servers=[address], burst=True, connect_timeout=0.1).run()
    assert caught.value.reasons == {address: "connection refused"}


async def test_a_server_that_is_silent_is_none(function: str) -> None:
    @task(name=function)
    async def nothing() -> None: ...

    with anyio.fail_after(10):
        async with scripted_server() as server:
            worker = Worker([nothing], servers=[server.address], burst=True, connect_timeout=0.1)
            with pytest.raises(NoServer) as caught:
                await worker.run()
            assert caught.value.reasons == {server.address: "no answer within 0.1 s"}


async def test_a_server_that_goes_away_is_waited_for_as_long(
    function: str, caplog: pytest.LogCaptureFixture
) -> None:
    @task(name=function)
    async def nothing() -> None: ...

    caplog.set_level(logging.INFO, "gearflow.worker")
    with anyio.fail_after(10):
        async with scripted_server() as server, anyio.create_task_group() as tasks:
            tasks.start_soon(
                Worker([nothing], servers=[server.address], burst=True, concurrency=1, first_retry=0.01).run
            )
            peer = await server.accept()
            await peer.register()
            await peer.assign(function.encode(), b"{}")
            await peer.expect_a(WorkComplete)
            await peer.close()
            peer = await server.accept()
            await peer.register()
            await peer.send(NoJob())
            await peer.rest()


async def test_a_server_that_does_not_come_back_is_given_up(function: str) -> None:
    @task(name=function)
    async def nothing() -> None: ...

    async def work(address: str) -> None:
        worker = Worker([nothing], servers=[address], burst=True, connect_timeout=1.0, first_retry=0.01)
        with pytest.raises(NoServer) as caught:
            await worker.run()
        assert list(caught.value.reasons) == [address]

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks, scripted_server() as server:
            tasks.start_soon(work, server.address)
            peer = await server.accept()
            await peer.register()
            await peer.assign(function.encode(), b"{}")
            await peer.expect_a(Packet)


async def test_calls_that_wait_for_a_burst_are_answered(bundled: str, function: str) -> None:
    @task(name=function)
    async def double(number: int) -> int:
        return 2 * number

    with anyio.fail_after(10):
        async with Client([bundled]) as client:
            job = await client.submit(function, b'{"number": 4}')
            await Worker([double], servers=[bundled], burst=True).run()
            assert await job.result() == b"8"
