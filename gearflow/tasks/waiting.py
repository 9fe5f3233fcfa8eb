"""What tasks wait for that call other tasks: the verbs tell it, and the worker that runs them may listen.

Nobody listens where no worker runs the caller, and then a call costs a look at a context variable more.
"""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, Protocol


class Listener(Protocol):
    """Who wants to know. Called in the thread that waits, whichever that is."""

    def began(self, run: Any, function: str) -> None:
        """A run waits for a job of this function from now on."""
        ...

    def ended(self, run: Any, function: str) -> None:
        """It does not any more, for whatever reason."""
        ...


caller: Final[ContextVar[Any]] = ContextVar("gearflow_caller", default=None)
"""The run that calls are made by, as its worker calls it. What the task starts and awaits inherits it."""

_listener: Final[ContextVar[Listener | None]] = ContextVar("gearflow_listener", default=None)


@contextmanager
def heard_by(listener: Listener) -> Generator[None]:
    """Have what is started in the block tell of its waits."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class Waiting:
    """A wait for a job of a function, for the time of a block.

    A class, since a generator would cost several times as much for each call.
    """

    __slots__ = ("_function", "_listener", "_run")

    def __init__(self, function: str) -> None:
        self._function = function
        run = self._run = caller.get()
        self._listener = None if run is None else _listener.get()

    def __enter__(self) -> None:
        if self._listener is not None:
            self._listener.began(self._run, self._function)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._listener is not None:
            self._listener.ended(self._run, self._function)
