"""References to background jobs: results, states and ends, on gearflow's server and on gearmand."""

import math
import pickle
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import CancelledError
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias, cast

import anyio
import pytest

from gearflow import JobServer, ServerSettings
from gearflow.client import JobStatus, ServerAddress, connect
from gearflow.errors import (
    PayloadInvalid,
    ServerError,
    TaskFailed,
    UnknownJob,
    UnknownTask,
    UnsupportedByServer,
)
from gearflow.tasks import Context, Ref, Task, task
from gearflow.tasks.registry import registry
from gearflow.worker import Worker
from tests.tasks.conftest import ServeSync

Fresh: TypeAlias = Callable[..., str]
ServeBundled: TypeAlias = Callable[..., AbstractAsyncContextManager[None]]


class OutOfInk(Exception):
    pass


@task
async def double(n: int) -> int:
    return 2 * n


@task
async def fail(colour: str) -> None:
    raise OutOfInk(colour)


@task
async def report(ctx: Context) -> None:
    ctx.progress(1, 3)
    ctx.warn("slow today")


@pytest.fixture
def serve(bundled: str) -> ServeBundled:
    """``async with serve(add)``: a worker for it on gearflow's server, which calls use."""

    @asynccontextmanager
    async def serving(*tasks: Task[..., Any]) -> AsyncGenerator[None]:
        with anyio.fail_after(30):
            async with Worker(tasks, servers=[bundled], drain=0) as worker, connect(bundled):
                await worker.ready.wait()
                yield

    return serving


def waiting(fresh: Fresh) -> Task[[], int]:
    """A task that no worker has."""

    def nothing() -> int:
        raise NotImplementedError

    return Task(nothing, name=fresh())


# --------------------------------------------------------------------------------------------- results


async def test_a_result_is_waited_for(serve: ServeBundled, bundled: str) -> None:
    async with connect(bundled):
        ref = await double.abackground(21)
    results: list[int] = []
    async with serve(double), anyio.create_task_group() as tasks:

        async def wait() -> None:
            results.append(await ref.aresult(timeout=20))

        tasks.start_soon(wait)
        assert await ref.aresult(timeout=20) == 42
    assert results == [42]


async def test_a_result_can_be_fetched_later_and_again(serve: ServeBundled) -> None:
    async with serve(double):
        ref = await double.abackground(1)
        assert [await ref.aresult(timeout=20), await ref.aresult(timeout=0)] == [2, 2]


async def test_what_the_task_raised_is_raised(serve: ServeBundled) -> None:
    async with serve(fail):
        ref = await fail.abackground("red")
        with pytest.raises(OutOfInk, match="red") as caught:
            await ref.aresult(timeout=20)
        failure: object = caught.value
        assert isinstance(failure, TaskFailed)
        assert failure.handle == ref.handle


async def test_waiting_too_long_leaves_the_job_where_it_is(bundled: str, fresh: Fresh) -> None:
    async with connect(bundled):
        ref = await waiting(fresh).abackground()
        for timeout, shown in ((0, "0"), (-1, "0"), (0.01, "0.01"), (timedelta(milliseconds=10), "0.01")):
            with pytest.raises(TimeoutError, match=f"{ref.handle}.* within {shown} s; it runs on"):
                await ref.aresult(timeout=timeout)
        for nonsense in ("1", math.nan, True):
            with pytest.raises(ValueError, match=f"timeout={nonsense!r}: it is a number of seconds"):
                await ref.aresult(timeout=cast(Any, nonsense))
        assert (await ref.astatus()).state == "waiting"


async def test_a_wait_outlives_a_restart_of_the_server(tmp_path: Path) -> None:
    results: list[int] = []
    ended = anyio.Event()
    async with AsyncExitStack() as stack:
        async with JobServer(ServerSettings(port=0, data=tmp_path)) as server:
            port = server.port
            client = await stack.enter_async_context(connect(server.address))
            tasks = await stack.enter_async_context(anyio.create_task_group())
            ref = await double.abackground(4)

            async def wait() -> None:
                results.append(await ref.aresult(timeout=30))
                ended.set()

            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            await client.echo(b"the server has been asked")
        again = await stack.enter_async_context(JobServer(ServerSettings(port=port, data=tmp_path)))
        await stack.enter_async_context(Worker([double], servers=[again.address], drain=0))
        assert await ref.aresult(timeout=30) == 8
        assert (await ref.ainfo()).attempt == 1
        with anyio.fail_after(30):
            await ended.wait()
    assert results == [8]


