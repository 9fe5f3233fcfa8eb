"""The log records of a run have its fields, whoever logs them: in coroutines, threads and processes."""

import asyncio
import copy
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import anyio
import anyio.to_thread
import pytest

from gearflow import Batch, task
from gearflow.client import connect
from gearflow.errors import TaskFailed
from gearflow.runtime.run_records import RUN_FIELDS, current_run, run_fields, run_fields_added
from gearflow.tasks import Context, Retry
from gearflow.tracing import use_provider
from gearflow.worker import Worker
from gearflow_cli.log_lines import JsonFormatter, TextFormatter
from tests.tracing.conftest import Spans, spans
from tests.tracing.tasks import seen_in_process

__all__ = ["spans"]  # a fixture

user = logging.getLogger("tests.user")


class Records(logging.Handler):
    """Keeps the records of users' code, and of the worker."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.made: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.made.append(record)

    def fields(self, message: str) -> list[dict[str, object]]:
        """The fields of the run in the records with this message."""
        return [
            {name: vars(record)[name] for name in RUN_FIELDS if hasattr(record, name)}
            for record in self.made
            if record.getMessage() == message
        ]

    async def wait_for(self, message: str) -> dict[str, object]:
        with anyio.fail_after(20):
            while not self.fields(message):  # noqa: ASYNC110  (a log has no event)
                await anyio.sleep(0.005)
        return self.fields(message)[0]


@pytest.fixture
def records() -> Iterator[Records]:
    handler = Records()
    names = ("tests", "gearflow.worker")
    for name in names:
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(logging.INFO)
    yield handler
    for name in names:
        logging.getLogger(name).removeHandler(handler)
        logging.getLogger(name).setLevel(logging.NOTSET)


async def test_users_records_in_a_coroutine_have_the_fields_of_the_run(
    any_server: str, function: str, records: Records
) -> None:
    @task(name=function)
    async def work(context: Context) -> str:
        user.info("here")
        return context.handle

    async with connect(any_server), Worker([work], servers=[any_server]):
        handle = await work.acall()
        user.info("outside")
        done = await records.wait_for("job done")
    of_run = {"handle": handle, "function": function, "attempt": 1}
    assert records.fields("here") == [of_run]
    assert done == of_run
    assert records.fields("outside") == [{}]


async def test_records_in_a_thread_and_what_it_awaits_have_them_too(
    any_server: str, function: str, records: Records
) -> None:
    @task(name=function)
    def work(context: Context) -> str:
        user.info("in a thread")
        asyncio.run(later())
        return context.handle

    async def later() -> None:
        await asyncio.create_task(latest())

    async def latest() -> None:
        user.info("in a task of a thread")

    async with connect(any_server), Worker([work], servers=[any_server]):
        handle = await work.acall()
    of_run = {"handle": handle, "function": function, "attempt": 1}
    assert records.fields("in a thread") == records.fields("in a task of a thread") == [of_run]


async def test_threads_of_a_task_have_them_if_they_get_its_context_variables(
    bundled: str, function: str, records: Records
) -> None:
    @task(name=function)
    async def work(context: Context) -> str:
        await anyio.to_thread.run_sync(user.info, "to_thread")
        with ThreadPoolExecutor() as pool:
            pool.submit(copy_context().run, user.info, "given")
            pool.submit(user.info, "not given")
        return context.handle

    async with connect(bundled), Worker([work], servers=[bundled]):
        handle = await work.acall()
    of_run = {"handle": handle, "function": function, "attempt": 1}
    assert records.fields("to_thread") == records.fields("given") == [of_run]
    assert records.fields("not given") == [{}]


async def test_records_in_streams_and_in_the_parts_of_a_map_have_them(
    bundled: str, fresh: Callable[[], str], records: Records
) -> None:
    @task(name=fresh())
    async def acount(to: int) -> AsyncIterator[int]:
        for number in range(to):
            user.info("value")
            yield number

    @task(name=fresh())
    def count(to: int) -> Iterator[int]:
        for number in range(to):
            user.info("value")
            yield number

    @task(name=fresh())
    async def adouble(number: int) -> int:
        user.info("item")
        return 2 * number

    @task(name=fresh())
    def double(number: int) -> int:
        user.info("item")
        return 2 * number

    async with connect(bundled), Worker([acount, count, adouble, double], servers=[bundled]):
        for stream in (acount, count):
            assert [number async for number in stream.astream(2)] == [0, 1]
        for mapped in (adouble, double):
            assert [number async for number in mapped.amap(range(4), chunk=2)] == [0, 2, 4, 6]
    values, items = records.fields("value"), records.fields("item")
    assert [fields["function"] for fields in values] == [acount.name] * 2 + [count.name] * 2
    assert len({fields["handle"] for fields in values}) == 2
    assert sorted(str(fields["function"]) for fields in items) == sorted([adouble.name, double.name] * 4)
    assert len({fields["handle"] for fields in items}) == 4  # chunks


async def test_records_of_a_process_have_them(bundled: str, records: Records) -> None:
    async with connect(bundled), Worker([seen_in_process], servers=[bundled]):
        *_, fields = await seen_in_process.acall()
        sent = await records.wait_for("in a process")
    assert fields["function"] == "tests.seen_in_process"
    assert sent == {**fields, "attempt": "mine"}


async def test_a_second_run_has_its_own_attempt(any_server: str, function: str, records: Records) -> None:
    @task(name=function, retries=Retry(2, backoff=0.01))
    async def fragile() -> None:
        user.info("run")
        if len(records.fields("run")) == 1:
            raise OSError("once")

    async with connect(any_server), Worker([fragile], servers=[any_server]):
        await fragile.acall()
        await records.wait_for("job done")
    assert [fields["attempt"] for fields in records.fields("run")] == [1, 2]
    (retried,) = records.fields("job retried")
    assert (retried["function"], retried["attempt"]) == (function, 1)


async def test_a_users_field_may_have_the_name_of_one_of_the_runs(
    bundled: str, function: str, records: Records
) -> None:
    @task(name=function)
    async def work() -> None:
        user.info("mine", extra={"function": "f", "attempt": 7, "handle": None, "trace_id": "t"})
        with pytest.raises(KeyError, match="Attempt to overwrite 'name'"):
            user.info("refused", extra={"name": "n"})

    async with connect(bundled), Worker([work], servers=[bundled]):
        await work.acall()
    assert records.fields("mine") == [{"function": "f", "attempt": 7, "handle": None, "trace_id": "t"}]


async def test_a_batch_has_the_fields_of_its_first_item(
    bundled: str, function: str, records: Records
) -> None:
    @task(name=function, batch=Batch(1))
    async def work(items: list[int]) -> list[dict[str, Any]]:
        user.info("batch")
        return [run_fields() for _ in items]

    async with connect(bundled), Worker([work], servers=[bundled]):
        fields = await work.acall(1)
    assert records.fields("batch") == [fields]
    assert fields["function"] == function


@pytest.mark.parametrize("fails", [False, True])
async def test_all_records_of_a_run_have_the_trace_id(
    any_server: str, function: str, records: Records, spans: Spans, fails: bool
) -> None:
    @task(name=function)
    async def work() -> None:
        user.info("here")
        if fails:
            raise LookupError

    async with connect(any_server), Worker([work], servers=[any_server]):
        try:
            await work.acall()
        except TaskFailed:
            assert fails
        ended = await records.wait_for("job failed" if fails else "job done")
        (run,) = await spans.ended(f"process {function}")
    found = run.get_span_context()
    assert found is not None
    assert ended["trace_id"] == f"{found.trace_id:032x}"
    assert records.fields("here") == [ended]


async def test_a_worker_without_an_sdk_shows_the_trace_id_of_the_caller(
    any_server: str, function: str, records: Records, spans: Spans
) -> None:
    @task(name=function)
    async def work() -> None:
        pass

    async with connect(any_server):
        await work.abackground()
        (sent,) = spans.named(f"send {function}")
        use_provider(None)
        async with Worker([work], servers=[any_server]):
            done = await records.wait_for("job done")
    found = sent.get_span_context()
    assert found is not None
    assert done["trace_id"] == f"{found.trace_id:032x}"


# ------------------------------------------------------------------------------------- the records themselves


class SomeRun:
    def record_fields(self) -> dict[str, object]:
        return {"handle": "H:a:1", "function": "f", "attempt": 1}


@pytest.fixture
def record() -> Iterator[logging.LogRecord]:
    token = current_run.set(SomeRun())
    with run_fields_added():
        yield user.makeRecord(
            "tests.user", logging.INFO, __file__, 1, "hi %s", ("you",), None, extra={"n": 5}
        )
    current_run.reset(token)


def test_every_kind_of_format_can_show_the_fields(record: logging.LogRecord) -> None:
    for formatter in (
        logging.Formatter("%(handle)s %(n)s"),
        logging.Formatter("{handle} {n}", style="{"),
        logging.Formatter("$handle $n", style="$"),
    ):
        assert formatter.format(record) == "H:a:1 5"


def test_a_copy_of_a_record_for_another_process_is_a_plain_one(record: logging.LogRecord) -> None:
    for again in (copy.copy(record), copy.deepcopy(record)):
        assert type(vars(again)) is dict
        assert (vars(again)["handle"], vars(again)["n"], again.getMessage()) == ("H:a:1", 5, "hi you")


def test_the_log_of_the_worker_shows_them(record: logging.LogRecord) -> None:
    assert TextFormatter().format(record).endswith("INFO    hi you  n=5 handle=H:a:1 function=f")
    line = json.loads(JsonFormatter().format(record))
    assert (line["handle"], line["function"], line["attempt"], line["n"]) == ("H:a:1", "f", 1, 5)


def test_the_factory_of_others_is_kept_and_restored() -> None:
    before = logging.getLogRecordFactory()

    def other(*args: Any, **kwargs: Any) -> logging.LogRecord:
        made = before(*args, **kwargs)
        made.host = "here"
        return made

    logging.setLogRecordFactory(other)
    try:
        with run_fields_added(), run_fields_added():
            made = user.makeRecord("tests.user", logging.INFO, __file__, 1, "hi", (), None)
            assert vars(made)["host"] == "here"
        assert logging.getLogRecordFactory() is other
    finally:
        logging.setLogRecordFactory(before)
