"""The two things that anyio cannot do cheaply enough once per job: start a task, and call back from a thread.

anyio's ``start_soon`` costs three times what the loop's own task costs, and its ``from_thread`` makes the
thread wait. So runs are started on asyncio or trio directly; all that lives as long as a connection or
the worker is anyio's.
"""

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, cast

import anyio

from gearflow.client.posting import poster

if TYPE_CHECKING:
    import trio  # an extra of the user's

Body: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


class Started(Protocol):
    """A body that runs."""

    def cancel(self) -> object:
        """Stop it at its next ``await``."""
        ...


class Loop(Protocol):
    """Where runs run."""

    native_cancellation: bool
    """A cancellation can also be made by the task itself (``raise CancelledError``), and may be swallowed."""

    def start(self, body: Body) -> Started:
        """Run a body, which must not raise, as a task of its own. The caller holds what this returns.

        It sees the context variables that were set where the loop was opened, whoever starts it.
        """
        ...

    async def join(self, started: Iterable[Started]) -> None:
        """Wait until these have ended, however often this is cancelled meanwhile."""
        ...

    def post(self, callback: Callable[[], object], /) -> None:
        """Call something on the loop, from any thread, in order. Does nothing if the loop is gone."""
        ...

    def now(self) -> float:
        """``anyio.current_time()``, also in what was posted, where anyio does not know the loop."""
        ...


@asynccontextmanager
async def open_loop() -> AsyncGenerator[Loop, None]:
    """The running event loop as a ``Loop``; before the block ends, what was started has to be joined."""
    if _is_asyncio():
        yield _Asyncio(asyncio.get_running_loop())
    else:
        import trio

        async with trio.open_nursery() as nursery:
            yield _Trio(nursery)


def _is_asyncio() -> bool:
    try:
        # Not get_running_loop: trio may itself run within asyncio's callbacks.
        return asyncio.current_task() is not None
    except RuntimeError:
        return False


class _Asyncio:
    native_cancellation = True

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.post: Final = poster()
        self._loop = loop
        self._variables = contextvars.copy_context()

    def start(self, body: Body) -> Started:
        # Not kept in a set here: its done callback would cost as much as the task itself.
        return self._loop.create_task(body(), context=self._variables.copy())

    async def join(self, started: Iterable[Started]) -> None:
        tasks = cast("set[asyncio.Task[None]]", set(started))
        with anyio.CancelScope(shield=True):
            if tasks:
                await asyncio.wait(tasks)

    def now(self) -> float:
        return self._loop.time()


class _Trio:
    native_cancellation = False

    def __init__(self, nursery: "trio.Nursery") -> None:
        self.post: Final = poster()
        self._nursery = nursery
        self._variables = contextvars.copy_context()

    def start(self, body: Body) -> Started:
        import trio

        scope = trio.CancelScope()
        self._variables.copy().run(self._nursery.start_soon, self._within, scope, body)
        return scope

    async def join(self, started: Iterable[Started]) -> None:
        """Nothing: the nursery waits for all of them."""

    async def _within(self, scope: "trio.CancelScope", body: Body) -> None:
        with scope:
            await body()

    def now(self) -> float:
        import trio

        return trio.current_time()
