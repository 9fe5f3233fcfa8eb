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
    Sequence,
    Sized,
)
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import islice
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar, cast

import anyio

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
    Window,
)
from gearflow.tasks.mapping.reduce import FAN_IN, Reducing
from gearflow.tasks.wait_tracking import Waiting

A_contra = TypeVar("A_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
B = TypeVar("B")
C = TypeVar("C")
S = TypeVar("S")

Progress: TypeAlias = Callable[[int, int | None], object]
"""Called with (jobs ended, items in all or None)."""


class Mappable(Protocol[A_contra, R_co]):
    """A task of one argument, as type checkers see it: mypy keeps the types through ``call`` alone."""

    def call(self, a: A_contra, /) -> R_co:
        """Call it with that argument."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What a batch calls, and how; the fields are the arguments of ``amap``."""

    callee: Callee
    window: int | None
    errors: Literal["raise", "collect"]
    ordered: bool
    progress: Progress | None

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"window={self.window}: without a job in flight nothing is ever done")
        if self.errors not in ("raise", "collect"):
            raise ValueError(f"errors={self.errors!r}: it is 'raise' or 'collect'")
        self.callee.payload.signature.check_takes_one()


class _Run:
    """One run of a batch, without the waiting: the calls that were made, and the results to deliver."""

    def __init__(self, plan: Plan, total: int | None) -> None:
        self._plan = plan
        self._window = Window(plan.window)
        self._total = total
        self._due: dict[int, Any] = {}  # ended, not delivered
        self._ended = 0
        self._next = 0  # place of the next result, if they are ordered
        self._deliveries = 0  # that come before there is room for a further submission
        self.submitted = 0
        self.exhausted = False

    def room(self, in_flight: int) -> int:
        """How many items may be called now."""
        return 0 if self.exhausted else max(0, self._window.size - in_flight - len(self._due))

    def should_submit(self, room: int) -> bool:
        """Whether to submit before the next delivery. Several calls at a time share a round trip."""
        self._deliveries = -(-self._window.size // 4) - room
        return self._deliveries <= 0 or (room > 0 and not self.has_due)

    def should_deliver(self) -> bool:
        """Whether to deliver the next result without a look at the jobs."""
        self._deliveries -= 1
        return self._deliveries > 0 and self.has_due

    def calls(self, items: Iterable[Any]) -> list[tuple[int, JobRequest]]:
        """The calls for the next items, with their places."""
        prepare = self._plan.callee.prepare
        first = self.submitted
        calls = [(place, prepare((item,), {})) for place, item in enumerate(items, first)]
        if calls:
            self.submitted += len(calls)
            self._window.submitted(first, [len(call.workload) for _, call in calls], time.monotonic())
        return calls

    def handle_finished(self, jobs: Sequence[Finished[int]]) -> None:
        """Note jobs that have ended. Raises the failure of one, unless failures are collected."""
        if jobs:
            self._window.ended({job.key for job in jobs}, [job.size for job in jobs], time.monotonic())
        for job in jobs:
            self._ended += 1
            if job.failure is not None and self._plan.errors == "raise":
                raise job.failure
            self._due[job.key] = job.result if job.failure is None else job.failure
            if self._plan.progress is not None:
                self._plan.progress(self._ended, self._total)

    @property
    def has_due(self) -> bool:
        """Whether there is a result to deliver."""
        return self._next in self._due if self._plan.ordered else bool(self._due)

    def deliver(self) -> tuple[int, Any]:
        """The next result, with its place."""
        place = self._next if self._plan.ordered else next(iter(self._due))
        self._next += 1
        return place, self._due.pop(place)


class _Batch(Generic[S]):
    """A plan with its items, which can be taken once."""

    def __init__(self, plan: Plan, items: S) -> None:
        self._plan = plan
        self._untaken = [items]  # empty when they are taken, so that they are not kept

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

    def _run(self) -> "_AsyncRun":
        return _AsyncRun(self._plan, self._take_items())

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
        callee = _callee(reducer)

        async def reduce() -> B:
            client = await current.current()
            run, reducing = self._run(), Reducing(client, callee, fan_in)
            with closing(run), closing(reducing):
                while (result := await run.next()) is not None:
                    await reducing.submit(reducing.tree.add(0, *result))
                return cast(B, await reducing.finish(run.size))

        return AsyncOutcome(reduce)

    def then(self: "AsyncResults[B]", task: Mappable[list[B], C], /) -> "AsyncOutcome[C]":
        """Call ``task`` once with the list of all results."""
        _callee(task)

        async def then() -> C:
            return cast(C, await cast(Any, task).acall(await self.results()))

        return AsyncOutcome(then)


class _AsyncRun(AsyncIterator[Any]):
    """A run of an ``AsyncResults``. It owns its jobs, and cancels them when it is dropped."""

    def __init__(self, plan: Plan, items: Iterable[Any] | AsyncIterable[Any]) -> None:
        self._plan = plan
        self._items = items
        self._run = _Run(plan, len(items) if isinstance(items, Sized) else None)
        self._ready = AutoResetEvent()
        self._parts: tuple[InFlightJobs[int], Source] | None = None  # made when it begins
        self._post: Callable[[Callable[[], object]], None]  # to their event loop

    @property
    def size(self) -> int:
        """The number of items so far."""
        return self._run.submitted

    async def __anext__(self) -> Any:
        if self._run.should_deliver():
            return self._run.deliver()[1]
        if (result := await self.next()) is None:
            raise StopAsyncIteration
        return result[1]

    async def next(self) -> tuple[int, Any] | None:
        """The next result with its place, or None after the last."""
        try:
            return await self._next(*(self._parts or await self._begin()))
        except BaseException:
            self.close()
            raise

    async def _begin(self) -> "tuple[InFlightJobs[int], Source]":
        client = await current.current()
        self._post = client.post
        source: Source
        if isinstance(self._items, AsyncIterable):
            source = AsyncItems(self._items, self._ready, client)
        else:
            source = Items(self._items)
        self._parts = InFlightJobs[int](client, self._plan.callee, self._ready), source
        return self._parts

    async def _next(self, jobs: InFlightJobs[int], source: Source) -> tuple[int, Any] | None:
        run = self._run
        while True:
            if run.should_submit(room := run.room(jobs.size)):
                if items := source.take(room):
                    await jobs.submit(run.calls(items))
                run.exhausted = source.ended
            if jobs.has_ended:
                run.handle_finished(jobs.take())
            if run.has_due:
                return run.deliver()
            if run.exhausted and not jobs.size:
                return None
            with Waiting(self._plan.callee.name):
                await self._ready.wait()

    def close(self) -> None:
        """Cancel the jobs in flight, and take no more items."""
        self._run.exhausted = True
        _close(self._parts or ())

    def __del__(self) -> None:
        # 'break' has left the iteration. An async generator could not clean up without its event loop. The
        # garbage collector may also call this in any thread, in the middle of anything.
        if self._parts is not None and not (self._run.exhausted and not self._parts[0].size):
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
        callee = _callee(reducer)

        def reduce(deadline: _Deadline) -> B:
            client = _sync_client(self._plan)
            reducing = client.run(_in_loop(lambda client: Reducing(client, callee, fan_in)))
            size = 0
            try:
                for place, value in self._run(deadline):
                    size += 1
                    if reductions := reducing.tree.add(0, place, value):
                        deadline.call(client, lambda: reducing.submit(reductions))
                return cast(B, deadline.call(client, lambda: reducing.finish(size)))
            finally:
                client.post(reducing.close)

        return Outcome(reduce)

    def then(self: "Results[B]", task: Mappable[list[B], C], /) -> "Outcome[C]":
        """Call ``task`` once with the list of all results."""
        _callee(task)

        def then(deadline: _Deadline) -> C:
            results = [result for _, result in self._run(deadline)]
            return cast(C, cast(Any, task).submit(results).result(deadline.remaining))

        return Outcome(then)

    def _run(self, deadline: "_Deadline") -> Iterator[tuple[int, Any]]:
        client = _sync_client(self._plan)
        return _sync_run(self._plan, self._take_items(), client, deadline)


def _sync_client(plan: Plan) -> SyncClient:
    current.forbid_running_loop(f"{plan.callee.name.rpartition('.')[2]}.amap")
    return current.current_sync()


def _sync_run(
    plan: Plan, items: Iterable[Any], client: SyncClient, deadline: "_Deadline"
) -> Iterator[tuple[int, Any]]:
    """The results of a batch with their places."""
    run = _Run(plan, len(items) if isinstance(items, Sized) else None)
    source = iter(items)
    jobs = client.run(_in_loop(lambda client: InFlightJobs[int](client, plan.callee)))
    try:
        while True:
            calls: list[tuple[int, JobRequest]] = []
            if run.should_submit(room := run.room(jobs.size)):
                calls = run.calls(islice(source, room))
                run.exhausted = len(calls) < room
            if calls or not run.has_due:
                exchange = partial(_exchange, jobs, calls, wait=not run.has_due)
                run.handle_finished(deadline.call(client, exchange))
            if run.has_due:
                yield run.deliver()
            elif not jobs.size:
                return
    finally:
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
    jobs: InFlightJobs[int], calls: list[tuple[int, JobRequest]], *, wait: bool
) -> list[Finished[int]]:
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


def _callee(task: object) -> Callee:
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
