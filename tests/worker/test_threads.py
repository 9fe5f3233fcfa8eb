"""The threads of a worker: which calls run at once, and when the threads end."""

import threading
from collections.abc import Iterator
from functools import partial

import pytest

from gearflow.client import connect
from gearflow.tasks import task
from gearflow.worker import Worker
from gearflow.worker.executor import Threads


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads("test-threads")
    yield threads
    threads.close()
    for thread in serving():
        thread.join(10)


def serving() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("test-threads-")]


def test_calls_that_block_all_run_at_once(threads: Threads) -> None:
    number = 50
    for _ in range(3):  # with new threads, then with threads that wait
        together = threading.Barrier(number + 1)
        for _ in range(number):
            threads.start(partial(together.wait, 10))
        together.wait(10)


def test_a_call_that_comes_while_another_blocks_runs_at_once(threads: Threads) -> None:
    release = threading.Event()
    for _ in range(20):
        done = threading.Event()
        threads.start(done.set)
        threads.start(lambda: release.wait(10))
        assert done.wait(10)
    release.set()


def test_calls_that_start_others_are_not_in_their_way(threads: Threads) -> None:
    left = 200
    ended = threading.Semaphore(0)

    def call() -> None:
        ended.release()

    for _ in range(left):
        threads.start(call)
    for _ in range(left):
        assert ended.acquire(timeout=10)


def test_threads_end_after_their_last_call(threads: Threads) -> None:
    release, began = threading.Event(), threading.Semaphore(0)

    def call() -> None:
        began.release()
        release.wait(10)

    for _ in range(5):
        threads.start(call)
    for _ in range(5):
        assert began.acquire(timeout=10)
    alive = serving()
    assert len(alive) == 5
    threads.close()
    release.set()
    for thread in alive:
        thread.join(10)
    assert not any(thread.is_alive() for thread in alive)


def test_a_call_for_which_there_is_no_thread_is_refused_and_does_not_run_later(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    made: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            threads.start(lambda: made.append("refused"))
    done = threading.Event()
    threads.start(lambda: made.append("taken"))
    threads.start(done.set)
    assert done.wait(10)
    threads.close()
    assert made == ["taken"]


async def test_many_short_tasks_in_threads_all_get_their_results(bundled: str, function: str) -> None:
    @task(name=function)
    def double(number: int) -> int:
        return 2 * number

    async with connect(bundled), Worker([double], servers=[bundled], concurrency=50):
        results = [result async for result in double.amap(range(500))]
    assert sorted(results) == [2 * number for number in range(500)]
