"""An event loop in a thread of its own, and blocking calls into it.

The blocking client and the embedded server live in such a thread. A call takes one turn of the two threads.
(anyio's BlockingPortal takes two, one to begin and one to end, and an interrupt in the first leaves the call
waiting for ever.)
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from importlib import import_module
from threading import Lock, RLock, Thread, current_thread
from typing import Final, Generic, NoReturn, TypeVar

from gearflow.errors import ConnectionLost
from gearflow.runtime.eventloop import new_event_loop
from gearflow.runtime.fork import forget_in_children

T = TypeVar("T")
V = TypeVar("V")

_SIGNALS: Final = 1.0
"""Seconds after which a waiting thread looks for signals."""

import_module("concurrent.futures.thread")  # uvloop imports it: too late, once the main thread has ended


class LoopThread(Generic[V]):
    """An event loop in a daemon thread, with something that lives in it. Owns the thread.

    Args:
        make: Makes it, in the thread. It is entered before ``start`` returns, and left by ``stop``.
        what: Names it in errors and in the name of the thread.
        opener: The class that users write in their ``with``, for errors.
        grace: Seconds that calls under way have to end after ``stop``, before they are cancelled.
    """

    __slots__ = ("__weakref__", "_grace", "_lock", "_loop", "_make", "_stop", "_thread", "_what", "_why_not")

    def __init__(
        self, make: Callable[[], AbstractAsyncContextManager[V]], what: str, opener: str, grace: float
    ) -> None:
        self._make = make
        self._what = what
        self._grace = grace
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._thread: Thread | None = None
        # No call begins after the stop, where nobody would answer it. A signal handler may call, too.
        self._lock = RLock()
        self._why_not: Callable[[], Exception] = partial(
            RuntimeError, f"the {what} is not open; use it inside 'with {opener}(...) as {what}:'"
        )

    def start(self) -> V:
        """Start the thread, and return what lives in it once that is entered. Raises what entering raises.

        Raises:
            RuntimeError: The interpreter is exiting.
        """
        _require_threads()
        started: Future[tuple[asyncio.AbstractEventLoop, V]] = Future()

        async def live() -> None:
            async with self._make() as inhabitant:
                started.set_result((asyncio.get_running_loop(), inhabitant))
                await self._stop.wait()
            if calls := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(calls, timeout=self._grace)

        def run() -> None:
            try:
                # uvloop halves what a call costs. No user code runs here that could mind which loop it is.
                with asyncio.Runner(debug=False, loop_factory=new_event_loop) as runner:
                    runner.run(live())
            except BaseException as error:
                if started.done():
                    raise
                started.set_exception(error)

        # A daemon, so that what was not left does not keep the interpreter from exiting.
        self._thread = Thread(target=run, name=f"gearflow-{self._what}", daemon=True)
        self._thread.start()
        self._loop, inhabitant = started.result()
        forget_in_children(self, LoopThread[V].forget)
        return inhabitant

    def stop(self) -> None:
        """Leave what lives in the thread, and wait for the thread. Waiting calls end in ConnectionLost."""
        with self._lock:
            loop, self._loop = self._loop, None
            if loop is None or self._thread is None:
                return
            self._why_not = partial(
                ConnectionLost, f"the {self._what} is closed: its 'with' block has been left"
            )
            loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def forget(self) -> None:
        """This is a forked child: the thread does not exist, and the connections belong to the parent."""
        self._loop = None
        self._lock = RLock()  # another thread of the parent may have held it
        self._why_not = partial(
            RuntimeError, f"the {self._what} was opened before a fork; open one in the child"
        )

    def call(self, function: Callable[[], Awaitable[T]]) -> T:
        """Await it in the thread and wait for the outcome. An interrupted wait cancels it."""
        if self._thread is current_thread():
            raise RuntimeError(f"a blocking call in the {self._what}'s own thread would wait for itself")
        _require_threads()
        call = _Call(function)
        try:
            with self._lock:
                if self._loop is None:
                    raise self._why_not()
                call.begin_on(self._loop)
            call.wait()
        except BaseException:
            call.abandon()
            raise
        return call.outcome()

    def call_plain(self, function: Callable[[], T]) -> T:
        """Call it in the thread, if it must not run beside the loop."""

        async def there() -> T:
            return function()

        return self.call(there)


class _Call(Generic[T]):
    """A call that is awaited in the loop's thread, and waited for in another thread.

    No ``concurrent.futures.Future``: a thread that begins to wait for one has its lock for a moment. A signal
    handler that made a call in that moment would wait for the loop, and the loop for the lock.
    """

    __slots__ = ("_ended", "_function", "_loop", "_task", "outcome")

    def __init__(self, function: Callable[[], Awaitable[T]]) -> None:
        self._function = function
        self.outcome: Callable[[], T] = _raise_cancelled
        """Returns or raises what the function did; CancelledError if the loop ended first."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._ended = Lock()  # held until then
        self._ended.acquire()

    def wait(self) -> None:
        """Wait for the end, in whatever thread."""
        # A signal that comes in the moment before a thread waits for a lock does not wake it.
        while not self._ended.acquire(timeout=_SIGNALS):
            pass

    def abandon(self) -> None:
        """Nobody waits for it any more, if it has begun."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._cancel)

    def begin_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin it there."""
        self._loop = loop
        loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(self._end)

    async def _run(self) -> None:
        # asyncio would turn a concurrent.futures.CancelledError into its own, so nothing is raised here.
        try:
            value = await self._function()
        except Exception as error:  # noqa: BLE001  (raised there)
            self.outcome = partial(_raise, error)
        else:
            self.outcome = lambda: value

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _end(self, _: asyncio.Task[None]) -> None:
        self._task = None
        self._ended.release()


def _raise(error: Exception) -> NoReturn:
    raise error


def _raise_cancelled() -> NoReturn:
    raise CancelledError


def _require_threads() -> None:
    """Refuse what would wait for another thread for ever, as in ``__del__`` when the interpreter exits."""
    if sys.is_finalizing():
        raise RuntimeError("the interpreter is exiting: its threads have stopped, and nothing can be sent")
