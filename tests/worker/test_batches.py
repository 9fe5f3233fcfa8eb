"""Batch tasks, whose runs take the items of many jobs: on C gearmand and gearflow's own, on both loops."""

import logging
import sys
import threading
from collections.abc import Callable, Iterator

import anyio
import anyio.lowlevel
import pytest

from gearflow import Batch
from gearflow.client import Admin, Client, JobFailed
from gearflow.client.current import connect
from gearflow.errors import TaskFailed, TaskTimeout
from gearflow.protocol.envelope import MAGIC, wrap
from gearflow.protocol.packets import WorkStatus, WorkWarning
from gearflow.server import JobServer
from gearflow.tasks import Context, Discard, Fail, Proceed, Retry, RunInfo, Snooze, TryAgain, task
from gearflow.worker import Worker
from tests.worker.conftest import Gearmand

Fresh = Callable[..., str]

NEVER = 3600.0  # seconds that no test waits for the end of a batch


@pytest.fixture
def one_death() -> Iterator[str]:
    """A server of gearflow's own on which a job whose worker dies once is a dead letter."""
    with JobServer(port=0, max_deaths=1) as server:
        yield f"127.0.0.1:{server.port}"


async def until(holds: Callable[[], bool]) -> None:
    """Return when something holds that has no event."""
    with anyio.fail_after(20):
        while not holds():  # noqa: ASYNC110  (there is no event for it)
            await anyio.sleep(0.005)


@pytest.fixture
def two_deaths() -> Iterator[str]:
    """A server of gearflow's own on which a job is a dead letter when its worker has died twice."""
    with JobServer(port=0, max_deaths=2) as server:
        yield f"127.0.0.1:{server.port}"


# ----------------------------------------------------------------------------------------- what is a batch


async def test_a_batch_that_is_full_runs_at_once_and_each_caller_gets_its_own_result(
    any_server: str, function: str
) -> None:
    runs: list[list[str]] = []

    @task(name=function, batch=Batch(3, wait=NEVER))
    async def embed(texts: list[str]) -> list[str]:
        runs.append(texts)
        return [text.upper() for text in texts]

    with anyio.fail_after(20):
        async with connect(any_server), Worker([embed], servers=[any_server]):
            assert await embed.amap(["a", "b", "c", "d", "e", "f"]) == ["A", "B", "C", "D", "E", "F"]
    assert sorted(map(sorted, runs)) == [["a", "b", "c"], ["d", "e", "f"]]


async def test_a_batch_that_is_not_full_runs_when_its_time_is_over(any_server: str, function: str) -> None:
    @task(name=function, batch=Batch(100, wait=0.02))
    def count(numbers: list[int]) -> list[int]:
        return [-number for number in numbers]

    with anyio.fail_after(20):
        async with connect(any_server), Worker([count], servers=[any_server]):
            assert await count.acall(3) == -3
            assert await count.amap([4, 5]) == [-4, -5]


async def test_a_batch_without_a_wait_takes_what_is_there(any_server: str, function: str) -> None:
    runs: list[int] = []

    @task(name=function, batch=Batch(50, wait=0))
    async def count(numbers: list[int]) -> list[None]:
        runs.append(len(numbers))
        return [None] * len(numbers)

    with anyio.fail_after(20):
        async with connect(any_server):
            refs = await count.abackground_many(range(50))
        await Worker([count], servers=[any_server], concurrency=1, burst=True).run()
    assert len(refs) == sum(runs) == 50
    assert max(runs) > 1


async def test_a_worker_with_one_slot_fills_a_batch_of_a_hundred_beside_another_task(
    any_server: str, fresh: Fresh
) -> None:
    runs: list[int] = []

    @task(name=fresh("embed"), batch=Batch(100, wait=NEVER))
    async def embed(numbers: list[int]) -> list[int]:
        runs.append(len(numbers))
        return numbers

    @task(name=fresh("plain"))
    async def plain(number: int) -> int:
        return number

    with anyio.fail_after(20):
        async with connect(any_server), Worker([embed, plain], servers=[any_server], concurrency=1):
            assert await embed.amap(range(200), window=200) == list(range(200))
            assert await plain.amap(range(10)) == list(range(10))
    assert runs == [100, 100]


