"""The stacks of this process's threads, written to stderr at a signal.

``faulthandler`` reads frames without the interpreter lock. If a thread runs meanwhile, that can crash the
process. So it writes only the stack of the thread that got the signal. That is nearly always the main thread,
which may be in C code. The stacks of the other threads follow as soon as the main thread has the lock.
"""

import faulthandler
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FrameType
from typing import Final

from gearflow.runtime.fork import call_in_children

_STDERR: Final = 2
"""Not ``sys.stderr``, which users' code may have replaced by something without a descriptor."""


def show_at(number: int, show: Callable[[FrameType | None], object] | None = None) -> None:
    """Write the stack of the thread that gets a signal. After that, ``show`` may write the rest.

    ``show`` is called with the main thread's frame, in that thread, when it has the interpreter lock. The
    signal does not end processes that tasks fork. To be called in the main thread.
    """
    if show is not None:
        signal.signal(number, lambda _number, frame: show(frame))
    faulthandler.register(number, _STDERR, all_threads=False, chain=show is not None)


def show_without_lock_at(number: int, *, ends: bool) -> None:
    """Write the stacks of all threads at a signal, although one of them may hold the interpreter lock.

    That can crash the process if they run. ``ends``: the signal has its usual effect then. In processes that
    a task forks it has only that. To be called in the main thread.
    """
    if ends:
        signal.signal(number, signal.SIG_DFL)  # a script that starts a worker with & has it ignored
    faulthandler.register(number, _STDERR, all_threads=True, chain=ends)
    call_in_children(lambda: faulthandler.unregister(number))


def other_threads() -> Iterator[str]:
    """The stacks of all threads but this one, as lines."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():  # pyright: ignore[reportPrivateUsage]
        if ident != threading.get_ident():
            yield f"thread {names.get(ident, ident)} (most recent call last):"
            yield from "".join(traceback.format_stack(frame)).splitlines()


def write(text: str) -> None:
    """Write a text to stderr, also if the signal came in the middle of a ``print``."""
    rest = f"{text}\n".encode("utf-8", "backslashreplace")
    with suppress(OSError):  # nobody reads it: whatever the signal has interrupted must go on
        while rest:  # another signal may cut a write short
            rest = rest[os.write(_STDERR, rest) :]
