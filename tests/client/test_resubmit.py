"""Submissions that are sent again because their server was lost: which, where to, and when that ends."""

from collections.abc import AsyncGenerator, Callable
from concurrent.futures import CancelledError
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from gearflow.client import Backoff, Client, ClientJob, JobHandle, JobRequest, ResubmitPolicy, SubmitOptions
from gearflow.errors import ConnectionLost, NoServer, ServerError, SubmitUnknown
from gearflow.protocol.packets import (
    EchoReq,
    Error,
    JobCreated,
    Packet,
    SubmitJob,
    SubmitJobBg,
    WorkComplete,
    WorkStatus,
)
from gearflow.protocol.server_calls import DETACH, SubmitRequest
from gearflow.testing.peer import ScriptedPeer, ScriptedServer
from tests.client.conftest import Call

AGAIN = SubmitOptions(resubmit=True)
REUSE = SubmitOptions(reuse=True)


class Stage:
    """Two scripted servers, a client of both, and its calls beside the script."""

    def __init__(self, first: ScriptedServer, second: ScriptedServer, client: Client, tasks: Any) -> None:
        self.first = first
        self.second = second
        self.client = client
        self._tasks = tasks

    def call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Call:
        call = Call(function, *args, **options)
        self._tasks.start_soon(call.run)
        return call

    async def accept(self, server: ScriptedServer, *, gearflow: bool = False) -> ScriptedPeer:
        peer = await server.accept()
        await peer.shake_hands(gearflow=gearflow)
        return peer

    async def lose_first(self, peer: ScriptedPeer) -> None:
        """The first server is gone, with its connection."""
        await self.first.stop_listening()
        await peer.close()

    async def lose_second(self, times: int) -> None:
        """The second server gets the job so many times, and is lost each time."""
        for _ in range(times):
            peer = await self.accept(self.second)
            await peer.expect(SubmitJob(b"f", b"k", b"x"))
            await peer.send(JobCreated(b"H:second"))
            await peer.close()

    async def complete_on_second(self, job: ClientJob) -> None:
        """The second server gets the job once more, and it ends there."""
        peer = await self.accept(self.second)
        await peer.expect(SubmitJob(b"f", b"k", b"x"))
        await peer.send(JobCreated(b"H:last"), WorkComplete(b"H:last", b"done"))
        with anyio.fail_after(20):
            assert await job.result() == b"done"

    async def attached(self, options: SubmitOptions | None = AGAIN) -> tuple[ClientJob, ScriptedPeer]:
        """A job that the first server has, and the server's end of its connection."""
        submitting = self.call(self.client.submit, "f", b"x", unique="k", options=options)
        peer = await self.accept(self.first)
        await peer.expect(SubmitJob(b"f", b"k", b"x"))
        await peer.send(JobCreated(b"H:first"))
        return await submitting.outcome(), peer


ONE_ATTEMPT = ResubmitPolicy(poll=Backoff(first=3600, most=3600))
"""A server that is away is not waited for: the next attempt would come too late."""


@asynccontextmanager
async def staged(resubmit: ResubmitPolicy = ResubmitPolicy()) -> AsyncGenerator[Stage]:  # noqa: B008
    async with (
        ScriptedServer() as first,
        ScriptedServer() as second,
        Client(
            [first.address, second.address],
            backoff=Backoff(first=0.001, most=0.001),
            resubmit=resubmit,
        ) as client,
        anyio.create_task_group() as tasks,
    ):
        yield Stage(first, second, client, tasks)
        tasks.cancel_scope.cancel()


# ------------------------------------------------------------------------------------------ attached