async def test_batches_run_at_once_where_there_are_slots(any_server: str, function: str) -> None:
    both = anyio.Event()
    running = 0

    @task(name=function, batch=Batch(2, wait=NEVER))
    async def meet(numbers: list[int]) -> list[int]:
        nonlocal running
        running += 1
        if running == 2:
            both.set()
        await both.wait()
        return numbers

    with anyio.fail_after(20):
        async with connect(any_server), Worker([meet], servers=[any_server], concurrency=2):
            assert await meet.amap(range(4)) == [0, 1, 2, 3]


async def test_no_more_batches_run_at_once_than_there_are_slots(any_server: str, function: str) -> None:
    running = most = 0

    @task(name=function, batch=Batch(2, wait=0))
    async def alone(numbers: list[int]) -> list[int]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.lowlevel.checkpoint()
        running -= 1
        return numbers

    with anyio.fail_after(20):
        async with connect(any_server), Worker([alone], servers=[any_server], concurrency=1):
            assert await alone.amap(range(40)) == list(range(40))
    assert most == 1


async def test_a_batch_has_the_jobs_of_several_servers(bundled: str, gearmand: str, function: str) -> None:
    runs: list[list[str]] = []

    @task(name=function, batch=Batch(2, wait=NEVER))
    async def embed(texts: list[str]) -> list[str]:
        runs.append(sorted(texts))
        return [text.upper() for text in texts]

    with anyio.fail_after(20):
        async with (
            Client([bundled]) as here,
            Client([gearmand]) as there,
            Worker([embed], servers=[bundled, gearmand]),
        ):
            first = await here.submit(function, b"here")
            second = await there.submit(function, b"there")
            assert (await first.result(), await second.result()) == (b"HERE", b"THERE")
    assert runs == [["here", "there"]]


# ------------------------------------------------------------------------------------------ items that fail


async def test_an_exception_in_the_place_of_a_result_fails_that_item_alone(
    any_server: str, function: str
) -> None:
    @task(name=function, batch=Batch(3, wait=NEVER))
    def halve(numbers: list[int]) -> list[int | Exception]:
        return [number // 2 if number % 2 == 0 else ValueError(f"{number} is odd") for number in numbers]

    with anyio.fail_after(20):
        async with connect(any_server), Worker([halve], servers=[any_server]) as worker:
            first, second, third = await halve.amap([2, 3, 4], errors="collect")
            assert (worker.done, worker.failed) == (2, 1)
    assert (first, third) == (1, 2)
    assert isinstance(second, ValueError)
    assert str(second) == "3 is odd"


async def test_an_exception_of_the_run_fails_all_items(any_server: str, function: str) -> None:
    @task(name=function, batch=Batch(2, wait=NEVER))
    async def fails(numbers: list[int]) -> list[int]:
        raise OSError("no card")

    with anyio.fail_after(20):
        async with connect(any_server), Worker([fails], servers=[any_server]) as worker:
            errors = await fails.amap([1, 2], errors="collect")
            assert worker.failed == 2
    assert [str(error) for error in errors] == ["no card", "no card"]
    assert all(isinstance(error, OSError) for error in errors)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([1], "it returned a list of 1"),
        ([1, 2, 3], "it returned a list of 3"),
        (None, "it returned a NoneType"),
    ],
)
async def test_a_list_of_another_length_is_an_error_that_says_so_for_all(
    any_server: str, function: str, returned: object, said: str
) -> None:
    @task(name=function, batch=Batch(2, wait=NEVER))
    async def wrong(numbers: list[int]) -> list[int]:
        return returned  # type: ignore[return-value]  # pyright: ignore[reportReturnType]

    with anyio.fail_after(20):
        async with connect(any_server), Worker([wrong], servers=[any_server]):
            errors = await wrong.amap([1, 2], errors="collect")
    assert all(isinstance(error, TaskFailed) for error in errors)
    assert all(f"{said} for a batch of 2 items" in str(error) for error in errors)


