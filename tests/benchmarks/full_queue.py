"""gearflow's server with a million jobs waiting: is it as fast as an empty one, and does it ever pause?

    python -m tests.benchmarks.full_queue [--queued 1000000] [--runs 3]

Foreground calls of one function are timed while another function's queue is empty, and again when it is
full. Then, with the full queue and a background stream as load, ECHO_REQ round trips are timed one after
another on a connection of their own: a pause of the server's, as by garbage collection, shows there.
"""

import argparse
import socket
import time
from dataclasses import replace
from itertools import pairwise
from typing import Final

from tests.benchmarks.load import Generator, Load, Running, gearload_option, generator, run
from tests.benchmarks.report import Table, busy, conditions, shown, spread
from tests.benchmarks.servers import Server, gearflow

CALLS: Final = Load("calls", 50_000, clients=32, workers=8, function="calls")
QUEUED: Final = 1_000_000
ECHO: Final = b"\0REQ\0\0\0\x10\0\0\0\x04ping"
BOUNDS: Final = (0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)  # of the histogram, in ms


def echoes(server: Server, load: Running) -> list[float]:
    """Round trips in milliseconds, one after another, for as long as a load runs. Sorted."""
    times: list[float] = []
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while not load.is_over():
            begin = time.perf_counter()
            connection.sendall(ECHO)
            missing = len(ECHO)
            while missing:
                missing -= len(connection.recv(missing))
            times.append((time.perf_counter() - begin) * 1000)
    load.end()
    return sorted(times)


def table(made: Generator, queued: int = QUEUED, runs: int = 3) -> Table:
    """Calls beside an empty queue and beside a full one, and how long other connections wait."""
    result = Table("A million jobs waiting", ("figure", "median (range)"))
    calls = replace(CALLS, jobs=min(CALLS.jobs, queued))
    stream = Load("stream", 6 * calls.jobs, 8, 64, 8, function="stream")
    with gearflow() as server:
        empty = [run(made, server, calls).rate for _ in range(runs)]
        run(made, server, Load("enqueue", queued, 8, 256, function="full"))
        full = [run(made, server, calls).rate for _ in range(runs)]
        times = echoes(server, Running(made, server, stream))
    result.add("calls a second, queue empty", spread(empty))
    result.add(f"calls a second, {queued:,} jobs waiting", spread(full))
    for share in (0.5, 0.99, 0.999):
        result.add(f"echo under load, p{share * 100:g}", f"{shown(times[int(len(times) * share)])} ms")
    result.add(f"echo under load, longest of {len(times):,}", f"{shown(times[-1])} ms")
    for low, high in pairwise(BOUNDS):
        if count := sum(low < value <= high for value in times):
            result.add(f"echoes of {low:g} to {high:g} ms", f"{count:,}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--queued", type=int, default=QUEUED)
    parser.add_argument("--runs", type=int, default=3)
    gearload_option(parser)
    options = parser.parse_args()
    print(table(generator(options.gearload), options.queued, options.runs))
    print(f"{conditions()}\n{options.runs} runs each, {busy()} at the end")


if __name__ == "__main__":
    main()
