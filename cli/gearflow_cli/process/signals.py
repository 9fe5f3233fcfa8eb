"""The effect of signals on a process that runs a worker.

The handlers are Python's own and not the event loop's, because a task that blocks the loop must not delay
the second signal.

A worker process leaves the second signal to its supervisor, which asks it over the IPC channel to leave.
systemd may send SIGTERM to all processes of a service, so that a worker gets it twice.

If the supervisor itself is gone, a thread notices it and stops the worker.

Before the worker starts, SIGTERM and SIGINT end the process at once. Other signals wait for the worker.
"""

import faulthandler
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Final, NoReturn, Self

from gearflow_cli import logs
from gearflow_cli.errors import ExitCode, tell

if TYPE_CHECKING:
    from gearflow.supervisor import IpcChannel, Notifier
    from gearflow.worker import Worker

_STOPS: Final = (signal.SIGTERM, signal.SIGINT)

_FOR_LATER: Final = (signal.SIGHUP, signal.SIGTSTP, signal.SIGCONT)

_noted: Final[list[int]] = []
"""Signals that have arrived before the worker started."""


def exit_at_once(code: int) -> NoReturn:
    """End the process, without the interpreter's exit, which would wait for the threads of tasks."""
    logs.flush()
    os._exit(code)


def end_at_once() -> None:
    """End the process at the first SIGTERM or SIGINT. There is no job yet."""
    from gearflow.runtime.fork import handle

    for number in _STOPS:
        handle(number, _end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)


@contextmanager
def ending_at_once() -> Generator[None]:
    """End the process at the first SIGTERM or SIGINT while modules are imported.

    Python handles no signals while an import is in C code, so a thread does it. SIGUSR2 shows the stack.
    """
    from gearflow.runtime import stacks
    from gearflow.runtime.fork import handle

    end_at_once()
    for number in (*_FOR_LATER, signal.SIGUSR2):
        handle(number, _note)
    stacks.show_at(signal.SIGUSR2)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_FOR_LATER, signal.SIGUSR2))
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    with writer:
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=_end_on_signal, args=(reader,), name="gearflow-start", daemon=True).start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            faulthandler.unregister(signal.SIGUSR2)  # from now on it waits, too


def repeat() -> None:
    """Send the signals again that have arrived for the worker, which handles them now."""
    while _noted:
        os.kill(os.getpid(), _noted.pop(0))


def _note(number: int, _frame: FrameType | None) -> None:
    _noted.append(number)


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    os._exit(ExitCode.DONE)


def _end_on_signal(reader: socket.socket) -> None:
    # The main thread gets them. Its stack is wanted, and not this one.
    signal.pthread_sigmask(signal.SIG_BLOCK, (*_STOPS, *_FOR_LATER, signal.SIGUSR2))
    with reader:
        while number := reader.recv(1):
            if number[0] in _STOPS:
                os._exit(ExitCode.DONE)


_GRACE: Final = 2.0
"""Seconds for the ``finally`` blocks of coroutines on a cold stop."""

_DRAIN_GRACE: Final = 4.0
"""The same after a warm stop that took too long. The worker also returns its jobs in this time."""


_START_GRACE: Final = 4.0
"""The same when a start is given up. There are no jobs yet."""

_LOOK_EVERY: Final = 1.0
"""Seconds between two checks of the event loop, in a process that has lost its supervisor."""


