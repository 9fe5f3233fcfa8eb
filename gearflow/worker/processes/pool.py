"""The processes of a worker: started when they are needed, kept for the next run, replaced when worn out.

There is no limit and no queue here. Each run has a slot, so there are as many processes as there were runs at
once. The one that was used last is used next.

A process is *spawned*: a fresh interpreter with the worker's ``sys.path``, directory and environment. It has
nothing else of the worker's state, so no lock that a thread of the worker holds. It has a session of its own,
so that a terminal's signals do not reach it: the worker decides when it ends.

Each process has two threads here. One reads its output. The other waits for its end, and not for that of its
own children, which may hold its socket and its output open.

Its lifeline is a pipe that nobody writes to. When the worker is gone, however it ended, the kernel sends
the process a signal that ends it, even if its task holds the GIL for good.
"""

import fcntl
import logging
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, Final, cast

from gearflow.client.current import Target
from gearflow.runtime.fork import forget_in_children, release_descriptor
from gearflow.runtime.process import ProcessEnd, await_end, peak, reap
from gearflow.worker.processes import child_output
from gearflow.worker.processes.errors import LAST_LINES, Ending
from gearflow.worker.processes.messages import Channel, Frame, Hello, encode
from gearflow.worker.processes.task_import import forbid_while_loading

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

_EXIT_WAIT: Final = 1.0
"""Seconds to wait for the end of a process that has closed its socket."""

_STUCK: Final = 3.0
"""Seconds to wait for the thread that reads the output. It may be stuck: nobody reads the worker's stderr."""


class Process:
    """One process of the pool. Owns its socket and its threads.

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
        """Set when the process has ended and was reaped."""
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
        self._output = _Output(cast(IO[bytes], self._popen.stdout))
        self._lock = threading.Lock()  # between a signal and the reaping
        self._end = ProcessEnd(None)
        self._start(self._output.pass_on, "output")
        self._start(self._reap, "end")
        with suppress(OSError):  # it has ended already, as its first run will show
            self._channel.send(hello)

    def request(self, frame: bytes, report: Callable[[Frame], object]) -> Frame | Ending:
        """Send a request, and block until its answer comes. Reports meanwhile go to ``report``."""
        self._output.clear()
        with suppress(OSError):
            self._channel.send(frame)
            while (answer := self._channel.receive()) is not None:
                match answer.kind:
                    case "report" | "part":
                        report(answer)
                    case "log":
                        child_output.handle_received(answer.fields["record"])
                    case _:
                        self._output.pass_on_available()  # a run's output comes before its result
                        return answer
        return self._ending()

    def send(self, frame: bytes) -> None:
        """Send a frame meanwhile. Blocks while the process reads nothing. The next answer shows its end."""
        with suppress(OSError):
            self._channel.send(frame)

    def notify(self, frame: bytes) -> bool:
        """Send a frame meanwhile, without waiting. False if the process is gone, or does not read."""
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
        release_descriptor(self._lifeline)

    def _close_lifeline(self) -> None:
        lifeline, self._lifeline = self._lifeline, -1  # its number is somebody else's from now on
        os.close(lifeline)

    def _ending(self) -> Ending:
        if not self.has_ended.wait(_EXIT_WAIT):
            self.kill()
            self.has_ended.wait()
        return Ending(self._end, self._output.last_lines())

    # --------------------------------------------------------------------------------- its two threads

    def _start(self, target: Callable[[], None], name: str) -> None:
        threading.Thread(target=target, name=f"gearflow-{name}-{self._popen.pid}", daemon=True).start()

    def _reap(self) -> None:
        await_end(self._popen.pid)
        with self._lock:
            self._end = end = reap(self._popen.pid, self._floor)
            self._popen.returncode = -1 if end.status is None else end.status
            self.has_ended.set()
        self._channel.end()  # its children may hold the other end open
        self._close_lifeline()


class _Output:
    """The output of a process. Its lines go to the worker's stderr, and the last ones are kept."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._pipe = pipe
        self._lock = threading.Lock()  # between the two threads that read
        self._rest = b""  # of a line that has no end yet
        os.set_blocking(pipe.fileno(), False)

    def pass_on(self) -> None:
        """Read until nobody can write any more. Children of the process may hold the pipe open. Blocks."""
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        while not self._pipe.closed:
            poll.poll()
            with self._lock, suppress(BlockingIOError):  # the other thread has read it
                self._read(_LONGEST_PIECE)

    def clear(self) -> None:
        """Keep nothing of what was written before: a run begins."""
        self.pass_on_available()
        self._lines.clear()

    def last_lines(self) -> tuple[str, ...]:
        """The last lines of the present run. The process has ended."""
        self.pass_on_available()
        return tuple(self._lines.copy())

    def pass_on_available(self) -> None:
        """Pass on what was written until now, without the thread that reads, which may be late."""
        if self._lock.acquire(timeout=_STUCK):
            try:
                if not self._pipe.closed:
                    self._empty()
            finally:
                self._lock.release()

    def _empty(self) -> None:
        (there,) = struct.unpack("i", fcntl.ioctl(self._pipe, termios.FIONREAD, bytes(4)))
        while there > 0:
            there -= self._read(min(there, _LONGEST_PIECE))
        self._end_line()

    def _read(self, size: int) -> int:
        """Read at most so many bytes; how many there were. At the end of the output the pipe is closed."""
        chunk = os.read(self._pipe.fileno(), size)
        if not chunk:
            self._end_line()
            self._pipe.close()
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._handle_line(line)
        if len(self._rest) >= _LONGEST_PIECE:
            self._end_line()
        return len(chunk)

    def _end_line(self) -> None:
        if self._rest:
            self._handle_line(self._rest)
            self._rest = b""

    def _handle_line(self, piece: bytes) -> None:
        line = piece.decode("utf-8", "backslashreplace")
        self._lines.append(line.rstrip("\r"))
        with suppress(OSError, ValueError, AttributeError):  # the worker may have closed its stderr
            sys.stderr.write(f"{line}\n")


