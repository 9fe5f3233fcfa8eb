"""The runs and the stacks of a worker's process, on stderr at SIGUSR2."""

import asyncio
import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from gearflow_cli.text import printable

if TYPE_CHECKING:
    from gearflow.worker import Worker


def on_signal(worker: "Worker") -> None:
    """Show them at SIGUSR2. Call it in the main thread, on the worker's event loop."""
    loop = asyncio.get_running_loop()
    process = os.getpid()

    def received(_number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a forked child of a task has no runs, only threads
            return
        text = "\n".join(map(printable, _lines(worker, loop, frame)))
        os.write(sys.stderr.fileno(), f"{text}\n".encode("utf-8", "backslashreplace"))  # print may be running
        loop.call_soon_threadsafe(worker.show_processes)  # not here: locks may be held

    signal.signal(signal.SIGUSR2, received)
    # faulthandler shows the threads without the interpreter lock, which a task may hold.
    faulthandler.register(signal.SIGUSR2, all_threads=True, chain=True)


def _lines(worker: "Worker", loop: asyncio.AbstractEventLoop, frame: FrameType | None) -> Iterator[str]:
    runs = sorted(worker.runs(), key=lambda run: run.started)
    yield f"process {os.getpid()}: {len(runs)} running, {worker.held} held, {worker.overdue} overdue"
    for run in runs:
        since = max(time.time() - run.started, 0.0)
        yield f"  {run.task} for {since:.1f} s: handle={run.handle} server={run.server} attempt={run.attempt}"
    for task in asyncio.all_tasks(loop):
        yield f"task {task.get_name()} (most recent call last):"
        # A task that runs at the moment does not know what it awaits.
        is_current = task is asyncio.current_task(loop)
        stack = traceback.extract_stack(frame) if is_current else _stack(task.get_coro())
        yield from "".join(traceback.format_list(stack)).splitlines()


def _stack(awaited: Any) -> traceback.StackSummary:
    """The stack of a coroutine, and of what it awaits."""
    frames: list[FrameType] = []
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is None:
            break
        frames.append(frame)
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return traceback.StackSummary.extract((frame, frame.f_lineno) for frame in frames)