async def test_a_payload_that_does_not_fit_fails_alone_before_the_run(any_server: str, function: str) -> None:
    runs: list[list[int]] = []

    @task(name=function, batch=Batch(3, wait=NEVER))
    async def double(numbers: list[int]) -> list[int]:
        runs.append(sorted(numbers))
        return [2 * number for number in numbers]

    with anyio.fail_after(20):
        async with Client([any_server]) as client, Worker([double], servers=[any_server]):
            jobs = [
                await client.submit(function, data) for data in (b'{"numbers": 1}', b'{"numbers": "x"}', b"3")
            ]
            assert await jobs[0].result() == b"2"
            assert await jobs[2].result() == b"6"
            with pytest.raises(JobFailed):
                await jobs[1].result()
    assert runs == [[1, 3]]


async def test_the_function_is_not_called_if_no_payload_fits(any_server: str, function: str) -> None:
    @task(name=function, batch=Batch(1, wait=NEVER))
    def never(numbers: list[int]) -> list[int]:
        raise AssertionError("it was called")

    with anyio.fail_after(20):
        async with Client([any_server]) as client, Worker([never], servers=[any_server]):
            job = await client.submit(function, b'"x"')
            with pytest.raises(JobFailed):
                await job.result()


async def test_a_result_that_does_not_fit_fails_alone(any_server: str, function: str) -> None:
    @task(name=function, batch=Batch(2, wait=NEVER))
    async def odd(numbers: list[int]) -> list[int]:
        return [number if number == 1 else "two" for number in numbers]  # type: ignore[misc]  # pyright: ignore[reportReturnType]

    with anyio.fail_after(20):
        async with connect(any_server), Worker([odd], servers=[any_server]):
            first, second = await odd.amap([1, 2], errors="collect")
    assert first == 1
    assert "what it returned does not fit its types" in str(second)


async def test_an_envelope_that_is_none_fails_alone_and_leaves_no_gap(any_server: str, function: str) -> None:
    @task(name=function, batch=Batch(2, wait=NEVER))
    async def same(texts: list[str]) -> list[str]:
        return texts

    with anyio.fail_after(20):
        async with Client([any_server]) as client, Worker([same], servers=[any_server], concurrency=1):
            broken = await client.submit(function, MAGIC + b"no header")
            with pytest.raises(JobFailed):
                await broken.result()
            jobs = [await client.submit(function, text) for text in (b"a", b"b")]
            assert [await job.result() for job in jobs] == [b"a", b"b"]


async def test_items_decide_for_themselves_how_they_go_on(any_server: str, function: str) -> None:
    seen: dict[str, list[int]] = {}

    @task(name=function, batch=Batch(5, wait=0.05))
    async def decide(ctx: Context, texts: list[str]) -> list[str | Exception]:
        results: list[str | Exception] = []
        for text, item in zip(texts, ctx.items, strict=True):
            attempts = seen.setdefault(text, [])
            attempts.append(item.attempt)
            endings = {"discard": Discard("no"), "fail": Fail("none")}
            if text == "again" and item.attempt == 1:
                results.append(TryAgain(after=0))
            elif text == "snooze" and len(attempts) == 1:
                results.append(Snooze(0))
            else:
                results.append(endings.get(text, text))
        return results

    with anyio.fail_after(20):
        async with connect(any_server), Worker([decide], servers=[any_server], concurrency=1):
            texts = ["again", "snooze", "discard", "fail", "well"]
            outcomes = await decide.amap(texts, errors="collect")
    assert outcomes[:2] == ["again", "snooze"]
    assert outcomes[4] == "well"
    assert all(isinstance(each, TaskFailed) for each in outcomes[2:4])
    assert seen == {"again": [1, 2], "snooze": [1, 1], "discard": [1], "fail": [1], "well": [1]}