async def test_an_attached_job_goes_on_at_another_server() -> None:
    async with staged() as stage:
        job, peer = await stage.attached()
        result = stage.call(job.result)
        await peer.send(WorkStatus(b"H:first", b"1", b"2"))
        assert await job.next_event() == WorkStatus(b"H:first", b"1", b"2")
        await stage.lose_first(peer)
        peer = await stage.accept(stage.second)
        await peer.expect(SubmitJob(b"f", b"k", b"x"))
        assert not job.done
        await peer.send(JobCreated(b"H:second"), WorkStatus(b"H:second", b"2", b"2"))
        assert await job.next_event() == WorkStatus(b"H:second", b"2", b"2")
        assert (job.handle, str(job.server)) == ("H:second", stage.second.address)
        await peer.send(WorkComplete(b"H:second", b"done"))
        assert await result.outcome() == b"done"


async def test_it_goes_on_as_often_as_servers_are_lost() -> None:
    async with staged() as stage:
        job, peer = await stage.attached()
        await stage.lose_first(peer)
        await stage.lose_second(3)
        peer = await stage.accept(stage.second)
        await peer.expect(SubmitJob(b"f", b"k", b"x"))
        await peer.close()  # not even acknowledged
        await stage.complete_on_second(job)


async def test_it_is_given_up_after_many_losses_in_a_row() -> None:
    async with staged(ResubmitPolicy(max_losses=2)) as stage:
        job, peer = await stage.attached()
        await stage.lose_first(peer)
        await stage.lose_second(2)
        with pytest.raises(ConnectionLost, match="H:second") as caught:
            await stage.call(job.result).outcome()
        assert caught.value.__notes__ == ["It was submitted 3 times, and lost its server each time."]


async def test_losses_that_are_long_past_do_not_count() -> None:
    async with staged(ResubmitPolicy(max_losses=1, calm=0.0)) as stage:
        job, peer = await stage.attached()
        await stage.lose_first(peer)
        await stage.lose_second(3)
        await stage.complete_on_second(job)


async def test_its_time_goes_on_from_the_first_submission() -> None:
    async with staged() as stage:
        options = SubmitOptions(resubmit=True, expires=3600.0)
        submitting = stage.call(stage.client.submit, "f", b"x", options=options)
        peer = await stage.accept(stage.first, gearflow=True)
        assert expires(await peer.receive()) == 3600.0
        await stage.lose_first(peer)
        peer = await stage.accept(stage.second, gearflow=True)
        assert expires(await peer.receive()) < 3600.0
        await peer.send(JobCreated(b"H:second"))
        await submitting.outcome()


def expires(sent: object) -> float:
    """What a submission says."""
    assert isinstance(sent, SubmitJob)
    said = SubmitRequest.model_validate_json(sent.workload.partition(b"\n")[0])
    assert said.expires is not None
    return said.expires


async def test_it_waits_a_while_for_the_only_server_to_come_back() -> None:
    async with (
        ScriptedServer() as before,
        Client([before.address]) as client,
        anyio.create_task_group() as tasks,
    ):
        stage = Stage(before, before, client, tasks)
        job, peer = await stage.attached()
        await stage.lose_first(peer)
        with pytest.raises((NoServer, ConnectionLost)):  # fresh calls do not wait
            await stage.call(client.echo, b"").outcome()
        async with ScriptedServer(port=before.port) as after:
            peer = await stage.accept(after)
            await peer.expect(SubmitJob(b"f", b"k", b"x"))
            await peer.send(JobCreated(b"H:again"), WorkComplete(b"H:again", b"done"))
            with anyio.fail_after(20):
                assert await job.result() == b"done"


async def test_it_ends_when_no_server_comes_back_in_time() -> None:
    async with staged(ONE_ATTEMPT) as stage:
        job, peer = await stage.attached()
        await stage.second.stop_listening()
        await stage.lose_first(peer)
        with pytest.raises(NoServer) as caught:
            await stage.call(job.result).outcome()
        assert isinstance(caught.value.__cause__, ConnectionLost)
        assert set(caught.value.reasons) == {stage.first.address, stage.second.address}
        with pytest.raises(NoServer):
            await job.result()  # as often as it is asked


