"""The client against a scripted server: the orders and faults that no real server brings about on demand."""

import gc
from collections.abc import Sequence
from concurrent.futures import CancelledError
from typing import Final

import anyio
import pytest

from gearflow.client import (
    Client,
    ClientJob,
    JobFailed,
    JobRequest,
    JobStatus,
    Priority,
    ServerFeatures,
)
from gearflow.errors import ConnectionLost, NoServer, QueueFull, ServerError, SubmitUnknown
from gearflow.protocol.codec import mark_failure
from gearflow.protocol.constants import HEADER, RES, PacketType
from gearflow.protocol.packets import (
    EchoReq,
    EchoRes,
    Error,
    GetStatus,
    JobCreated,
    Packet,
    StatusRes,
    SubmitJob,
    SubmitJobBg,
    SubmitJobEpoch,
    SubmitJobHigh,
    SubmitJobHighBg,
    SubmitJobLow,
    SubmitJobLowBg,
    WorkComplete,
    WorkData,
    WorkException,
    WorkFail,
    WorkStatus,
    WorkWarning,
)
from gearflow.testing.peer import ScriptedPeer, ScriptedServer
from tests.client.conftest import Call, Scripted

MORE_THAN_FITS: Final = bytes(32 * 1024 * 1024)
"""A workload that jams a connection whose other end does not read."""


async def submitted(
    client: Client, peer: ScriptedPeer, handle: bytes = b"H:1", unique: str = ""
) -> ClientJob:
    """A job that the server has accepted."""
    call = Call(client.submit, "f", b"x", unique=unique)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call.run)
        await peer.expect(SubmitJob(b"f", unique.encode(), b"x"))
        await peer.send(JobCreated(handle))
    job = await call.outcome()
    assert isinstance(job, ClientJob)
    return job


async def answered(client: Client, peer: ScriptedPeer) -> ClientJob:
    """A job that ends with b"r": all that the server said before has been taken in then."""
    job = await submitted(client, peer, b"H:9")
    await peer.send(WorkComplete(b"H:9", b"r"))
    return job


# --------------------------------------------------------------------------------------- handshake


@pytest.mark.parametrize("gearflow", [False, True])
async def test_the_handshake_tells_what_the_server_is(scripted: Scripted, gearflow: bool) -> None:
    async with scripted(gearflow=gearflow) as (client, _):
        assert await client.features() == ServerFeatures(gearflow=gearflow, exceptions=True)


async def test_a_server_may_refuse_every_option(scripted: Scripted) -> None:
    async with (
        ScriptedServer() as server,
        Client([server.address]) as client,
        anyio.create_task_group() as tasks,
    ):
        call = Call(client.features)
        tasks.start_soon(call.run)
        peer = await server.accept()
        await peer.send(Error(b"unknown_option", b""), Error(b"unknown_option", b""))
        assert await call.outcome() == ServerFeatures(gearflow=False, exceptions=False)


async def test_a_server_that_ignores_the_handshake_is_given_up_after_the_connect_timeout() -> None:
    async with ScriptedServer() as server, Client([server.address], connect_timeout=0.3) as client:
        with anyio.fail_after(20), pytest.raises(NoServer, match=r"did not answer OPTION_REQ within 0\.3 s"):
            await client.submit("f", b"x")


async def test_a_slow_handshake_is_waited_for_by_all_callers_on_one_connection() -> None:
    async with (
        ScriptedServer() as server,
        Client([server.address]) as client,
        anyio.create_task_group() as tasks,
    ):
        calls = [Call(client.submit_background, "f", b"x") for _ in range(3)]
        for call in calls:
            tasks.start_soon(call.run)
        peer = await server.accept()
        await peer.shake_hands()
        await peer.expect(*[SubmitJobBg(b"f", b"", b"x")] * 3)
        await peer.send(*(JobCreated(b"H:%d" % n) for n in range(3)), piece=1)
        assert {str(await call.outcome()) for call in calls} == {"H:0", "H:1", "H:2"}


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\0REQ" + bytes(8),
        b"\0XYZ" + bytes(8),
        HEADER.pack(RES, 99, 0),
        HEADER.pack(RES, PacketType.JOB_CREATED, 3) + b"H:1",
        HEADER.pack(RES, PacketType.NOOP, 0),
    ],
)
async def test_a_server_that_talks_nonsense_is_no_server(garbage: bytes) -> None:
    async with (
        ScriptedServer() as server,
        Client([server.address]) as client,
        anyio.create_task_group() as tasks,
    ):
        call = Call(client.submit, "f", b"x")
        tasks.start_soon(call.run)
        peer = await server.accept()
        await peer.send(garbage)
        with pytest.raises(NoServer, match="it broke the protocol"):
            await call.outcome()


