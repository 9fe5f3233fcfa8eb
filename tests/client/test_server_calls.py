"""Questions about jobs to gearflow's own server: waits that outlive it, errors that say what they are."""

import gc
from math import inf

import anyio
import pytest

from gearflow import JobServer
from gearflow.client import (
    Backoff,
    Client,
    ClientJob,
    JobFailed,
    JobHandle,
    JobKey,
    ServerAddress,
    SubmitOptions,
    SyncClient,
    Timeouts,
)
from gearflow.errors import (
    ConnectionLost,
    NoServer,
    QueueFull,
    ServerError,
    UnknownJob,
    UnsupportedByServer,
)
from gearflow.protocol.packets import JobCreated, SubmitJob, WorkComplete, WorkException
from gearflow.protocol.server_calls import INFO, RESULT, InfoRequest, ResultRequest, ServerInfo
from gearflow.testing.peer import ScriptedPeer, ScriptedServer
from tests.client.conftest import Call, Scripted, Working
from tests.client.test_client import as_told, upper
from tests.ports import free_port

SOON = Backoff(first=0.001, most=0.001)


def fault(kind: str, message: str = "because") -> bytes:
    return b'{"type":"gearflow:%b","message":"%b"}' % (kind.encode(), message.encode())


async def asked(peer: ScriptedPeer, function: bytes) -> bytes:
    """The request in a call of a reserved function."""
    heard = await peer.receive()
    assert isinstance(heard, SubmitJob)
    assert (heard.function, heard.unique) == (function, b"")
    return heard.workload


# ----------------------------------------------------------------------------------------- any function


async def test_what_the_server_answers_is_returned(bundled: str) -> None:
    async with Client([bundled]) as client:
        answer = await client.call_reserved(INFO, InfoRequest())
        assert "gearflow:info" in ServerInfo.model_validate_json(answer).functions
        assert answer == await client.call_reserved("gearflow:info", InfoRequest(), server=bundled)


async def test_another_server_may_be_asked(bundled: str) -> None:
    async with JobServer(port=0) as other, Client([other.address]) as client:
        handle = await client.submit_background("f", b"")
        with pytest.raises(UnknownJob):
            await client.call_reserved(INFO, InfoRequest(handle=handle.handle), server=bundled)
        await client.call_reserved(INFO, InfoRequest(handle=handle.handle), server=handle.server)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("full", QueueFull),
        ("timeout", TimeoutError),
        ("unknown", UnknownJob),
        ("invalid", ServerError),
        ("refused", ServerError),
        ("store", ServerError),
    ],
)
async def test_a_fault_is_an_error_of_its_kind(scripted: Scripted, kind: str, error: type[Exception]) -> None:
    async with scripted(gearflow=True) as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.call_reserved, INFO, InfoRequest(handle="H:1"))
        tasks.start_soon(call.run)
        assert await asked(peer, INFO) == b'{"handle":"H:1"}'
        await peer.send(JobCreated(b"C:1"), WorkException(b"C:1", fault(kind)))
        with pytest.raises(error, match="because") as caught:
            await call.outcome()
        if isinstance(caught.value, ServerError):
            assert (type(caught.value), caught.value.code) == (error, f"gearflow:{kind}")


@pytest.mark.parametrize(
    "words",
    [
        b"because",
        b'{"type": "KeyError", "message": "gearflow:full"}',
        b'{"type": "gearflow:full", "message": "no", "traceback": "", "errors": []}',
        b'{"type": "gearflow:sunny", "message": "no"}',
        b'{"type": "gearflow:full"',
    ],
)
async def test_what_a_worker_said_is_never_taken_for_a_fault(scripted: Scripted, words: bytes) -> None:
    async with scripted(gearflow=True) as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.result, "H:1")
        tasks.start_soon(call.run)
        await asked(peer, RESULT)
        await peer.send(JobCreated(b"C:1"), WorkException(b"C:1", words))
        with pytest.raises(JobFailed) as caught:
            await call.outcome()
        assert caught.value.exception == words


async def test_a_lost_question_is_no_submission_in_doubt(scripted: Scripted) -> None:
    async with scripted(gearflow=True) as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.info, "H:1")
        tasks.start_soon(call.run)
        await asked(peer, INFO)
        await peer.close()
        with pytest.raises(ConnectionLost, match="before it answered gearflow:info"):
            await call.outcome()


async def test_a_refused_submission_says_so_at_once(scripted: Scripted) -> None:
    async with scripted(gearflow=True) as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.submit, "f", b"x", options=SubmitOptions(keep=3))
        tasks.start_soon(call.run)
        await peer.receive()
        await peer.send(JobCreated(b"C:1"), WorkException(b"C:1", fault("full", "no room")))
        with pytest.raises(QueueFull, match="no room"):
            await call.outcome()


