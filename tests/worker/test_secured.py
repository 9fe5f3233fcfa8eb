"""Workers with TLS and a token: what they serve, and what the log says where they may not."""

import logging
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from gearflow.client import TLS, Client, configure, connect
from gearflow.protocol.rights import Right
from gearflow.schedules import Every
from gearflow.security.tokens import token_line
from gearflow.server import JobServer
from gearflow.tasks import Concurrency, Context, Retry, task
from gearflow.tasks.task import AsyncTask
from gearflow.worker import Worker, WorkerSettings
from tests.authority import TOKEN, Authority

Fresh = Callable[..., str]


def reversing(name: str) -> AsyncTask[[bytes], bytes]:
    @task(name=name)
    async def reverse(data: bytes) -> bytes:
        return data[::-1]

    return reverse


async def test_payloads_and_results_of_any_size(strict: str, known: dict[str, Any], function: str) -> None:
    reverse = reversing(function)
    data = bytes(range(251)) * (4 << 20 >> 8)
    with anyio.fail_after(30):
        async with connect(strict, **known), Worker([reverse], servers=[strict], **known):
            for size in (0, 1, 100_000, len(data)):
                assert await reverse.acall(data[:size]) == data[:size][::-1]


async def test_many_jobs_at_once(strict: str, known: dict[str, Any], function: str) -> None:
    reverse = reversing(function)
    with anyio.fail_after(30):
        async with connect(strict, **known), Worker([reverse], servers=[strict], **known):
            given = [b"%d." % number for number in range(300)]
            assert await reverse.amap(given) == [data[::-1] for data in given]


async def test_a_worker_uses_what_is_around_it_and_so_do_calls_of_its_tasks(
    strict: str, known: dict[str, Any], fresh: Fresh
) -> None:
    reverse = reversing(fresh())

    @task(name=fresh())
    async def twice(data: bytes) -> bytes:
        return await reverse.acall(await reverse.acall(data))

    @task(name=fresh())
    def in_a_thread(data: bytes) -> bytes:
        return reverse.call(data)

    with anyio.fail_after(10):
        async with connect(strict, **known), Worker([reverse, twice, in_a_thread]):
            assert await twice.acall(b"abc") == b"abc"
            assert await in_a_thread.acall(b"abc") == b"cba"


async def test_calls_of_its_tasks_use_what_the_worker_was_given(
    strict: str, known: dict[str, Any], fresh: Fresh
) -> None:
    reverse = reversing(fresh())

    @task(name=fresh())
    def in_a_thread(data: bytes) -> bytes:
        return reverse.call(data)

    with anyio.fail_after(10):
        async with (
            Worker([reverse, in_a_thread], servers=[strict], **known),
            Client([strict], **known) as client,
        ):
            job = await client.submit(in_a_thread.name, b"abc")
            assert await job.result() == b"cba"


async def test_a_worker_that_leaves_cold_gives_its_job_back(
    strict: str, known: dict[str, Any], function: str
) -> None:
    runs: list[anyio.Event] = [anyio.Event(), anyio.Event()]

    @task(name=function)
    async def slow() -> int:
        number = next(number for number, run in enumerate(runs) if not run.is_set())
        runs[number].set()
        if number == 0:
            await anyio.sleep_forever()
        return number

    with anyio.fail_after(10):
        async with connect(strict, **known) as client:
            async with Worker([slow], **known) as first:
                ref = await slow.abackground()
                await runs[0].wait()
                first.leave()
            async with Worker([slow], **known):
                assert await ref.aresult(5) == 1
            assert (await client.info(ref.handle)).deaths == 0


@pytest.mark.parametrize(
    ("left_out", "told"),
    [
        (["tls", "token"], "it speaks TLS only; see tls= in Python"),
        (["tls"], "it speaks TLS only; see tls= in Python"),
        (["token"], "it serves only who knows its token; see token= in Python"),
    ],
)
async def test_why_a_server_is_not_reached_is_logged(
    strict: str,
    known: dict[str, Any],
    function: str,
    left_out: list[str],
    told: str,
) -> None:
    given = {name: value for name, value in known.items() if name not in left_out}
    said: list[str] = []
    logged = anyio.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(str(vars(record)))
            logged.set()

    listener = Listener(logging.WARNING)
    logging.getLogger("gearflow.worker").addHandler(listener)
    try:
        with anyio.fail_after(20):
            async with Worker([reversing(function)], servers=[strict], **given):
                await logged.wait()
    finally:
        logging.getLogger("gearflow.worker").removeHandler(listener)
    assert told in said[0]
    assert TOKEN not in said[0]


