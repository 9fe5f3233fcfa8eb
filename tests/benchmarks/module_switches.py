"""How often one blocking call of a ``def`` task changes the module: readers follow these jumps.

    python -m tests.benchmarks.module_switches [--list]

A profiler sees the calls and returns of Python functions in ``gearflow/``, thread by thread, in a client and
a worker that run already. A switch is an event in another module than the event before it on the same thread.
The server runs in a process of its own, and is not counted.
"""

import argparse
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Final, TypeAlias

import anyio

import gearflow
from gearflow import task
from gearflow.worker import Worker

PACKAGE: Final = str(Path(gearflow.__file__).parent) + "/"
WARM_UP: Final = 50  # calls
CALLS: Final = 10
"""Measured. The worker ends a run after its caller has the result, so a single call would miss the end."""

SERVER: Final = """
import sys
from gearflow.server import JobServer
with JobServer(port=0) as server:
    print(server.address, flush=True)
    sys.stdin.read()
"""

Events: TypeAlias = dict[str, list[tuple[str, str, str]]]
"""By thread: call or return, the module, and the function."""


@task(name="benchmark.add")
def add(a: int, b: int) -> int:
    return a + b


@contextmanager
def server() -> Generator[str]:
    """The address of a server in a process of its own."""
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()


@contextmanager
def worker(address: str) -> Generator[None]:
    """A worker on an event loop in a thread."""
    made = Worker([add], servers=[address], concurrency=1)
    thread = threading.Thread(target=anyio.run, args=[made.run], name="worker loop")
    thread.start()
    try:
        yield
    finally:
        made.stop()
        thread.join()


class Recorder:
    """A profiler that notes the events in gearflow's modules while it is on."""

    def __init__(self) -> None:
        self.events: Events = defaultdict(list)
        self.is_on = False

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if self.is_on and event in ("call", "return") and frame.f_code.co_filename.startswith(PACKAGE):
            module = frame.f_code.co_filename.removeprefix(PACKAGE).removesuffix(".py")
            self.events[threading.current_thread().name].append((event, module, frame.f_code.co_qualname))


def record(call: Callable[[], object]) -> Events:
    """The events of ``CALLS`` warm calls, in all threads of client and worker."""
    recorder = Recorder()
    threading.setprofile(recorder)  # for the threads that start from now on
    try:
        with server() as address, worker(address), gearflow.connect(address):
            for _ in range(WARM_UP):
                call()
            sys.setprofile(recorder)
            recorder.is_on = True
            for _ in range(CALLS):
                call()
            recorder.is_on = False
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return recorder.events


def switches(modules: list[str]) -> int:
    """How often the module changes."""
    return sum(one != other for one, other in pairwise(modules))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="print the calls of each thread")
    options = parser.parse_args()
    events = record(lambda: add.call(1, 2))
    totals = [0.0, 0.0, 0.0]
    print(f"{'thread':<20}{'calls':>8}{'switches':>10}{'of calls only':>15}{'modules':>9}")
    for thread, noted in sorted(events.items()):
        called = [module for event, module, _ in noted if event == "call"]
        figures = (len(called), switches([module for _, module, _ in noted]), switches(called))
        totals = [total + figure / CALLS for total, figure in zip(totals, figures, strict=True)]
        calls, all_switches, of_calls = (figure / CALLS for figure in figures)
        print(f"{thread:<20}{calls:>8.1f}{all_switches:>10.1f}{of_calls:>15.1f}{len(set(called)):>9}")
        if options.list:
            named = [f"    {module}: {function}" for event, module, function in noted if event == "call"]
            print("\n".join(named[: len(named) // CALLS]))
    modules = {module for noted in events.values() for _, module, _ in noted}
    print(f"{'in all':<20}{totals[0]:>8.1f}{totals[1]:>10.1f}{totals[2]:>15.1f}{len(modules):>9}")


if __name__ == "__main__":
    main()
