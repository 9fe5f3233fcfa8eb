"""One process that runs tasks, as its worker sees it: started, told, listened to, killed, reaped.

It is *spawned*: a fresh interpreter with the worker's ``sys.path``, directory and environment, and nothing
else of its state, so no lock that a thread of the worker holds. It has a session of its own, so that a
terminal's signals do not reach it: the worker decides when it ends.

Two threads are with it. One reads what it writes, passes it on to the worker's stderr and keeps the last
lines. The other waits for its end, whatever it leaves behind: its own children may hold its socket and its
output open.

Its lifeline is a pipe that nobody writes to. When the worker is gone, however it ended, the kernel sends
the process a signal that ends it, even if its task holds the GIL for good.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, Final, cast

from gearflow.forks import forget_in_children, let_go
from gearflow.reaping import End, await_end, peak, reap
from gearflow.worker.processes import logs
from gearflow.worker.processes.ending import LAST_LINES, Ending
from gearflow.worker.processes.frames import Channel, Frame
from gearflow.worker.processes.origin import forbid_while_loading

_PROGRAM: Final = (
    "import sys; sys.path[:] = sys.argv[3:]; "
    "from gearflow.worker.processes.child import main; main(int(sys.argv[1]), int(sys.argv[2]))"
)

ANSWERED_BY_THE_WORKER: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGTSTP,
    signal.SIGUSR2,
)
"""Signals that service managers and terminals may send to all processes of a worker."""

_LONGEST_PIECE: Final = 65536
"""Bytes of a line of output that are passed on in one piece: a line may never end."""

_LAST_WORDS: Final = 1.0
"""Seconds to wait for the end of a process that has closed its socket, and for the end of its output, which
its own children may go on with."""


class Process:
    """One of them. Owns the process, its socket and its threads.

    Raises (on creation):
        OSError: The system gives no further process.
        RuntimeError: This process is one itself, and still imports the module of its first task.
    """

    def __init__(self, hello: bytes) -> None:
        forbid_while_loading()
        self.runs = 0
        """How many runs it has had."""
        self.tasks: set[str] = set()
        """Those that it has loaded."""
        self.has_ended = threading.Event()
        """Set when it is no more."""
        self._floor = peak()
        ours, theirs = socket.socketpair()
        their_end, self._lifeline = os.pipe()
        self._channel = Channel(ours)
        forget_in_children(self, Process._forget)
        try:
            self._popen = _spawn(theirs.fileno(), their_end)
        except BaseException:
            self._close_lifeline()
            self._channel.close()
            raise
        finally:
            theirs.close()
            os.close(their_end)
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._lock = threading.Lock()  # between a signal and the reaping
        self._end = End(None)
        self._reader = self._start(self._pass_on, "output")
        self._start(self._reap, "end")
        with suppress(OSError):  # it has ended already, which its first run will tell
            self._channel.send(hello)

    def ask(self, frame: bytes, report: Callable[[Frame], object]) -> Frame | Ending:
        """Have it do something; blocks until that is done. What it reports meanwhile goes to ``report``."""
        self._lines.clear()
        with suppress(OSError):
            self._channel.send(frame)
            while (answer := self._channel.receive()) is not None:
                match answer.kind:
                    case "report":
                        report(answer)
                    case "log":
                        logs.take_in(answer.fields["record"])
                    case _:
                        return answer
        return self._ending()

    def tell(self, frame: bytes) -> bool:
        """Tell it something meanwhile; whether that was possible at once."""
        return self._channel.send_at_once(frame)

    def kill(self) -> None:
        """End it at once, and what it has started. Any thread may do so, at any time."""
        with self._lock:
            if not self.has_ended.is_set():
                with suppress(ProcessLookupError):  # somebody else has reaped it
                    os.killpg(self._popen.pid, signal.SIGKILL)

    def show(self) -> None:
        """Have it write the stacks of its threads to its output."""
        with self._lock:
            if not self.has_ended.is_set():
                with suppress(ProcessLookupError):
                    os.kill(self._popen.pid, signal.SIGUSR2)

    def dismiss(self) -> None:
        """Let it end by itself. It is not used any more."""
        self._channel.end()
        self._channel.close()

    def _forget(self) -> None:
        """We are in a forked child, while the process belongs to the worker."""
        self._channel.forget()
        let_go(self._lifeline)

    def _close_lifeline(self) -> None:
        lifeline, self._lifeline = self._lifeline, -1  # its number is somebody else's from now on
        os.close(lifeline)

    def _ending(self) -> Ending:
        if not self.has_ended.wait(_LAST_WORDS):
            self.kill()
            self.has_ended.wait()
        self._reader.join(_LAST_WORDS)
        return Ending(self._end, tuple(self._lines))

    # --------------------------------------------------------------------------------- its two threads

    def _start(self, target: Callable[[], None], name: str) -> threading.Thread:
        thread = threading.Thread(target=target, name=f"gearflow-{name}-{self._popen.pid}", daemon=True)
        thread.start()
        return thread

    def _pass_on(self) -> None:
        with cast(IO[bytes], self._popen.stdout) as output:
            while piece := output.readline(_LONGEST_PIECE):
                line = piece.decode("utf-8", "backslashreplace")
                self._lines.append(line.rstrip("\r\n"))
                with suppress(OSError, ValueError, AttributeError):  # the worker may have no stderr any more
                    sys.stderr.write(line if line.endswith("\n") else f"{line}\n")

    def _reap(self) -> None:
        await_end(self._popen.pid)
        with self._lock:
            self._end = end = reap(self._popen.pid, self._floor)
            self._popen.returncode = -1 if end.status is None else end.status
            self.has_ended.set()
        self._channel.end()  # its children may hold the other end open
        self._close_lifeline()


def _spawn(channel: int, lifeline: int) -> subprocess.Popen[bytes]:
    """Start the interpreter, with the options that this one has.

    What the worker is to answer is blocked until the process has taken precautions.
    """
    flags: list[str] = cast(Any, subprocess)._args_from_interpreter_flags()
    path = [entry for entry in cast("list[object]", sys.path) if isinstance(entry, str)]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ANSWERED_BY_THE_WORKER)  # in this thread
    try:
        return subprocess.Popen(
            [sys.executable, *flags, "-c", _PROGRAM, str(channel), str(lifeline), *path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(channel, lifeline),
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
