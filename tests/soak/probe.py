"""A client that asks a server all the time whether it is there, and measures its longest waits.

    python -m tests.soak.probe HOST:PORT PID

It ends with its standard input, and prints a ``Waits`` as JSON. On a busy machine much of a wait is not the
server's: the server's CPU time between question and answer shows how long its event loop did other things.
"""

import sys
import threading
import time
from pathlib import Path
from typing import Final

from pydantic import BaseModel

from tests.server.wire import Wire

PAUSE: Final = 0.01
"""Seconds between two questions."""


class Waits(BaseModel):
    """How long answers took, in milliseconds."""

    count: int
    median: float
    p999: float
    longest: float
    longest_turn: float
    """The most CPU time of the server between a question and its answer."""


def end_of_input() -> threading.Event:
    """An event that is set when standard input ends."""
    over = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait, daemon=True).start()
    return over


def main(port: int, pid: int) -> Waits:
    """Ask until standard input ends."""
    over = end_of_input()
    schedule = Path(f"/proc/{pid}/task/{pid}/schedstat")
    waits: list[float] = []
    longest_turn = 0
    with Wire(port) as wire:
        while not over.wait(PAUSE):
            used, begin = _nanoseconds(schedule), time.perf_counter()
            wire.sync()
            waits.append((time.perf_counter() - begin) * 1000)
            longest_turn = max(longest_turn, _nanoseconds(schedule) - used)
    waits.sort()
    count = len(waits)
    return Waits(
        count=count,
        median=waits[count // 2],
        p999=waits[count * 999 // 1000],
        longest=waits[-1],
        longest_turn=longest_turn / 1e6,
    )


def _nanoseconds(schedule: Path) -> int:
    return int(schedule.read_text().split()[0])


if __name__ == "__main__":
    sys.stdout.write(main(int(sys.argv[1].rpartition(":")[2]), int(sys.argv[2])).model_dump_json())
