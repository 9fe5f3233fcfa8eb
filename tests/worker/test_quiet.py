"""Workers that take nothing new for a while."""

import anyio

from gearflow.client import connect
from gearflow.protocol.packets import GrabJobUniq, NoJob, Noop, PreSleep, WorkComplete
from gearflow.tasks import task
from gearflow.worker import Worker
from gearflow.worker.session import GRAB_JOB_UNIQ
from tests.worker.scripted import scripted_server


async def test_a_quiet_worker_finishes_what_runs_and_asks_for_nothing_until_it_resumes(function: str) -> None:
    running, release = anyio.Event(), anyio.Event()

    @task(name=function)
    async def waits() -> None:
        running.set()
        await release.wait()

    with anyio.fail_after(20):
        async with (
            scripted_server() as server,
            Worker([waits], servers=[server.address], concurrency=1) as worker,
        ):
            peer = await server.accept()
            await peer.register()
            await peer.assign(function.encode(), b"{}")
            await running.wait()
            worker.quiet()
            before = len(peer.writes)
            release.set()
            await peer.expect_a(WorkComplete)
            assert GRAB_JOB_UNIQ not in b"".join(peer.writes[before:])  # else both had left in one write
            worker.resume()
            await peer.expect_a(GrabJobUniq)
            await peer.send(NoJob())
            await peer.expect_a(PreSleep)


async def test_a_quiet_worker_that_is_called_answers_when_it_resumes(function: str) -> None:
    @task(name=function)
    async def nothing() -> None: ...

    with anyio.fail_after(20):
        async with (
            scripted_server() as server,
            Worker([nothing], servers=[server.address]) as worker,
        ):
            peer = await server.accept()
            await peer.sleeping()
            worker.quiet()
            await peer.send(Noop())
            worker.resume()
            await peer.expect_a(GrabJobUniq)
            await peer.send(NoJob())
            await peer.expect_a(PreSleep)


async def test_a_worker_that_begins_quiet_is_ready_and_asks_for_nothing(function: str) -> None:
    @task(name=function)
    async def nothing() -> None: ...

    with anyio.fail_after(20):
        async with scripted_server() as server:
            worker = Worker([nothing], servers=[server.address])
            worker.quiet()
            async with worker:
                peer = await server.accept()
                await worker.ready.wait()
                assert GRAB_JOB_UNIQ not in b"".join(peer.writes)
                worker.resume()
                await peer.sleeping()


async def test_jobs_for_a_quiet_worker_wait(any_server: str, function: str) -> None:
    @task(name=function)
    async def double(number: int) -> int:
        return 2 * number

    with anyio.fail_after(20):
        worker = Worker([double], servers=[any_server])
        worker.quiet()  # later, it might have asked already
        async with connect(any_server), worker:
            await worker.ready.wait()
            jobs = [await double.asubmit(number) for number in range(20)]
            async with Worker([double], servers=[any_server]) as other:
                assert [await job for job in jobs] == [2 * number for number in range(20)]
            worker.resume()
            assert await double.acall(30) == 60
            assert worker.done == 1
            assert other.done == 20
