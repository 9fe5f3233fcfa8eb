"""Signal handlers for this process, and not for those that it forks.

A task that forks (``multiprocessing`` does so on Linux) expects that signals end its children: by SIGTERM it
ends them itself. They would inherit handlers that act for the worker. In its children there is again what was
there before the first handler of ours.

What a child that this process forks is not to hold, or to do.

Tasks may fork (``multiprocessing`` does on Linux). A child has all that its parent has open, connections and
whatever tells others that we live, so that the end of the parent would be noticed only when the child ends as
well. And if it comes back from the task, it is not to go on as the parent does.
"""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Final, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")

_STRAY: Final = b"a process that a task has forked came back from the task; end it by os._exit()\n"

_held: Final[WeakKeyDictionary[Any, Callable[[Any], object]]] = WeakKeyDictionary()
_calls: Final[list[Callable[[], object]]] = []


def forget_in_children(owner: T, forget: Callable[[T], object]) -> None:
    """Have ``forget(owner)``, which must not raise, called in each child that is forked from now on."""
    _held[owner] = forget


def call_in_children(forget: Callable[[], object]) -> None:
    """The same for what belongs to a module. It is also called in the children of children."""
    _calls.append(forget)


def release_descriptor(descriptor: int) -> None:
    """Close what is open under a descriptor, but not the number: who knows that may close it, later."""
    with suppress(OSError):  # it was closed before; or no descriptor is left
        nothing = os.open(os.devnull, os.O_RDWR)
        try:
            os.dup2(nothing, descriptor, inheritable=False)
        finally:
            os.close(nothing)


def end_stray(process: int) -> None:
    """End this process, and say why, if it is not the one with that id."""
    if os.getpid() != process:
        os.write(2, _STRAY)
        os._exit(1)


def _forget_all() -> None:
    for owner, forget in list(_held.items()):
        forget(owner)
    _held.clear()
    for call in _calls:
        call()


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
    _forget_all()
    raises = signal.SIGINT in _ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if raises:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    _let_come()
    if raises:  # at the very end, since what it raises in here is lost
        signal.signal(signal.SIGINT, signal.default_int_handler)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold_back, after_in_parent=_let_come, after_in_child=_begin_as_child)