async def test_garbage_ends_the_connection_and_what_depends_on_it(scripted: Scripted) -> None:
    async with scripted() as (client, peer), anyio.create_task_group() as tasks:
        job = await submitted(client, peer)
        submission = Call(client.submit, "f", b"y", unique="u")
        tasks.start_soon(submission.run)
        await peer.expect(SubmitJob(b"f", b"u", b"y"))
        await peer.send(b"\0ABC" + bytes(8))
        with pytest.raises(SubmitUnknown, match="it broke the protocol"):
            await submission.outcome()
        with pytest.raises(ConnectionLost, match="it broke the protocol"):
            await job.result(5)
        await peer.expect_end()


# ---------------------------------------------------------------------------------- jobs and answers


async def test_a_result_in_the_same_bytes_as_the_acknowledgement_is_not_missed(scripted: Scripted) -> None:
    async with scripted() as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.submit, "f", b"x")
        tasks.start_soon(call.run)
        await peer.expect(SubmitJob(b"f", b"", b"x"))
        await peer.send(JobCreated(b"H:1"), WorkData(b"H:1", b"part"), WorkComplete(b"H:1", b"a\0b"))
        job = await call.outcome()
        assert (job.handle, job.done, await job.result()) == ("H:1", True, b"a\0b")
        assert [event async for event in job.events()] == [WorkData(b"H:1", b"part")]


@pytest.mark.parametrize("piece", [1, 7, 1000])
async def test_where_the_bytes_are_cut_does_not_matter(scripted: Scripted, piece: int) -> None:
    said: Sequence[Packet] = [
        JobCreated(b"H:1"),
        WorkStatus(b"H:1", b"1", b"2"),
        WorkWarning(b"H:1", b"careful"),
        WorkComplete(b"H:1", b"r" * 300),
    ]
    async with scripted() as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.submit, "f", b"x")
        tasks.start_soon(call.run)
        await peer.expect(SubmitJob(b"f", b"", b"x"))
        await peer.send(*said, piece=piece)
        job = await call.outcome()
        assert [event async for event in job.events()] == list(said[1:3])
        assert await job.result() == b"r" * 300


CALL: Final = JobRequest("f", b"x", detached=False)


async def test_a_caller_that_waits_for_the_end_is_woken_by_it(scripted: Scripted) -> None:
    async with scripted() as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.submit_and_wait, CALL)
        tasks.start_soon(call.run)
        await peer.expect(SubmitJob(b"f", b"", b"x"))
        await peer.send(JobCreated(b"H:1"))
        await (await answered(client, peer)).result(5)
        assert call.value is None
        await peer.send(WorkComplete(b"H:1", b"r"))
        assert (await call.outcome()).outcome() == b"r"


async def test_an_end_in_the_same_bytes_as_the_acknowledgement_wakes_it_too(scripted: Scripted) -> None:
    async with scripted() as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.submit_and_wait, CALL)
        tasks.start_soon(call.run)
        await peer.expect(SubmitJob(b"f", b"", b"x"))
        await peer.send(JobCreated(b"H:1"), WorkException(b"H:1", b"no"))
        with pytest.raises(JobFailed, match="no"):
            (await call.outcome()).outcome()


@pytest.mark.parametrize("is_created", [False, True])
async def test_a_cancelled_caller_that_waits_for_the_end_detaches(
    scripted: Scripted, is_created: bool
) -> None:
    async with scripted(gearflow=True) as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.submit_and_wait, CALL)
        tasks.start_soon(call.run)
        await peer.expect(SubmitJob(b"f", b"", b"x"))
        if is_created:
            await peer.send(JobCreated(b"H:1"))
            await (await answered(client, peer)).result(5)
        call.scope.cancel()
        assert await call.outcome() is None
        if not is_created:
            await peer.send(JobCreated(b"H:1"))
        detach = await peer.expect_a(SubmitJob)
        assert (detach.function, b"H:1" in detach.workload) == (b"gearflow:detach", True)


@pytest.mark.parametrize(("is_created", "kind"), [(False, SubmitUnknown), (True, ConnectionLost)])
async def test_a_lost_connection_wakes_a_caller_that_waits_for_the_end(
    scripted: Scripted, is_created: bool, kind: type[Exception]
) -> None:
    async with scripted() as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.submit_and_wait, CALL)
        tasks.start_soon(call.run)
        await peer.expect(SubmitJob(b"f", b"", b"x"))
        if is_created:
            await peer.send(JobCreated(b"H:1"))
            await (await answered(client, peer)).result(5)
        await peer.close()
        with pytest.raises(kind):
            (await call.outcome()).outcome()


