"""A job that may kill its worker runs alone there."""

import threading

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from gearflow.client import Client
from gearflow.protocol.envelope import header
from gearflow.protocol.packets import GrabJobUniq, WorkComplete, WorkData, WorkFail
from gearflow.protocol.server_events import cancel_event
from gearflow.server import JobServer
from gearflow.tasks import task
from gearflow.worker import Worker
from tests.worker.scripted import scripted_server

ALONE = header(alone=True)


async def test_nothing_else_runs_meanwhile_whichever_server_it_is_of(function: str) -> None:
    running: list[str] = []
    begun, release = anyio.Event(), anyio.Event()

    @task(name=function)
    async def work(name: str) -> list[str]:
        running.append(name)
        if name == "first":
            begun.set()
            await release.wait()
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        beside = [other for other in running if other != name]
        running.remove(name)
        return beside if name == "suspect" else []

    with JobServer(port=0) as one, JobServer(port=0) as two:
        with anyio.fail_after(20):
            async with (
                Worker([work], servers=[one.address, two.address], concurrency=5),
                Client([one.address]) as first,
                Client([two.address]) as second,
            ):
                other = await first.submit(function, b"first")
                await begun.wait()
                suspects = [await client.submit(function, ALONE + b"suspect") for client in (first, second)]
                others = [
                    await client.submit(function, b"other") for client in (first, second) for _ in range(20)
                ]
                release.set()
                assert await other.result() == b"[]"
                assert [await suspect.result() for suspect in suspects] == [b"[]", b"[]"]
                assert [await each.result() for each in others] == [b"[]"] * 40


@pytest.mark.parametrize("is_async", [True, False])
async def test_one_that_is_cancelled_before_it_begins_never_does(function: str, is_async: bool) -> None:
    release = threading.Event()
    begun = threading.Event()
    names: list[str] = []

    def run(name: str) -> None:
        names.append(name)
        begun.set()

    @task(name=function)
    async def coroutine(name: str, number: int = 0) -> None:
        run(name)
        if name == "other":
            await anyio.to_thread.run_sync(release.wait)

    @task(name=f"{function}.thread")
    def thread(name: str, number: int = 0) -> None:
        run(name)
        if name == "other":
            release.wait(20)

    with anyio.fail_after(20):
        async with (
            scripted_server() as server,
            Worker([coroutine if is_async else thread], servers=[server.address], concurrency=2) as worker,
        ):
            function = coroutine.name if is_async else thread.name
            peer = await server.accept()
            await peer.register()
            await peer.assign(function.encode(), b'{"name":"other"}', b"H:1")
            await peer.expect_a(GrabJobUniq)
            await anyio.to_thread.run_sync(begun.wait)
            await peer.assign(function.encode(), ALONE + b'{"name":"suspect"}', b"H:2")
            await peer.send(WorkData(b"H:events", cancel_event(b"H:2")))
            assert (await peer.expect_a(WorkFail)).handle == b"H:2"
            release.set()
            while not isinstance(await peer.receive(), WorkComplete):
                pass  # a GRAB may come before it
            worker.leave()
    assert names == ["other"]
