"""Which server is used, and when one that was away is used again."""

import anyio
import pytest

from gearflow.client import Backoff, Client, ServerAddress
from gearflow.errors import ConnectionLost, NoServer
from gearflow.protocol.packets import EchoReq, EchoRes, JobCreated, SubmitJob
from gearflow.testing.peer import ScriptedPeer, ScriptedServer


def test_the_backoff_doubles_up_to_its_limit_and_jitter_takes_off_at_most_half() -> None:
    backoff = Backoff(first=0.1, most=5)
    assert [backoff.delay(n, 0) for n in (1, 2, 3, 9, 10_000)] == [0.1, 0.2, 0.4, 5, 5]
    assert backoff.delay(2, 1) == pytest.approx(0.1)


async def answer_echoes(server: ScriptedServer) -> None:
    """Be a server, for as many connections as come one after the other."""
    while True:
        peer = await server.accept()
        await peer.shake_hands()
        await answer_echoes_of(peer)


async def answer_echoes_of(peer: ScriptedPeer) -> None:
    try:
        while True:
            match await peer.receive():
                case EchoReq(data):
                    await peer.send(EchoRes(data))
                case other:
                    raise AssertionError(other)
    except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
        return


async def test_the_first_server_is_preferred() -> None:
    async with (
        ScriptedServer(timeout=30) as first,
        ScriptedServer() as second,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(answer_echoes, first)
        async with Client([first.address, second.address]) as client:
            assert await client.echo(b"x") == b"x"
        tasks.cancel_scope.cancel()


async def test_a_dead_server_is_skipped() -> None:
    async with (
        ScriptedServer() as dead,
        ScriptedServer(timeout=30) as alive,
        anyio.create_task_group() as tasks,
    ):
        await dead.stop_listening()
        tasks.start_soon(answer_echoes, alive)
        async with Client([dead.address, alive.address]) as client:
            assert await client.echo(b"x") == b"x"
        tasks.cancel_scope.cancel()


async def test_when_none_is_left_the_error_says_why_for_each() -> None:
    async with ScriptedServer() as one, ScriptedServer() as two:
        await one.stop_listening()
        await two.stop_listening()
        async with Client([one.address, two.address]) as client:
            with pytest.raises(NoServer, match="gearflow server") as caught:
                await client.submit("f", b"x")
            assert set(caught.value.reasons) == {one.address, two.address}
            assert all("refused" in reason for reason in caught.value.reasons.values())


async def test_an_unknown_host_is_no_server() -> None:
    async with Client(["does-not-exist.invalid:1"]) as client:
        with pytest.raises(NoServer, match="does-not-exist"):
            await client.echo(b"x")


async def test_a_server_that_came_back_is_used_at_once_when_there_is_no_other() -> None:
    async with ScriptedServer() as before:
        await before.stop_listening()
        async with Client([before.address], backoff=Backoff(first=3600, most=3600)) as client:
            with pytest.raises(NoServer):
                await client.echo(b"x")
            async with ScriptedServer(port=before.port) as after, anyio.create_task_group() as tasks:
                tasks.start_soon(answer_echoes, after)
                assert await client.echo(b"x") == b"x"
                tasks.cancel_scope.cancel()


async def test_a_preferred_server_that_came_back_is_preferred_again() -> None:
    async with ScriptedServer(timeout=30) as second, anyio.create_task_group() as tasks:
        async with ScriptedServer() as gone:
            port, first_address = gone.port, ServerAddress.parse(gone.address)
        tasks.start_soon(answer_echoes, second)
        async with Client(
            [str(first_address), second.address], backoff=Backoff(first=0.001, most=0.001)
        ) as client:
            assert await client.echo(b"x") == b"x"  # served by the second
            async with ScriptedServer(port=port) as first:
                accepted = anyio.Event()

                async def be_back() -> None:
                    peer = await first.accept()
                    accepted.set()
                    await peer.shake_hands(gearflow=True)
                    await answer_echoes_of(peer)

                tasks.start_soon(be_back)
                with anyio.fail_after(20):
                    while not (await client.features()).gearflow:
                        await client.echo(b"the second one serves on meanwhile")
                assert accepted.is_set()
        tasks.cancel_scope.cancel()


async def test_a_lost_connection_is_made_anew_by_the_next_call() -> None:
    async with (
        ScriptedServer() as server,
        Client([server.address]) as client,
        anyio.create_task_group() as tasks,
    ):
        lost = anyio.Event()

        async def wait_for_the_loss() -> None:
            job = await client.submit("f", b"x")
            with pytest.raises(ConnectionLost):
                await job.result()
            lost.set()

        tasks.start_soon(wait_for_the_loss)
        peer = await server.accept()
        await peer.shake_hands()
        await peer.expect(SubmitJob(b"f", b"", b"x"))
        await peer.send(JobCreated(b"H:1"))
        await peer.close()
        await lost.wait()
        tasks.start_soon(answer_echoes, server)
        with anyio.fail_after(20):
            assert await client.echo(b"again") == b"again"
        tasks.cancel_scope.cancel()


async def test_a_preferred_server_that_hangs_costs_the_callers_nothing() -> None:
    async with ScriptedServer(timeout=30) as second, anyio.create_task_group() as tasks:
        async with ScriptedServer() as gone:
            port = gone.port
        tasks.start_soon(answer_echoes, second)
        async with Client(
            [gone.address, second.address], connect_timeout=3600, backoff=Backoff(first=0, most=0)
        ) as client:
            await client.echo(b"x")
            async with ScriptedServer(port=port) as silent:
                for _ in range(3):
                    with anyio.fail_after(20):
                        assert await client.echo(b"y") == b"y"
                await silent.accept()
        tasks.cancel_scope.cancel()