async def test_a_worker_whose_token_gives_no_right_to_work_says_so_and_works_when_it_does(
    tmp_path: Path, function: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "tokens"
    token = "a token for all that is done"
    file.write_text(token_line(token, Right.SUBMIT))
    logged = anyio.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.set()

    logging.getLogger("gearflow.worker").addHandler(listener := Listener(logging.WARNING))
    reverse = reversing(function)
    with anyio.fail_after(20), JobServer(port=0, token_file=file) as server:
        known: dict[str, Any] = {"servers": [server.address], "token": token}
        async with Worker([reverse], **known, first_retry=0.01, longest_retry=0.01):
            await logged.wait()
            file.write_text(token_line(token, Right.SUBMIT | Right.WORK))
            server.reload_tokens()
            async with connect(server.address, token=token):
                assert await reverse.acall(b"abc") == b"cba"
    logging.getLogger("gearflow.worker").removeHandler(listener)
    told = [record.getMessage() for record in caplog.records if record.name.startswith("gearflow.worker")]
    assert "(its token gives no right to work: CAN_DO needs the right work, and the token of this" in told[0]


async def test_a_token_to_work_and_one_to_submit_are_enough_for_all_that_tasks_do(
    tmp_path: Path, fresh: Fresh, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "tokens"
    work, submit = "a token that may work", "a token that may submit"
    file.write_text(f"{token_line(work, Right.WORK)}\n{token_line(submit, Right.SUBMIT)}")
    started = anyio.Event()

    @task(name=fresh(), retries=Retry(3, backoff=0.01), limits=[Concurrency(5)], schedule=Every(hours=1))
    async def twice(ctx: Context, text: str = "x") -> str:
        if ctx.attempt == 1:
            raise ValueError(text)
        return text * 2

    @task(name=fresh())
    async def count(to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number

    @task(name=fresh())
    async def forever(ctx: Context) -> None:
        started.set()
        await anyio.sleep_forever()

    with anyio.fail_after(30), JobServer(port=0, token_file=file) as server:
        address = server.address
        async with (
            Worker([twice, count, forever], servers=[address], token=work, concurrency=8),
            connect(address, token=submit),
        ):
            assert await twice.acall(text="a") == "aa"
            assert await twice.amap(["a", "b"]) == ["aa", "bb"]
            ref = await twice.abackground(text="c")
            assert [event async for event in ref.aevents()]
            assert await ref.aresult(20) == "cc"
            assert (await ref.ainfo()).state == "completed"
            async with count.astream(3) as values:
                assert [value async for value in values] == [0, 1, 2]
            ref_of_forever = await forever.abackground()
            await started.wait()
            assert await ref_of_forever.acancel()
    refused = [record for record in caplog.records if "refused" in record.getMessage()]
    assert [record.getMessage() for record in refused] == []


def test_a_bad_file_is_told_when_the_worker_is_made(strict: str, function: str) -> None:
    with pytest.raises(ValueError, match=re.escape("none.pem, the file of a certificate, cannot be read")):
        Worker([reversing(function)], servers=[strict], tls=TLS(ca="none.pem"))


def test_settings_take_them_and_do_not_show_the_token(authority: Authority, function: str) -> None:
    tls = TLS(ca=authority.ca)
    settings = WorkerSettings.model_validate({"tls": tls, "token": TOKEN})
    worker = Worker([reversing(function)], settings, concurrency=1)
    assert worker.settings.tls == tls
    assert TOKEN not in repr(worker.settings) + worker.settings.model_dump_json()


def test_what_is_configured_holds_for_workers(function: str) -> None:
    configure(tls=TLS(ca="none.pem"))
    try:
        with pytest.raises(ValueError, match=r"none\.pem"):
            Worker([reversing(function)])
    finally:
        configure()
