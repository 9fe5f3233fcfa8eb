"""Workers that retire: after so many runs, or when they have grown too large."""

import gc
import logging
import mmap
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearflow.client import connect
from gearflow.errors import StartupFailed
from gearflow.runtime.process import resident
from gearflow.tasks import task
from gearflow.worker import Worker
from gearflow.worker.recycling import JITTER, RecycleLimits, Recycler
from gearflow.worker.settings import TimeLimits
from gearflow.worker.slots import SlotAllocator
from gearflow.worker.stats import RunStats

Fresh = Callable[..., str]


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_a_limit_is_lowered_by_a_tenth_at_most(most: int, luck: float) -> None:
    limits = RecycleLimits(most, None, luck)
    assert limits.exceeded(most, 0) is not None
    assert limits.exceeded(int(most * (1 - JITTER)) - 1, 0) is None


def test_small_limits_are_exact() -> None:
    limits = RecycleLimits(3, None, luck=0.99)
    assert limits.exceeded(2, 0) is None
    assert limits.exceeded(3, 0) == "3 jobs done, of at most 3"


def test_memory_is_told_in_mebibytes() -> None:
    limits = RecycleLimits(None, 100 * 2**20, luck=0.5)
    assert limits.exceeded(10**9, 95 * 2**20) is None
    assert limits.exceeded(0, 96 * 2**20) == "96.0 MiB of memory, of at most 95.0 MiB"


@given(st.integers(0, 100 * 2**20), st.floats(0, 1))
def test_a_limit_of_memory_is_never_lowered_to_what_a_worker_has_anyway(size: int, luck: float) -> None:
    assert RecycleLimits(None, 100 * 2**20, luck, size).exceeded(1, size) is None


def memory(size: int) -> mmap.mmap:
    """So many bytes from the system. Those of a bytearray may have been free in this process before."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages = range(0, size, mmap.PAGESIZE)
    memory[:: mmap.PAGESIZE] = bytes(len(pages))  # which makes them resident
    return memory


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system shows only the peak of memory")
def test_the_memory_of_this_process_is_known() -> None:
    before = resident()
    with memory(64 * 2**20):
        assert resident() - before > 32 * 2**20


async def test_after_so_many_runs_a_worker_stops_warm(any_server: str, function: str) -> None:
    @task(name=function)
    async def double(number: int) -> int:
        return 2 * number

    with anyio.fail_after(20):
        async with connect(any_server):
            jobs = [await double.asubmit(number) for number in range(9)]
            first, second = (
                Worker([double], servers=[any_server], concurrency=1, max_tasks=5) for _ in range(2)
            )
            await first.run()
            async with second:
                assert [await job for job in jobs] == [2 * number for number in range(9)]
            assert first.done >= 5
            assert first.done + second.done == 9


async def test_a_worker_that_may_not_stop_by_itself_tells_once_and_goes_on(
    bundled: str, function: str, caplog: pytest.LogCaptureFixture
) -> None:
    reasons: list[str] = []

    @task(name=function)
    async def double(number: int) -> int:
        return 2 * number

    caplog.set_level(logging.INFO, "gearflow.worker")
    with anyio.fail_after(20):
        async with (
            connect(bundled),
            Worker([double], servers=[bundled], max_tasks=2, on_retire=reasons.append) as worker,
        ):
            for number in range(5):
                assert await double.acall(number) == 2 * number
            assert not worker.stopping
    assert reasons == ["2 jobs done, of at most 2"]
    assert [record.message for record in caplog.records].count("retiring") == 1


@pytest.fixture
def ballast() -> Iterator[list[mmap.mmap]]:
    """What this process grows by. What other tests have left is gone before: it must not shrink meanwhile."""
    gc.collect()
    ballast: list[mmap.mmap] = []
    yield ballast
    ballast.clear()


async def test_a_worker_that_has_grown_retires(bundled: str, function: str, ballast: list[mmap.mmap]) -> None:
    now = resident()

    @task(name=function)
    def grow() -> None:
        ballast.append(memory(now))

    with anyio.fail_after(20):
        async with connect(bundled):
            await grow.abackground()
        worker = Worker([grow], servers=[bundled], max_rss=now + now // 2)
        await worker.run()
    assert worker.done == 1


async def test_memory_is_looked_at_while_a_job_runs(
    bundled: str, function: str, ballast: list[mmap.mmap]
) -> None:
    now = resident()
    retired = anyio.Event()

    @task(name=function)
    async def grow() -> None:
        ballast.append(memory(256 << 20))
        await retired.wait()

    with anyio.fail_after(20):
        async with (
            connect(bundled),
            Worker(
                [grow],
                servers=[bundled],
                max_rss=now + (128 << 20),
                on_retire=lambda _: retired.set(),
                time_limits=TimeLimits(memory_interval=0.01),
            ),
        ):
            await grow.acall()


async def test_a_worker_that_grows_without_a_job_is_not_replaced_before_it_has_one() -> None:
    retired: list[str] = []
    sizes = iter([1, 10])  # before the first job, and when there was one

    class LateStats(RunStats):
        """There is a job from the fourth question on."""

        asked = 0

        @property
        def is_used(self) -> bool:
            LateStats.asked += 1
            return LateStats.asked > 3

    stats = LateStats(SlotAllocator(1))
    recycler = Recycler(None, 2, stats, retired.append, interval=0.001, resident=lambda: next(sizes))
    recycler.begin()
    with anyio.fail_after(20):
        await recycler.watch()
    assert LateStats.asked == 4
    assert len(retired) == 1


async def test_a_worker_that_is_larger_than_it_may_become_does_not_start(bundled: str, function: str) -> None:
    @task(name=function)
    async def nothing() -> None: ...

    with anyio.fail_after(20), pytest.raises(StartupFailed) as caught:
        await Worker([nothing], servers=[bundled], max_rss=10 * 2**20).run()
    said = str(caught.value)
    assert re.match(
        r"a worker has \d+\.\d MiB of memory before its first job, more than max_rss allows", said
    )
    assert "(10.0 MiB)" in said
