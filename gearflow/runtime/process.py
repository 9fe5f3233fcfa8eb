"""How child processes ended, and how much memory they and this one have."""

import os
import resource
import select
import signal
import sys
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_STATM: Final = Path("/proc/self/statm")

_RSS_UNIT: Final = 1 if sys.platform == "darwin" else 1024
"""Bytes in the unit in which the system reports the peak of memory."""


@dataclass(frozen=True, slots=True)
class ProcessEnd:
    """How a process ended."""

    status: int | None
    """Its exit status, or minus the number of the signal that killed it. None if something else reaped it."""

    peak: int = 0
    """Its peak of resident memory in bytes."""

    floor: int = 0
    """Smaller peaks are not visible, because Linux starts with the peak of the parent process."""

    @property
    def signal(self) -> str | None:
        """The name of the signal that killed it, if one did."""
        if self.status is None or self.status >= 0:
            return None
        try:
            return signal.Signals(-self.status).name
        except ValueError:  # real-time signals have no names
            return f"signal {-self.status}"

    @property
    def memory(self) -> str:
        """Its peak of memory as text."""
        return f"{self.peak / 2**20:.0f} MiB" + (" at most" if self.peak <= self.floor else "")


def await_end(pid: int) -> None:
    """Wait for the end of a child without reaping it. Until it is reaped, its number is not reused."""
    with suppress(ChildProcessError, ProcessLookupError):
        if sys.platform == "darwin":  # Python has no waitid there before 3.13
            exits = select.kevent(pid, select.KQ_FILTER_PROC, select.KQ_EV_ADD, select.KQ_NOTE_EXIT)
            with closing(select.kqueue()) as queue:
                queue.control([exits], 1)
        else:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def reap(pid: int, floor: int) -> ProcessEnd:
    """Wait for the end of a child, and reap it. ``floor`` was this process's ``peak`` when it started it."""
    try:
        _, status, usage = os.wait4(pid, 0)
    except ChildProcessError:  # something else in this process waits for all children
        return ProcessEnd(None)
    return ProcessEnd(os.waitstatus_to_exitcode(status), usage.ru_maxrss * _RSS_UNIT, floor)


def peak() -> int:
    """The peak of resident memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT


def resident() -> int:
    """Bytes that are resident in this process now; the most ever, if the system shows only that."""
    try:
        pages = int(_STATM.read_bytes().split()[1])
    except OSError:
        return peak()
    return pages * os.sysconf("SC_PAGE_SIZE")