async def test_a_job_that_was_never_there_is_unknown(bundled: str) -> None:
    async with connect(bundled):
        for ref in (double.ref("H:nowhere:1"), double.ref(unique="never")):
            with pytest.raises(UnknownJob):
                await ref.aresult(timeout=20)
            with pytest.raises(UnknownJob):
                await ref.ainfo()
            assert await ref.astatus() == JobStatus(False, False, 0, 0)
            assert not await ref.acancel()


async def test_a_result_of_another_type_is_payload_invalid(serve: ServeBundled, fresh: Fresh) -> None:
    @task(name=fresh())
    async def text() -> str:
        return "no number"

    async with serve(text):
        ref = await text.abackground()
        assert await ref.aresult(timeout=20) == "no number"
        with pytest.raises(PayloadInvalid, match="the result"):
            await double.ref(str(ref)).aresult(timeout=20)


# ------------------------------------------------------------------------------------------ states, ends


async def test_a_status_tells_how_a_job_ended(serve: ServeBundled, bundled: str) -> None:
    async with serve(double, fail):
        good, bad = await double.abackground(1), await fail.abackground("red")
        await good.aresult(timeout=20)
        with pytest.raises(TaskFailed):
            await bad.aresult(timeout=20)
        assert await good.astatus() == JobStatus(False, False, 0, 0, "completed")
        assert await bad.astatus() == JobStatus(False, False, 0, 0, "raised")


async def test_all_that_is_known_can_be_asked_for(serve: ServeBundled) -> None:
    async with serve(report, fail):
        ref, bad = await report.abackground(), await fail.abackground("red")
        await ref.aresult(timeout=20)
        info = await ref.ainfo()
        assert (info.handle, info.function, info.state) == (ref.handle, report.name, "completed")
        assert (info.progress, info.warnings) == ((1, 3), ("slow today",))
        with pytest.raises(TaskFailed):
            await bad.aresult(timeout=20)
        info = await bad.ainfo()
        assert info.failure is not None
        assert info.failure.message == "red"
        assert info.dead


async def test_a_waiting_job_can_be_cancelled(bundled: str, fresh: Fresh) -> None:
    async with connect(bundled):
        ref = await waiting(fresh).abackground()
        assert await ref.acancel()
        assert (await ref.astatus()).state == "cancelled"
        assert not await ref.acancel()
        with pytest.raises(CancelledError, match="was cancelled"):
            await ref.aresult(timeout=20)


async def test_a_job_that_expired_says_so(bundled: str, fresh: Fresh) -> None:
    async with connect(bundled):
        ref = await waiting(fresh).options(expires=0).abackground()
        with pytest.raises(TaskFailed) as caught:
            await ref.aresult(timeout=20)
        assert caught.value.type == "Expired"


# ------------------------------------------------------------------------------------- from elsewhere


async def test_a_reference_can_be_made_from_its_text(serve: ServeBundled, bundled: str) -> None:
    async with serve(double):
        ref = await double.abackground(4)
        assert str(ref) == f"{ref.handle}@{bundled}"
        for again in (
            double.ref(str(ref)),
            double.ref(ref.handle, server=bundled),
            double.ref(ref.handle, server=ServerAddress.parse(bundled)),
        ):
            assert again == ref
            assert hash(again) == hash(ref)
            assert (again.handle, str(again.server), again.task) == (ref.handle, bundled, double.name)
            assert await again.aresult(timeout=20) == 8


async def test_without_a_server_those_in_use_are_asked(serve: ServeBundled, bundled: str) -> None:
    async with serve(double), JobServer(port=0) as other:
        ref = await double.abackground(4)
        bare = double.ref(ref.handle)
        assert bare.server is None
        assert bare != ref
        assert await bare.aresult(timeout=20) == 8
        async with connect(other.address, bundled):
            assert await bare.aresult(timeout=20) == 8
            assert (await bare.ainfo()).handle == ref.handle
            assert (await bare.astatus()).state == "completed"
            with pytest.raises(UnknownJob):
                await double.ref("H:nowhere:1").aresult(timeout=20)


