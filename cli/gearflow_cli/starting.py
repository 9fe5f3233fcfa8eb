"""Signals to a process that has no job yet, and none of its own handlers: the first one ends it."""

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


def end_at_once() -> None:
    """Have the first signal that stops end the process, until others handle it: there is no job yet."""
    from gearflow.handlers import handle

    for number in _STOPS:
        handle(number, _end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)


@contextmanager
def ending_at_once() -> Generator[None]:
    """The same for a time in which modules are imported, which may be long in a call of C's.

    Python handles no signal meanwhile, so a thread does.
    """
    end_at_once()
    heard, told = socket.socketpair()
    told.setblocking(False)
    with told:
        signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=_end_when_told, args=(heard,), name="gearflow-start", daemon=True).start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    os._exit(ExitCode.DONE)


def _end_when_told(heard: socket.socket) -> None:
    with heard:
        while number := heard.recv(1):
            if number[0] in _STOPS:
                os._exit(ExitCode.DONE)
