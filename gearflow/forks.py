"""What a child that this process forks is not to hold, or to do.

Tasks may fork (``multiprocessing`` does on Linux). A child has all that its parent has open, connections and
whatever tells others that we live, so that the end of the parent would be noticed only when the child ends as
well. And if it comes back from the task, it is not to go on as the parent does.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")

_STRAY: Final = b"a process that a task has forked came back from the task; end it by os._exit()\n"

_held: Final[WeakKeyDictionary[Any, Callable[[Any], object]]] = WeakKeyDictionary()


def forget_in_children(owner: T, forget: Callable[[T], object]) -> None:
    """Have ``forget(owner)``, which must not raise, called in each child that is forked from now on."""
    _held[owner] = forget


def let_go(descriptor: int) -> None:
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


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
