"""Calls through ``@task``: one client process, one worker process, validation included.

    python -m tests.benchmarks.calls [--calls 20000] [--concurrency 100] [--runs 5]

``acall`` of two async tasks, ``--concurrency`` calls at a time, through gearflow's server and C gearmand
in turns. Printed are medians of calls a second, and the CPU time for each call in the three processes,
which tells what bounds the rate: a process that is busy all the time, or both cores. The worker logs
warnings only; its usual line for each job costs it about as much as running an empty task.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Final

import anyio

import gearflow
from gearflow.runtime.eventloop import new_event_loop
from tests.benchmarks import servers, tasks

TICKS: Final = os.sysconf("SC_CLK_TCK")

CALLS: Final[dict[str, Callable[[int], Awaitable[object]]]] = {
    "echo(bytes)": lambda number: tasks.echo.acall(b"%016d" % number),
    "add(int, int)": lambda number: tasks.add.acall(number, 1),
}


def cpu(pid: int) -> float:
    """Seconds of CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@contextmanager
def worker(address: str, concurrency: int) -> Generator[int]:
    """A worker process; yields its pid."""
    options = ["-s", address, "-c", str(concurrency), "--log-level", "warning"]
    command = [sys.executable, "-m", "gearflow_cli", "worker", "tests.benchmarks.tasks", *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process.pid
        finally:
            process.terminate()


async def run(call: Callable[[int], Awaitable[object]], calls: int, concurrency: int) -> float:
    """Seconds for so many calls, so many of them at a time."""
    numbers = iter(range(calls))

    async def caller() -> None:
        for number in numbers:
            await call(number)

    begin = time.perf_counter()
    async with anyio.create_task_group() as callers:
        for _ in range(concurrency):
            callers.start_soon(caller)
    return time.perf_counter() - begin


async def measure(server: servers.Server, options: argparse.Namespace) -> dict[str, list[float]]:
    """For each kind of call: calls a second, and microseconds of CPU in client, worker and server."""
    address = f"127.0.0.1:{server.port}"
    results: dict[str, list[float]] = {}
    with worker(address, options.concurrency) as worker_pid:
        async with gearflow.connect(address):
            for name, call in CALLS.items():
                await call(0)  # the worker is there
                pids = (os.getpid(), worker_pid, server.pid)
                before = [cpu(pid) for pid in pids]
                seconds = await run(call, options.calls, options.concurrency)
                used = [
                    (cpu(pid) - start) / options.calls * 1e6 for pid, start in zip(pids, before, strict=True)
                ]
                results[name] = [options.calls / seconds, *used]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--concurrency", type=int, default=100)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()

    runs: dict[tuple[str, str], list[list[float]]] = {}
    loop = {"loop_factory": new_event_loop}
    with servers.gearflow() as bundled, servers.gearmand() as gearmand:
        for _ in range(options.runs):
            for each in (bundled, gearmand):
                for name, figures in anyio.run(measure, each, options, backend_options=loop).items():
                    runs.setdefault((name, each.name), []).append(figures)
    print(f"{'call':15} {'server':10} {'calls/s':>8} {'(range)':>20}    us/call: client  worker  server")
    for (name, server_name), results in runs.items():
        rate, client, work, serve = (median(column) for column in zip(*results, strict=True))
        rates = [figures[0] for figures in results]
        spread = f"({min(rates):,.0f} .. {max(rates):,.0f})"
        print(f"{name:15} {server_name:10} {rate:8,.0f} {spread:>20} {client:18.1f} {work:7.1f} {serve:7.1f}")
    print(f"{servers.machine()}, {options.concurrency} calls at a time")


if __name__ == "__main__":
    main()