async def test_callers_whose_jobs_are_one_are_all_woken_by_its_end(scripted: Scripted) -> None:
    async with scripted() as (client, peer), anyio.create_task_group() as tasks:
        calls = [Call(client.submit_and_wait, CALL._replace(unique="u")) for _ in range(3)]
        for call in calls:
            tasks.start_soon(call.run)
        await peer.expect(*[SubmitJob(b"f", b"u", b"x")] * 3)
        await peer.send(*[JobCreated(b"H:1")] * 3, *[WorkComplete(b"H:1", b"r")] * 3)
        assert [(await call.outcome()).outcome() for call in calls] == [b"r"] * 3


async def test_many_waits_for_one_job_end_together_and_those_that_timed_out_are_gone(
    scripted: Scripted,
) -> None:
    async with scripted() as (client, peer), anyio.create_task_group() as tasks:
        job = await submitted(client, peer)
        with pytest.raises(TimeoutError):
            await job.result(0.001)
        waits = [Call(job.result) for _ in range(3)] + [Call(job.next_event) for _ in range(2)]
        for wait in waits:
            tasks.start_soon(wait.run)
        await (await answered(client, peer)).result(5)
        waits[0].scope.cancel()
        waits[3].scope.cancel()
        await peer.send(WorkComplete(b"H:1", b"r"))
        assert [await wait.outcome() for wait in waits] == [None, b"r", b"r", None, None]


async def test_priorities_and_start_times_choose_the_packet(scripted: Scripted) -> None:
    async with scripted() as (client, peer), anyio.create_task_group() as tasks:
        tasks.start_soon(Call(client.submit, "f", b"1", priority=Priority.HIGH).run)
        await peer.expect(SubmitJobHigh(b"f", b"", b"1"))
        tasks.start_soon(Call(client.submit, "f", b"2", priority=Priority.LOW).run)
        await peer.expect(SubmitJobLow(b"f", b"", b"2"))
        tasks.start_soon(Call(client.submit_background, "f", b"3", unique="u", priority=Priority.HIGH).run)
        await peer.expect(SubmitJobHighBg(b"f", b"u", b"3"))
        tasks.start_soon(Call(client.submit_background, "f", b"4", priority=Priority.LOW).run)
        await peer.expect(SubmitJobLowBg(b"f", b"", b"4"))
        tasks.start_soon(Call(client.submit_background, "f", b"5", at=1_700_000_000.2).run)
        await peer.expect(SubmitJobEpoch(b"f", b"", b"1700000001", b"5"))
        await peer.send(*(JobCreated(b"H:%d" % n) for n in range(5)))


async def test_errors_belong_to_requests_in_order(scripted: Scripted) -> None:
    async with scripted() as (client, peer), anyio.create_task_group() as tasks:
        calls = [
            Call(client.submit, "f", b"x"),
            Call(client.submit, "f", b"y"),
            Call(client.submit, "f", b"z"),
            Call(client.echo, b"e"),
        ]
        requests = [*(SubmitJob(b"f", b"", workload) for workload in (b"x", b"y", b"z")), EchoReq(b"e")]
        for call, request in zip(calls, requests, strict=True):
            tasks.start_soon(call.run)
            await peer.expect(request)
        await peer.send(
            Error(b"queue_error", b"Job queue is full"),
            JobCreated(b"H:1"),
            Error(b"QUEUE_ERROR", b"QUEUE_ERROR"),
            EchoRes(b"e"),
            WorkComplete(b"H:1", b"r"),
        )
        with pytest.raises(QueueFull):
            await calls[0].outcome()
        assert await (await calls[1].outcome()).result(5) == b"r"
        with pytest.raises(ServerError) as refused:
            await calls[2].outcome()
        assert type(refused.value) is ServerError
        assert refused.value.code == "QUEUE_ERROR"
        assert await calls[3].outcome() == b"e"


async def test_an_answer_to_another_question_ends_the_connection(scripted: Scripted) -> None:
    async with scripted() as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.echo, b"e")
        tasks.start_soon(call.run)
        await peer.expect(EchoReq(b"e"))
        await peer.send(StatusRes(b"H:1", b"0", b"0", b"0", b"0"))
        with pytest.raises(ConnectionLost, match="STATUS_RES came where ECHO_RES was due"):
            await call.outcome()


