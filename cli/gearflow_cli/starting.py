"""Signals to a process that has no job yet: what stops ends it, and what is for the worker waits for that."""

import faulthandler
import os
import signal
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn

from gearflow_cli.exits import ExitCode

_STOPS: Final = (signal.SIGTERM, signal.SIGINT)

_FOR_LATER: Final = (signal.SIGHUP, signal.SIGTSTP, signal.SIGCONT)

_noted: Final[list[int]] = []
"""Signals that have come, and are for the worker."""


def end_at_once() -> None:
    """Have the first signal that stops end the process, until others handle it: there is no job yet."""
    from gearflow.handlers import handle

    for number in _STOPS:
        handle(number, _end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)


@contextmanager
def ending_at_once() -> Generator[None]:
    """The same for a time in which modules are imported, which may be long in a call of C's.

    Python handles no signal meanwhile, so a thread does. SIGUSR2 shows where the import is.
    """
    from gearflow.handlers import handle

    end_at_once()
    for number in _FOR_LATER:
        handle(number, _note)
    faulthandler.register(signal.SIGUSR2)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_FOR_LATER, signal.SIGUSR2))
    heard, told = socket.socketpair()
    told.setblocking(False)
    with told:
        signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=_end_when_told, args=(heard,), name="gearflow-start", daemon=True).start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            faulthandler.unregister(signal.SIGUSR2)


def repeat() -> None:
    """Send this process again what has come for the worker, which handles it now."""
    while _noted:
        os.kill(os.getpid(), _noted.pop(0))


def _note(number: int, _frame: FrameType | None) -> None:
    _noted.append(number)


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    os._exit(ExitCode.DONE)


def _end_when_told(heard: socket.socket) -> None:
    with heard:
        while number := heard.recv(1):
            if number[0] in _STOPS:
                os._exit(ExitCode.DONE)
