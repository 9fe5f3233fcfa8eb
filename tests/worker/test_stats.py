"""What a worker says of itself: what it has done, what runs now, and that it waits."""

import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest

from gearflow.client import connect
from gearflow.errors import TaskFailed
from gearflow.tasks import Discard, Retry, Snooze, task
from gearflow.worker import Worker

Fresh = Callable[..., str]


async def test_runs_are_counted_by_how_they_end(any_server: str, fresh: Fresh) -> None:
    runs: list[str] = []

    @task(name=fresh("fine"))
    async def fine() -> None: ...

    @task(name=fresh("fails"), retries=Retry(3, backoff=0))
    def fails() -> None:
        raise ValueError

    @task(name=fresh("slow"), timeout=0.01)
    async def slow() -> None:
        await anyio.sleep_forever()

    @task(name=fresh("discards"))
    async def discards() -> None:
        raise Discard("never")

    @task(name=fresh("snoozes"))
    async def snoozes() -> None:
        runs.append("snoozes")
        if len(runs) == 1:
            raise Snooze(0)

    tasks = [fine, fails, slow, discards, snoozes]
    with anyio.fail_after(10):
        async with connect(any_server), Worker(tasks, servers=[any_server]) as worker:
            await fine.acall()
            assert (worker.done, worker.failed) == (1, 0)
            for failing in (fails, slow, discards):
                with pytest.raises(TaskFailed):
                    await failing.acall()
            await snoozes.acall()
    assert (worker.done, worker.failed) == (2, 3)


async def test_what_runs_now_is_told(any_server: str, fresh: Fresh) -> None:
    running, release = anyio.Event(), anyio.Event()

    @task(name=fresh("waits"), retries=Retry(2, backoff=0))
    async def waits() -> None:
        if not attempts:
            attempts.append(1)
            raise ValueError
        running.set()
        await release.wait()

    attempts: list[int] = []
    before = time.time()
    with anyio.fail_after(10):
        async with connect(any_server), Worker([waits], servers=[any_server]) as worker:
            assert worker.runs() == []
            job = await waits.asubmit()
            await running.wait()
            [run] = worker.runs()
            assert (run.task, run.handle, run.server, run.attempt) == (waits.name, job.handle, any_server, 2)
            assert before <= run.started <= time.time()
            release.set()
            await job
            await waits.acall()
    assert worker.runs() == []


async def test_failures_of_one_cause_are_a_few_warnings_and_a_count(
    bundled: str, fresh: Fresh, caplog: pytest.LogCaptureFixture
) -> None:
    @task(name=fresh("fails"))
    async def fails(number: int) -> None:
        raise ValueError(number)

    @task(name=fresh("other"))
    async def other() -> None:
        raise KeyError("other")

    async def fail(number: int) -> None:
        with pytest.raises(TaskFailed):
            await fails.acall(number)

    number = 300
    caplog.set_level(logging.INFO, "gearflow.worker")
    with anyio.fail_after(30):
        async with connect(bundled), Worker([fails, other], servers=[bundled], concurrency=20):
            async with anyio.create_task_group() as calls:
                for each in range(number):
                    calls.start_soon(fail, each)
            with pytest.raises(KeyError):
                await other.acall()
    runs = [record for record in caplog.records if record.getMessage() == "job failed"]
    warnings = [record for record in runs if record.levelno == logging.WARNING]
    information = [record for record in runs if record.levelno == logging.INFO]
    assert len(runs) == number + 1  # each has its line
    assert len(warnings) <= number / 2
    assert all(record.exc_info for record in warnings)
    assert not any(record.exc_info for record in information)
    assert vars(warnings[-1])["task"] == other.name  # another cause is not hidden
    counts = [record for record in caplog.records if record.getMessage() == "repeated: job failed"]
    assert {vars(record)["task"] for record in counts} == {fails.name}
    assert sum(vars(record)["count"] for record in counts) == len(information)


class Said(logging.Handler):
    """Waits for lines of the log that say a certain thing."""

    def __init__(self, message: str) -> None:
        super().__init__()
        self._message = message
        self.records: list[logging.LogRecord] = []
        self._next = anyio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == self._message:
            self.records.append(record)
            self._next.set()
            self._next = anyio.Event()

    async def next(self) -> logging.LogRecord:
        """The next such record."""
        await self._next.wait()
        return self.records[-1]


@asynccontextmanager
async def listening(message: str) -> AsyncGenerator[Said]:
    logger = logging.getLogger("gearflow.worker")
    said, level = Said(message), logger.level
    logger.addHandler(said)
    logger.setLevel(logging.INFO)
    try:
        yield said
    finally:
        logger.removeHandler(said)
        logger.setLevel(level)


async def test_a_worker_without_jobs_says_now_and_then_that_it_waits(bundled: str, function: str) -> None:
    @task(name=function)
    async def nothing() -> None: ...

    nowhere = "127.0.0.1:1"
    with anyio.fail_after(10):
        async with (
            listening("waiting for jobs") as said,
            connect(bundled),
            Worker([nothing], servers=[bundled, nowhere], liveness=0.01) as worker,
        ):
            await worker.ready.wait()
            await nothing.acall()
            for _ in range(2):
                record = await said.next()
                fields = {name: getattr(record, name) for name in ("servers", "done", "failed")}
                assert fields == {"servers": "1/2", "done": 1, "failed": 0}


async def test_a_worker_with_a_job_does_not_say_that_it_waits(bundled: str, function: str) -> None:
    heard: list[int] = []

    @task(name=function)
    async def long() -> None:
        before = len(said.records)
        await anyio.sleep(0.05)  # five times the interval
        heard.append(len(said.records) - before)

    with anyio.fail_after(10):
        async with (
            listening("waiting for jobs") as said,
            connect(bundled),
            Worker([long], servers=[bundled], liveness=0.01),
        ):
            await long.acall()
            await said.next()
    assert heard == [0]