class Signals:
    """Applies signals to a worker, from the start of the block on. In the main thread, on its event loop.

    Args:
        line: The channel to the supervisor, if there is one.
        watchdog: Seconds for which the event loop may be blocked when the supervisor is gone.
        notifier: Tells systemd that the worker stops.
    """

    def __init__(
        self,
        worker: "Worker",
        *,
        line: "IpcChannel | None" = None,
        watchdog: float | None = None,
        notifier: "Notifier | None" = None,
    ) -> None:
        import asyncio

        from gearflow.supervisor import Echoes, Notifier, Terminal

        self.forced = 0
        """The exit code of a cold stop, or 0."""
        self.again = False
        """Whether the process restarts when the worker has stopped."""
        self.is_quiet = False
        """Whether the worker takes no new jobs for now."""
        self._worker = worker
        self._line = line
        self._watchdog = watchdog
        self._notifier = notifier or Notifier()
        self._terminal = Terminal()
        self._asked: int | None = None  # the first signal that stops
        self._echoes = Echoes()
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> Self:
        from gearflow.runtime.fork import handle
        from gearflow.supervisor import HELD_BACK
        from gearflow_cli.process import restart, stack_dump

        stack_dump.on_signal(self._worker, self._line)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTSTP, signal.SIGCONT):
            handle(number, self._received)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*HELD_BACK, *restart.HELD_BACK})
        repeat()
        if self._line is not None:
            threading.Thread(
                target=self._outlive, args=(self._line,), name="gearflow-line", daemon=True
            ).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # The process ends soon. Python restores the default effects of signals before it is gone, and some of
        # these would kill or stop the process. Only a further SIGTERM or SIGINT still has an effect.
        if not self.again:
            from gearflow.supervisor import SHOW_WITHOUT_LOCK

            ignored = [*_FOR_LATER, signal.SIGUSR2]
            if self._line is not None:  # the supervisor may still send it
                ignored.append(SHOW_WITHOUT_LOCK)
            for number in ignored:
                faulthandler.unregister(number)
                signal.signal(number, signal.SIG_IGN)
        if self._asked is not None and self._worker.left and not self.forced:  # it took too long
            self.forced = 128 + self._asked

    def leave(self) -> None:
        """Stop cold, as a second signal does."""
        self._leave(signal.SIGTERM)

    def _received(self, number: int, _frame: FrameType | None) -> None:
        match number:
            case signal.SIGHUP if not self._terminal.is_gone():
                self._post(self._reload)
            case signal.SIGTSTP:
                self.is_quiet = True
                self._post(self._worker.quiet)
            case signal.SIGCONT:
                self.is_quiet = False
                self._post(self._worker.resume)
            case _:
                if not self._echoes.has(number):
                    self._stop(number)

    def _stop(self, number: int) -> None:
        if self.forced:
            exit_at_once(self.forced)
        elif self._asked is None:
            self._asked = number
            self.again = False
            self._notifier.stopping()
            self._post(self._worker.stop)
            if self._worker.starting:
                _call_after(_START_GRACE, self._leave_start)
            drain = self._worker.settings.drain
            if drain is not None:
                _exit_after(drain + _DRAIN_GRACE, 128 + number)
        elif self._line is None:
            self._leave(number)

    def _outlive(self, line: "IpcChannel") -> None:
        """Stop warm when the supervisor is gone, and leave if the event loop is blocked. In a thread."""
        line.await_end()
        with suppress(RuntimeError):  # the event loop is closed, and the process ends
            self._stop(signal.SIGTERM)
            while self._watchdog is not None:
                runs = threading.Event()
                self._loop.call_soon_threadsafe(runs.set)
                if not runs.wait(self._watchdog):
                    tell("the event loop is blocked, and the supervisor is gone: leaving", logging.ERROR)
                    exit_at_once(128 + signal.SIGTERM)
                time.sleep(_LOOK_EVERY)

    def _leave(self, number: int) -> None:
        self.forced = 128 + number
        self._post(self._worker.leave)
        _exit_after(_GRACE, self.forced)

    def _leave_start(self) -> None:
        """End a process whose start does not end. A lifespan hook may block the event loop. In a thread."""
        if self._worker.starting:
            tell("a lifespan hook does not end; leaving without it", logging.WARNING)
            os._exit(ExitCode.DONE)

    def _reload(self) -> None:
        from gearflow.supervisor import Retiring

        if self._line is not None:
            self._line.send(Retiring("SIGHUP"))
        elif self._asked is None and not self.again:
            self.again = True
            self._notifier.reloading()
            self._worker.stop()

    def _post(self, callback: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the event loop is closed, and the process ends
            self._loop.call_soon_threadsafe(callback)


def _exit_after(seconds: float, code: int) -> None:
    _call_after(seconds, partial(exit_at_once, code))


def _call_after(seconds: float, function: Callable[[], object]) -> None:
    watchdog = threading.Timer(seconds, function)
    watchdog.daemon = True
    watchdog.start()
