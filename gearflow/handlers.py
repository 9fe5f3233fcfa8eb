"""Signal handlers for this process, and not for those that it forks.

A task that forks (``multiprocessing`` does so on Linux) expects that signals end its children: by SIGTERM it
ends them itself. They would inherit handlers that act for the worker. In its children there is again what was
there before the first handler of ours.
"""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, TypeAlias

Handler: TypeAlias = Callable[[int, FrameType | None], Any] | int | None

_ours: Final[dict[int, Handler]] = {}
_before: Final[dict[int, Handler]] = {}
_mask = threading.local()


def handle(number: int, handler: Handler) -> None:
    """Have a function called at a signal, in this process alone. In the main thread."""
    before = signal.signal(number, handler)
    _before.setdefault(number, signal.SIG_DFL if before is None else before)
    _ours[number] = handler


def _hold_back() -> None:
    """A signal that comes before the child has its own handlers waits; else it would be lost."""
    _mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, _ours)


def _let_come() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask.before)


def _begin_as_child() -> None:
    if _ours:
        signal.set_wakeup_fd(-1)  # which would wake the event loop of the parent
    for number, handler in _ours.items():
        if signal.getsignal(number) == handler:  # else the task has set its own
            signal.signal(number, _before[number])
    if signal.SIGINT in signal.sigpending() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # what it raises would be lost in here
    _let_come()


os.register_at_fork(before=_hold_back, after_in_parent=_let_come, after_in_child=_begin_as_child)
