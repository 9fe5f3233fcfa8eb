"""Many submissions in one go, against a scripted server and real ones."""

from collections.abc import Callable

import anyio
import pytest

from gearflow.client import Admin, Client, ClientJob, JobHandle, JobRequest, ServerAddress, SubmitOptions
from gearflow.errors import LocalProtocolError, NoServer, QueueFull, ServerError, SubmitUnknown
from gearflow.protocol.packets import (
    Error,
    JobCreated,
    SubmitJob,
    SubmitJobBg,
    WorkComplete,
    WorkException,
    WorkFail,
)
from gearflow.testing.peer import ScriptedPeer, ScriptedServer
from tests.client.conftest import Call, Scripted

KEPT = SubmitOptions(keep=60)


def orders(count: int, options: SubmitOptions | None = None) -> list[JobRequest]:
    return [JobRequest("f", b"%d" % n, options=options) for n in range(count)]


async def test_answers_are_in_the_order_of_the_submissions(
    any_server: str, fresh: Callable[..., str]
) -> None:
    names = [fresh() for _ in range(50)]
    async with Client([any_server]) as client:
        handles = await client.submit_many([JobRequest(name, b"", unique=name) for name in names])
        assert len({str(handle) for handle in handles}) == 50
        for name, handle in zip(names, handles, strict=True):
            assert isinstance(handle, JobHandle)
            assert (await client.submit_background(name, b"", unique=name)) == handle
        assert await client.submit_many([]) == []


async def test_with_options_each_is_one_packet_with_one_answer_too(scripted: Scripted) -> None:
    async with scripted(gearflow=True) as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.submit_many, orders(3, KEPT))
        tasks.start_soon(call.run)
        for n in range(3):
            heard = await peer.receive()
            assert isinstance(heard, SubmitJobBg)
            assert heard.function == b"gearflow:submit"
            assert heard.workload == b'{"function":"f","detached":true,"keep":60.0}\n%d' % n
        await peer.send(JobCreated(b"H:0"), Error(b"QUEUE_ERROR", b"Job queue is full"), JobCreated(b"H:2"))
        first, second, third = await call.outcome()
        assert (str(first), type(second), str(third)) == ("H:0", QueueFull, "H:2")


async def refuse_in_background(peer: ScriptedPeer, count: int) -> None:
    """An older server knows ``gearflow:submit`` only as a foreground submission."""
    for _ in range(count):
        heard = await peer.receive()
        assert isinstance(heard, SubmitJobBg)
        assert heard.function == b"gearflow:submit"
        await peer.send(Error(b"INVALID_FUNCTION_NAME", b"a reserved function is for foreground submissions"))


async def test_an_older_server_gets_options_in_calls(scripted: Scripted) -> None:
    async with scripted(gearflow=True) as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.submit_many, orders(3, KEPT))
        tasks.start_soon(call.run)
        await refuse_in_background(peer, 3)
        for n in range(3):
            heard = await peer.receive()
            assert isinstance(heard, SubmitJob)
            assert heard.workload.endswith(b"\n%d" % n)
        await peer.send(*(JobCreated(b"C:%d" % n) for n in range(3)))
        await peer.send(
            WorkComplete(b"C:1", b'{"handle": "H:1"}'),
            WorkException(b"C:2", b'{"type": "gearflow:full", "message": "no room"}'),
            WorkComplete(b"C:0", b'{"handle": "H:0"}'),
        )
        first, second, third = await call.outcome()
        server = client.servers[0]
        assert [first, second] == [JobHandle("H:0", server), JobHandle("H:1", server)]
        assert isinstance(third, QueueFull)
        assert third.text == "no room"
        single = Call(client.submit_background, "f", b"x", options=KEPT)  # now it is known
        tasks.start_soon(single.run)
        assert isinstance(await peer.receive(), SubmitJob)
        await peer.send(JobCreated(b"C:3"), WorkComplete(b"C:3", b'{"handle": "H:3"}'))
        assert str(await single.outcome()) == "H:3"


async def test_a_refusal_stands_in_the_place_of_its_job(scripted: Scripted) -> None:
    async with scripted() as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.submit_many, orders(3))
        tasks.start_soon(call.run)
        await peer.expect(*(SubmitJobBg(b"f", b"", b"%d" % n) for n in range(3)))
        await peer.send(JobCreated(b"H:0"), Error(b"QUEUE_ERROR", b"Job queue is full"), JobCreated(b"H:2"))
        first, second, third = await call.outcome()
        assert (str(first), type(second), str(third)) == ("H:0", QueueFull, "H:2")