async def test_all_items_of_a_run_that_fails_are_tried_again_together(any_server: str, function: str) -> None:
    runs: list[int] = []

    @task(name=function, batch=Batch(20, wait=NEVER), retries=Retry(2, backoff=0))
    async def flaky(numbers: list[int]) -> list[int]:
        runs.append(len(numbers))
        if len(runs) == 1:
            raise ConnectionError("not yet")
        return numbers

    with anyio.fail_after(20):
        async with connect(any_server), Worker([flaky], servers=[any_server], concurrency=1) as worker:
            assert await flaky.amap(range(20)) == list(range(20))
            assert worker.held == 0
    assert runs == [20, 20]


async def test_background_items_are_tried_again_too(any_server: str, function: str) -> None:
    attempts: list[int] = []
    done = anyio.Event()

    @task(name=function, batch=Batch(2, wait=0.02), retries=Retry(2, backoff=0))
    async def flaky(ctx: Context, numbers: list[int]) -> list[Exception | None]:
        attempts.extend(item.attempt for item in ctx.items)
        if attempts.count(2) == 2:
            done.set()
        return [OSError("once") if item.attempt == 1 else None for item in ctx.items]

    with anyio.fail_after(20):
        async with connect(any_server), Worker([flaky], servers=[any_server]):
            await flaky.abackground_many([1, 2])
            await done.wait()
    assert sorted(attempts) == [1, 1, 2, 2]


# ------------------------------------------------------------------------------------------------- time


async def test_an_item_whose_own_time_is_over_fails_alone(any_server: str, function: str) -> None:
    hurried_is_over = anyio.Event()

    @task(name=function, batch=Batch(2, wait=NEVER))
    async def waits(texts: list[str]) -> list[str]:
        await hurried_is_over.wait()
        return texts

    with anyio.fail_after(20):
        async with connect(any_server), Worker([waits], servers=[any_server]):
            patient = await waits.asubmit("patient")
            with pytest.raises(TaskTimeout, match=r"overran the timeout of 0.05 s of this call"):
                await waits.options(timeout=0.05).acall("hurried")
            hurried_is_over.set()
            assert await patient == "patient"


async def test_a_coroutine_that_overruns_is_cancelled_and_all_items_fail(
    any_server: str, function: str
) -> None:
    @task(name=function, batch=Batch(2, wait=NEVER), timeout=0.05)
    async def hangs(texts: list[str]) -> list[str]:
        await anyio.sleep_forever()
        return texts

    with anyio.fail_after(20):
        async with connect(any_server), Worker([hangs], servers=[any_server], concurrency=1):
            errors = await hangs.amap(["a", "b"], errors="collect")
            assert all(isinstance(error, TaskTimeout) for error in errors)
            errors = await hangs.amap(["c", "d"], errors="collect")
            assert all(isinstance(error, TaskTimeout) for error in errors)


async def test_a_thread_that_overruns_keeps_the_slot_of_the_batch(any_server: str, function: str) -> None:
    release = threading.Event()

    @task(name=function, batch=Batch(2, wait=NEVER), timeout=0.05)
    def blocks(texts: list[str]) -> list[str]:
        if "a" in texts:
            release.wait(10)
        return texts

    with anyio.fail_after(20):
        async with connect(any_server), Worker([blocks], servers=[any_server], concurrency=1) as worker:
            errors = await blocks.amap(["a", "b"], errors="collect")
            assert all(isinstance(error, TaskTimeout) for error in errors)
            assert worker.overdue == 1
            release.set()
            assert await blocks.amap(["c", "d"]) == ["c", "d"]
            assert worker.overdue == 0


# ------------------------------------------------------------------------------------- Context and hooks


