"""How a worker brings a job to its next run, packet by packet: the test is the server."""

import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

import anyio
import pytest

from gearflow.protocol.codec import encode, marked_failure
from gearflow.protocol.envelope import unwrap, wrap
from gearflow.protocol.packets import (
    Error,
    GrabJob,
    GrabJobUniq,
    JobAssign,
    JobCreated,
    NoJob,
    Noop,
    Packet,
    PreSleep,
    SubmitJob,
    SubmitJobBg,
    SubmitJobEpoch,
    WorkComplete,
    WorkData,
    WorkException,
    WorkFail,
    WorkWarning,
)
from gearflow.protocol.server_calls import EVENTS, RETRY, Fault, RetryPlan, cancel_event
from gearflow.protocol.uniques import is_fresh
from gearflow.protocol.workers import REPORT
from gearflow.tasks import AsyncTask, Context, Retry, task
from gearflow.tasks.control_flow import Discard, Fail, Snooze, TryAgain
from gearflow.worker import Worker
from tests.worker.scripted import Peer, scripted_server

Fresh = Callable[..., str]

AT_ONCE: Final = Retry(3, backoff=0)
LATER: Final = Retry(3, backoff=1000, jitter=False)


def failing_task(name: str, retries: Retry | None, error: BaseException, runs: int = 1) -> AsyncTask[[], int]:
    """Fails in so many runs; then its result is the number of the attempt."""

    @task(name=name, retries=retries)
    async def failing(ctx: Context) -> int:
        if ctx.attempt <= runs:
            raise error
        return ctx.attempt

    return failing


async def until(peer: Peer, kind: type[Packet]) -> Packet:
    """The next packet of that kind; GRABs that come before it are in vain."""
    while not isinstance(packet := await peer.expect_a(Packet), kind):
        if isinstance(packet, GrabJobUniq):
            await peer.send(NoJob())
        else:
            assert isinstance(packet, PreSleep), packet
    return packet


# --------------------------------------------------------------------------- on gearflow's own server


async def test_a_retry_is_asked_for_in_place_of_the_end_packet(
    function: str, caplog: pytest.LogCaptureFixture
) -> None:
    failing = failing_task(function, LATER, ValueError("no good"))
    caplog.set_level(logging.INFO, "gearflow.worker")
    with anyio.fail_after(20):
        async with (
            scripted_server() as server,
            Worker([failing], servers=[server.address], concurrency=1) as worker,
        ):
            peer = await server.accept()
            await peer.register()
            await peer.assign(function.encode(), b"{}")
            assert await peer.called(RETRY) == {
                "handle": "H:1",
                "delay": 1000,
                "reason": "attempt 1 of 3 failed: ValueError: no good; again in 1000 s",
            }
            assert worker.running == 1  # until it is answered
            await peer.send(WorkComplete(b"H:call", b'{"jobs":1}'))
            await peer.expect_a(GrabJobUniq)  # and no end packet
            await peer.send(NoJob())
            await peer.expect_a(PreSleep)
            assert worker.running == worker.held == 0
    [line] = [record for record in caplog.records if hasattr(record, "outcome")]
    assert (line.__dict__["outcome"], line.__dict__["attempt"]) == ("retried", 1)
    assert "no good" in caplog.text


@pytest.mark.parametrize(
    "refusal",
    [
        [JobCreated(b"H:c"), WorkWarning(b"H:c", b"not yours"), WorkFail(b"H:c")],
        [
            JobCreated(b"H:c"),
            WorkException(b"H:c", Fault(type="gearflow:refused", message="not yours").to_wire()),
        ],
        [JobCreated(b"H:c"), WorkException(b"H:c", b"not yours")],
        [Error(b"QUEUE_ERROR", b"not yours")],
    ],
    ids=["fail", "fault", "exception", "error"],
)
async def test_a_retry_that_is_refused_ends_the_job_with_its_failure(
    function: str, refusal: list[Packet], caplog: pytest.LogCaptureFixture
) -> None:
    failing = failing_task(function, LATER, ValueError("no good"))
    with anyio.fail_after(20):
        async with scripted_server() as server, Worker([failing], servers=[server.address], concurrency=1):
            peer = await server.accept()
            await peer.register()
            await peer.assign(function.encode(), b"{}")
            assert (await peer.expect_a(SubmitJob)).function == RETRY
            await peer.send(*refusal)
            end = await peer.expect_a(WorkException)
            assert end.handle == b"H:1"
            assert b"no good" in end.data
            await peer.expect_a(GrabJobUniq)
            await peer.send(NoJob())
            await peer.expect_a(PreSleep)
    assert "not yours" in caplog.text
    assert "job failed" in caplog.text