async def test_errors_that_answer_nothing_are_told_once(
    scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    async with scripted() as (client, peer):
        await peer.send(*[Error(b"ODD", b"what?")] * 1000)
        job = await answered(client, peer)
        assert await job.result(5) == b"r"
    assert caplog.messages.count("the server sent an error that answers nothing") == 1


async def test_packets_for_unknown_handles_are_ignored(scripted: Scripted) -> None:
    async with scripted() as (client, peer):
        job = await submitted(client, peer)
        stray = b"H:99"
        await peer.send(
            WorkComplete(stray, b"no"),
            WorkFail(stray),
            WorkException(stray, b"no"),
            WorkData(stray, b"no"),
            Error(b"JOB_NOT_FOUND", b"answers nothing"),
            WorkComplete(b"H:1", b"yes"),
        )
        assert await job.result(5) == b"yes"


async def test_an_empty_status_field_counts_as_zero(scripted: Scripted) -> None:
    async with scripted() as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.status, "H:1")
        tasks.start_soon(call.run)
        await peer.expect(GetStatus(b"H:1"))
        await peer.send(StatusRes(b"H:1", b"1", b"0", b"", b""))
        assert await call.outcome() == JobStatus(known=True, running=False, numerator=0, denominator=0)


async def test_a_failure_with_and_without_a_reason(scripted: Scripted) -> None:
    async with scripted() as (client, peer):
        job = await submitted(client, peer, b"H:1")
        await peer.send(WorkException(b"H:1", b"\xffbecause"), WorkFail(b"H:1"))
        for _ in range(2):  # asking again gives the same
            with pytest.raises(JobFailed, match=r"job H:1 of 'f' on .* failed: .because") as failed:
                await job.result(5)
            assert failed.value.exception == b"\xffbecause"
        silent = await submitted(client, peer, b"H:2")
        await peer.send(HEADER.pack(RES, PacketType.WORK_FAIL, 4) + b"H:2\0")  # gearmand's stray NUL
        with pytest.raises(JobFailed) as failed:
            await silent.result(5)
        assert failed.value.exception is None


FAILURE: Final = b'{"type": "KeyError", "message": "no such order"}'


async def test_a_marked_warning_before_the_fail_is_the_exception(scripted: Scripted) -> None:
    async with scripted() as (client, peer):
        job, other = await submitted(client, peer, b"H:1"), await submitted(client, peer, b"H:2")
        await peer.send(
            WorkWarning(b"H:1", b"careful"),
            WorkWarning(b"H:1", mark_failure(FAILURE)),
            WorkData(b"H:2", b"of another job"),
            WorkFail(b"H:1"),
            WorkComplete(b"H:2", b"r"),
        )
        with pytest.raises(JobFailed) as failed:
            await job.result(5)
        assert failed.value.exception == FAILURE
        assert [event async for event in job.events()] == [WorkWarning(b"H:1", b"careful")]
        assert await other.result(5) == b"r"
        assert [event async for event in other.events()] == [WorkData(b"H:2", b"of another job")]


@pytest.mark.parametrize(
    "following",
    [
        [WorkData(b"H:1", b"more"), WorkComplete(b"H:1", b"r")],
        [WorkWarning(b"H:1", b"more"), WorkFail(b"H:1")],
        [WorkComplete(b"H:1", b"r")],
        [WorkException(b"H:1", b"of another kind")],
    ],
    ids=lambda packets: packets[0].type.name,
)
async def test_a_marked_warning_before_anything_else_is_a_warning(
    scripted: Scripted, following: list[Packet]
) -> None:
    marked = WorkWarning(b"H:1", mark_failure(FAILURE))
    async with scripted() as (client, peer):
        job = await submitted(client, peer)
        await peer.send(marked, *following)
        assert [event async for event in job.events()] == [marked, *following[:-1]]
        if isinstance(following[-1], WorkComplete):
            assert await job.result(5) == b"r"
            return
        with pytest.raises(JobFailed) as failed:
            await job.result(5)
        assert failed.value.exception == getattr(following[-1], "data", None)


async def test_a_marked_warning_is_a_warning_when_the_connection_is_lost_behind_it(
    scripted: Scripted,
) -> None:
    marked = WorkWarning(b"H:1", mark_failure(FAILURE))
    async with scripted() as (client, peer):
        job = await submitted(client, peer)
        await peer.send(marked)
        await peer.close()
        assert [event async for event in job.events()] == [marked]
        with pytest.raises(ConnectionLost):
            await job.result(5)


async def test_gearflows_own_server_has_no_use_for_the_mark(scripted: Scripted) -> None:
    marked = WorkWarning(b"H:1", mark_failure(FAILURE))
    async with scripted(gearflow=True) as (client, peer):
        job = await submitted(client, peer)
        await peer.send(marked)
        assert await job.next_event() == marked  # at once
        await peer.send(WorkFail(b"H:1"))
        with pytest.raises(JobFailed) as failed:
            await job.result(5)
        assert failed.value.exception is None