async def test_each_item_reports_for_itself_and_the_run_for_all(any_server: str, function: str) -> None:
    handles: list[str] = []

    @task(name=function, batch=Batch(2, wait=NEVER))
    def reports(ctx: Context, texts: list[str]) -> list[str]:
        handles.extend(item.handle for item in ctx.items)
        assert ctx.handle == ctx.items[0].handle
        assert ctx.deadline is None
        for number, item in enumerate(ctx.items):
            item.progress(number + 1, 10)
        ctx.warn("slow")
        return [item.handle for item in ctx.items]

    with anyio.fail_after(20):
        async with Client([any_server]) as client, Worker([reports], servers=[any_server]):
            jobs = [await client.submit(function, text) for text in (b"a", b"b")]
            for job in jobs:
                events = [event async for event in job.events()]
                [status] = [event for event in events if isinstance(event, WorkStatus)]
                assert status.numerator == b"%d" % (handles.index(job.handle) + 1)
                assert [event.data for event in events if isinstance(event, WorkWarning)] == [b"slow"]
                assert (await job.result()).decode() == job.handle


async def test_middleware_is_around_the_run_of_a_batch(any_server: str, function: str) -> None:
    seen: list[tuple[str, str]] = []

    async def around(run: RunInfo, proceed: Proceed) -> None:
        seen.append(("before", run.task))
        await proceed()
        seen.append(("after", run.task))

    @task(name=function, batch=Batch(2, wait=NEVER))
    async def embed(texts: list[str]) -> list[str]:
        return texts

    with anyio.fail_after(20):
        async with connect(any_server), Worker([embed], servers=[any_server], middleware=[around]):
            assert await embed.amap(["a", "b"]) == ["a", "b"]
    assert seen == [("before", function), ("after", function)]


async def test_each_item_has_its_line_in_the_log(
    any_server: str, function: str, caplog: pytest.LogCaptureFixture
) -> None:
    @task(name=function, batch=Batch(3, wait=NEVER))
    async def embed(texts: list[str]) -> list[str | Exception]:
        return [ValueError(text) if text == "c" else text for text in texts]

    with anyio.fail_after(20), caplog.at_level(logging.INFO, "gearflow.worker"):
        async with connect(any_server), Worker([embed], servers=[any_server]):
            await embed.amap(["a", "b", "c"], errors="collect")
    lines = [record.getMessage() for record in caplog.records if getattr(record, "task", "") == function]
    assert sorted(lines) == ["job done", "job done", "job failed"]


# -------------------------------------------------------------------------------------------- cancelling


async def test_an_item_that_is_cancelled_is_marked_and_the_others_go_on(bundled: str, function: str) -> None:
    began, marked = anyio.Event(), anyio.Event()

    @task(name=function, batch=Batch(2, wait=NEVER))
    async def waits(ctx: Context, texts: list[str]) -> list[str]:
        began.set()
        await until(lambda: any(item.cancelled for item in ctx.items))
        assert not ctx.cancelled
        assert [text for text, item in zip(texts, ctx.items, strict=True) if item.cancelled] == ["unwanted"]
        marked.set()
        return texts

    with anyio.fail_after(20):
        async with Client([bundled]) as client, Worker([waits], servers=[bundled]):
            kept = await client.submit(function, b"wanted")
            unwanted = await client.submit(function, b"unwanted")
            await began.wait()
            await Admin(bundled).cancel_job(unwanted.handle)
            assert await kept.result() == b"wanted"
            assert marked.is_set()
            with pytest.raises(JobFailed):
                await unwanted.result()


async def test_a_call_is_stopped_when_nobody_wants_any_of_its_items(bundled: str, function: str) -> None:
    began, stopped = anyio.Event(), anyio.Event()

    @task(name=function, batch=Batch(2, wait=NEVER))
    async def hangs(texts: list[str]) -> list[str]:
        if "c" in texts:
            return texts
        began.set()
        try:
            await anyio.sleep_forever()
        finally:
            stopped.set()
        return texts

    with anyio.fail_after(20):
        async with Client([bundled]) as client, Worker([hangs], servers=[bundled], concurrency=1):
            jobs = [await client.submit(function, text) for text in (b"a", b"b")]
            await began.wait()
            for job in jobs:
                await Admin(bundled).cancel_job(job.handle)
            await stopped.wait()
            later = [await client.submit(function, text) for text in (b"c", b"d")]
            assert [await job.result() for job in later] == [b"c", b"d"]


