"""Many calls of one task: ``map`` and ``amap``, and the one value of ``reduce`` and ``then``.

A batch is lazy. It takes items as there is room in its window, and only while somebody waits for results.
So the items may be endless, and the results may be read slowly. Between two results only the jobs themselves
run, so a batch that is left half-way leaves nothing behind. It can run once.

``reduce`` feeds results into a ``ReductionTree`` as they arrive, and its reductions are jobs too. ``then``
collects all results for one call. The async and the blocking form each wait in their own way, because a
blocking batch must take the items in the thread of its caller.
"""

import time
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Sized,
)
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar, cast

import anyio
from anyio.lowlevel import checkpoint

from gearflow.client import Client, JobRequest, SyncClient, current
from gearflow.tasks.durations import wait_limit
from gearflow.tasks.mapping.inflight import (
    AsyncItems,
    AutoResetEvent,
    Callee,
    Finished,
    InFlightJobs,
    Items,
    Source,
)
from gearflow.tasks.mapping.reduce import FAN_IN, Reducing
from gearflow.tasks.mapping.run import BatchRun, Calls, FailedItem, MapPlan, Report
from gearflow.tasks.wait_tracking import Waiting

A_contra = TypeVar("A_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
B = TypeVar("B")
C = TypeVar("C")
S = TypeVar("S")


class Mappable(Protocol[A_contra, R_co]):
    """A task of one argument, as type checkers see it: mypy keeps the types through ``call`` alone."""

    def call(self, a: A_contra, /) -> R_co:
        """Call it with that argument."""
        ...


class _Batch(Generic[S]):
    """A plan with its items, which can be taken once."""

    def __init__(self, plan: MapPlan, items: S, report: Report | None = None) -> None:
        self._plan = plan
        self._untaken = [items]  # empty when they are taken, so that they are not kept
        self._report = report or Report()

    @property
    def errors(self) -> tuple[FailedItem, ...]:
        """The first 1,000 items that failed so far, each with its index and its error."""
        return tuple(self._report.errors)

    @property
    def failed(self) -> int:
        """How many items failed so far."""
        return self._report.failed

    def _take_items(self) -> S:
        if not self._untaken:
            raise RuntimeError(
                "a batch can be run once, and its items are taken; make another with map() or amap()"
            )
        return self._untaken.pop()


# ----------------------------------------------------------------------------------------------- async


class AsyncResults(_Batch[Iterable[Any] | AsyncIterable[Any]], Generic[R_co]):
    """The calls of a task for many items, from ``amap``. Iterate with ``async for``, or await all results as
    a list.
    """

    def __aiter__(self) -> AsyncIterator[R_co]:
        return self._run()

    def _run(self, plan: MapPlan | None = None) -> "AsyncRun":
        return AsyncRun(plan or self._plan, self._take_items(), self._report)

    def __await__(self) -> Generator[Any, None, list[R_co]]:
        return self.results().__await__()

    async def results(self, timeout: float | timedelta | None = None) -> list[R_co]:
        """Return all results as a list. ``timeout`` limits the wait in seconds.

        Raises:
            TaskFailed: A task raised, unless failures are collected.
            TimeoutError: Not all results arrived in time. Jobs in flight are cancelled, as by
                ``AsyncJob.cancel``.
            ValueError: ``timeout`` is not a duration.
        """
        limit = wait_limit("timeout", timeout)
        run = self._run()
        with closing(run), _limit(limit):
            return [result async for result in run]

    def reduce(
        self: "AsyncResults[B]", reducer: Mappable[list[B], B], /, *, fan_in: int = FAN_IN
    ) -> "AsyncOutcome[B]":
        """Reduce the results to one value with jobs of ``reducer``, each of which joins up to ``fan_in``
        values in a tree.

        The order is kept, and only results that wait for their neighbours are held. Without items, the result
        is that of ``reducer([])``.
        """
        callee = callee_of(reducer)

        async def reduce() -> B:
            client = await current.current()
            run, reducing = self._run(_for_reduction(self._plan)), Reducing(client, callee, fan_in)
            with closing(run), closing(reducing):
                while (result := await run.next()) is not None:
                    await reducing.submit(reducing.tree.add(0, *result))
                return cast(B, await reducing.finish(run.size))

        return AsyncOutcome(reduce)

    def then(self: "AsyncResults[B]", task: Mappable[list[B], C], /) -> "AsyncOutcome[C]":
        """Call ``task`` once with the list of all results."""
        callee_of(task)

        async def then() -> C:
            return cast(C, await cast(Any, task).acall(await self.results()))

        return AsyncOutcome(then)


class AsyncRun(AsyncIterator[Any]):
    """A run of an ``AsyncResults``. It owns its jobs, and cancels them when it is dropped."""

    def __init__(self, plan: MapPlan, items: Iterable[Any] | AsyncIterable[Any], report: Report) -> None:
        self._plan = plan
        self._items = items
        self._report = report
        self._ready = AutoResetEvent()
        self._parts: tuple[BatchRun, InFlightJobs[Calls], Source] | None = None  # made when it begins
        self._post: Callable[[Callable[[], object]], None]  # to their event loop

    @property
    def size(self) -> int:
        """The number of results so far."""
        return 0 if self._parts is None else self._parts[0].size

    @property
    def has_due(self) -> bool:
        """Whether the next result is there."""
        return self._parts is not None and self._parts[0].has_due

    async def __anext__(self) -> Any:
        if self._parts is not None and self._parts[0].should_deliver():
            return self._parts[0].deliver()[1]
        if (result := await self.next()) is None:
            raise StopAsyncIteration
        return result[1]

    async def next(self) -> tuple[int, Any] | None:
        """The next result with its place, or None after the last."""
        try:
            result = await self._next(*(self._parts or await self._begin()))
        except BaseException:
            self.close()
            raise
        if result is None:
            self.close()
        return result

    async def _begin(self) -> "tuple[BatchRun, InFlightJobs[Calls], Source]":
        client = await current.current()
        self._post = client.post
        source: Source
        if isinstance(self._items, AsyncIterable):
            source = AsyncItems(self._items, self._ready, client)
        else:
            source = Items(self._items)
        total = len(self._items) if isinstance(self._items, Sized) else None
        jobs = InFlightJobs[Calls](client, self._plan.callee, self._ready)
        self._parts = BatchRun(self._plan, total, self._report), jobs, source
        return self._parts

    async def _next(self, run: BatchRun, jobs: InFlightJobs[Calls], source: Source) -> tuple[int, Any] | None:
        while True:
            items: list[Any] = []
            if wanted := run.wanted(jobs.size):
                items = source.take(wanted)
                run.exhausted = source.ended
            if calls := run.calls(items):
                await jobs.submit(calls)
            if jobs.has_ended:
                run.handle_finished(jobs.take())
            if run.has_due:
                return run.deliver()
            if run.has_again:
                continue
            if jobs.size or not (items or run.exhausted):
                with Waiting(self._plan.callee.name):
                    await self._ready.wait()
            elif run.exhausted:
                return None
            else:
                await checkpoint()  # all of these items failed before they were sent

    def close(self) -> None:
        """Cancel the jobs in flight, and take no more items."""
        _close(self._parts or ())

    def __del__(self) -> None:
        # 'break' has left the iteration. An async generator could not clean up without its event loop. The
        # garbage collector may also call this in any thread, in the middle of anything.
        if self._parts is not None and not (self._parts[0].exhausted and not self._parts[1].size):
            self._post(partial(_close, self._parts))


class AsyncOutcome(Generic[R_co]):
    """The one value that ``reduce`` or ``then`` makes of many results. Nothing runs before you await it,
    which you can do once.
    """

    def __init__(self, run: Callable[[], Coroutine[Any, Any, R_co]]) -> None:
        self._run = run

    def __await__(self) -> Generator[Any, None, R_co]:
        return self.result().__await__()

    async def result(self, timeout: float | timedelta | None = None) -> R_co:
        """Return the value. ``timeout`` limits the wait in seconds. Raises as ``AsyncResults.results``."""
        with _limit(wait_limit("timeout", timeout)):
            return await self._run()


# ------------------------------------------------------------------------------------------------ sync


class Results(_Batch[Iterable[Any]], Generic[R_co]):
    """The calls of a task for many items, from ``map``. Iterate over it in code without an event loop.

    Iterating returns results as they come. It takes the items in the thread that iterates.
    """

    def __iter__(self) -> Iterator[R_co]:
        return (result for _, result in self._run(_Deadline(None)))

    def results(self, timeout: float | timedelta | None = None) -> list[R_co]:
        """Return all results as a list. ``timeout`` limits the wait in seconds. Raises as
        ``AsyncResults.results``.
        """
        return [result for _, result in self._run(_Deadline(wait_limit("timeout", timeout)))]

    def reduce(self: "Results[B]", reducer: Mappable[list[B], B], /, *, fan_in: int = FAN_IN) -> "Outcome[B]":
        """Reduce the results to one value with jobs of ``reducer``. See ``AsyncResults.reduce``."""
        callee = callee_of(reducer)

        def reduce(deadline: _Deadline) -> B:
            client = _sync_client(self._plan)
            results = self._run(deadline, _for_reduction(self._plan))
            reducing = client.run(_in_loop(lambda client: Reducing(client, callee, fan_in)))
            size = 0
            try:
                for place, value in results:
                    size += 1
                    if reductions := reducing.tree.add(0, place, value):
                        deadline.call(client, lambda: reducing.submit(reductions))
                return cast(B, deadline.call(client, lambda: reducing.finish(size)))
            finally:
                client.post(reducing.close)

        return Outcome(reduce)

    def then(self: "Results[B]", task: Mappable[list[B], C], /) -> "Outcome[C]":
        """Call ``task`` once with the list of all results."""
        callee_of(task)

        def then(deadline: _Deadline) -> C:
            results = [result for _, result in self._run(deadline)]
            return cast(C, cast(Any, task).submit(results).result(deadline.remaining))

        return Outcome(then)

    def _run(self, deadline: "_Deadline", plan: MapPlan | None = None) -> Iterator[tuple[int, Any]]:
        client = _sync_client(self._plan)
        return _sync_run(plan or self._plan, self._take_items(), client, deadline, self._report)


def _sync_client(plan: MapPlan) -> SyncClient:
    current.forbid_running_loop(f"{plan.callee.name.rpartition('.')[2]}.amap")
    return current.current_sync()


def _sync_run(
    plan: MapPlan, items: Iterable[Any], client: SyncClient, deadline: "_Deadline", report: Report
) -> Iterator[tuple[int, Any]]:
    """The results of a batch with their places."""
    source = iter(items)
    run = BatchRun(plan, len(items) if isinstance(items, Sized) else None, report)
    jobs = client.run(_in_loop(lambda client: InFlightJobs[Calls](client, plan.callee)))
    try:
        while True:
            wanted = run.wanted(jobs.size)
            taken = list(islice(source, wanted))
            run.exhausted = run.exhausted or len(taken) < wanted
            calls = run.calls(taken)
            if calls or (jobs.size and not run.has_due):
                exchange = partial(_exchange, jobs, calls, wait=not run.has_due)
                run.handle_finished(deadline.call(client, exchange))
            if run.has_due:
                yield run.deliver()
                while run.should_deliver():
                    yield run.deliver()
            elif run.exhausted and not (jobs.size or run.has_again):
                return
    finally:
        run.close()
        if jobs.size:
            client.post(
                jobs.close
            )  # without waiting, because the garbage collector may run this in any thread


def _in_loop(function: Callable[[Client], C]) -> Callable[[Client], Coroutine[Any, Any, C]]:
    """Make ``function`` a coroutine function, for ``SyncClient.run``."""

    async def call(client: Client) -> C:
        return function(client)

    return call


async def _exchange(
    jobs: InFlightJobs[Calls], calls: list[tuple[Calls, JobRequest]], *, wait: bool
) -> list[Finished[Calls]]:
    """Submit calls and take the jobs that have ended, with one switch of threads."""
    if calls:
        await jobs.submit(calls)
    if wait:
        await jobs.wait()
    return jobs.take()


class Outcome(Generic[R_co]):
    """The one value that ``reduce`` or ``then`` makes of many results. Nothing runs before ``result()``,
    which you can call once.
    """

    def __init__(self, run: "Callable[[_Deadline], R_co]") -> None:
        self._run = run

    def result(self, timeout: float | timedelta | None = None) -> R_co:
        """Return the value. ``timeout`` limits the wait in seconds. Raises as ``AsyncResults.results``."""
        return self._run(_Deadline(wait_limit("timeout", timeout)))


class _Deadline:
    """The rest of a limit on several waits."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._end = None if timeout is None else time.monotonic() + timeout

    @property
    def remaining(self) -> float | None:
        """Seconds; None without a limit."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def call(self, client: SyncClient, function: Callable[[], Coroutine[Any, Any, C]]) -> C:
        """Call ``function`` in the client's event loop. Raises TimeoutError when the time is up."""

        async def limited(_: Client) -> C:
            with _limit(self.remaining, self._timeout):
                return await function()

        return client.run(limited)


# ---------------------------------------------------------------------------------------------- shared


def _close(parts: Iterable["_Closable"]) -> None:
    for part in parts:
        part.close()


def _for_reduction(plan: MapPlan) -> MapPlan:
    """The plan of results that are reduced. Their places have no gaps."""
    return replace(plan, ordered=True) if plan.errors == "skip" else plan


def callee_of(task: object) -> Callee:
    """The task, as a batch needs it. Raises TypeError for anything else."""
    if not hasattr(task, "prepare"):
        raise TypeError(f"{task!r} is no task; put @task (from gearflow import task) above it")
    return cast(Callee, task)


class _Closable(Protocol):
    def close(self) -> None: ...


@contextmanager
def _limit(remaining: float | None, timeout: float | None = None) -> Generator[None]:
    if remaining is None:
        yield
        return
    with anyio.move_on_after(remaining) as scope:
        yield
    if scope.cancelled_caught:
        raise TimeoutError(
            f"the batch was not done within {remaining if timeout is None else timeout:g} s; "
            "jobs in flight are cancelled (servers that are not gearflow's may run them on)"
        )