@pytest.mark.parametrize("ends", [1, 2])
async def test_two_submissions_on_one_handle_both_get_the_exception_of_a_marked_warning(
    scripted: Scripted, ends: int
) -> None:
    async with scripted() as (client, peer):
        jobs = [await submitted(client, peer, b"H:1", unique="u") for _ in range(2)]
        await peer.send(*[WorkWarning(b"H:1", mark_failure(FAILURE))] * ends, *[WorkFail(b"H:1")] * ends)
        for job in jobs:
            with pytest.raises(JobFailed) as failed:
                await job.result(5)
            assert failed.value.exception == FAILURE
            assert [event async for event in job.events()] == []


@pytest.mark.parametrize("ends", [1, 2])
async def test_two_submissions_on_one_handle_both_get_everything_once(scripted: Scripted, ends: int) -> None:
    async with scripted() as (client, peer):
        first = await submitted(client, peer, b"H:1", unique="u")
        await peer.send(WorkData(b"H:1", b"early"))
        second = await submitted(client, peer, b"H:1", unique="u")
        # The worker says the same twice, then something else; each for both submissions.
        await peer.send(*[WorkData(b"H:1", b"same")] * 4, *[WorkStatus(b"H:1", b"1", b"2")] * 2)
        await peer.send(*[WorkComplete(b"H:1", b"r")] * ends)
        assert [await first.result(5), await second.result(5)] == [b"r", b"r"]
        later = [WorkData(b"H:1", b"same"), WorkData(b"H:1", b"same"), WorkStatus(b"H:1", b"1", b"2")]
        assert [event async for event in first.events()] == [WorkData(b"H:1", b"early"), *later]
        assert [event async for event in second.events()] == later


async def test_a_handle_that_is_given_again_after_its_end_is_a_new_job(scripted: Scripted) -> None:
    async with scripted() as (client, peer):
        first = await submitted(client, peer, b"H:1")
        await peer.send(WorkComplete(b"H:1", b"one"))
        assert await first.result(5) == b"one"
        second = await submitted(client, peer, b"H:1")
        assert not second.done
        await peer.send(WorkFail(b"H:1"))
        with pytest.raises(JobFailed):
            await second.result(5)
        assert await first.result() == b"one"


async def test_done_callbacks_are_called_once_for_every_kind_of_end(
    scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[str] = []

    def note(job: ClientJob) -> None:
        ended.append(job.handle)

    def stumble(_: ClientJob) -> None:
        raise ZeroDivisionError

    async with scripted() as (client, peer):
        jobs = [await submitted(client, peer, b"H:%d" % n) for n in range(4)]
        jobs[0].add_done_callback(stumble)
        for job in jobs:
            job.add_done_callback(note)
        await peer.send(WorkComplete(b"H:0", b""), WorkComplete(b"H:0", b""), WorkFail(b"H:1"))
        with pytest.raises(JobFailed):
            await jobs[1].result(5)
        assert jobs[2].cancel()
        assert not jobs[2].cancel()
        assert ended == ["H:0", "H:1", "H:2"]
        await peer.reset()
        with pytest.raises(ConnectionLost):
            await jobs[3].result(5)
        assert ended == ["H:0", "H:1", "H:2", "H:3"]
        jobs[3].add_done_callback(note)  # at once
        assert len(ended) == 5
    assert "a job's done callback raised" in caplog.text


async def test_unread_progress_does_not_pile_up_without_end(scripted: Scripted) -> None:
    async with scripted() as (client, peer):
        job = await submitted(client, peer)
        for start in range(0, 5000, 1000):
            await peer.send(*(WorkStatus(b"H:1", b"%d" % n, b"5000") for n in range(start, start + 1000)))
        await peer.send(WorkComplete(b"H:1", b""))
        await job.result(5)
        events = [event async for event in job.events()]
        assert len(events) == 1024
        assert events[-1] == WorkStatus(b"H:1", b"4999", b"5000")


# ------------------------------------------------------------------------------------ lost connections


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_connection_lost_before_the_acknowledgement_leaves_the_submission_unknown(
    scripted: Scripted, how: str
) -> None:
    async with scripted() as (client, peer), anyio.create_task_group() as tasks:
        calls = [
            Call(client.submit, "f", b"x", unique="u"),
            Call(client.submit_background, "f", b"y"),
            Call(client.status, "H:1"),
            Call(client.echo, b"e"),
        ]
        requests = [
            SubmitJob(b"f", b"u", b"x"),
            SubmitJobBg(b"f", b"", b"y"),
            GetStatus(b"H:1"),
            EchoReq(b"e"),
        ]
        for call, request in zip(calls, requests, strict=True):
            tasks.start_soon(call.run)
            await peer.expect(request)
        await (peer.close() if how == "close" else peer.reset())
        with pytest.raises(SubmitUnknown, match=r"function 'f', unique 'u': sent to 127\.0\.0\.1:\d+"):
            await calls[0].outcome()
        with pytest.raises(SubmitUnknown, match=r"function 'f': sent to"):
            await calls[1].outcome()
        with pytest.raises(ConnectionLost, match="before it answered the status of H:1"):
            await calls[2].outcome()
        with pytest.raises(ConnectionLost, match="before it answered an echo"):
            await calls[3].outcome()


async def test_a_connection_lost_after_it_loses_the_job_and_ends_its_events(scripted: Scripted) -> None:
    async with scripted() as (client, peer):
        job = await submitted(client, peer)
        await peer.send(WorkData(b"H:1", b"part"))
        await peer.close()
        assert [event async for event in job.events()] == [WorkData(b"H:1", b"part")]
        with pytest.raises(ConnectionLost, match="while job H:1 of 'f' was attached; the job may run on"):
            await job.result(5)


async def test_answers_that_came_before_the_end_still_count(scripted: Scripted) -> None:
    async with scripted() as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.submit, "f", b"x")
        tasks.start_soon(call.run)
        await peer.expect(SubmitJob(b"f", b"", b"x"))
        await peer.send(JobCreated(b"H:1"), WorkComplete(b"H:1", b"r"))
        await peer.close()
        assert await (await call.outcome()).result(5) == b"r"


