"""To an event loop from anywhere: another thread, or a garbage collection in the middle of something.

The event loop that gearflow's own programs, and its threads, run on.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import anyio
import anyio.lowlevel

from gearflow.protocol.request_queue import Signal

if TYPE_CHECKING:
    import trio  # an extra of the user's

_IS_INSTALLED: Final = find_spec("uvloop") is not None


def new_event_loop() -> asyncio.AbstractEventLoop:
    """The fastest event loop there is: uvloop's where it can be used."""
    if not can_use_uvloop():
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


def can_use_uvloop() -> bool:
    """Whether it is installed, and no descriptor of its own would be in the place of a standard stream.

    libuv aborts the process when it closes such a one. They are free where a program was started with
    standard input closed, for example.
    """
    return _IS_INSTALLED and all(map(_is_open, range(3)))


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def runs_on_asyncio() -> bool:
    """Whether the event loop that runs here is asyncio's, or one in its place such as uvloop's."""
    return anyio.get_cancelled_exc_class() is asyncio.CancelledError


class _Once(asyncio.Future[None]):
    """A signal on asyncio. An event makes such a future for each wait, and costs three times as much."""

    __slots__ = ()

    def set(self) -> None:
        if not self.done():  # or its waiter was cancelled
            self.set_result(None)

    def wait(self) -> "_Once":
        return self


def signals() -> Callable[[], Signal]:
    """What makes signals for the event loop that runs here. One task may wait for each, once."""
    if runs_on_asyncio():
        return partial(_Once, loop=asyncio.get_running_loop())
    return anyio.Event


Post: TypeAlias = Callable[[Callable[[], object]], None]


def poster() -> Post:
    """What has something called on the event loop that runs here: soon, in order, and from any thread.

    It does nothing if the loop is gone then.
    """
    loop = anyio.lowlevel.current_token().native_token
    if isinstance(loop, asyncio.AbstractEventLoop):
        return partial(_post_to_asyncio, loop)
    import trio  # now, because the interpreter may be exiting when something is posted

    return partial(_post_to_trio, cast(trio.lowlevel.TrioToken, loop), trio.RunFinishedError)


def _post_to_asyncio(loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
    with contextlib.suppress(RuntimeError):  # closed
        loop.call_soon_threadsafe(callback)


def _post_to_trio(
    token: "trio.lowlevel.TrioToken", finished: type[Exception], callback: Callable[[], object]
) -> None:
    with contextlib.suppress(finished):
        token.run_sync_soon(callback)
