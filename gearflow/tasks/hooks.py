"""``@lifespan`` and ``@middleware``: functions around a worker's life, and around each run.

They are registered as tasks are, when their module is imported, and a worker uses those of its process in
the order in which they were defined.
"""

import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final, TypeAlias, TypeVar, cast

Lifespan: TypeAlias = Callable[[], AbstractAsyncContextManager[object]]
"""What is entered before a worker's first job, and left after its last."""

LifespanFunction: TypeAlias = Callable[[], AsyncIterator[object]] | Lifespan
"""How it may be written: also as an ``async def`` with one ``yield``."""

Proceed: TypeAlias = Callable[[], Awaitable[None]]
"""The rest of a run: raises what the task raises."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """One run of a job, as middleware and operators see it."""

    task: str
    """The task's name, which is that of its function on servers."""

    handle: str
    """The server's name for the job."""

    server: str
    """``host:port`` of the server that gave it."""

    attempt: int
    """1 for the first run, one more for each retry."""

    started: float
    """When the run began, in seconds since the epoch."""


Middleware: TypeAlias = Callable[[RunInfo, Proceed], Awaitable[None]]
"""What is called around each run."""

M = TypeVar("M", bound=Middleware)


class Hooks:
    """The hooks of a process. Owns state; may be used by several threads.

    One that is defined again (its module was reloaded) takes the place of the one before. Objects, and what
    one function has made several of, are hooks of their own.
    """

    def __init__(self) -> None:
        self._lifespans: dict[object, Lifespan] = {}
        self._middleware: dict[object, Middleware] = {}
        self._lock = threading.Lock()

    def add_lifespan(self, hook: Lifespan) -> None:
        """Take one in, behind all others."""
        with self._lock:
            self._lifespans[_origin(hook)] = hook

    def add_middleware(self, hook: Middleware) -> None:
        """Take one in, inside all others."""
        with self._lock:
            self._middleware[_origin(hook)] = hook

    def lifespans(self) -> tuple[Lifespan, ...]:
        """Those of ``@lifespan``, in the order in which they are to be entered."""
        with self._lock:
            return tuple(self._lifespans.values())

    def middleware(self) -> tuple[Middleware, ...]:
        """Those of ``@middleware``, the outermost first."""
        with self._lock:
            return tuple(self._middleware.values())


hooks: Final = Hooks()
"""What ``@lifespan`` and ``@middleware`` have registered in this process."""


def lifespan(function: LifespanFunction, /) -> Lifespan:
    """Have a worker enter this before its first job, and leave it after its last.

    What stands before the ``yield`` is done in each process that runs tasks, before the first connection is
    made; what stands behind it, when the last run has ended. Context variables that it sets are seen by
    all tasks.

    Args:
        function: An ``async def`` without parameters that yields once, or a function that returns an
            asynchronous context manager.

    Returns:
        A function that returns the context manager, for tests that enter it by themselves.

    Raises:
        TypeError: It is neither; the message names the remedy.
    """
    hook = as_lifespan(function)
    hooks.add_lifespan(hook)
    return hook


def middleware(function: M, /) -> M:
    """Have a worker call this around each run: ``async def timed(run: RunInfo, proceed: Proceed) -> None``.

    ``await proceed()`` runs what is inside: the middleware that was defined later, then the task. It raises
    what they raise, which may be caught only to be raised again or to be replaced: what the middleware
    raises is the failure of the run, and without it the one that it has swallowed. Context variables that
    are set before are seen by the task. The task's ``timeout`` does not limit the middleware.

    Raises:
        TypeError: It cannot be called so; the message names the remedy.
    """
    check_middleware(function)
    hooks.add_middleware(function)
    return function


def as_lifespan(function: LifespanFunction) -> Lifespan:
    """A lifespan hook as a function that returns a context manager, however it is written.

    What a plain function returns shows only when it is called: then it raises TypeError if it has to.

    Raises:
        TypeError: It is none.
    """
    if inspect.iscoroutinefunction(function) or _is_synchronous(function):
        raise TypeError(
            f"{name_of(function)} cannot be a lifespan hook: it has to be 'async def', and yield once"
        )
    if not _can_be_called(function, 0):
        raise TypeError(
            f"{name_of(function)} cannot be a lifespan hook: it has to be a function without parameters"
        )
    if inspect.isasyncgenfunction(function):
        return asynccontextmanager(function)
    hook = cast(Lifespan, function)
    return _checked(hook) if inspect.isfunction(function) else hook


def check_middleware(function: Middleware) -> None:
    """See that this can be called around a run.

    Raises:
        TypeError: It cannot.
    """
    call = function if inspect.isroutine(function) else type(function).__call__
    if not inspect.iscoroutinefunction(call):
        raise TypeError(
            f"{name_of(function)} cannot be middleware: it has to be 'async def', and await proceed()"
        )
    if not _can_be_called(function, 2):
        raise TypeError(
            f"{name_of(function)} cannot be middleware: it has to take two arguments, run and proceed"
        )


def name_of(hook: Callable[..., Any]) -> str:
    """``module.function``; an object of a class goes by the name of that."""
    named: Any = hook if hasattr(hook, "__qualname__") else type(hook)
    return f"{named.__module__}.{named.__qualname__}"


def _is_synchronous(function: object) -> bool:
    """A generator function, also as ``contextmanager`` makes it; or one that says that it returns nothing."""
    if inspect.isgeneratorfunction(getattr(function, "__wrapped__", function)):
        return True
    return inspect.isfunction(function) and inspect.signature(function).return_annotation in (None, "None")


def _checked(hook: Lifespan) -> Lifespan:
    """The same; it raises TypeError if it returns anything else than a context manager."""

    @wraps(hook)
    def checked() -> AbstractAsyncContextManager[object]:
        manager = hook()
        if not hasattr(type(manager), "__aenter__"):
            raise TypeError(
                f"it returned {manager!r}, and no asynchronous context manager: "
                "write it as 'async def', and yield once"
            )
        return manager

    return checked


def _origin(hook: Callable[..., Any]) -> object:
    """Equal for two that come from the same place in a module."""
    return hook if "<locals>" in getattr(hook, "__qualname__", "<locals>") else name_of(hook)


def _can_be_called(function: Callable[..., Any], arguments: int) -> bool:
    try:
        inspect.signature(function).bind(*range(arguments))
    except (TypeError, ValueError):  # no function, or one that does not tell
        return False
    return True