async def test_leaving_the_client_ends_what_waits_and_closes_the_connection() -> None:
    async with ScriptedServer() as server, anyio.create_task_group() as tasks:
        async with Client([server.address]) as client:
            first = Call(client.submit, "f", b"x")
            tasks.start_soon(first.run)
            peer = await server.accept()
            await peer.shake_hands()
            await peer.expect(SubmitJob(b"f", b"", b"x"))
            await peer.send(JobCreated(b"H:1"))
            job = await first.outcome()
            result, submission = Call(job.result), Call(client.submit, "f", b"y")
            tasks.start_soon(result.run)
            tasks.start_soon(submission.run)
            await peer.expect(SubmitJob(b"f", b"", b"y"))
            echo = Call(client.echo, b"")
            tasks.start_soon(echo.run)
            await peer.expect(EchoReq(b""))
        await peer.expect_end()
        with pytest.raises(ConnectionLost, match="the client was closed"):
            await result.outcome()
        with pytest.raises(SubmitUnknown, match="the client was closed"):
            await submission.outcome()
        with pytest.raises(ConnectionLost, match="the client was closed"):
            await echo.outcome()
        with pytest.raises(ConnectionLost, match="the client is closed"):
            await client.submit("f", b"z")


async def test_leaving_the_client_while_it_connects_ends_the_caller() -> None:
    async with ScriptedServer() as server, anyio.create_task_group() as tasks:
        async with Client([server.address]) as client:
            call = Call(client.submit, "f", b"x")
            tasks.start_soon(call.run)
            peer = await server.accept()
            await peer.receive()  # the handshake has begun
            await peer.receive()
        await peer.expect_end()
        with pytest.raises(ConnectionLost, match="the client is closed"):
            await call.outcome()


async def test_an_exception_of_the_block_leaves_the_client_as_it_is(scripted: Scripted) -> None:
    async with ScriptedServer() as server:
        with pytest.raises(KeyError, match="mine"):
            async with Client([server.address]):
                raise KeyError("mine")


async def test_a_client_that_was_not_entered_says_so() -> None:
    with pytest.raises(RuntimeError, match="async with Client"):
        await Client(["127.0.0.1:1"]).submit("f", b"x")
    client = Client(["127.0.0.1:1"])
    async with client:
        pass
    with pytest.raises(RuntimeError, match="entered only once"):
        await client.__aenter__()


# ---------------------------------------------------------------------------------------- cancellation


async def test_a_submission_cancelled_before_it_was_sent_never_is(scripted: Scripted) -> None:
    async with scripted() as (client, peer), anyio.create_task_group() as tasks:
        jammed, never, then = (Call(client.submit, "f", load) for load in (MORE_THAN_FITS, b"never", b"then"))
        for call in (jammed, never, then):
            tasks.start_soon(call.run)
            await anyio.wait_all_tasks_blocked()
        never.scope.cancel()
        await peer.expect(SubmitJob(b"f", b"", MORE_THAN_FITS), SubmitJob(b"f", b"", b"then"))
        await peer.send(JobCreated(b"H:1"), JobCreated(b"H:2"))
        assert (await then.outcome()).handle == "H:2"