async def test_the_last_job_of_a_unique_is_found(serve: ServeBundled, fresh: Fresh) -> None:
    for key in (fresh(), "k" * 100):  # which is hashed, because the wire could not carry it
        async with serve(double):
            coalesced = double.options(unique=key)
            first = await coalesced.abackground(1)
            await first.aresult(timeout=20)
            last = await coalesced.abackground(2)
            await last.aresult(timeout=20)
            ref = double.ref(unique=key)
            assert ref.handle == ""
            assert await ref.aresult(timeout=20) == 4
            assert (await ref.ainfo()).handle == last.handle
            assert (await ref.astatus()).state == "completed"
            assert repr(key)[:20] in repr(ref) or len(key) == 100


async def test_a_waiting_job_can_be_edited(bundled: str, fresh: Fresh) -> None:
    @task(name=fresh())
    async def later() -> None: ...

    async with connect(bundled):
        ref = await later.options(unique="k").abackground()
        await ref.aedit(priority="high", delay=timedelta(hours=1), expires=7200)
        info = await ref.ainfo()
        assert (info.state, info.priority) == ("delayed", "high")
        assert info.due is not None
        await later.ref(unique="k").aedit(at=datetime(2020, 1, 1, tzinfo=UTC))
        assert (await ref.ainfo()).state == "waiting"
        with pytest.raises(ValueError, match="nothing to change"):
            await ref.aedit()
        with pytest.raises(ValueError, match="give one of them"):
            await ref.aedit(delay=1, at=datetime.now(UTC))
        with pytest.raises(TypeError, match="there is no option 'keep'"):
            await cast(Any, ref).aedit(keep=1)
        await ref.acancel()
        with pytest.raises(ServerError, match="only a job that waits"):
            await ref.aedit(priority="low")


async def test_a_job_named_by_its_unique_can_be_cancelled(bundled: str, fresh: Fresh) -> None:
    later = waiting(fresh)
    async with connect(bundled):
        ref = await later.options(unique="k").abackground()
        assert await later.ref(unique="k").acancel()
        assert (await ref.astatus()).state == "cancelled"


@pytest.mark.parametrize("wrong", ["", "@127.0.0.1:4730", "H:1@127.0.0.1:port"])
def test_what_names_no_job_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"no job|no server address"):
        double.ref(wrong)


def test_a_reference_is_made_of_one_thing() -> None:
    with pytest.raises(ValueError, match="leave out server="):
        double.ref("H:1@127.0.0.1", server="127.0.0.1")
    refer: Any = double.ref
    for given in ({}, {"unique": "k", "handle": "H:1"}):
        with pytest.raises((ValueError, TypeError), match="handle"):
            refer(**given)
    with pytest.raises(ValueError, match="a handle or a unique"):
        refer("H:1", unique="k")


async def test_a_pickled_reference_finds_its_task_again(serve: ServeBundled) -> None:
    async with serve(double):
        ref = await double.abackground(4)
        again: Ref[int] = pickle.loads(pickle.dumps(ref))
        assert again == ref
        assert await again.aresult(timeout=20) == 8


async def test_without_its_task_it_still_tells_how_the_job_is(serve: ServeBundled, fresh: Fresh) -> None:
    async def nobody_imports() -> int:
        return 1

    unregistered: Task[[], int] = Task(nobody_imports, name=fresh())
    assert registry.get(unregistered.name) is None
    async with serve(unregistered):
        ref = await unregistered.abackground()
        assert await ref.aresult(timeout=20) == 1
        again: Ref[int] = pickle.loads(pickle.dumps(ref))
        with pytest.raises(UnknownTask, match="no task named"):
            await again.aresult(timeout=20)
        assert (await again.astatus()).state == "completed"


# ---------------------------------------------------------------------------------------------- options


async def test_nothing_is_kept_of_a_call_that_wants_that(serve: ServeBundled, fresh: Fresh) -> None:
    @task(name=fresh(), keep=0)
    async def forgotten() -> int:
        return 1

    async with serve(forgotten, double):
        ref = await forgotten.abackground()
        kept = await forgotten.options(keep=60).abackground()
        assert await kept.aresult(timeout=20) == 1
        await double.options(priority="low").acall(1)
        with pytest.raises(UnknownJob):
            await ref.aresult(timeout=20)