async def test_answers_find_their_jobs_in_whatever_order_they_come(fresh: Fresh) -> None:
    first = failing_task(fresh(), LATER, ValueError("first"))
    second = failing_task(fresh(), LATER, ValueError("second"))
    with anyio.fail_after(20):
        async with (
            scripted_server() as server,
            Worker([first, second], servers=[server.address], concurrency=2) as worker,
        ):
            peer = await server.accept()
            await peer.register(functions=2)
            await peer.assign(first.name.encode(), b"{}", b"H:1")
            asked = [await peer.expect_a(Packet) for _ in range(2)]
            assert GrabJobUniq() in asked  # before or after the other
            [call] = [packet for packet in asked if isinstance(packet, SubmitJob)]
            assert b'"H:1"' in call.workload
            await peer.assign(second.name.encode(), b"{}", b"H:2")
            assert b'"H:2"' in (await peer.expect_a(SubmitJob)).workload
            await peer.send(JobCreated(b"H:8"), JobCreated(b"H:9"))
            await peer.send(
                WorkWarning(b"H:9", b"no"), WorkWarning(b"H:8", b"a word"), WorkComplete(b"H:8", b"{}")
            )
            await peer.expect_a(GrabJobUniq)
            assert worker.running == 1
            await peer.send(WorkFail(b"H:9"))
            end = await peer.expect_a(WorkException)
            assert end.handle == b"H:2"
            assert b"second" in end.data
            await peer.send(NoJob())
            await until(peer, PreSleep)


async def test_a_connection_that_is_lost_before_the_answer_hands_the_job_on(
    function: str, caplog: pytest.LogCaptureFixture
) -> None:
    failing = failing_task(function, LATER, ValueError("no good"))
    with anyio.fail_after(20):
        async with (
            scripted_server() as server,
            Worker([failing], servers=[server.address], concurrency=1, first_retry=0.001) as worker,
        ):
            peer = await server.accept()
            await peer.register()
            await peer.assign(function.encode(), b"{}")
            await peer.called(RETRY)
            await peer.close()
            peer = await server.accept()
            await peer.sleeping()
            assert worker.running == 0
    assert "job handed on" in caplog.text