async def test_a_submission_that_was_never_sent_goes_to_the_next_server() -> None:
    async with (
        ScriptedServer() as first,
        ScriptedServer() as second,
        Client([first.address, second.address]) as client,
        anyio.create_task_group() as tasks,
    ):
        jammed, waiting = Call(client.submit, "f", MORE_THAN_FITS), Call(client.submit, "f", b"x")
        tasks.start_soon(jammed.run)
        peer = await first.accept()
        await peer.shake_hands()
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(waiting.run)
        await anyio.wait_all_tasks_blocked()
        await first.stop_listening()
        await peer.reset()
        peer = await second.accept()
        await peer.shake_hands()
        await peer.expect(SubmitJob(b"f", b"", b"x"))
        await peer.send(JobCreated(b"H:1"))
        assert str((await waiting.outcome()).server) == second.address
        with pytest.raises(SubmitUnknown):
            await jammed.outcome()


async def test_the_answer_to_a_cancelled_submission_is_taken_in_its_turn(scripted: Scripted) -> None:
    async with scripted() as (client, peer), anyio.create_task_group() as tasks:
        cancelled, kept = Call(client.submit, "f", b"x"), Call(client.submit, "f", b"y")
        tasks.start_soon(cancelled.run)
        await peer.expect(SubmitJob(b"f", b"", b"x"))
        tasks.start_soon(kept.run)
        await peer.expect(SubmitJob(b"f", b"", b"y"))
        cancelled.scope.cancel()
        assert await cancelled.outcome() is None
        await peer.send(
            JobCreated(b"H:1"), JobCreated(b"H:2"), WorkComplete(b"H:1", b"1"), WorkComplete(b"H:2", b"2")
        )
        assert await (await kept.outcome()).result(5) == b"2"


async def test_a_job_that_was_cancelled_here_stays_counted_where_the_server_sends_copies(
    scripted: Scripted,
) -> None:
    async with scripted() as (client, peer):
        gone = await submitted(client, peer, b"H:1", unique="u")
        assert gone.cancel()
        kept = await submitted(client, peer, b"H:1", unique="u")
        await peer.send(*[WorkData(b"H:1", b"d")] * 2, *[WorkComplete(b"H:1", b"r")] * 2)
        assert await kept.result(5) == b"r"
        assert [event async for event in kept.events()] == [WorkData(b"H:1", b"d")]
        assert [event async for event in gone.events()] == []


async def test_a_cancelled_submission_is_counted_too_where_the_server_sends_copies(
    scripted: Scripted,
) -> None:
    async with scripted() as (client, peer), anyio.create_task_group() as tasks:
        cancelled = Call(client.submit, "f", b"x", unique="u")
        tasks.start_soon(cancelled.run)
        await peer.expect(SubmitJob(b"f", b"u", b"x"))
        cancelled.scope.cancel()
        await cancelled.outcome()
        await peer.send(JobCreated(b"H:1"))
        kept = await submitted(client, peer, b"H:1", unique="u")
        await peer.send(*[WorkData(b"H:1", b"d")] * 2, *[WorkComplete(b"H:1", b"r")] * 2)
        assert await kept.result(5) == b"r"
        assert [event async for event in kept.events()] == [WorkData(b"H:1", b"d")]


def detach(handle: str) -> SubmitJob:
    return SubmitJob(b"gearflow:detach", b"", b'{"handle":"%b"}' % handle.encode())


async def test_gearflows_server_is_told_that_a_job_is_wanted_no_more(scripted: Scripted) -> None:
    async with scripted(gearflow=True) as (client, peer):
        job = await submitted(client, peer, b"H:1")
        assert job.cancel()
        with pytest.raises(CancelledError, match="it ends unless others wait for it"):
            await job.result(5)  # before the server has answered
        await peer.expect(detach("H:1"))
        assert not job.cancel()
        await peer.send(WorkData(b"H:1", b"d"), JobCreated(b"H:2"), WorkComplete(b"H:2", b'{"jobs":1}'))
        assert await (await answered(client, peer)).result(5) == b"r"
        assert [event async for event in job.events()] == []


async def test_of_several_submissions_one_less_is_heard_from_the_answer_on(scripted: Scripted) -> None:
    async with scripted(gearflow=True) as (client, peer):
        gone = await submitted(client, peer, b"H:1", unique="u")
        kept = await submitted(client, peer, b"H:1", unique="u")
        assert gone.cancel()
        await peer.expect(detach("H:1"))
        await peer.send(
            *[WorkData(b"H:1", b"d")] * 2,
            *(JobCreated(b"H:2"), WorkComplete(b"H:2", b'{"jobs":1}')),
            *[WorkData(b"H:1", b"d")] * 2,  # equal, and yet no copies
            WorkComplete(b"H:1", b"r"),
        )
        assert await kept.result(5) == b"r"
        assert [event async for event in kept.events()] == [WorkData(b"H:1", b"d")] * 3