async def test_an_item_that_is_cancelled_while_it_waits_makes_room(bundled: str, function: str) -> None:
    runs: list[list[str]] = []

    @task(name=function, batch=Batch(2, wait=NEVER))
    async def embed(texts: list[str]) -> list[str]:
        runs.append(texts)
        return texts

    with anyio.fail_after(20):
        async with Client([bundled]) as client, Worker([embed], servers=[bundled]) as worker:
            unwanted = await client.submit(function, b"unwanted")
            await until(lambda: worker.running == 1)
            await Admin(bundled).cancel_job(unwanted.handle)
            await until(lambda: not worker.running)
            jobs = [await client.submit(function, text) for text in (b"a", b"b")]
            assert [await job.result() for job in jobs] == [b"a", b"b"]
    assert runs == [["a", "b"]]


# ---------------------------------------------------------------------------------------------- stopping


async def test_a_warm_stop_runs_what_was_collected_at_once(any_server: str, function: str) -> None:
    @task(name=function, batch=Batch(100, wait=NEVER))
    async def embed(texts: list[str]) -> list[str]:
        return [text.upper() for text in texts]

    with anyio.fail_after(20):
        async with connect(any_server):
            async with Worker([embed], servers=[any_server]) as worker:
                job = await embed.asubmit("a")
                await until(lambda: worker.running == 1)
            assert await job == "A"


async def test_a_cold_stop_gives_back_all_items_which_is_no_death(one_death: str, function: str) -> None:
    began = anyio.Event()
    runs: list[int] = []

    @task(name=function, batch=Batch(2, wait=NEVER))
    async def first_hangs(texts: list[str]) -> list[str]:
        runs.append(len(texts))
        if len(runs) == 1:
            began.set()
            await anyio.sleep_forever()
        return texts

    with anyio.fail_after(20):
        async with connect(one_death):
            async with Worker([first_hangs], servers=[one_death]) as worker:
                jobs = [await first_hangs.asubmit(text) for text in ("a", "b", "collected")]
                await began.wait()
                await until(lambda: worker.running == 3)
                worker.leave()
            jobs.append(await first_hangs.asubmit("d"))
            async with Worker([first_hangs], servers=[one_death]):
                assert [await job for job in jobs] == ["a", "b", "collected", "d"]


async def test_a_worker_that_ends_by_itself_ends_when_the_last_batch_has_run(
    any_server: str, function: str
) -> None:
    ran: list[str] = []

    @task(name=function, batch=Batch(2, wait=0.02))
    async def embed(texts: list[str]) -> list[None]:
        ran.extend(texts)
        return [None] * len(texts)

    with anyio.fail_after(20):
        async with connect(any_server):
            await embed.abackground_many(["a", "b", "c"])
        await Worker([embed], servers=[any_server], burst=True).run()
    assert sorted(ran) == ["a", "b", "c"]


async def test_a_quiet_worker_takes_no_items(any_server: str, function: str) -> None:
    @task(name=function, batch=Batch(1, wait=NEVER))
    async def embed(texts: list[str]) -> list[str]:
        return texts

    with anyio.fail_after(20):
        async with connect(any_server), Worker([embed], servers=[any_server]) as worker:
            assert await embed.acall("a") == "a"
            worker.quiet()
            job = await embed.asubmit("b")
            with anyio.move_on_after(0.1):
                await job.result()
            assert not worker.running
            worker.resume()
            assert await job == "b"


MORTAL = """
import os, sys
import anyio
from gearflow import Batch, task
from gearflow.worker import Worker

_, server, function = sys.argv

@task(name=function, batch=Batch(3, wait=60))
async def embed(texts: list[str]) -> list[str]:
    if "poison" in texts:
        os._exit(3)
    return [f"{text} of {len(texts)}" for text in texts]

anyio.run(Worker([embed], servers=[server], concurrency=2).run)
"""
"""A worker that a poisonous item kills."""