async def test_a_job_that_is_cancelled_while_it_asks_for_a_retry_ends_as_cancelled(
    function: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gearflow.worker")
    failing = failing_task(function, LATER, ValueError("no good"))
    with anyio.fail_after(20):
        async with scripted_server() as server, Worker([failing], servers=[server.address], concurrency=1):
            peer = await server.accept()
            await peer.register()
            await peer.assign(function.encode(), b"{}")
            await peer.called(RETRY)
            await peer.send(
                WorkData(b"H:events", cancel_event(b"H:1")),
                WorkWarning(b"H:call", b"no"),
                WorkFail(b"H:call"),
            )
            assert await peer.expect_a(WorkFail) == WorkFail(b"H:1")
            await peer.expect_a(GrabJobUniq)
            await peer.send(NoJob())
            await peer.expect_a(PreSleep)
    assert "job cancelled" in caplog.text


@pytest.mark.parametrize(
    ("error", "request_"),
    [
        (Snooze(60), {"delay": 60, "counted": False, "reason": "too early; again in 60 s"}),
        (TryAgain(after=5), {"delay": 5, "reason": "attempt 2 of 3 asks for another; again in 5 s"}),
    ],
)
async def test_a_task_may_ask_for_another_run_without_having_retries(
    function: str, error: BaseException, request_: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    asking = failing_task(function, None, error, runs=9)
    caplog.set_level(logging.INFO, "gearflow.worker")
    with anyio.fail_after(20):
        async with scripted_server() as server, Worker([asking], servers=[server.address], concurrency=1):
            peer = await server.accept()
            await peer.register()
            await peer.assign(function.encode(), wrap(b"{}", attempt=2))
            assert await peer.answered(RETRY) == {"handle": "H:1", **request_}
            await until(peer, PreSleep)
    [line] = [record for record in caplog.records if hasattr(record, "outcome")]
    snoozed = isinstance(error, Snooze)
    assert line.__dict__["outcome"] == ("snoozed" if snoozed else "retried")
    assert line.__dict__["attempt"] == 2
    assert line.levelno == (logging.INFO if snoozed else logging.WARNING)


async def test_what_is_discarded_or_does_not_validate_is_not_run_again(
    fresh: Fresh, caplog: pytest.LogCaptureFixture
) -> None:
    discarded = failing_task(fresh(), LATER, Discard("the account is closed"))
    invalid = failing_task(fresh(), LATER, ValueError("never run"))
    with anyio.fail_after(20):
        async with (
            scripted_server() as server,
            Worker([discarded, invalid], servers=[server.address], concurrency=1),
        ):
            peer = await server.accept()
            await peer.register(functions=2)
            await peer.assign(discarded.name.encode(), b"{}")
            assert b"the account is closed" in (await peer.expect_a(WorkException)).data
            await peer.expect_a(GrabJobUniq)
            for workload in (b'{"x": 1}', b"\0gf1"):
                await peer.assign(invalid.name.encode(), workload)
                assert b"PayloadInvalid" in (await peer.expect_a(WorkException)).data
                await peer.expect_a(GrabJobUniq)
            await peer.send(NoJob())
            await peer.expect_a(PreSleep)
    outcomes = [record.__dict__["outcome"] for record in caplog.records if hasattr(record, "outcome")]
    assert outcomes == ["discarded", "invalid", "invalid"]


async def test_the_retries_of_a_call_count_and_not_those_of_its_task(function: str) -> None:
    failing = failing_task(function, LATER, ValueError("no good"), runs=9)
    plan = RetryPlan(delays=(7.0,), jitter=False, on=("builtins.ValueError",))
    with anyio.fail_after(20):
        async with scripted_server() as server, Worker([failing], servers=[server.address], concurrency=1):
            peer = await server.accept()
            await peer.register()
            await peer.assign(function.encode(), wrap(b"{}", retries=plan))
            assert (await peer.answered(RETRY))["delay"] == 7
            await peer.expect_a(GrabJobUniq)
            await peer.assign(function.encode(), wrap(b"{}", retries=plan, attempt=2))
            await peer.expect_a(WorkException)
            await until(peer, PreSleep)


async def test_a_schedule_that_fails_itself_fails_the_job_and_not_the_worker(
    function: str, caplog: pytest.LogCaptureFixture
) -> None:
    def backoff(failures: int) -> float:
        raise RuntimeError("no schedule today")

    failing = failing_task(function, Retry(3, backoff=backoff), ValueError("no good"))
    with anyio.fail_after(20):
        async with scripted_server() as server, Worker([failing], servers=[server.address], concurrency=1):
            peer = await server.accept()
            await peer.register()
            await peer.assign(function.encode(), b"{}")
            assert b"no good" in (await peer.expect_a(WorkException)).data
            await until(peer, PreSleep)
    assert "no schedule today" in caplog.text


async def test_a_server_that_does_not_tell_of_events_serves_all_the_same(function: str) -> None:
    failing = failing_task(function, LATER, ValueError("no good"))
    with anyio.fail_after(20):
        async with scripted_server() as server, Worker([failing], servers=[server.address], concurrency=1):
            peer = await server.accept()
            await peer.register()
            await peer.send(WorkWarning(b"H:events", b"no such function"), WorkFail(b"H:events"))
            await peer.assign(function.encode(), b"{}")
            await peer.answered(RETRY)
            await until(peer, PreSleep)


async def test_a_context_tells_the_attempt_and_the_deadline(function: str) -> None:
    seen: list[tuple[int, str, float | None]] = []

    @task(name=function, timeout=100)
    async def look(ctx: Context) -> None:
        seen.append((ctx.attempt, ctx.handle, ctx.deadline))

    @task(name=f"{function}.free")
    def free(ctx: Context) -> None:
        seen.append((ctx.attempt, ctx.handle, ctx.deadline))

    with anyio.fail_after(20):
        async with (
            scripted_server() as server,
            Worker([look, free], servers=[server.address], concurrency=1),
        ):
            peer = await server.accept()
            await peer.register(functions=2)
            before = time.time()
            for name, workload in (
                (look.name, b"{}"),
                (look.name, wrap(b"{}", attempt=3, timeout=1000)),
                (free.name, wrap(b"{}", attempt=2)),
            ):
                await peer.assign(name.encode(), workload, b"H:7")
                await peer.expect_a(WorkComplete)
                await peer.expect_a(GrabJobUniq)
            after = time.time()
            await peer.send(NoJob())
            await peer.expect_a(PreSleep)
    (first, handle, limit), (third, _, longer), second = seen
    assert (first, third, handle, second) == (1, 3, "H:7", (2, "H:7", None))
    assert limit is not None
    assert longer is not None
    assert before + 100 <= limit <= after + 100
    assert before + 1000 <= longer <= after + 1000


# -------------------------------------------------------------------- detached jobs on other servers


async def test_a_detached_job_is_submitted_anew_and_ends_only_when_the_server_has_the_new_one(
    function: str, caplog: pytest.LogCaptureFixture
) -> None:
    failing = failing_task(function, LATER, ValueError("no good"))
    plan = RetryPlan(delays=(0.5, 1.0), jitter=False)
    with anyio.fail_after(20):
        async with scripted_server() as server, Worker([failing], servers=[server.address], concurrency=1):
            peer = await server.accept()
            await peer.register(gearflow=False)
            before = time.time()
            workload = wrap(b"\0gf1 raw", timeout=9, retries=plan, detached=True)
            await peer.assign(function.encode(), workload)
            assert b"PayloadInvalid" in (await peer.expect_a(WorkWarning)).data  # a raw one stays raw
            assert await peer.expect_a(WorkFail) == WorkFail(b"H:1")
            await peer.expect_a(GrabJobUniq)
            await peer.assign(function.encode(), wrap(b"{}", timeout=9, retries=plan, detached=True))
            anew = await peer.expect_a(SubmitJobEpoch)
            assert anew.function == function.encode()
            assert is_fresh(anew.unique)
            assert before + 0.5 <= int(anew.epoch) <= time.time() + 1.5
            said, payload = unwrap(anew.workload)
            assert (said.attempt, said.timeout, said.retries, said.detached) == (2, 9, plan, True)
            assert payload == b"{}"
            await peer.send(Noop(), JobCreated(b"H:2"))
            assert await peer.expect_a(WorkFail) == WorkFail(b"H:1")
            await until(peer, PreSleep)
    assert "job retried" in caplog.text


async def test_a_detached_job_that_need_not_wait_is_not_delayed(function: str) -> None:
    snoozing = failing_task(function, None, Snooze(0))
    with anyio.fail_after(20):
        async with scripted_server() as server, Worker([snoozing], servers=[server.address], concurrency=1):
            peer = await server.accept()
            await peer.register(gearflow=False)
            await peer.assign(function.encode(), wrap(b"{}", detached=True))
            anew = await peer.expect_a(SubmitJobBg)
            assert anew.workload == wrap(b"{}", detached=True)  # the run did not count
            await peer.send(JobCreated(b"H:2"))
            assert await peer.expect_a(WorkFail) == WorkFail(b"H:1")
            await until(peer, PreSleep)


async def test_a_new_submission_that_is_refused_ends_the_old_job_with_its_failure(
    function: str, caplog: pytest.LogCaptureFixture
) -> None:
    failing = failing_task(function, AT_ONCE, ValueError("no good"))
    with anyio.fail_after(20):
        async with scripted_server() as server, Worker([failing], servers=[server.address], concurrency=1):
            peer = await server.accept()
            await peer.register(gearflow=False)
            await peer.assign(function.encode(), wrap(b"{}", detached=True))
            await peer.expect_a(SubmitJobBg)
            await peer.send(
                Error(b"JOB_NOT_FOUND", b"of another job"), Error(b"QUEUE_ERROR", b"Job queue is full")
            )
            assert b"no good" in (await peer.expect_a(WorkWarning)).data
            assert await peer.expect_a(WorkFail) == WorkFail(b"H:1")
            await until(peer, PreSleep)
    assert "Job queue is full" in caplog.text


async def test_a_worker_that_dies_between_the_two_leaves_a_duplicate_and_never_a_loss(
    anyio_backend: str, function: str
) -> None:
    script = f"""
import anyio
from gearflow.tasks import Retry, task
from gearflow.worker import Worker

@task(name={function!r}, retries=Retry(3, backoff=0))
async def failing() -> None:
    raise ValueError

anyio.run(Worker([failing], servers=["%s"], concurrency=1).run, backend={anyio_backend!r})
"""
    with anyio.fail_after(30):
        async with (
            scripted_server() as server,
            await anyio.open_process([sys.executable, "-c", script % server.address]) as process,
        ):
            peer = await server.accept()
            await peer.register(gearflow=False)
            await peer.assign(function.encode(), wrap(b"{}", detached=True))
            await peer.expect_a(SubmitJobBg)
            process.kill()
            assert await peer.rest() == []  # the server has both: nothing has ended the old one


# -------------------------------------------------------------------- attached jobs on other servers


async def test_an_attached_job_is_run_again_by_the_worker_that_holds_it(
    function: str, caplog: pytest.LogCaptureFixture
) -> None:
    failing = failing_task(function, AT_ONCE, ValueError("no good"), runs=2)
    caplog.set_level(logging.INFO, "gearflow.worker")
    with anyio.fail_after(20):
        async with (
            scripted_server() as server,
            Worker([failing], servers=[server.address], concurrency=1) as worker,
        ):
            peer = await server.accept()
            await peer.register(gearflow=False)
            await peer.assign(function.encode(), b"{}")
            for attempt in (1, 2):
                warning = await until(peer, WorkWarning)
                text = b"attempt %d of 3 failed: ValueError: no good; again in 0 s" % attempt
                assert warning == WorkWarning(b"H:1", text)
            assert await until(peer, WorkComplete) == WorkComplete(b"H:1", b"3")
            await until(peer, PreSleep)
            assert worker.held == worker.running == 0
    lines = [record.__dict__ for record in caplog.records if hasattr(record, "outcome")]
    assert [(line["outcome"], line["attempt"]) for line in lines] == [
        ("retried", 1),
        ("retried", 2),
        ("done", 3),
    ]


async def test_a_held_job_has_no_slot_while_it_waits(fresh: Fresh) -> None:
    failing = failing_task(fresh(), LATER, ValueError("no good"))

    @task(name=fresh())
    async def other() -> int:
        return 9

    with anyio.fail_after(20):
        async with scripted_server() as server:
            worker = Worker([failing, other], servers=[server.address], concurrency=1)
            async with worker:
                peer = await server.accept()
                await peer.register(functions=2, gearflow=False)
                await peer.assign(failing.name.encode(), b"{}")
                await peer.expect_a(WorkWarning)
                await peer.expect_a(GrabJobUniq)
                assert (worker.held, worker.running) == (1, 0)
                await peer.assign(other.name.encode(), b"{}", b"H:2")
                assert await peer.expect_a(WorkComplete) == WorkComplete(b"H:2", b"9")
                await peer.expect_a(GrabJobUniq)
                await peer.send(NoJob())
                await peer.expect_a(PreSleep)
                worker.leave()
                assert await peer.rest() == []  # the server hands it on
            assert worker.held == 0


async def test_a_warm_stop_waits_for_jobs_that_are_held(function: str) -> None:
    failing = failing_task(function, Retry(3, backoff=0.01), ValueError("no good"))
    with anyio.fail_after(20):
        async with scripted_server() as server, anyio.create_task_group() as tasks:
            worker = Worker([failing], servers=[server.address], concurrency=1)
            tasks.start_soon(worker.run)
            peer = await server.accept()
            await peer.register(gearflow=False)
            await peer.assign(function.encode(), b"{}")
            await peer.expect_a(WorkWarning)
            worker.stop()
            assert await until(peer, WorkComplete) == WorkComplete(b"H:1", b"2")
            assert [packet for packet in await peer.rest() if not isinstance(packet, PreSleep)] == []


async def test_a_held_job_that_is_not_due_within_the_drain_limit_is_handed_on(
    function: str, caplog: pytest.LogCaptureFixture
) -> None:
    failing = failing_task(function, LATER, ValueError("no good"))
    with anyio.fail_after(20):
        async with scripted_server() as server, anyio.create_task_group() as tasks:
            worker = Worker([failing], servers=[server.address], concurrency=1, drain=0.01)
            tasks.start_soon(worker.run)
            peer = await server.accept()
            await peer.register(gearflow=False)
            await peer.assign(function.encode(), b"{}")
            await peer.expect_a(WorkWarning)
            await peer.expect_a(GrabJobUniq)
            worker.stop()
            await peer.send(NoJob())
            assert await peer.rest() == []
    assert "job handed on" in caplog.text


async def test_a_lost_connection_takes_its_held_jobs_with_it(
    function: str, caplog: pytest.LogCaptureFixture
) -> None:
    failing = failing_task(function, LATER, ValueError("no good"))
    with anyio.fail_after(20):
        async with (
            scripted_server() as server,
            Worker([failing], servers=[server.address], concurrency=1, first_retry=0.001) as worker,
        ):
            peer = await server.accept()
            await peer.register(gearflow=False)
            await peer.assign(function.encode(), b"{}")
            await peer.expect_a(WorkWarning)
            await peer.close()
            peer = await server.accept()
            await peer.sleeping()
            assert worker.held == 0
    assert "job handed on" in caplog.text


async def test_a_server_of_the_old_core_is_asked_neither_for_delays_nor_to_pass_warnings_on(
    function: str,
) -> None:
    failing = failing_task(function, Retry(3, backoff=0.01), ValueError("no good"), runs=1)
    with anyio.fail_after(20):
        async with scripted_server() as server, Worker([failing], servers=[server.address], concurrency=1):
            peer = await server.accept()
            await peer.register(gearflow=False)
            await peer.send(Error(b"server_error", b"Unknown command"))
            await peer.expect_a(GrabJob)
            for workload in (b"{}", wrap(b"{}", detached=True)):
                await peer.send(JobAssign(b"H:1", function.encode(), workload))
                while not isinstance(packet := await peer.expect_a(Packet), WorkComplete):
                    assert isinstance(packet, GrabJob | PreSleep)
                    if isinstance(packet, GrabJob):
                        await peer.send(NoJob())
                assert packet == WorkComplete(b"H:1", b"2")
                while not isinstance(await peer.expect_a(Packet), PreSleep):
                    await peer.send(NoJob())
                await peer.send(Noop())
                await peer.expect_a(GrabJob)
            await peer.send(NoJob())
            await peer.expect_a(PreSleep)


async def test_c_gearmand_gets_a_failure_as_a_marked_warning_and_the_end_in_one_write(function: str) -> None:
    failing = failing_task(function, None, ValueError("no good"))
    with anyio.fail_after(20):
        async with scripted_server() as server, Worker([failing], servers=[server.address], concurrency=1):
            peer = await server.accept()
            await peer.register(gearflow=False)
            await peer.assign(function.encode(), b"{}")
            warning = await peer.expect_a(WorkWarning)
            assert await peer.expect_a(WorkFail) == WorkFail(b"H:1")
            failure = marked_failure(warning.data)
            assert failure is not None
            said = json.loads(failure)
            assert (said["type"], said["message"]) == ("ValueError", "no good")
            assert json.loads(warning.data) == {"gearflow": "failure", **said}
            both = encode(warning) + encode(WorkFail(b"H:1"))
            assert any(both in write for write in peer.writes)
            await until(peer, PreSleep)


async def test_the_setting_has_c_gearmand_get_an_exception_alone(function: str) -> None:
    failing = failing_task(function, None, ValueError("no good"))
    with anyio.fail_after(20):
        async with (
            scripted_server() as server,
            Worker([failing], servers=[server.address], concurrency=1, gearmand_exceptions=True),
        ):
            peer = await server.accept()
            await peer.register(gearflow=False)
            await peer.assign(function.encode(), b"{}")
            assert b"no good" in (await peer.expect_a(WorkException)).data
            await until(peer, PreSleep)


@pytest.mark.parametrize("kind", ["gearflow", "gearmand", "perl"])
async def test_a_task_ends_its_job_with_a_plain_fail_on_every_server(
    function: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    failing = failing_task(function, LATER, Fail("no such order"))
    with anyio.fail_after(20):
        async with scripted_server() as server, Worker([failing], servers=[server.address], concurrency=1):
            peer = await server.accept()
            await peer.register(gearflow=kind == "gearflow")
            if kind == "perl":
                await peer.send(Error(b"server_error", b"Unknown command"))
                await peer.expect_a(GrabJob)
            await peer.assign(function.encode(), b"{}")
            assert await peer.expect_a(WorkFail) == WorkFail(b"H:1")
            await peer.expect_a(GrabJob if kind == "perl" else GrabJobUniq)
            await peer.send(NoJob())
            await peer.expect_a(PreSleep)
    [line] = [record for record in caplog.records if hasattr(record, "outcome")]
    assert (line.__dict__["outcome"], line.__dict__["reason"]) == ("discarded", "Fail: no such order")


async def test_a_server_of_the_old_core_is_told_a_failure_twice(function: str) -> None:
    failing = failing_task(function, None, ValueError("no good"))
    with anyio.fail_after(20):
        async with scripted_server() as server, Worker([failing], servers=[server.address], concurrency=1):
            peer = await server.accept()
            await peer.register(gearflow=False)
            await peer.send(Error(b"server_error", b"Unknown command"))
            await peer.expect_a(GrabJob)
            await peer.send(JobAssign(b"H:1", function.encode(), b"{}"))
            assert (await peer.expect_a(WorkException)).handle == b"H:1"
            assert await peer.expect_a(WorkFail) == WorkFail(b"H:1")  # an exception is no end to it
            await peer.expect_a(GrabJob)
            await peer.send(NoJob())
            await peer.expect_a(PreSleep)


async def test_a_stop_waits_for_the_answer_to_a_retry(function: str) -> None:
    release = threading.Event()

    @task(name=function, retries=LATER, timeout=0.01)
    def overruns() -> None:
        release.wait(10)

    with anyio.fail_after(20):
        async with scripted_server() as server, anyio.create_task_group() as tasks:
            worker = Worker([overruns], servers=[server.address], concurrency=1)
            tasks.start_soon(worker.run)
            peer = await server.accept()
            await peer.register()
            await peer.assign(function.encode(), b"{}")
            assert await peer.answered(REPORT) == {"overdue": {function: 1}}
            await peer.called(RETRY)
            assert worker.overdue == 1
            worker.stop()  # is idle, but for the thread
            await peer.send(Noop())
            assert worker.running == 1
            await peer.send(WorkComplete(b"H:call", b"{}"))
            assert await peer.rest() == []
            assert worker.running == 0
    release.set()


async def test_an_answer_to_no_submission_is_ignored(function: str) -> None:
    failing = failing_task(function, AT_ONCE, ValueError("no good"), runs=0)
    with anyio.fail_after(20):
        async with scripted_server() as server, Worker([failing], servers=[server.address], concurrency=1):
            peer = await server.accept()
            await peer.register()
            await peer.send(JobCreated(b"H:9"))
            await peer.assign(function.encode(), b"{}")
            assert (await peer.expect_a(WorkComplete)).result == b"1"
            await until(peer, PreSleep)


async def test_an_error_before_the_registration_is_through_refuses_no_submission(function: str) -> None:
    failing = failing_task(function, LATER, ValueError("no good"))
    with anyio.fail_after(20):
        async with scripted_server() as server, Worker([failing], servers=[server.address], concurrency=1):
            peer = await server.accept()
            first = await peer.registering()
            await peer.send(Error(b"RESERVED", b"not for workers"))  # of a CAN_DO
            assert EVENTS in [packet.function for packet in first if isinstance(packet, SubmitJob)]
            await peer.send(JobCreated(b"H:events"))
            await peer.assign(function.encode(), b"{}")
            await peer.answered(RETRY)
            await until(peer, PreSleep)
