"""Two things that anyio cannot do cheaply enough once per job: start a task, and call back from a thread.

anyio's ``start_soon`` costs three times what the loop's own task costs, and its ``from_thread`` makes the
thread wait. So runs are started on asyncio or trio directly; all that lives as long as a connection or
the worker is anyio's.
"""

import asyncio
import contextvars
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, cast

import anyio

from gearflow.runtime.eventloop import poster
from gearflow.runtime.fork import end_stray, forget_in_children

if TYPE_CHECKING:
    import trio  # an extra of the user's

    from gearflow.worker.run import Run

Body: TypeAlias = Coroutine[Any, Any, None]


class LoopStarted(Protocol):
    """A body that runs."""

    def cancel(self) -> object:
        """Stop it at its next ``await``."""
        ...


class Limit(Protocol):
    """A block of limited time. Its own cancellation ends with the block; other exceptions pass."""

    @property
    def cancel_called(self) -> bool:
        """The block took longer, and was cancelled for that."""
        ...

    def __enter__(self) -> object: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> bool | None: ...


class Waiter(Protocol):
    """What one body waits for, once. Belongs to the loop."""

    def set(self) -> None:
        """End the wait, or the one that is to come."""
        ...

    def wait(self) -> Awaitable[object]:
        """Await what this returns."""
        ...


class Loop(Protocol):
    """Where runs run."""

    def is_cancelled(self) -> bool:
        """Whether the calling body is cancelled together with the worker, by something else than these two.

        The end of ``asyncio.run`` cancels everything like that. On asyncio a body may also cancel itself, or
        make a cancellation up (``raise CancelledError``), which is its own affair.
        """
        ...

    def start(self, body: Body) -> LoopStarted:
        """Run a body, which must not raise, as a task of its own. The caller holds what this returns.

        It always sees the context variables that were set where the loop was opened.
        """
        ...

    def start_now(self, body: Body) -> LoopStarted:
        """The same, and where the loop can do that the body has made its first step when this returns."""
        ...

    async def join(self, started: Iterable[LoopStarted]) -> None:
        """Wait until these have ended, however often this is cancelled meanwhile."""
        ...

    def waiter(self) -> Waiter:
        """Something to wait for."""
        ...

    def limit(self, seconds: float, run: "Run") -> Limit:
        """A block, in the task of a run, that takes so long at most.

        On asyncio it is cancelled once; on trio as always there, at each ``await`` outside of a shield.
        """
        ...

    def post(self, callback: Callable[[], object], /) -> None:
        """Call something on the loop, from any thread, in order. Does nothing if the loop is gone."""
        ...

    def call_later(self, seconds: float, callback: Callable[[], object], /) -> object:
        """Call something after that time, if the loop still runs then. To be called on the loop."""
        ...

    def now(self) -> float:
        """``anyio.current_time()``, also in what was posted, where anyio does not know the loop."""
        ...


@asynccontextmanager
async def open_loop() -> AsyncGenerator[Loop, None]:
    """The running event loop as a ``Loop``; before the block ends, what was started has to be joined."""
    opener = _asyncio_task()
    if opener is not None:
        yield _Asyncio(asyncio.get_running_loop(), opener)
    else:
        import trio

        async with trio.open_nursery() as nursery:
            yield _Trio(nursery)


def _asyncio_task() -> "asyncio.Task[Any] | None":
    try:
        # Not get_running_loop: trio may itself run within asyncio's callbacks.
        return asyncio.current_task()
    except RuntimeError:
        return None


class _Asyncio:
    def __init__(self, loop: asyncio.AbstractEventLoop, opener: "asyncio.Task[Any]") -> None:
        self.post: Final = poster()
        self._loop = loop
        self._opener = opener
        self._cancelled_before = opener.cancelling()  # and swallowed
        self._process = os.getpid()
        forget_in_children(self, _Asyncio._forget)
        self._variables = contextvars.copy_context()
        self._starts_now = sys.version_info >= (3, 12) and loop.get_task_factory() is None

    def _forget(self) -> None:
        """We are in a forked child: it ends if it comes back to the loop, which is the worker's."""
        with suppress(RuntimeError):  # in debug mode, if another thread has forked
            self._loop.call_soon(end_stray, self._process)

    def is_cancelled(self) -> bool:
        return self._opener.cancelling() > self._cancelled_before

    def start(self, body: Body) -> LoopStarted:
        # Not kept in a set here: its done callback would cost as much as the task itself.
        return self._loop.create_task(body, context=self._variables.copy())

    def start_now(self, body: Body) -> LoopStarted:
        if not self._starts_now:
            return self.start(body)
        # A task that ends with its first step costs the loop nothing else.
        return _Task(body, loop=self._loop, context=self._variables.copy(), eager_start=True)

    async def join(self, started: Iterable[LoopStarted]) -> None:
        tasks = cast("set[asyncio.Task[None]]", set(started))
        with anyio.CancelScope(shield=True):
            if tasks:
                await asyncio.wait(tasks)

    def waiter(self) -> Waiter:
        return _Future(self._loop.create_future())

    def limit(self, seconds: float, run: "Run") -> Limit:
        return _EdgeLimit(self, seconds, run)

    def now(self) -> float:
        return self._loop.time()

    def call_later(self, seconds: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        return self._loop.call_later(seconds, callback)


_Task: Final[Callable[..., LoopStarted]] = asyncio.Task  # its arguments depend on Python's version


class _Future:
    """As an event of anyio's, which costs several times as much."""

    __slots__ = ("_future",)

    def __init__(self, future: "asyncio.Future[None]") -> None:
        self._future = future

    def set(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    def wait(self) -> "asyncio.Future[None]":
        return self._future


class _EdgeLimit:
    """As ``asyncio.timeout``, but leaves alone what is cancelled already. (anyio's scopes cancel on.)"""

    def __init__(self, loop: _Asyncio, seconds: float, run: "Run") -> None:
        self.cancel_called = False
        self._loop = loop
        self._seconds = seconds
        self._run = run

    def __enter__(self) -> None:
        self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._timer = self._loop.call_later(self._seconds, self._cancel)

    def _cancel(self) -> None:
        if self._run.is_under_way:
            self._run.is_under_way = False
            self.cancel_called = True
            self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._timer.cancel()
        if not self.cancel_called:
            return False
        self._task.uncancel()
        is_mine_alone = not self._run.is_for_nobody and not self._loop.is_cancelled()
        self._run.is_under_way = is_mine_alone  # what follows may be cancelled as well
        return is_mine_alone and isinstance(error, asyncio.CancelledError)


class _Trio:
    def __init__(self, nursery: "trio.Nursery") -> None:
        self.post: Final = poster()
        self._nursery = nursery
        self._variables = contextvars.copy_context()

    def is_cancelled(self) -> bool:
        import trio

        return trio.current_effective_deadline() == -inf

    def start(self, body: Body) -> LoopStarted:
        import trio

        scope = trio.CancelScope()
        self._variables.copy().run(self._nursery.start_soon, self._within, scope, body)
        return scope

    start_now = start

    async def join(self, started: Iterable[LoopStarted]) -> None:
        """Nothing: the nursery waits for all of them."""

    def waiter(self) -> Waiter:
        import trio

        return trio.Event()

    def limit(self, seconds: float, run: "Run") -> Limit:
        return anyio.move_on_after(seconds)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        self._nursery.start_soon(self._call_later, seconds, callback)

    async def _call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        await anyio.sleep(seconds)
        callback()

    async def _within(self, scope: "trio.CancelScope", body: Body) -> None:
        with scope:
            await body

    def now(self) -> float:
        import trio

        return trio.current_time()