async def dies(server: str, function: str) -> None:
    """Run such a worker until it has died."""
    command = [sys.executable, "-c", MORTAL, server, function]
    assert (await anyio.run_process(command, check=False)).returncode == 3


async def test_the_jobs_of_a_batch_whose_worker_dies_go_to_another(any_server: str, function: str) -> None:
    @task(name=function, batch=Batch(3, wait=NEVER))
    async def survives(texts: list[str]) -> list[str]:
        return [text.upper() for text in texts]

    with anyio.fail_after(40):
        async with connect(any_server):
            jobs = [await survives.asubmit(text) for text in ("a", "poison", "b")]
            await dies(any_server, function)
            async with Worker([survives], servers=[any_server]):
                assert [await job for job in jobs] == ["A", "POISON", "B"]


async def test_an_item_that_kills_its_worker_runs_alone_before_it_is_given_up(
    two_deaths: str, function: str
) -> None:
    with anyio.fail_after(60):
        async with Client([two_deaths]) as client:
            jobs = [await client.submit(function, text) for text in (b"a", b"poison", b"b")]
            await dies(two_deaths, function)
            await dies(two_deaths, function)
            with pytest.raises(JobFailed):
                await jobs[1].result()
            process = await anyio.open_process([sys.executable, "-c", MORTAL, two_deaths, function])
            assert [await jobs[0].result(), await jobs[2].result()] == [b"a of 1", b"b of 1"]
            process.terminate()
            await process.aclose()


async def test_a_connection_that_is_lost_takes_its_items_along(
    own_gearmand: Gearmand, bundled: str, function: str
) -> None:
    runs: list[list[str]] = []

    @task(name=function, batch=Batch(2, wait=NEVER))
    async def embed(texts: list[str]) -> list[str]:
        runs.append(sorted(texts))
        return texts

    own_gearmand.start()
    servers = [own_gearmand.address, bundled]
    with anyio.fail_after(20):
        async with Worker([embed], servers=servers, first_retry=0.01, longest_retry=0.05) as worker:
            await until(lambda: all(link.is_registered for link in worker._links))  # pyright: ignore[reportPrivateUsage]
            async with Client([own_gearmand.address]) as there:
                await there.submit(function, b"lost")
                await until(lambda: worker.running == 1)
                own_gearmand.kill()
                await until(lambda: not worker.running)
            async with Client([bundled]) as here:
                jobs = [await here.submit(function, text) for text in (b"a", b"b")]
                assert [await job.result() for job in jobs] == [b"a", b"b"]
    assert runs == [["a", "b"]]


async def test_a_chunk_is_refused(bundled: str, function: str) -> None:
    @task(name=function, batch=Batch(1, wait=NEVER))
    async def embed(texts: list[str]) -> list[str]:
        return texts

    with anyio.fail_after(20):
        async with connect(bundled), Client([bundled]) as client, Worker([embed], servers=[bundled]):
            with pytest.raises(TypeError, match=r"collect the jobs .* leave it out"):
                embed.amap(["a"], chunk=2)
            request = embed.prepare_chunk([b"a", b"b"])
            job = await client.attach(request)
            with pytest.raises(JobFailed):
                await job.result()


async def test_two_tasks_and_a_payload_that_looks_like_an_envelope(any_server: str, fresh: Fresh) -> None:
    @task(name=fresh("one"), batch=Batch(2, wait=0.02))
    async def one(blobs: list[bytes]) -> list[bytes]:
        return blobs

    @task(name=fresh("two"), batch=Batch(2, wait=0.02))
    def two(numbers: list[int]) -> list[int]:
        return numbers

    with anyio.fail_after(20):
        async with connect(any_server), Worker([one, two], servers=[any_server]) as worker:
            await worker.ready.wait()
            blob = wrap(b"x")
            assert await one.acall(blob) == blob
            assert await two.amap([1, 2, 3]) == [1, 2, 3]
