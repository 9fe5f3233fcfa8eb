"""The runs and the stacks of a worker's process, on stderr at SIGUSR2."""

import asyncio
import os
import signal
import time
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from gearflow.runtime import stacks
from gearflow.supervisor import SHOW_WITHOUT_LOCK, Shown
from gearflow_cli.text import printable

if TYPE_CHECKING:
    from gearflow.supervisor import IpcChannel
    from gearflow.worker import Worker


def on_signal(worker: "Worker", line: "IpcChannel | None") -> None:
    """Show them at SIGUSR2. Call it in the main thread, on the worker's event loop.

    If a task holds the interpreter lock in C code, only the main thread's stack appears. SIGQUIT shows all
    stacks without the lock. It ends a worker that has no supervisor, as it does by default. A supervisor
    sends it if the process does not answer.
    """
    loop = asyncio.get_running_loop()
    process = os.getpid()

    def show(frame: FrameType | None) -> None:
        if os.getpid() != process:  # a forked child of a task has no runs, only threads
            return
        stacks.write("\n".join(map(printable, _lines(worker, loop, frame))))
        if line is not None:
            line.send(Shown())
        loop.call_soon_threadsafe(worker.show_processes)  # not here: locks may be held

    stacks.show_at(signal.SIGUSR2, show)
    stacks.show_without_lock_at(SHOW_WITHOUT_LOCK, ends=line is None)


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
    yield from stacks.other_threads()


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