async def test_it_ends_as_the_next_server_refuses_it() -> None:
    async with staged() as stage:
        job, peer = await stage.attached()
        await stage.lose_first(peer)
        peer = await stage.accept(stage.second)
        await peer.expect(SubmitJob(b"f", b"k", b"x"))
        await peer.send(Error(b"NOT_TODAY", b""))
        with pytest.raises(ServerError, match="NOT_TODAY"):
            await stage.call(job.result).outcome()


async def test_without_the_option_its_caller_is_told() -> None:
    async with staged() as stage:
        job, peer = await stage.attached(None)
        await stage.lose_first(peer)
        with pytest.raises(ConnectionLost, match="the job may run on"):
            await stage.call(job.result).outcome()


async def test_a_job_that_was_cancelled_is_not_submitted_again() -> None:
    async with staged() as stage:
        job, peer = await stage.attached()
        assert job.cancel()
        submitting = stage.call(stage.client.submit, "g", b"y")
        await peer.expect(SubmitJob(b"g", b"", b"y"))
        await peer.send(JobCreated(b"H:other"))
        other: ClientJob = await submitting.outcome()
        await stage.lose_first(peer)
        with pytest.raises(ConnectionLost):
            await stage.call(other.result).outcome()
        stage.call(stage.client.echo, b"x")
        peer = await stage.accept(stage.second)
        await peer.expect(EchoReq(b"x"))  # and nothing before


async def test_one_that_is_cancelled_while_it_is_submitted_again_ends_at_once() -> None:
    async with staged() as stage:
        job, peer = await stage.attached()
        await stage.lose_first(peer)
        peer = await stage.accept(stage.second, gearflow=True)
        await peer.expect(SubmitJob(b"f", b"k", b"x"))
        assert job.cancel()
        with pytest.raises(CancelledError):
            await job.result()
        await peer.send(JobCreated(b"H:second"))
        withdrawn = await peer.receive()
        assert isinstance(withdrawn, SubmitJob)
        assert withdrawn.function == DETACH
        # What is said of it from now on is for nobody, and no fault.
        await peer.send(
            JobCreated(b"H:call"), WorkComplete(b"H:second", b"late"), WorkComplete(b"H:call", b"")
        )
        other = stage.call(stage.client.submit, "f", b"y")
        await peer.expect(SubmitJob(b"f", b"", b"y"))
        await peer.send(JobCreated(b"H:other"))
        assert (await other.outcome()).handle == "H:other"


async def test_closing_the_client_ends_it_in_the_middle() -> None:
    waiting: Call
    async with anyio.create_task_group() as tasks:
        async with staged() as stage:
            job, peer = await stage.attached()
            waiting = Call(job.result)
            tasks.start_soon(waiting.run)
            await stage.lose_first(peer)
            peer = await stage.accept(stage.second)
            await peer.expect(SubmitJob(b"f", b"k", b"x"))
        with pytest.raises(ConnectionLost):
            await waiting.outcome()


# ------------------------------------------------------- lost between sending and acknowledgement


@pytest.mark.parametrize(
    ("name", "sent"),
    [("submit", SubmitJob(b"f", b"k", b"x")), ("submit_background", SubmitJobBg(b"f", b"k", b"x"))],
)
async def test_an_unacknowledged_submission_is_sent_again_with_the_same_unique(
    name: str, sent: Packet
) -> None:
    async with staged() as stage:
        submitting = stage.call(getattr(stage.client, name), "f", b"x", unique="k", options=AGAIN)
        peer = await stage.accept(stage.first)
        await peer.expect(sent)
        await stage.lose_first(peer)
        peer = await stage.accept(stage.second)
        await peer.expect(sent)
        await peer.send(JobCreated(b"H:second"))
        accepted = await submitting.outcome()
        assert (accepted.handle, str(accepted.server)) == ("H:second", stage.second.address)


