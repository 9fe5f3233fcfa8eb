"""The waits of tasks that call other tasks. The verbs report them to the worker that runs the caller.

A wait is reported in the event loop that it is in, which for a blocking verb is the loop of its client. There
the worker can end the wait of a task that blocks a thread, and could not be stopped otherwise.

Outside a worker there is no listener, and a call only reads a context variable.
"""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, Protocol

from gearflow.runtime.run_records import current_run


class Listener(Protocol):
    """Receives the waits, in the thread of the loop that waits."""

    def began(self, run: Any, wait: "Waiting") -> None:
        """A run has started to wait."""
        ...

    def ended(self, run: Any, wait: "Waiting") -> None:
        """The wait has ended, for any reason."""
        ...


caller: Final = current_run
"""The run that makes calls, as its worker's object. Everything that the task starts or awaits inherits it."""

_listener: Final[ContextVar[Listener | None]] = ContextVar("gearflow_listener", default=None)


@contextmanager
def heard_by(listener: Listener) -> Generator[None]:
    """Everything that is started in the block reports its waits."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class Waiting:
    """A wait for a job of a function, which lasts as long as a block in a coroutine.

    It is a class, because a generator would cost several times as much for each call.
    """

    __slots__ = ("_is_over", "_listener", "_loop", "_run", "_task", "function")

    def __init__(self, function: str) -> None:
        self.function = function
        run = self._run = caller.get()
        self._listener = None if run is None else _listener.get()

    def __enter__(self) -> None:
        if self._listener is not None:
            self._is_over = False
            self._task = _asyncio_task()
            self._loop = None if self._task is None else self._task.get_loop()
            self._listener.began(self._run, self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._listener is not None:
            self._is_over = True
            self._listener.ended(self._run, self)

    def end(self) -> None:
        """Cancel the wait, from any thread. On trio it goes on, because nothing can cancel it."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None and not self._is_over:
            self._task.cancel()


def _asyncio_task() -> "asyncio.Task[Any] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
