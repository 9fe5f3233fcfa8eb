"""What a worker counts, alone and together with others."""

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearflow.client import connect
from gearflow.errors import TaskFailed
from gearflow.metrics.exporter import worker_families
from gearflow.metrics.families import LabelCap
from gearflow.metrics.worker_counts import (
    MOST_UNSORTED,
    FunctionRuns,
    ProcessCounts,
    RunCounts,
    WorkerSample,
    WorkerState,
)
from gearflow.protocol.histograms import BUCKETS, bucket_end
from gearflow.server import JobServer
from gearflow.tasks import Retry, task
from gearflow.worker import Worker
from tests.metrics.figures import series, text_of, value


def exported(sample: WorkerSample) -> str:
    return text_of(worker_families(sample, LabelCap()))


@task(name="metrics.fine")
async def fine() -> None: ...


@task(name="metrics.fails", retries=Retry(2, backoff=0))
def fails() -> None:
    raise ValueError


@task(name="metrics.waits")
async def waits() -> None:
    begun.set()
    await release.wait()


@task(name="metrics.unused")
async def unused() -> None: ...


begun, release = anyio.Event(), anyio.Event()


async def test_each_run_is_counted_once_by_how_it_ends() -> None:
    global begun, release
    begun, release = anyio.Event(), anyio.Event()
    page = ""
    with anyio.fail_after(20):
        async with (
            JobServer(port=0) as server,
            connect(server.address),
            Worker([fine, fails, waits, unused], servers=[server.address], concurrency=7) as worker,
            anyio.create_task_group() as calls,
        ):
            for _ in range(3):
                await fine.acall()
            with pytest.raises(TaskFailed):
                await fails.acall()
            calls.start_soon(waits.acall)
            await begun.wait()
            page = exported(worker.counts())
            release.set()

    def ended(function: str, how: str) -> float:
        return value(page, "gearflow_worker_runs_total", function=function, ended=how)

    assert ended("metrics.fine", "succeeded") == 3
    assert ended("metrics.fails", "failed") == 1
    assert ended("metrics.fails", "retried") == 1
    assert ended("metrics.unused", "succeeded") == 0
    assert value(page, "gearflow_worker_run_seconds_count", function="metrics.fine") == 3
    assert value(page, "gearflow_worker_run_seconds_count", function="metrics.fails") == 2
    assert value(page, "gearflow_worker_running", function="metrics.waits") == 1
    assert value(page, "gearflow_worker_running", function="metrics.fine") == 0
    assert value(page, "gearflow_worker_concurrency") == 7
    assert value(page, "gearflow_worker_servers") == 1
    assert value(page, "gearflow_worker_connected_servers") == 1
    assert value(page, "gearflow_worker_processes") == 1


def test_no_label_has_a_host_a_process_or_a_job() -> None:
    counts = RunCounts()
    counts.ended("f", "succeeded", 0.1)
    page = exported(WorkerSample(counts.functions(["f", "g"], ["g"])))
    assert {name for _, labels in series(page) for name, _ in labels} == {"function", "ended", "le"}


@given(st.floats(0, 8e9))
def test_a_duration_is_in_the_bucket_that_the_server_has_for_it(seconds: float) -> None:
    counts = RunCounts()
    counts.ended("f", "succeeded", seconds)
    buckets = counts.functions((), ())["f"].buckets
    assert sum(buckets) == 1
    index = len(buckets) - 1
    assert buckets[index] == 1
    assert index < BUCKETS
    assert int(seconds * 1000) < bucket_end(index) * 1000
    assert index == 0 or int(seconds * 1000) >= bucket_end(index - 1) * 1000


def runs(done: int, running: int = 0) -> FunctionRuns:
    return FunctionRuns(running, {"succeeded": done}, [done], done / 1024)


@given(st.lists(st.floats(0, 1e11)))
def test_durations_that_are_counted_together_are_in_the_same_buckets(durations: list[float]) -> None:
    together, single = RunCounts(), RunCounts()
    together.unsorted["f"].extend(durations)
    for seconds in durations:
        single.ended("f", "succeeded", seconds)
    found, expected = (counts.functions(["f"], [])["f"] for counts in (together, single))
    assert (found.outcomes, found.buckets) == (expected.outcomes, expected.buckets)
    assert found.seconds == pytest.approx(expected.seconds)


async def test_no_run_is_lost_when_durations_are_sorted_meanwhile(function: str) -> None:
    @task(name=function)
    async def quick(number: int) -> None: ...

    runs = 2 * MOST_UNSORTED + 7
    with anyio.fail_after(20):
        async with JobServer(port=0) as server, connect(server.address):
            await quick.options(keep=0).abackground_many(range(runs))
            async with Worker([quick], servers=[server.address], concurrency=50) as worker:
                counted = FunctionRuns()
                while sum(counted.buckets) < runs:
                    await anyio.sleep(0.01)
                    counted = worker.counts().functions[function]
    assert counted.outcomes == {"succeeded": runs}
    assert sum(counted.buckets) == runs


def test_a_fleet_has_the_sums_of_its_processes_also_of_those_that_are_gone() -> None:
    fleet = ProcessCounts()
    fleet.counted(1, "f", runs(5, running=2))
    fleet.counted(2, "f", runs(7, running=1))
    fleet.counted(2, "g", runs(1))
    fleet.stands(1, WorkerState(10, 1, 0, 2, 2))
    fleet.stands(2, WorkerState(10, 0, 1, 2, 1))
    assert fleet.functions()["f"] == runs(12, running=3)
    assert fleet.state == WorkerState(20, 1, 1, 4, 3)
    fleet.counted(1, "f", runs(6, running=2))  # in place of what it had reported before
    fleet.gone(1)
    fleet.gone(3)  # which has reported nothing
    assert fleet.functions() == {"f": runs(13, running=1), "g": runs(1)}
    assert fleet.state == WorkerState(10, 0, 1, 2, 1)
    fleet.gone(2)
    assert fleet.functions() == {"f": runs(13), "g": runs(1)}


def test_a_copy_is_not_changed_by_what_is_counted_later() -> None:
    counts = RunCounts()
    counts.ended("f", "succeeded", 0.1)
    before = counts.functions((), ())
    counts.ended("f", "succeeded", 0.1)
    assert before["f"].outcomes == {"succeeded": 1}
    assert sum(before["f"].buckets) == 1
