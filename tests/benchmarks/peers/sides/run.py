"""Be the worker or the client of a side: ``python run.py with_X COMMAND ...``.

    work KIND SLOTS        be a worker until killed; KIND is "light", "cpu" (then each slot is a
                           process), or "noop" (as many slots as suit such tasks, at most SLOTS)
    enqueue TASK COUNT     hand over so many background jobs, in the best way there is for many
    submit COUNT           the same, one at a time, each acknowledged before the next
    call COUNT             one after the other, each with its result
    gather COUNT           submit all, then wait for all results

Clients print JSON: the seconds of each step, and the system's monotonic time at which the first one began.
Before that they do one step of the same kind, so that they are connected and have imported everything: an
``enqueue`` hands over one job without work more than it says.
"""

import asyncio
import importlib
import inspect
import json
import sys
import time
from contextlib import nullcontext

from harness import Side


def main() -> None:
    """Do what the command line says."""
    name, command, *arguments = sys.argv[1:]
    side: Side = importlib.import_module(name).SIDE  # never as __main__: tasks are known by their modules
    if command == "work":
        side.work(arguments[0], int(arguments[1]))
        return
    method = getattr(side, command)
    if command == "enqueue":
        steps, warm, call = 1, lambda: method("noop", 1), lambda: method(arguments[0], int(arguments[1]))
    elif command == "gather":
        steps, warm, call = 1, lambda: method(1), lambda: method(int(arguments[0]))
    else:
        steps, warm, call = int(arguments[0]), method, method
    if inspect.iscoroutinefunction(method):
        with asyncio.Runner(loop_factory=getattr(side, "loop_factory", None)) as runner:
            began, taken = runner.run(_timed_async(side, warm, call, steps))
    else:
        began, taken = _timed(warm, call, steps)
    print(json.dumps({"began": began, "seconds": taken}))


def _timed(warm, call, steps: int) -> tuple[float, list[float]]:
    warm()
    began = last = time.monotonic()
    taken = []
    for _ in range(steps):
        call()
        taken.append((now := time.monotonic()) - last)
        last = now
    return began, taken


async def _timed_async(side: Side, warm, call, steps: int) -> tuple[float, list[float]]:
    async with getattr(side, "connected", nullcontext)():
        await warm()
        began = last = time.monotonic()
        taken = []
        for _ in range(steps):
            await call()
            taken.append((now := time.monotonic()) - last)
            last = now
        return began, taken


if __name__ == "__main__":
    main()
