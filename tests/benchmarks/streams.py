"""Values that tasks yield, and a watcher beside them, compared with a loop of plain calls.

    python -m tests.benchmarks.streams [--values 100000] [--runs 3]

One client process, one worker process and gearflow's server in memory. Printed are medians, and the CPU time
for each value in client, worker and server.
"""

import argparse
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from statistics import median
from typing import Final, TypeAlias

import anyio

import gearflow
from tests.benchmarks import servers, tasks
from tests.benchmarks.calls import LOOP, worker
from tests.benchmarks.report import Table, busy, conditions, shown, spread

BLOCK: Final = 65536
"""Bytes of the larger values."""

Work: TypeAlias = Callable[[int], Awaitable[object]]


async def stream_values(values: int) -> None:
    """Read small values."""
    async for _ in tasks.count.astream(values):
        pass


async def stream_blocks(values: int) -> None:
    """Read values of 64 KiB."""
    async for _ in tasks.blocks.astream(values, BLOCK):
        pass


async def stream_watched(values: int) -> None:
    """Read small values while somebody else watches the job."""
    async with tasks.count.astream(values) as stream, anyio.create_task_group() as group:
        group.start_soon(_watch, stream.handle)
        async for _ in stream:
            pass


async def _watch(handle: str) -> None:
    async for _ in tasks.count.ref(handle).aevents():
        pass


async def first_value(times: int) -> None:
    """Open streams one after the other, and read the first value of each."""
    for _ in range(times):
        async with tasks.count.astream(1) as stream:
            await anext(stream)


async def call_in_a_loop(calls: int) -> None:
    """Plain calls, one after the other."""
    for number in range(calls):
        await tasks.add.acall(number, 1)


@asynccontextmanager
async def _connected() -> AsyncGenerator[tuple[int, ...]]:
    """A server, a worker and a client; the pids of client, worker and server."""
    with servers.gearflow() as server:
        address = f"127.0.0.1:{server.port}"
        with worker(address, 100) as worker_pid:
            async with gearflow.connect(address):
                await tasks.add.acall(0, 0)  # the worker is there
                yield os.getpid(), worker_pid, server.pid


async def _timed(work: Work, count: int) -> list[float]:
    """How many a second, and microseconds of CPU for each in client, worker and server."""
    async with _connected() as pids:
        await work(max(count // 100, 1))
        before = [servers.cpu(pid) for pid in pids]
        began = time.perf_counter()
        await work(count)
        seconds = time.perf_counter() - began
        used = [(servers.cpu(pid) - start) / count * 1e6 for pid, start in zip(pids, before, strict=True)]
        return [count / seconds, *used]


def streams_table(values: int, runs: int) -> Table:
    """The table of streams."""
    rows: dict[str, tuple[Work, int, str]] = {
        "small values": (stream_values, values, " values/s"),
        "the same, with a watcher": (stream_watched, values, " values/s"),
        "values of 64 KiB": (stream_blocks, max(values // 10, 1), " values/s"),
        "streams opened, and their first value": (first_value, max(values // 50, 1), " streams/s"),
        "plain calls in a loop": (call_in_a_loop, max(values // 20, 1), " calls/s"),
    }
    table = Table("Streams", ("load", "rate (range)", "CPU of client, worker, server for each"))
    figures: dict[str, list[list[float]]] = {name: [] for name in rows}
    for _ in range(runs):
        for name, (work, count, _unit) in rows.items():
            figures[name].append(anyio.run(_timed, work, count, backend_options=LOOP))
    for name, (_work, _count, unit) in rows.items():
        rates, *used = zip(*figures[name], strict=True)
        cpus = ", ".join(shown(median(column)) for column in used)
        table.add(name, spread(rates, unit), f"{cpus} us")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--values", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    print(conditions())
    print(streams_table(options.values, options.runs))
    print(f"{options.runs} runs in turns, {busy()} at the end")


if __name__ == "__main__":
    main()
