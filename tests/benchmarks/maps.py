"""``map`` of tasks that do nothing: alone, in chunks, and beside the same jobs in the background.

    python -m tests.benchmarks.maps [--items 100000] [--runs 3]

One client process, one worker process, gearflow's server, in turns. Printed are the medians of items a
second, and the CPU time for each item in client, worker and server. ``background_many`` ends when the last of
its jobs has run. ``--memory`` maps a million items, and prints the memory of the client on the way.
"""

import argparse
import os
from collections.abc import Awaitable, Callable
from statistics import median
from time import perf_counter
from typing import Final

import anyio

import gearflow
from gearflow.runtime.process import resident
from tests.benchmarks import servers, tasks
from tests.benchmarks.calls import LOOP, worker
from tests.benchmarks.report import Table, conditions, shown, spread

MEMORY_ITEMS: Final = 1_000_000


async def _map(items: int, chunk: int) -> None:
    count = 0
    async for _ in tasks.nothing.amap(iter(range(items)), chunk=chunk):
        count += 1
    assert count == items


async def _background(items: int) -> None:
    refs = await tasks.nothing.abackground_many(range(items))
    await refs[-1].aresult()


WAYS: Final[dict[str, Callable[[int], Awaitable[None]]]] = {
    "`map`": lambda items: _map(items, 1),
    "`map`, `chunk=100`": lambda items: _map(items, 100),
    "`map`, `chunk=1000`": lambda items: _map(items, 1000),
    "`background_many`, and the end of the last": _background,
}


async def measure(server: servers.Server, items: int) -> dict[str, list[float]]:
    """For each way: items a second, and microseconds of CPU in client, worker and server."""
    address = f"127.0.0.1:{server.port}"
    results: dict[str, list[float]] = {}
    with worker(address, 10) as worker_pid:
        async with gearflow.connect(address):
            await tasks.nothing.acall(0)  # the worker is there
            pids = (os.getpid(), worker_pid, server.pid)
            for name, way in WAYS.items():
                before, began = [servers.cpu(pid) for pid in pids], perf_counter()
                await way(items)
                seconds = perf_counter() - began
                used = [servers.cpu(pid) - start for pid, start in zip(pids, before, strict=True)]
                results[name] = [items / seconds, *(each / items * 1e6 for each in used)]
    return results


def table(items: int, runs: int) -> Table:
    """All ways in turns."""
    figures: dict[str, list[list[float]]] = {}
    with servers.gearflow() as server:
        for _ in range(runs):
            for name, run in anyio.run(measure, server, items, backend_options=LOOP).items():
                figures.setdefault(name, []).append(run)
    result = Table(
        "Many calls", (f"{items:,} tasks that do nothing", "rate", "CPU of client, worker, server")
    )
    for name, all_runs in figures.items():
        rates, *used = zip(*all_runs, strict=True)
        cpus = ", ".join(shown(median(column)) for column in used)
        result.add(name, spread(list(rates), " items/s"), f"{cpus} us")
    return result


async def show_memory(server: servers.Server, chunk: int) -> None:
    """Print the memory of the client after each hundred thousand items."""
    address = f"127.0.0.1:{server.port}"
    with worker(address, 10):
        async with gearflow.connect(address):
            count = 0
            async for _ in tasks.nothing.amap(iter(range(MEMORY_ITEMS)), chunk=chunk):
                count += 1
                if count % 100_000 == 0:
                    print(f"chunk={chunk}, {count:,} items: {resident() >> 20} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    if options.memory:
        with servers.gearflow() as server:
            for chunk in (100, 1):
                anyio.run(show_memory, server, chunk, backend_options=LOOP)
        return
    print(table(options.items, options.runs))
    print(conditions())


if __name__ == "__main__":
    main()