def _spawn(channel: int, lifeline: int) -> subprocess.Popen[bytes]:
    """Start the interpreter, with the options that this one has.

    Signals for the worker are blocked until the process ignores them.
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


EXIT_TIME: Final = 5.0
"""Seconds that a process has to leave its lifespans, when it is not needed any more."""

_REAPING: Final = 1.0
"""Seconds to wait for the end of what was killed: the kernel may have much memory to free."""


class ProcessPool:
    """Owns processes. ``acquire``, ``release`` and ``discard`` belong to the threads that wait for runs.

    Args:
        target: Where the calls go that tasks make.
        lifespans: The names of the hooks that processes enter; ``None``: all that their tasks' modules have.
        max_tasks: Runs after which a process is replaced; ``None`` for never.
        max_rss: Bytes of resident memory above which it is replaced; ``None`` for never.
    """

    def __init__(
        self,
        target: Target,
        lifespans: tuple[str, ...] | None,
        max_tasks: int | None,
        max_rss: int | None,
    ) -> None:
        hello = Hello(target, lifespans, measures=max_rss is not None, level=logging.root.level)
        self._hello = encode("hello", **hello.fields())
        self._max_tasks = max_tasks
        self._max_rss = max_rss
        self._lock = threading.Lock()
        self._idle: deque[Process] = deque()
        self._living: set[Process] = set()  # those that have ended are forgotten when another is made
        self._closed = False

    @property
    def is_unused(self) -> bool:
        """No process was ever made."""
        return not self._living

    def acquire(self) -> Process:
        """A process for one run. Raises as ``Process``."""
        with self._lock:
            while self._idle:
                process = self._idle.pop()
                if not process.has_ended.is_set():
                    return process
                process.dismiss()
        process = Process(self._hello)
        with self._lock:
            self._living = {one for one in self._living if not one.has_ended.is_set()} | {process}
            if self._closed:
                process.kill()
        return process

    def release(self, process: Process, rss: int) -> None:
        """The run is over, and the process has so many bytes of memory: keep it if it is still good."""
        worn_out = (self._max_tasks is not None and process.runs >= self._max_tasks) or (
            self._max_rss is not None and rss > self._max_rss
        )
        with self._lock:
            if not worn_out and not self._closed:
                self._idle.append(process)
                return
        process.dismiss()

    def discard(self, process: Process) -> None:
        """The run is over, and the process must not go on."""
        process.kill()
        process.dismiss()

    def living(self) -> list[Process]:
        """Those that have not ended."""
        with self._lock:
            return [process for process in self._living if not process.has_ended.is_set()]

    def show(self) -> None:
        """Have all write the stacks of their threads to their output."""
        for process in self.living():
            process.show()

    def close(self, timeout: float) -> None:
        """End all processes: let them leave their lifespans for so many seconds, then kill them. Blocks."""
        with self._lock:
            self._closed = True
            idle = [self._idle.pop() for _ in range(len(self._idle))]
        for process in idle:
            process.dismiss()
        self._wait(timeout)
        for process in self.living():
            process.kill()
        self._wait(_REAPING)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for process in self.living():
            process.has_ended.wait(max(0.0, deadline - time.monotonic()))