@pytest.mark.parametrize("options", [None, KEPT])
async def test_what_was_sent_is_in_doubt_when_the_connection_goes(
    scripted: Scripted, options: SubmitOptions | None
) -> None:
    async with scripted(gearflow=True) as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.submit_many, orders(2, options))
        tasks.start_soon(call.run)
        await peer.receive()
        await peer.receive()
        await peer.send(JobCreated(b"H:0"))
        await peer.close()
        first, second = await call.outcome()
        assert isinstance(first, JobHandle)
        assert isinstance(second, SubmitUnknown)


async def test_of_a_call_with_options_only_the_end_says_that_there_is_a_job(scripted: Scripted) -> None:
    async with scripted(gearflow=True) as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.submit_many, orders(2, KEPT))
        tasks.start_soon(call.run)
        await refuse_in_background(peer, 2)
        await peer.receive()
        await peer.receive()
        await peer.send(JobCreated(b"C:0"))
        await peer.close()
        first, second = await call.outcome()
        assert isinstance(first, SubmitUnknown)
        assert isinstance(second, SubmitUnknown)


async def test_what_was_not_sent_goes_to_the_next_server_in_its_form() -> None:
    async with (
        ScriptedServer() as first,
        ScriptedServer() as second,
        Client([first.address, second.address]) as client,
        anyio.create_task_group() as tasks,
    ):
        jam = Call(client.submit, "f", bytes(32 * 1024 * 1024))
        tasks.start_soon(jam.run)
        peer = await first.accept()
        await peer.shake_hands(gearflow=True)
        await anyio.wait_all_tasks_blocked()
        call = Call(client.submit_many, orders(2, SubmitOptions(timeout=3, envelope=b"e:")))
        tasks.start_soon(call.run)
        await anyio.wait_all_tasks_blocked()
        await first.stop_listening()
        await peer.reset()
        peer = await second.accept()
        await peer.shake_hands()
        await peer.expect(SubmitJobBg(b"f", b"", b"e:0"), SubmitJobBg(b"f", b"", b"e:1"))
        await peer.send(JobCreated(b"H:0"), JobCreated(b"H:1"))
        expected = ServerAddress.parse(second.address)
        assert await call.outcome() == [JobHandle("H:0", expected), JobHandle("H:1", expected)]


async def test_a_caller_that_gives_up_leaves_nothing_behind(scripted: Scripted) -> None:
    async with scripted() as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.submit_many, orders(2))
        tasks.start_soon(call.run)
        await peer.expect(SubmitJobBg(b"f", b"", b"0"), SubmitJobBg(b"f", b"", b"1"))
        call.scope.cancel()
        await anyio.wait_all_tasks_blocked()
        then = Call(client.submit_background, "f", b"then")
        tasks.start_soon(then.run)
        await peer.expect(SubmitJobBg(b"f", b"", b"then"))
        await peer.send(JobCreated(b"H:0"), JobCreated(b"H:1"), JobCreated(b"H:2"))
        assert str(await then.outcome()) == "H:2"


async def test_what_was_given_up_before_it_left_never_leaves(scripted: Scripted) -> None:
    jam = bytes(32 * 1024 * 1024)
    async with scripted() as (client, peer), anyio.create_task_group() as tasks:
        tasks.start_soon(Call(client.submit, "f", jam).run)
        await anyio.wait_all_tasks_blocked()
        call = Call(client.submit_many, orders(2))
        tasks.start_soon(call.run)
        await anyio.wait_all_tasks_blocked()
        call.scope.cancel()
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(Call(client.submit_background, "f", b"then").run)
        await peer.expect(SubmitJob(b"f", b"", jam), SubmitJobBg(b"f", b"", b"then"))
        tasks.cancel_scope.cancel()


async def test_nothing_is_sent_if_one_cannot_be() -> None:
    async with Client(["127.0.0.1:1"]) as client:
        with pytest.raises(LocalProtocolError, match="NUL"):
            await client.submit_many([JobRequest("f", b""), JobRequest("f\0", b"")])
        with pytest.raises(NoServer):
            await client.submit_many([JobRequest("f", b"")])


async def test_a_call_that_fails_without_a_word_is_a_refusal(scripted: Scripted) -> None:
    async with scripted(gearflow=True) as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.submit_background, "f", b"x", options=KEPT)
        tasks.start_soon(call.run)
        await refuse_in_background(peer, 1)
        await peer.receive()
        await peer.send(JobCreated(b"C:0"), WorkFail(b"C:0"))
        with pytest.raises(ServerError, match="gave no reason"):
            await call.outcome()


UNCERTAIN = "gearflow:uncertain"
FAULT = b'{"type": "gearflow:uncertain", "message": "the database gives no answer"}'