async def test_a_refusal_that_comes_late_is_the_result(scripted: Scripted) -> None:
    async with scripted(gearflow=True) as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.submit, "f", b"x", options=SubmitOptions(keep=3))
        tasks.start_soon(call.run)
        await peer.receive()
        await peer.send(JobCreated(b"C:1"))
        job = await call.outcome()
        await peer.send(WorkException(b"C:1", fault("full", "no room")))
        with pytest.raises(QueueFull, match="no room"):
            await job.result(5)


async def test_a_server_that_is_not_gearflows_is_not_asked(gearmand: str) -> None:
    async with Client([gearmand]) as client:
        for question in (client.info("H:1"), client.result("H:1"), client.cancel("H:1")):
            with pytest.raises(UnsupportedByServer, match=rf"{gearmand} does not know gearflow:\w+"):
                await question


# ------------------------------------------------------------------------------------------------ results


async def test_a_result_is_pushed(bundled: str, function: str, working: Working) -> None:
    async with Client([bundled]) as client, anyio.create_task_group() as tasks:
        handle = await client.submit_background(function, b"a\0b", unique="k")
        calls = [Call(client.result, name, 20) for name in (handle, str(handle), JobKey(function, "k"))]
        for call in calls:
            tasks.start_soon(call.run)
        async with working(bundled, function, upper):
            assert [await call.outcome() for call in calls] == [b"A\0B"] * 3
        assert await client.result(handle, 0) == b"A\0B"


async def test_a_job_that_failed_ends_as_it_ended(bundled: str, function: str, working: Working) -> None:
    async with working(bundled, function, as_told), Client([bundled]) as client:
        silent = await client.submit_background(function, b"fail")
        telling = await client.submit_background(function, b"raise")
        for handle, words in ((silent, None), (telling, b"because")):
            with pytest.raises(JobFailed) as caught:
                await client.result(handle, 20)
            assert caught.value.exception == words


async def test_a_wait_that_is_given_up_is_no_concern_of_later_ones(
    bundled: str, function: str, working: Working
) -> None:
    async with Client([bundled]) as client, anyio.create_task_group() as tasks:
        handle = await client.submit_background(function, b"x")
        given_up, kept = Call(client.result, handle), Call(client.result, handle)
        tasks.start_soon(given_up.run)
        tasks.start_soon(kept.run)
        await client.echo(b"both have been asked")
        given_up.scope.cancel()
        async with working(bundled, function, upper):
            assert await kept.outcome() == b"X"


async def test_of_a_wait_that_is_given_up_nothing_stays(scripted: Scripted) -> None:
    def waiting() -> list[ClientJob]:
        jobs = [found for found in gc.get_objects() if isinstance(found, ClientJob)]
        return [job for job in jobs if job.raw_handle == b"C:only here" and not job.done]

    async with scripted(gearflow=True) as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.result, "H:1")
        tasks.start_soon(call.run)
        await asked(peer, RESULT)
        await peer.send(JobCreated(b"C:only here"))
        await anyio.wait_all_tasks_blocked()
        assert len(waiting()) == 1
        call.scope.cancel()
        await anyio.wait_all_tasks_blocked()
        assert waiting() == []


async def test_a_lost_connection_does_not_end_a_wait() -> None:
    async with (
        ScriptedServer() as server,
        Client([server.address], backoff=SOON) as client,
        anyio.create_task_group() as tasks,
    ):
        name = JobHandle("H:1", ServerAddress.parse(server.address))
        forever, limited = Call(client.result, name), Call(client.result, name, 30)
        for call in (forever, limited):
            tasks.start_soon(call.run)
        for accepted in ([], [JobCreated(b"C:1"), JobCreated(b"C:2")]):  # lost before, and while it waits
            peer = await server.accept()
            await peer.shake_hands(gearflow=True)
            await asked(peer, RESULT)
            await asked(peer, RESULT)
            await peer.send(*accepted)
            await peer.close()
        peer = await server.accept()
        await peer.shake_hands(gearflow=True)
        for handle in (b"C:3", b"C:4"):
            await asked(peer, RESULT)
            await peer.send(JobCreated(handle), WorkComplete(handle, b"done"))
        assert [await forever.outcome(), await limited.outcome()] == [b"done", b"done"]


async def test_when_the_time_is_over_the_server_is_named() -> None:
    async with (
        ScriptedServer() as server,
        Client([server.address], backoff=SOON) as client,
        anyio.create_task_group() as tasks,
    ):
        call = Call(client.result, "H:1", 0.2)
        tasks.start_soon(call.run)
        peer = await server.accept()
        await peer.shake_hands(gearflow=True)
        await asked(peer, RESULT)
        await server.stop_listening()
        await peer.close()
        with pytest.raises(NoServer, match=server.address):
            await call.outcome()


async def test_a_server_that_was_never_there_is_waited_for_only_within_a_time() -> None:
    async with Client(["127.0.0.1:1"], backoff=SOON) as client:
        with anyio.fail_after(20):
            with pytest.raises(NoServer):
                await client.result("H:1")
            with pytest.raises(NoServer):
                await client.result("H:1", 0.05)


