"""``@lifespan`` and ``@middleware``: functions around a worker's life, and around each run.

They are registered when their module is imported, as tasks are. A worker uses the hooks of its process in
the order in which they were defined. It enters lifespan hooks in order, and leaves them in reverse.
"""

import asyncio
import inspect
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import wraps
from types import TracebackType
from typing import Any, Final, TypeAlias, TypeVar, cast

import anyio

from gearflow.errors import StartupFailed

Lifespan: TypeAlias = Callable[[], AbstractAsyncContextManager[object]]
"""Entered before a worker's first job, and left after its last."""

LifespanFunction: TypeAlias = Callable[[], AsyncIterator[object]] | Lifespan
"""How it may be written: also as an ``async def`` with one ``yield``."""

Proceed: TypeAlias = Callable[[], Awaitable[None]]
"""The rest of a run. It raises the error of the task."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """One run of a job, as middleware and operators see it."""

    task: str
    """The task's name, which is also its function's name on servers."""

    handle: str
    """The server's name for the job."""

    server: str
    """``host:port`` of the server that gave the job."""

    attempt: int
    """1 for the first run, and one more for each retry."""

    started: float
    """When the run began, in seconds since the epoch."""


Middleware: TypeAlias = Callable[[RunInfo, Proceed], Awaitable[None]]
"""Called around each run."""

M = TypeVar("M", bound=Middleware)


class Hooks:
    """The hooks of a process. Several threads may use it.

    A hook that is defined again (its module was reloaded) replaces the earlier one. Objects, and several
    functions that one function has made, are separate hooks.
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
"""The hooks of ``@lifespan`` and ``@middleware`` in this process."""


def lifespan(function: LifespanFunction, /) -> Lifespan:
    """Register a hook that a worker enters before its first job, and exits after its last.

    The code before the ``yield`` runs in each process that runs tasks, before the first connection. The code
    after it runs when the last run has ended. All tasks see the context variables that it sets.

    Args:
        function: An ``async def`` without parameters that yields once, or a function that returns an
            asynchronous context manager.

    Returns:
        A function that returns the context manager, for tests that enter it themselves.

    Raises:
        TypeError: The function is neither. The message names the remedy.
    """
    hook = as_lifespan(function)
    hooks.add_lifespan(hook)
    return hook


def middleware(function: M, /) -> M:
    """Register a function that a worker calls around each run, with a ``RunInfo`` and ``proceed``.

        @middleware
        async def timed(run: RunInfo, proceed: Proceed) -> None:
            await proceed()

    ``await proceed()`` runs the inner part, which is the middleware that was defined later, and then the
    task. It raises what they raise. You may catch it only to raise it again or to replace it. The run fails
    with the exception that the middleware raises. If the middleware swallows an exception, the run fails with
    that exception. The task sees context variables that the middleware set before. The task's ``timeout``
    does not limit the middleware.

    Args:
        function: The middleware. It is returned as it is.

    Raises:
        TypeError: The function cannot be called like that. The message names the remedy.
    """
    check_middleware(function)
    hooks.add_middleware(function)
    return function


def as_lifespan(function: LifespanFunction) -> Lifespan:
    """A lifespan hook as a function that returns a context manager, however it is written.

    The result of a plain function is checked when it is called, with the same TypeError.

    Raises:
        TypeError: It cannot be a lifespan hook.
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
    """``module.function``. An object has the name of its class."""
    named: Any = hook if hasattr(hook, "__qualname__") else type(hook)
    return f"{named.__module__}.{named.__qualname__}"


def _is_synchronous(function: object) -> bool:
    """Whether it is a generator function, also after ``contextmanager``, or is annotated to return None."""
    if inspect.isgeneratorfunction(getattr(function, "__wrapped__", function)):
        return True
    return inspect.isfunction(function) and inspect.signature(function).return_annotation in (None, "None")


def _checked(hook: Lifespan) -> Lifespan:
    """The same hook. It raises TypeError if it does not return a context manager."""

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
    except (TypeError, ValueError):  # no function, or one without a signature
        return False
    return True


logger = logging.getLogger("gearflow.worker")