async def test_a_job_that_ends_while_the_server_is_told_has_ended(scripted: Scripted) -> None:
    async with scripted(gearflow=True) as (client, peer):
        job = await submitted(client, peer, b"H:1", unique="u")
        assert job.cancel()
        await peer.expect(detach("H:1"))
        await peer.send(WorkComplete(b"H:1", b"r"), JobCreated(b"H:2"), WorkComplete(b"H:2", b'{"jobs":0}'))
        assert await (await answered(client, peer)).result(5) == b"r"


async def test_a_submission_that_is_cancelled_while_it_is_accepted_is_taken_back(scripted: Scripted) -> None:
    async with scripted(gearflow=True) as (client, peer), anyio.create_task_group() as tasks:
        cancelled = Call(client.submit, "f", b"x")
        tasks.start_soon(cancelled.run)
        await peer.expect(SubmitJob(b"f", b"", b"x"))
        cancelled.scope.cancel()
        await cancelled.outcome()
        await peer.send(JobCreated(b"H:1"))
        await peer.expect(detach("H:1"))
        await peer.send(JobCreated(b"H:2"), WorkComplete(b"H:2", b'{"jobs":1}'))
        assert await (await answered(client, peer)).result(5) == b"r"


async def test_nothing_is_kept_of_jobs_that_ended_or_that_nobody_wants(scripted: Scripted) -> None:
    def jobs_in_memory() -> int:
        gc.collect()
        return sum(isinstance(thing, ClientJob) for thing in gc.get_objects())

    async with scripted() as (client, peer), anyio.create_task_group() as tasks:
        before = jobs_in_memory()
        cancelled = Call(client.submit, "f", b"x")
        tasks.start_soon(cancelled.run)
        await peer.expect(SubmitJob(b"f", b"", b"x"))
        cancelled.scope.cancel()
        await cancelled.outcome()
        await peer.send(JobCreated(b"H:0"), WorkData(b"H:0", b"for nobody"))
        assert (await submitted(client, peer, b"H:1")).cancel()
        ended = await submitted(client, peer, b"H:2")
        await peer.send(WorkComplete(b"H:2", b"r"))
        assert await ended.result(5) == b"r"
        del ended
        assert jobs_in_memory() == before


async def test_a_callback_may_cancel_a_job_that_ends_in_the_same_moment(scripted: Scripted) -> None:
    async with scripted() as (client, peer):
        first = await submitted(client, peer, b"H:1", unique="u")
        second = await submitted(client, peer, b"H:1", unique="u")
        first.add_done_callback(lambda _: second.cancel())
        await peer.send(WorkComplete(b"H:1", b"r"))
        assert await first.result(5) == b"r"
        with pytest.raises(CancelledError):
            await second.result(5)


# ------------------------------------------------------------------------------------- no answer at all


async def test_a_server_that_gives_no_answer_is_given_up() -> None:
    async with (
        ScriptedServer() as server,
        Client([server.address], answer_timeout=0.05) as client,
        anyio.create_task_group() as tasks,
    ):
        first = Call(client.submit, "f", b"x")
        tasks.start_soon(first.run)
        peer = await server.accept()
        await peer.shake_hands()
        await peer.expect(SubmitJob(b"f", b"", b"x"))
        await peer.send(JobCreated(b"H:1"))
        job: ClientJob = await first.outcome()
        with anyio.move_on_after(0.2):
            await job.result()  # a result takes as long as it takes
        frozen = Call(client.submit, "f", b"y")
        tasks.start_soon(frozen.run)
        with pytest.raises(SubmitUnknown, match=r"it gave no answer for 0\.\d+ s"):
            await frozen.outcome()
        with pytest.raises(ConnectionLost, match="the job may run on"):
            await job.result(5)
        again = Call(client.submit, "f", b"z")
        tasks.start_soon(again.run)
        await (await server.accept()).shake_hands()
        tasks.cancel_scope.cancel()


async def test_a_server_that_answers_one_by_one_is_not() -> None:
    async with (
        ScriptedServer() as server,
        Client([server.address], answer_timeout=0.4) as client,
        anyio.create_task_group() as tasks,
    ):
        calls = [Call(client.submit_background, "f", b"x") for _ in range(8)]
        for call in calls:
            tasks.start_soon(call.run)
        peer = await server.accept()
        await peer.shake_hands()
        await peer.expect(*[SubmitJobBg(b"f", b"", b"x")] * 8)
        for n in range(8):
            with anyio.move_on_after(0.1):
                await peer.receive()  # there is nothing; it takes its time
            await peer.send(JobCreated(b"H:%d" % n))
        assert {str(await call.outcome()) for call in calls} == {f"H:{n}" for n in range(8)}
