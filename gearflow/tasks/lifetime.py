"""The life of a process that runs tasks: its lifespan hooks are entered in order, and left in reverse."""

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from types import TracebackType

from gearflow.errors import StartupFailed
from gearflow.tasks.hooks import Lifespan, name_of

logger = logging.getLogger("gearflow.worker")


@asynccontextmanager
async def lifetime(hooks: Sequence[Lifespan]) -> AsyncGenerator[None]:
    """Have the hooks entered for the time of the block.

    A hook that raises as it is left is logged, and the others are left all the same. Context variables that
    hooks set stay set in the block.

    Raises:
        StartupFailed: A hook raised as it was entered; those before it were left.
    """
    async with AsyncExitStack() as stack:
        for hook in hooks:
            await stack.enter_async_context(_Entered(hook))
        yield


class _Entered:
    """One hook. It sees how the block ends, so a task group in it can cancel the block, and ends with it."""

    def __init__(self, hook: Lifespan) -> None:
        self._hook = hook
        self._manager: AbstractAsyncContextManager[object]

    async def __aenter__(self) -> None:
        try:
            self._manager = self._hook()
            await self._manager.__aenter__()
        except Exception as error:
            raise StartupFailed(
                f"lifespan hook {name_of(self._hook)} failed: {type(error).__name__}: {error}"
            ) from error

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        try:
            return await self._manager.__aexit__(kind, error, traceback)
        except Exception as own:
            if own is error:
                return False
            logger.exception("lifespan hook %s failed as it was left", name_of(self._hook))
            if error is None or isinstance(error, Exception):
                return False
            raise  # it has turned its own cancellation of the block into this
