"""One worker process, as its supervisor sees it: started, sent signals and messages, reaped.

It is a fresh interpreter that runs the supervisor's own command again, never a fork. It has a session of its
own, so that Ctrl-C at a terminal reaches the supervisor alone. SIGUSR2 and SIGTSTP are blocked until it
handles them (``signal.pthread_sigmask``): they wait, and do not kill or stop what is only just starting.
"""

import os
import signal
import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

import anyio.to_thread

from gearflow.runtime.process import ProcessEnd, peak, reap
from gearflow.supervisor.ipc import VARIABLE, IpcChannel

HELD_BACK: Final = (signal.SIGUSR2, signal.SIGTSTP)
"""Signals that a worker process has to unblock once it handles them."""

SHOW_WITHOUT_LOCK: Final = signal.SIGQUIT
"""Has a worker process write the stacks of all threads, although a thread holds the interpreter lock."""

_OF_THE_SERVICE: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""Variables of systemd for the supervisor alone."""


class WorkerProcess:
    """A worker process from its start until it was reaped."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start it.

        Raises:
            OSError: There is no more room for a process.
        """
        self._floor = peak()
        self.channel, theirs = IpcChannel.pair()
        inherited = {name: value for name, value in os.environ.items() if name not in _OF_THE_SERVICE}
        try:
            with theirs, _held_back():
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    env=inherited | {VARIABLE: str(theirs.fileno())},
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
        except OSError:
            self.channel.close()
            raise
        self._ended = False

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def signal(self, number: int) -> None:
        """Send it a signal, if it is still there."""
        if not self._ended:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def ended(self) -> ProcessEnd:
        """Wait for its end. To be called once."""
        return await anyio.to_thread.run_sync(self._reap, limiter=anyio.CapacityLimiter(1))

    def _reap(self) -> ProcessEnd:
        # Not by Popen, which does not know how much memory it had.
        end = reap(self.pid, self._floor)
        self._ended = True
        self._process.returncode = -1 if end.status is None else end.status
        return end


@contextmanager
def _held_back() -> Generator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
