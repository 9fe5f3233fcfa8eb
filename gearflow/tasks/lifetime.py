"""The life of a process that runs tasks: its lifespan hooks are entered in order, and left in reverse."""

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from types import TracebackType

import anyio

from gearflow.errors import StartupFailed
from gearflow.tasks.hooks import Lifespan, name_of

logger = logging.getLogger("gearflow.worker")


class Start:
    """The time in which hooks are entered. It can be given up. Owns state; belongs to the event loop."""

    def __init__(self) -> None:
        self.is_over = False
        """All hooks are entered."""
        self.is_given_up = False
        self.hook: str | None = None
        """The one that is being entered."""
        self.failed_hook: str | None = None
        """The one that has ended the block, by what it raised."""
        self._scope: anyio.CancelScope | None = None

    def give_up(self) -> None:
        """Enter no more hooks, and cancel the one that is being entered; does nothing if it is over."""
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
async def lifetime(hooks: Sequence[Lifespan], start: Start | None = None) -> AsyncGenerator[None]:
    """Have the hooks entered for the time of the block.

    A hook that raises as it is left is logged, and the others are left all the same. Context variables that
    hooks set stay set in the block. If the start is given up, the block is entered without the hooks that
    were still to come, and has nothing to do but to end.

    Raises:
        StartupFailed: A hook raised as it was entered; those before it were left.
    """
    start = start or Start()
    async with AsyncExitStack() as stack:
        for hook in hooks:
            if not start.is_given_up:
                await stack.enter_async_context(_Entered(hook, start))
        start.is_over = not start.is_given_up
        yield


class _Entered:
    """One hook. It sees how the block ends, so a task group in it can cancel the block, and ends with it."""

    def __init__(self, hook: Lifespan, start: Start) -> None:
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
                self._failed(error)  # which raises, unless nobody wants it
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
    return isinstance(error, (KeyboardInterrupt, GeneratorExit, anyio.get_cancelled_exc_class()))


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:  # noqa: BLE001  (of the user's own)
        return "<its text cannot be told>"
