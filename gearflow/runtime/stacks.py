"""The stacks of this process's threads, written to stderr at a signal.

``faulthandler`` reads frames without the interpreter lock. If a thread runs meanwhile, that can crash the
process. So it writes only the stack of the thread that got the signal. That is nearly always the main thread,
which may be in C code. The stacks of the other threads follow as soon as the main thread has the lock.
"""

import faulthandler
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType

from gearflow.runtime.fork import handle


def show_at(number: int, show: Callable[[FrameType | None], object]) -> None:
    """Write the stack of the thread that gets a signal, and call ``show`` with its frame for the rest.

    ``show`` is called in the main thread when that has the interpreter lock. Call this in the main thread.
    """
    handle(number, lambda _number, frame: show(frame))
    faulthandler.register(number, all_threads=False, chain=True)


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
    while rest:  # another signal may cut a write short
        rest = rest[os.write(sys.stderr.fileno(), rest) :]