class Startup:
    """The state of entering the hooks, which can be given up. It belongs to the event loop."""

    def __init__(self) -> None:
        self.is_over = False
        """All hooks are entered."""
        self.is_given_up = False
        self.hook: str | None = None
        """The one that is being entered."""
        self.failed_hook: str | None = None
        """The hook that ended the block with an error."""
        self._scope: anyio.CancelScope | None = None

    def give_up(self) -> None:
        """Cancel the hook that is being entered, and enter no more. Does nothing after the start."""
        if not self.is_over:
            self.is_given_up = True
            if self._scope is not None:
                self._scope.cancel()

    def began(self, hook: Lifespan, scope: anyio.CancelScope) -> None:
        """A hook is about to be entered, within a scope that can be cancelled."""
        self.hook, self._scope = name_of(hook), scope

    def ended(self) -> None:
        """It is entered, or never will be."""
        self.hook = self._scope = None


@asynccontextmanager
async def lifetime(hooks: Sequence[Lifespan], start: Startup | None = None) -> AsyncGenerator[None]:
    """Enter the hooks for the time of the block.

    If a hook raises when it is left, the error is logged and the other hooks are still left. Context
    variables that hooks set stay set in the block. If the start is given up, the block is entered without
    the remaining hooks, and must end at once.

    Raises:
        StartupFailed: A hook raised when it was entered. The hooks before it were left.
    """
    start = start or Startup()
    async with AsyncExitStack() as stack:
        for hook in hooks:
            if not start.is_given_up:
                await stack.enter_async_context(_Entered(hook, start))
        start.is_over = not start.is_given_up
        yield


class _Entered:
    """One hook. It sees how the block ends, so a task group in it can cancel the block, and ends with it."""

    def __init__(self, hook: Lifespan, start: Startup) -> None:
        self._hook = hook
        self._start = start
        self._manager: AbstractAsyncContextManager[object] | None = None  # once it is entered
        self._scope: ExitStack  # around the hook from its beginning to its end, as scopes have to nest

    async def __aenter__(self) -> None:
        with ExitStack() as scope:
            self._start.began(self._hook, scope.enter_context(anyio.CancelScope()))
            try:
                manager = self._hook()
                await manager.__aenter__()
            except BaseException as error:
                if _is_for_others(error):
                    raise
                self._failed(error)  # raises, unless the start was given up
            else:
                self._manager = manager
                self._scope = scope.pop_all()
            finally:
                self._start.ended()

    def _failed(self, error: BaseException) -> None:
        name = name_of(self._hook)
        if not self._start.is_given_up:
            told = f"{type(error).__name__}: {_text_of(error)}"
            raise StartupFailed(f"lifespan hook {name} failed: {told}") from error
        logger.warning("lifespan hook %s failed as it was cancelled", name, exc_info=error)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if self._manager is None:
            return False
        with self._scope:
            return await self._leave(self._manager, kind, error, traceback)

    async def _leave(
        self,
        manager: AbstractAsyncContextManager[object],
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        try:
            return await manager.__aexit__(kind, error, traceback)
        except BaseException as own:
            if own is error:
                return False
            if _is_for_others(own):
                raise
            name = name_of(self._hook)
            if error is None or isinstance(error, Exception) or not isinstance(own, Exception):
                logger.exception("lifespan hook %s failed as it was left", name)
                return False
            logger.exception("lifespan hook %s failed", name)
            self._start.failed_hook = name
            raise  # it has turned its own cancellation of the block into this


def _is_for_others(error: BaseException) -> bool:
    """It was raised into a hook, rather than by it."""
    if isinstance(error, asyncio.CancelledError) and (task := _current_task()) is not None:
        return task.cancelling() > 0  # or the hook awaited a task of its own that it had cancelled
    return isinstance(error, (KeyboardInterrupt, GeneratorExit, anyio.get_cancelled_exc_class()))


def _current_task() -> "asyncio.Task[Any] | None":
    in_asyncio = anyio.get_cancelled_exc_class() is asyncio.CancelledError
    return asyncio.current_task() if in_asyncio else None


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:  # noqa: BLE001  (of the user's own)
        return "<no text>"
