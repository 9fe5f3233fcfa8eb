"""What a worker says to a server, packet by packet: the test is the server."""

import logging
import time
from collections.abc import Callable

import anyio
import pytest

from gearflow.client import Backoff
from gearflow.protocol.packets import (
    CanDo,
    EchoReq,
    Error,
    GrabJob,
    GrabJobUniq,
    JobAssign,
    NoJob,
    Noop,
    OptionReq,
    OptionRes,
    PreSleep,
    SetClientId,
    SubmitJob,
    WorkComplete,
    WorkException,
    WorkFail,
    WorkWarning,
)
from gearflow.protocol.server_calls import EVENTS, RELEASE
from gearflow.tasks import AsyncTask, task
from gearflow.worker import Worker
from gearflow.worker.settings import TimeLimits
from tests.worker.scripted import scripted_server

Fresh = Callable[..., str]


def echo_task(name: str) -> AsyncTask[[bytes], bytes]:
    @task(name=name)
    async def echo(data: bytes) -> bytes:
        return data

    return echo


class Gate:
    """A task that reports when it began, and ends when it is let."""

    def __init__(self, name: str) -> None:
        self.began = anyio.Event()
        self.open = anyio.Event()
        self.cancelled = anyio.Event()

        @task(name=name)
        async def gate(data: bytes) -> bytes:
            self.began.set()
            try:
                await self.open.wait()
            except anyio.get_cancelled_exc_class():
                self.cancelled.set()
                raise
            return data

        self.task = gate


async def test_a_worker_says_who_it_is_and_what_it_can_do_and_grabs_in_one_write(function: str) -> None:
    with anyio.fail_after(20):
        async with (
            scripted_server() as server,
            Worker([echo_task(function)], servers=[server.address], client_id="me"),
        ):
            peer = await server.accept()
            assert (await peer.expect_a(OptionReq)).option == b"gearflow"
            assert (await peer.expect_a(SetClientId)).client_id == b"me"
            assert (await peer.expect_a(CanDo)).function == function.encode()
            await peer.expect_a(GrabJobUniq)
            assert len(peer.writes) == 1
            await peer.send(OptionRes(b"gearflow"), NoJob())
            assert (await peer.expect_a(SubmitJob)).function == EVENTS  # gearflow's own server has that
            await peer.expect_a(PreSleep)


async def test_foreign_tasks_are_not_offered(fresh: Fresh) -> None:
    @task(name=fresh("foreign"), foreign=True)
    def foreign(data: bytes) -> None: ...

    ours = echo_task(fresh())
    with anyio.fail_after(20):
        async with scripted_server() as server, Worker([foreign, ours], servers=[server.address]):
            peer = await server.accept()
            assert await peer.sleeping() == [ours.name.encode()]


async def test_a_worker_is_ready_when_the_server_knows_its_functions(function: str) -> None:
    with anyio.fail_after(20):
        async with (
            scripted_server() as server,
            Worker([echo_task(function)], servers=[server.address]) as worker,
        ):
            peer = await server.accept()
            await peer.register()
            assert not worker.ready.is_set()
            await peer.send(NoJob())
            await worker.ready.wait()
            await peer.expect_a(PreSleep)


async def test_a_result_and_the_next_grab_go_out_in_one_write(function: str) -> None:
    with anyio.fail_after(20):
        async with (
            scripted_server() as server,
            Worker([echo_task(function)], servers=[server.address], concurrency=1),
        ):
            peer = await server.accept()
            await peer.register()
            before = len(peer.writes)
            await peer.assign(function.encode(), b"x")
            assert (await peer.expect_a(WorkComplete)).result == b"x"
            await peer.expect_a(GrabJobUniq)
            assert len(peer.writes) == before + 1
            await peer.send(NoJob())
            await peer.expect_a(PreSleep)


async def test_a_server_without_grab_job_uniq_is_asked_with_grab_job(function: str) -> None:
    with anyio.fail_after(20):
        async with (
            scripted_server() as server,
            Worker([echo_task(function)], servers=[server.address], concurrency=1) as worker,
        ):
            peer = await server.accept()
            await peer.register(gearflow=False)
            await peer.send(Error(b"server_error", b"Unknown command"))
            await peer.expect_a(GrabJob)
            await peer.send(JobAssign(b"H:1", function.encode(), b"x"))
            assert (await peer.expect_a(WorkComplete)).handle == b"H:1"
            await peer.expect_a(GrabJob)
            await peer.send(NoJob())
            await peer.expect_a(PreSleep)
            assert worker.ready.is_set()


