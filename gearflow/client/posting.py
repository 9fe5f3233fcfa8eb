"""To an event loop from anywhere: another thread, or a garbage collection in the middle of something."""

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, cast

import anyio.lowlevel

if TYPE_CHECKING:
    import trio  # an extra of the user's

Post: TypeAlias = Callable[[Callable[[], object]], None]


def poster() -> Post:
    """What has something called on the event loop that runs here: soon, in order, and from any thread.

    It does nothing if the loop is gone then.
    """
    loop = anyio.lowlevel.current_token().native_token
    if isinstance(loop, asyncio.AbstractEventLoop):
        return partial(_post_to_asyncio, loop)
    return partial(_post_to_trio, cast("trio.lowlevel.TrioToken", loop))


def _post_to_asyncio(loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
    with contextlib.suppress(RuntimeError):  # closed
        loop.call_soon_threadsafe(callback)


def _post_to_trio(token: "trio.lowlevel.TrioToken", callback: Callable[[], object]) -> None:
    import trio

    with contextlib.suppress(trio.RunFinishedError):
        token.run_sync_soon(callback)