@pytest.mark.parametrize("name", ["submit", "submit_background"])
async def test_otherwise_nobody_sends_it_again(name: str) -> None:
    async with staged() as stage:
        submitting = stage.call(getattr(stage.client, name), "f", b"x", unique="k")
        peer = await stage.accept(stage.first)
        await peer.receive()
        await stage.lose_first(peer)
        with pytest.raises(SubmitUnknown, match="unique 'k'"):
            await submitting.outcome()


async def test_what_reuses_results_is_sent_again_to_the_same_server_of_ours() -> None:
    async with staged() as stage:
        submitting = stage.call(stage.client.submit, "f", b"x", unique="k", options=REUSE)
        peer = await stage.accept(stage.first, gearflow=True)
        sent = await peer.receive()
        assert isinstance(sent, SubmitJob)
        await peer.close()
        peer = await stage.accept(stage.first, gearflow=True)
        await peer.expect(sent)
        await peer.send(JobCreated(b"H:1"))
        job: ClientJob = await submitting.outcome()
        assert str(job.server) == stage.first.address
        await peer.close()  # once it is known to be there, it is as for any other job
        with pytest.raises(ConnectionLost):
            await stage.call(job.result).outcome()


@pytest.mark.parametrize("comes_back", [False, True], ids=["gone", "another program"])
async def test_what_reuses_results_goes_to_no_other_server(comes_back: bool) -> None:
    async with staged(ONE_ATTEMPT) as stage:
        submitting = stage.call(stage.client.submit, "f", b"x", unique="k", options=REUSE)
        peer = await stage.accept(stage.first, gearflow=True)
        await peer.receive()
        if comes_back:
            await peer.close()
            await stage.accept(stage.first, gearflow=False)
        else:
            await stage.lose_first(peer)
        with pytest.raises(SubmitUnknown):
            await submitting.outcome()


async def test_many_are_sent_again_one_by_one_by_what_each_allows() -> None:
    async with staged() as stage:
        orders = [
            JobRequest("f", b"0", options=AGAIN),
            JobRequest("f", b"1"),
            JobRequest("f", b"2", options=AGAIN),
        ]
        submitting = stage.call(stage.client.submit_many, orders)
        peer = await stage.accept(stage.first)
        await peer.expect(*(SubmitJobBg(b"f", b"", b"%d" % number) for number in range(3)))
        await peer.send(JobCreated(b"H:0"))
        await stage.lose_first(peer)
        peer = await stage.accept(stage.second)
        await peer.expect(SubmitJobBg(b"f", b"", b"2"))
        await peer.send(JobCreated(b"H:2"))
        first, second, third = await submitting.outcome()
        assert (first.handle, str(first.server)) == ("H:0", stage.first.address)
        assert isinstance(second, SubmitUnknown)
        assert isinstance(third, JobHandle)
        assert (third.handle, str(third.server)) == ("H:2", stage.second.address)


async def test_many_attached_jobs_go_on_by_what_each_allows() -> None:
    async with staged() as stage:
        orders = [
            JobRequest("f", b"x", "k", options=AGAIN, detached=False),
            JobRequest("f", b"1", detached=False),
            JobRequest("f", b"2", options=AGAIN, detached=False),
        ]
        submitting = stage.call(stage.client.attach_many, orders)
        peer = await stage.accept(stage.first)
        await peer.expect(SubmitJob(b"f", b"k", b"x"), SubmitJob(b"f", b"", b"1"), SubmitJob(b"f", b"", b"2"))
        await peer.send(JobCreated(b"H:first"))
        await stage.lose_first(peer)
        peer = await stage.accept(stage.second)
        again = [await peer.expect_a(SubmitJob), await peer.expect_a(SubmitJob)]
        assert sorted(packet.workload for packet in again) == [b"2", b"x"]
        await peer.send(*(JobCreated(b"H:" + packet.workload) for packet in again))
        await peer.send(*(WorkComplete(b"H:" + packet.workload, packet.workload) for packet in again))
        first, second, third = await submitting.outcome()
        assert isinstance(second, SubmitUnknown)
        with anyio.fail_after(20):
            assert [await first.result(), await third.result()] == [b"x", b"2"]