async def test_an_attached_call_is_kept_if_it_says_so(serve: ServeBundled, fresh: Fresh) -> None:
    key = fresh()
    async with serve(double):
        assert await double.options(unique=key).acall(3) == 6
        with pytest.raises(UnknownJob):
            await double.ref(unique=key).aresult(timeout=20)
        job = await double.options(unique=key, keep=60).asubmit(4)
        assert await job == 8
        assert await double.ref(job.handle).aresult(timeout=20) == 8


async def test_a_kept_success_answers_if_it_may(serve: ServeBundled, fresh: Fresh) -> None:
    runs: list[int] = []

    @task(name=fresh(), unique=True)
    async def count(n: int) -> int:
        runs.append(n)
        return len(runs)

    async with serve(count):
        first = await count.abackground(7)
        assert await first.aresult(timeout=20) == 1
        again = count.options(reuse=True)
        assert await again.acall(7) == 1
        assert await again.abackground(7) == first
        assert await again.acall(8) == 2
        assert await count.acall(7) == 3
    assert runs == [7, 8, 7]


async def test_a_delay_may_have_any_priority(bundled: str, fresh: Fresh) -> None:
    async with connect(bundled):
        ref = await waiting(fresh).options(delay=3600, priority="high").abackground()
        info = await ref.ainfo()
        assert (info.state, info.priority) == ("delayed", "high")
        assert info.due is not None
        assert info.submitted is not None
        assert info.due - info.submitted == pytest.approx(3600, abs=5)


# ---------------------------------------------------------------------------------------------- gearmand


async def test_gearmand_keeps_nothing(gearmand: str, fresh: Fresh) -> None:
    later, key = waiting(fresh), fresh()
    async with connect(gearmand):
        ref = await later.options(unique=key).abackground()
        with pytest.raises(UnsupportedByServer, match=rf"{gearmand} .*gearflow server.* submit\(\)"):
            await ref.aresult(timeout=1)
        for ask in (ref.ainfo, ref.acancel, later.ref(unique=key).aresult):
            with pytest.raises(UnsupportedByServer, match=rf"{gearmand} .*'gearflow server'"):
                await ask()
        assert await ref.astatus() == JobStatus(True, False, 0, 0)
        assert (await double.ref(ref.handle).astatus()).known
        assert (await later.ref(unique=key).astatus()).known


async def test_gearmand_is_not_asked_for_what_it_cannot_do(gearmand: str, fresh: Fresh) -> None:
    later, key = waiting(fresh), fresh()
    kept: Task[[], int] = Task(later.function, name=later.name, keep=60)
    async with connect(gearmand) as client:
        for refused, name in (
            (later.options(keep=60), "keep="),
            (later.options(unique=key, reuse=True), "reuse="),
            (later.options(expires=60), "expires="),
            (kept, "keep="),
        ):
            with pytest.raises(
                UnsupportedByServer, match=rf"{later.name}.*{gearmand} .*{name}.*'gearflow server'"
            ):
                await refused.abackground()
        with pytest.raises(UnsupportedByServer, match="expires="):
            await later.options(expires=60).asubmit()
        assert not (await client.status_by_unique(key)).known
        await kept.options(keep=0).abackground()  # it keeps nothing


async def test_gearmand_runs_a_call_with_a_limit(gearmand: str, fresh: Fresh) -> None:
    async def nothing() -> int:
        return 3

    limited: Task[[], int] = Task(nothing, name=fresh())
    with anyio.fail_after(30):
        async with Worker([limited], servers=[gearmand], drain=0) as worker, connect(gearmand):
            await worker.ready.wait()
            assert await limited.options(timeout=30, retries=2).acall() == 3


# ---------------------------------------------------------------------------------- without an event loop


@pytest.mark.parametrize("any_server", ["bundled"], indirect=True)
def test_the_blocking_faces_do_the_same(serve_sync: ServeSync) -> None:
    with serve_sync(double):
        ref = double.background(4)
        assert ref.result(timeout=20) == 8
        assert ref.status().state == "completed"
        assert ref.info().state == "completed"
        assert not ref.cancel()
        assert double.ref(str(ref)).result(timeout=20) == 8


async def test_a_blocking_face_in_an_event_loop_names_its_twin() -> None:
    ref = double.ref("H:1")
    for blocking, twin in (
        (ref.result, "aresult"),
        (ref.status, "astatus"),
        (ref.info, "ainfo"),
        (ref.cancel, "acancel"),
    ):
        with pytest.raises(RuntimeError, match=rf"await ref\.{twin}\("):
            blocking()
