"""Calls through ``@task``: one client process, one worker process, validation included.

    python -m tests.benchmarks.calls [--calls 20000] [--concurrency 100] [--runs 5] [--log-lines]

``acall`` of two async tasks, ``--concurrency`` calls at a time, through gearflow's server and C gearmand
in turns. Printed are medians of calls a second, and the CPU time for each call in the three processes,
which tells what bounds the rate: a process that is busy all the time, or both cores. The worker logs
warnings only.

With ``--log-lines`` it prints what the worker's line for each job costs: a worker runs all jobs that wait
and ends, with the lines and without them in turns.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from statistics import median
from typing import Final

import anyio

import gearflow
from gearflow.runtime.eventloop import new_event_loop
from tests.benchmarks import servers, tasks
from tests.benchmarks.report import Table, busy, conditions, shown, spread

CALLS: Final[dict[str, Callable[[int], Awaitable[object]]]] = {
    "echo(bytes)": lambda number: tasks.echo.acall(b"%016d" % number),
    "add(int, int)": lambda number: tasks.add.acall(number, 1),
}


LOOP: Final = {"loop_factory": new_event_loop}


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


async def measure(server: servers.Server, calls: int, concurrency: int) -> dict[str, list[float]]:
    """For each kind of call: calls a second, and microseconds of CPU in client, worker and server."""
    address = f"127.0.0.1:{server.port}"
    results: dict[str, list[float]] = {}
    with worker(address, concurrency) as worker_pid:
        async with gearflow.connect(address):
            for name, call in CALLS.items():
                await call(0)  # the worker is there
                pids = (os.getpid(), worker_pid, server.pid)
                before = [servers.cpu(pid) for pid in pids]
                seconds = await run(call, calls, concurrency)
                used = [
                    (servers.cpu(pid) - start) / calls * 1e6 for pid, start in zip(pids, before, strict=True)
                ]
                results[name] = [calls / seconds, *used]
    return results


def once(calls: int, concurrency: int) -> dict[str, list[float]]:
    """What ``measure`` finds with gearflow's server."""
    with servers.gearflow() as server:
        return anyio.run(measure, server, calls, concurrency, backend_options=LOOP)


def table(calls: int, concurrency: int, runs: int) -> Table:
    """Both servers in turns."""
    columns = ("call", "through gearflow", "through gearmand", "CPU of client, worker, server")
    figures: dict[str, dict[str, list[list[float]]]] = {name: {} for name in CALLS}
    with servers.gearflow() as bundled, servers.gearmand() as gearmand:
        for _ in range(runs):
            for each in (bundled, gearmand):
                measured = anyio.run(measure, each, calls, concurrency, backend_options=LOOP)
                for name, run_figures in measured.items():
                    figures[name].setdefault(each.name, []).append(run_figures)
    result = Table("Calls through `@task`", columns)
    for name, by_server in figures.items():
        rates = [[rate for rate, *_ in each] for each in by_server.values()]
        used = list(zip(*by_server["gearflow"], strict=True))[1:]
        cpus = ", ".join(shown(median(column)) for column in used)
        result.add(f"`{name}`", spread(rates[0], " calls/s"), spread(rates[1]), f"{cpus} us")
    return result


def drain(address: str, jobs: int, concurrency: int, level: str) -> tuple[float, float]:
    """Seconds, and seconds of CPU, of a worker that runs so many jobs that do nothing."""
    with gearflow.connect(address):
        tasks.nothing.options(keep=0).background_many(range(jobs))
    options = ["-s", address, "-c", str(concurrency), "--burst", "--log-level", level]
    command = [sys.executable, "-m", "gearflow_cli", "worker", "tests.benchmarks.tasks", *options]
    with tempfile.TemporaryFile() as log:
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=log)
        _, _, used = os.wait4(process.pid, 0)
        process.returncode = 0  # it has been waited for
        return time.perf_counter() - begin, used.ru_utime + used.ru_stime


def log_lines_table(jobs: int, concurrency: int, runs: int) -> Table:
    """With and without the lines, in turns. The start of a worker is left out."""
    result = Table("The worker's log line for each job", ("a drain", "time a job", "the worker's CPU a job"))
    figures: dict[str, list[tuple[float, float]]] = {"info": [], "warning": []}
    with servers.gearflow() as server:
        address = f"127.0.0.1:{server.port}"
        starts = [drain(address, 0, concurrency, "warning") for _ in range(runs)]
        start = [median(column) for column in zip(*starts, strict=True)]
        for _ in range(runs):
            for level, of_level in figures.items():
                of_level.append(drain(address, jobs, concurrency, level))
    for level, of_level in figures.items():
        times, cpus = (
            [(seconds - base) / jobs * 1e6 for seconds in column]
            for column, base in zip(zip(*of_level, strict=True), start, strict=True)
        )
        result.add(f"`--log-level {level}`", spread(times, " us"), spread(cpus, " us"))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--concurrency", type=int, default=100)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--log-lines", action="store_true")
    options = parser.parse_args()
    if options.log_lines:
        print(log_lines_table(options.calls, options.concurrency, options.runs))
        print(conditions())
        return
    print(table(options.calls, options.concurrency, options.runs))
    print(conditions())
    print(f"{options.concurrency} calls at a time, {options.runs} runs each, {busy()} at the end")


if __name__ == "__main__":
    main()