async def test_a_server_that_does_not_know_of_a_job_leaves_it_unknown(scripted: Scripted) -> None:
    async with scripted(gearflow=True) as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.submit_background, "f", b"x")
        tasks.start_soon(call.run)
        await peer.expect(SubmitJobBg(b"f", b"", b"x"))
        await peer.send(Error(UNCERTAIN.encode(), b"the database gives no answer"))
        with pytest.raises(SubmitUnknown, match=r"the database gives no answer.* may exist or not"):
            await call.outcome()


async def test_what_a_server_does_not_know_of_is_sent_again_with_its_key_if_that_is_allowed(
    scripted: Scripted,
) -> None:
    async with scripted(gearflow=True) as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.submit_background, "f", b"x", unique="k", options=SubmitOptions(resubmit=True))
        tasks.start_soon(call.run)
        await peer.expect(SubmitJobBg(b"f", b"k", b"x"))
        await peer.send(Error(UNCERTAIN.encode(), b"the database gives no answer"))
        await peer.expect(SubmitJobBg(b"f", b"k", b"x"))
        await peer.send(JobCreated(b"H:1"))
        assert str(await call.outcome()) == "H:1"


async def test_a_call_of_which_a_server_does_not_know_says_nothing_of_the_others(scripted: Scripted) -> None:
    kept = SubmitOptions(keep=1)
    async with scripted(gearflow=True) as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.submit_many, orders(2, kept))
        tasks.start_soon(call.run)
        await refuse_in_background(peer, 2)
        for number in (0, 1):
            await peer.receive()
            await peer.send(JobCreated(b"C:%d" % number))
        await peer.send(WorkException(b"C:0", FAULT))
        await anyio.wait_all_tasks_blocked()
        await peer.send(WorkComplete(b"C:1", b'{"handle": "H:1"}'))
        first, second = await call.outcome()
        assert isinstance(first, SubmitUnknown)
        assert str(second) == "H:1"


@pytest.mark.parametrize("method", ["submit", "submit_background"])
async def test_no_caller_takes_a_key_of_those_that_no_other_job_has(method: str) -> None:
    async with Client(["127.0.0.1:1"]) as client:
        with pytest.raises(ValueError, match="give another key"):
            await getattr(client, method)("f", b"", unique="~" + "0" * 32)


# ------------------------------------------------------------------------------------------- attached


def attached(count: int) -> list[JobRequest]:
    return [JobRequest("f", b"%d" % n, detached=False) for n in range(count)]


async def test_many_attached_jobs_are_sent_at_once_and_each_has_its_own_end(scripted: Scripted) -> None:
    async with scripted() as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.attach_many, attached(3))
        tasks.start_soon(call.run)
        await peer.expect(*(SubmitJob(b"f", b"", b"%d" % n) for n in range(3)))
        await peer.send(JobCreated(b"H:0"), Error(b"QUEUE_ERROR", b"Job queue is full"), JobCreated(b"H:2"))
        first, second, third = await call.outcome()
        assert isinstance(second, QueueFull)
        await peer.send(WorkComplete(b"H:2", b"two"), WorkComplete(b"H:0", b"zero"))
        with anyio.fail_after(20):
            assert (await first.result(), await third.result()) == (b"zero", b"two")
        assert await client.attach_many([]) == []


async def test_who_gives_up_many_attached_jobs_detaches_from_all(scripted: Scripted) -> None:
    async with scripted(gearflow=True) as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.attach_many, attached(2))
        tasks.start_soon(call.run)
        await peer.expect(SubmitJob(b"f", b"", b"0"), SubmitJob(b"f", b"", b"1"))
        await peer.send(JobCreated(b"H:0"))
        await anyio.wait_all_tasks_blocked()
        call.scope.cancel()
        await peer.expect_a(SubmitJob)  # a call of gearflow:detach
        await peer.send(JobCreated(b"H:1"))
        await peer.expect_a(SubmitJob)
        tasks.cancel_scope.cancel()


async def test_of_attached_jobs_with_options_a_refusal_is_the_outcome(
    bundled: str, fresh: Callable[..., str]
) -> None:
    name = fresh()
    async with Client([bundled]) as client:
        await client.submit_background(name, b"")
        await Admin(bundled).max_queue(name, 1)
        orders = [JobRequest(name, b"", options=KEPT, detached=False)] * 2
        for outcome in await client.attach_many(orders):
            if isinstance(outcome, ClientJob):  # the refusal was on its way
                with pytest.raises(QueueFull):
                    await outcome.result()
            else:
                assert isinstance(outcome, QueueFull)