async def test_a_result_that_the_server_does_not_want_is_logged_and_harmless(
    function: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gearflow.worker")
    with anyio.fail_after(20):
        async with (
            scripted_server() as server,
            Worker([echo_task(function)], servers=[server.address], concurrency=1),
        ):
            peer = await server.accept()
            await peer.register(gearflow=False)
            for _ in range(2):
                await peer.assign(function.encode(), b"x")
                await peer.expect_a(WorkComplete)
                await peer.send(Error(b"JOB_NOT_FOUND", b"Job given in work result not found"))
                await peer.expect_a(GrabJobUniq)
            await peer.send(NoJob())
            await peer.expect_a(PreSleep)
    assert caplog.text.count("the job had been taken from this worker") == 2


async def test_a_function_that_the_server_refuses_does_not_change_how_it_is_asked(function: str) -> None:
    with anyio.fail_after(20):
        async with (
            scripted_server() as server,
            Worker([echo_task(function)], servers=[server.address], concurrency=1),
        ):
            peer = await server.accept()
            await peer.register()
            await peer.send(Error(b"RESERVED", b"not for workers"), NoJob())
            await peer.expect_a(PreSleep)
            await peer.send(Noop())
            await peer.expect_a(GrabJobUniq)
            await peer.send(NoJob())
            await peer.expect_a(PreSleep)


async def test_a_failure_is_one_exception_packet_and_nothing_after_it(function: str) -> None:
    @task(name=function)
    async def fails() -> None:
        raise KeyError("k")

    with anyio.fail_after(20):
        async with scripted_server() as server, Worker([fails], servers=[server.address], concurrency=1):
            peer = await server.accept()
            await peer.register()
            await peer.assign(function.encode(), b"{}")
            assert b'"KeyError"' in (await peer.expect_a(WorkException)).data
            await peer.expect_a(GrabJobUniq)
            await peer.send(NoJob())
            await peer.expect_a(PreSleep)


async def test_a_job_of_an_unknown_function_fails_and_the_worker_goes_on(function: str) -> None:
    with anyio.fail_after(20):
        async with (
            scripted_server() as server,
            Worker([echo_task(function)], servers=[server.address], concurrency=1),
        ):
            peer = await server.accept()
            await peer.register()
            await peer.assign(b"never.offered", b"x")
            assert (await peer.expect_a(WorkFail)).handle == b"H:1"
            await peer.expect_a(GrabJobUniq)
            await peer.assign(function.encode(), b"x")
            await peer.expect_a(WorkComplete)
            await peer.expect_a(GrabJobUniq)
            await peer.send(NoJob())
            await peer.expect_a(PreSleep)


async def test_a_server_that_wakes_without_a_job_does_not_make_the_worker_spin(function: str) -> None:
    limits = TimeLimits(noop_reply=20)  # however busy this machine is
    with anyio.fail_after(20):
        async with (
            scripted_server() as server,
            Worker([echo_task(function)], servers=[server.address], time_limits=limits),
        ):
            peer = await server.accept()
            await peer.register()
            began = time.monotonic()
            for _ in range(13):
                await peer.send(NoJob())
                await peer.expect_a(PreSleep)
                await peer.send(Noop())
                await peer.expect_a(GrabJobUniq)
            assert time.monotonic() - began > 0.2  # pauses of 1, 2, 4 ... ms after the first few rounds
            await peer.send(NoJob())
            await peer.expect_a(PreSleep)


async def test_a_sleeping_worker_asks_gearmand_now_and_then(function: str) -> None:
    with anyio.fail_after(20):
        async with (
            scripted_server() as server,
            Worker([echo_task(function)], servers=[server.address], poll=0.01),
        ):
            peer = await server.accept()
            await peer.register(gearflow=False)
            for _ in range(3):
                await peer.send(NoJob())
                await peer.expect_a(PreSleep)
                await peer.expect_a(GrabJobUniq)
            await peer.send(NoJob())
            await peer.expect_a(PreSleep)


async def test_a_frozen_server_is_given_up_and_its_slot_serves_the_others(function: str) -> None:
    with anyio.fail_after(10):
        async with (
            scripted_server() as frozen,
            scripted_server() as alive,
            Worker(
                [echo_task(function)],
                servers=[frozen.address, alive.address],
                concurrency=1,
                heartbeat=0.2,
                first_retry=5.0,
            ),
        ):
            silent, peer = await frozen.accept(), await alive.accept()
            silent.frozen = True
            await peer.register()
            await peer.assign(function.encode(), b"x")
            await peer.expect_a(WorkComplete)
            await peer.expect_a(GrabJobUniq)
            await peer.send(NoJob())
            await peer.expect_a(PreSleep)
            assert EchoReq(b"heartbeat") in await silent.rest()


async def test_a_result_that_takes_long_to_send_does_not_end_the_connection(function: str) -> None:
    result = b"x" * (16 << 20)

    @task(name=function)
    async def large() -> bytes:
        return result

    with anyio.fail_after(30):
        async with (
            scripted_server() as server,
            Worker([large], servers=[server.address], concurrency=1, heartbeat=0.3),
        ):
            peer = await server.accept()
            await peer.register()
            peer.slow_down(0.01)
            await peer.assign(function.encode(), b"{}")
            assert (await peer.expect_a(WorkComplete)).result == result
            await peer.expect_a(GrabJobUniq)
            await peer.send(NoJob())
            await peer.expect_a(PreSleep)


async def test_results_of_a_lost_connection_are_dropped_and_the_worker_registers_anew(
    function: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gearflow.worker")
    gate = Gate(function)
    with anyio.fail_after(20):
        async with (
            scripted_server() as server,
            Worker([gate.task], servers=[server.address], concurrency=1, first_retry=0.01),
        ):
            peer = await server.accept()
            await peer.register()
            await peer.assign(function.encode(), b"x")
            await gate.began.wait()
            await peer.close()
            await gate.cancelled.wait()
            again = await server.accept()
            await again.sleeping()
    outcomes = [record.__dict__.get("outcome") for record in caplog.records]
    assert outcomes.count("handed on") == 1
    assert "done" not in outcomes


async def test_a_warm_stop_finishes_what_runs_and_says_nothing_that_would_requeue_it(function: str) -> None:
    gate = Gate(function)
    with anyio.fail_after(20):
        async with scripted_server() as server, anyio.create_task_group() as tasks:
            worker = Worker([gate.task], servers=[server.address], concurrency=2)
            tasks.start_soon(worker.run)
            peer = await server.accept()
            await peer.register()
            await peer.assign(function.encode(), b"x")
            await gate.began.wait()
            await peer.expect_a(GrabJobUniq)
            worker.stop()
            await peer.assign(function.encode(), b"y", handle=b"H:2")  # its GRAB was under way
            gate.open.set()
            assert {(await peer.expect_a(WorkComplete)).handle for _ in range(2)} == {b"H:1", b"H:2"}
            assert await peer.rest() == []


async def test_leaving_cold_closes_the_connection_without_ending_the_job(function: str) -> None:
    gate = Gate(function)
    with anyio.fail_after(20):
        async with scripted_server() as server, anyio.create_task_group() as tasks:
            worker = Worker([gate.task], servers=[server.address], concurrency=1)
            tasks.start_soon(worker.run)
            peer = await server.accept()
            await peer.register(gearflow=False)
            await peer.assign(function.encode(), b"x")
            await gate.began.wait()
            worker.leave()
            assert await peer.rest() == []
            await gate.cancelled.wait()


async def test_leaving_cold_releases_the_jobs_on_gearflows_own_server_and_waits_for_the_answers(
    function: str,
) -> None:
    gate = Gate(function)
    with anyio.fail_after(20):
        async with scripted_server() as server, anyio.create_task_group() as tasks:
            worker = Worker([gate.task], servers=[server.address], concurrency=2)
            tasks.start_soon(worker.run)
            peer = await server.accept()
            await peer.register()
            await peer.assign(function.encode(), b"x", b"H:1")
            await peer.expect_a(GrabJobUniq)
            await gate.began.wait()
            worker.leave()
            assert await peer.called(RELEASE, b"H:8") == {"handle": "H:1", "begun": True}
            await gate.cancelled.wait()
            await peer.assign(function.encode(), b"x", b"H:2")  # what the GRAB in flight brings
            assert await peer.called(RELEASE, b"H:9") == {"handle": "H:2"}
            await peer.send(WorkComplete(b"H:9", b"{}"), WorkWarning(b"H:8", b"no"), WorkFail(b"H:8"))
            assert await peer.rest() == []
            assert worker.running == 0


async def test_leaving_cold_waits_for_a_server_that_does_not_answer_no_longer_than_a_moment(
    function: str,
) -> None:
    gate = Gate(function)
    with anyio.fail_after(20):
        async with scripted_server() as server, anyio.create_task_group() as tasks:
            worker = Worker([gate.task], servers=[server.address], concurrency=1, release_timeout=0.01)
            tasks.start_soon(worker.run)
            peer = await server.accept()
            await peer.register()
            await peer.assign(function.encode(), b"x")
            await gate.began.wait()
            worker.leave()
            await peer.called(RELEASE)
            assert await peer.rest() == []


async def test_leaving_cold_says_nothing_if_nothing_runs(function: str) -> None:
    with anyio.fail_after(20):
        async with scripted_server() as server, anyio.create_task_group() as tasks:
            worker = Worker([echo_task(function)], servers=[server.address])
            tasks.start_soon(worker.run)
            peer = await server.accept()
            await peer.sleeping()
            worker.leave()
            assert await peer.rest() == []


async def test_a_warm_stop_that_takes_longer_than_allowed_becomes_a_cold_one(function: str) -> None:
    gate = Gate(function)
    with anyio.fail_after(20):
        async with scripted_server() as server, anyio.create_task_group() as tasks:
            worker = Worker([gate.task], servers=[server.address], concurrency=1, drain=0.01)
            tasks.start_soon(worker.run)
            peer = await server.accept()
            await peer.register()
            await peer.assign(function.encode(), b"x")
            await gate.began.wait()
            worker.stop()
            await peer.answered(RELEASE)
            assert await peer.rest() == []
            await gate.cancelled.wait()


async def test_a_stop_that_is_given_no_time_is_warm_where_none_is_needed(function: str) -> None:
    with anyio.fail_after(20):
        async with (
            scripted_server() as server,
            Worker([Gate(function).task], servers=[server.address], drain=0) as worker,
        ):
            await (await server.accept()).sleeping()
    assert not worker.left


def test_a_worker_tries_a_lost_server_at_least_once_a_second(function: str) -> None:
    settings = Worker([echo_task(function)]).settings
    backoff = Backoff(settings.first_retry, settings.longest_retry)
    assert all(backoff.delay(failures, jitter=0) < 1 for failures in range(1, 20))


async def test_an_outage_is_logged_once(function: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gearflow.worker")
    with anyio.fail_after(20):
        async with (
            scripted_server() as server,
            Worker([echo_task(function)], servers=[server.address], first_retry=0.001, longest_retry=0.001),
        ):
            for _ in range(5):
                await (await server.accept()).close()
            await (await server.accept()).sleeping()
    said = [record.getMessage() for record in caplog.records]
    assert len([line for line in said if line.startswith("no connection to")]) == 1
    assert said.count("registered with a server") == 1


async def test_a_server_that_comes_and_goes_is_logged_a_few_times_a_second(
    function: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gearflow.worker")
    times = 40
    with anyio.fail_after(10):
        async with (
            scripted_server() as server,
            Worker(
                [echo_task(function)], servers=[server.address], first_retry=0.0001, longest_retry=0.0001
            ) as worker,
        ):
            for _ in range(times):
                peer = await server.accept()
                await peer.sleeping()
                await peer.close()
            worker.leave()
    for message in ("no connection to", "registered with a server"):
        said = [record for record in caplog.records if record.getMessage().startswith(message)]
        assert len(said) < times / 2
        counts = [
            record for record in caplog.records if record.getMessage().startswith(f"repeated: {message}")
        ]
        assert len(said) + sum(vars(record)["count"] for record in counts) >= times - 1


async def test_a_peer_that_is_no_gearman_server_is_left_alone_for_a_while(
    function: str, caplog: pytest.LogCaptureFixture
) -> None:
    with anyio.fail_after(20):
        async with (
            scripted_server() as server,
            Worker([echo_task(function)], servers=[server.address], first_retry=0.001),
        ):
            peer = await server.accept()
            await peer.expect_a(OptionReq)
            await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await (await server.accept()).sleeping()
    assert any("does not speak Gearman" in record.getMessage() for record in caplog.records)