async def test_a_server_that_comes_within_the_time_is_asked() -> None:
    port = free_port()
    async with (
        Client([f"127.0.0.1:{port}"], backoff=SOON) as client,
        anyio.create_task_group() as tasks,
    ):
        call = Call(client.result, "H:1", 30)
        tasks.start_soon(call.run)
        await anyio.wait_all_tasks_blocked()
        async with ScriptedServer(port=port) as server:
            peer = await server.accept()
            await peer.shake_hands(gearflow=True)
            await asked(peer, RESULT)
            await peer.send(JobCreated(b"C:1"), WorkComplete(b"C:1", b"done"))
            assert await call.outcome() == b"done"


async def test_a_server_that_says_nothing_is_not_waited_for_much_longer(
    scripted: Scripted,
) -> None:
    limits = Timeouts(answer_grace=0.05)
    async with scripted(gearflow=True, timeouts=limits) as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.result, "H:1", 0.05)
        tasks.start_soon(call.run)
        request = ResultRequest.model_validate_json(await asked(peer, RESULT))
        assert request.timeout is not None
        assert request.timeout <= 0.05
        with pytest.raises(TimeoutError, match="whether the job runs on is not known"):
            await call.outcome()


async def test_the_server_says_that_the_time_is_over(scripted: Scripted) -> None:
    async with scripted(gearflow=True) as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.result, "H:1", 60)
        tasks.start_soon(call.run)
        await asked(peer, RESULT)
        await peer.send(JobCreated(b"C:1"), WorkException(b"C:1", fault("timeout")))
        with pytest.raises(TimeoutError, match="job H:1 has not ended within 60 s; it runs on"):
            await call.outcome()


async def test_leaving_the_client_ends_a_wait(bundled: str, function: str) -> None:
    async with anyio.create_task_group() as tasks:
        async with Client([bundled]) as client:
            handle = await client.submit_background(function, b"x")
            call = Call(client.result, handle, 60)
            tasks.start_soon(call.run)
            await client.echo(b"asked")
        with pytest.raises(ConnectionLost):
            await call.outcome()


# -------------------------------------------------------------------------------------- several servers


async def test_a_handle_without_a_server_is_asked_of_all(bundled: str, gearmand: str, function: str) -> None:
    async with JobServer(port=0) as other, Client([other.address, bundled]) as client:
        async with Client([bundled]) as elsewhere:
            handle = await elsewhere.submit_background(function, b"x", unique="k")
        assert (await client.info(str(handle))).handle == str(handle)
        with pytest.raises(TimeoutError):
            await client.result(str(handle), 0)
        assert await client.cancel(JobKey(function, "k"))
        with pytest.raises(UnknownJob):
            await client.result("H:nowhere:1")
        assert not await client.cancel("H:nowhere:1")
    async with Client([gearmand, bundled]) as client:
        assert (await client.info(str(handle))).state == "cancelled"
        with pytest.raises(UnknownJob):
            await client.info("H:nowhere:1")


async def test_a_server_that_cannot_be_asked_may_have_the_job(bundled: str) -> None:
    async with Client(["127.0.0.1:1", bundled]) as client:
        with pytest.raises(NoServer, match=rf"127\.0\.0\.1:1: connection refused; {bundled}: .*no handle"):
            await client.info("H:nowhere:1")
        with pytest.raises(NoServer):
            await client.cancel("H:nowhere:1")


class Noted(Backoff):
    """Notes after how many failures in a row somebody waits."""

    def longest(self, failures: int) -> float:
        return inf

    def delay(self, failures: int, jitter: float) -> float:
        failures_seen.append(failures)
        return 0.0


failures_seen: list[int] = []


async def test_a_server_that_hangs_up_at_once_is_asked_after_growing_pauses() -> None:
    failures_seen.clear()

    async def hang_up(server: ScriptedServer) -> None:
        for _ in range(4):
            peer = await server.accept()
            await peer.shake_hands(gearflow=True)
            await asked(peer, RESULT)
            await peer.close()
        peer = await server.accept()
        await peer.shake_hands(gearflow=True)
        await asked(peer, RESULT)
        await peer.send(JobCreated(b"H:call:1"), WorkComplete(b"H:call:1", b"at last"))

    async with ScriptedServer() as server, anyio.create_task_group() as tasks:
        tasks.start_soon(hang_up, server)
        async with Client([server.address], backoff=Noted()) as client:
            assert await client.result("H:x:1") == b"at last"
    assert failures_seen == [1, 2, 3, 4]


# ------------------------------------------------------------------------------------------- sync


def test_the_blocking_face_asks_the_same(bundled: str, function: str) -> None:
    with SyncClient([bundled]) as client:
        handle = client.submit_background(function, b"x", options=SubmitOptions(keep=60))
        assert client.info(handle).state == "waiting"
        with pytest.raises(TimeoutError):
            client.result(handle, 0)
        assert client.cancel(handle)
        with pytest.raises(JobFailed):
            client.result(handle)
        assert b"gearflow:info" in client.call_reserved(INFO, InfoRequest())
