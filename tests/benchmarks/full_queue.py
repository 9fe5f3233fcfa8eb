"""gearflow's server with a million jobs waiting: is it as fast as an empty one, and does it ever pause?

    python -m tests.benchmarks.full_queue [--queued 1000000] [--runs 5]

Foreground calls of one function are timed while another function's queue is empty, and again when it is
full. Then, with the full queue and a background stream as load, ECHO_REQ round trips are timed one after
another on a connection of their own: a pause of the server's, as by garbage collection, shows there.
"""

import argparse
import json
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final

from tests.benchmarks.servers import Server, gearflow, gearload, machine

CALLS: Final = ("--mode", "fg", "--clients", "32", "--workers", "8", "--jobs", "50000")
STREAM: Final = (
    "--mode",
    "bg-stream",
    "--clients",
    "8",
    "--depth",
    "64",
    "--workers",
    "8",
    "--jobs",
    "300000",
)
ECHO: Final = b"\0REQ\0\0\0\x10\0\0\0\x04ping"
BOUNDS: Final = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)  # of the histogram, in ms


def load(program: Path, server: Server, options: Sequence[str], function: str) -> subprocess.Popen[str]:
    """Start a load."""
    where = ("--server", f"127.0.0.1:{server.port}", "--pid", str(server.pid), "--function", function)
    return subprocess.Popen([str(program), *where, *options], stdout=subprocess.PIPE, text=True)


def rate(program: Path, server: Server) -> float:
    """Foreground calls a second."""
    output, _ = load(program, server, CALLS, "calls").communicate()
    return float(json.loads(output)["run"]["jobs_per_s"])


def echoes(server: Server, other: subprocess.Popen[str]) -> list[float]:
    """Round trips in milliseconds, one after another, for as long as the load runs."""
    times: list[float] = []
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while other.poll() is None:
            begin = time.perf_counter()
            connection.sendall(ECHO)
            missing = len(ECHO)
            while missing:
                missing -= len(connection.recv(missing))
            times.append((time.perf_counter() - begin) * 1000)
    return sorted(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--queued", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    enqueue = ("--mode", "bg-enqueue", "--clients", "8", "--depth", "256", "--jobs", str(options.queued))
    with gearload() as program, gearflow() as server:
        empty = [rate(program, server) for _ in range(options.runs)]
        load(program, server, enqueue, "full").communicate()
        full = [rate(program, server) for _ in range(options.runs)]
        times = echoes(server, load(program, server, STREAM, "stream"))
    print(f"calls/s, empty queue:        {median(empty):,.0f}  ({min(empty):,.0f} .. {max(empty):,.0f})")
    print(f"calls/s, {options.queued:,} waiting: {median(full):,.0f}  ({min(full):,.0f} .. {max(full):,.0f})")
    quantiles = {f"p{share * 100:g}": times[int(len(times) * share)] for share in (0.5, 0.99, 0.999)}
    shown = ", ".join(f"{name} {value:.2f}" for name, value in quantiles.items())
    print(f"echo round trips under load, ms: {shown}, max {times[-1]:.2f}, {len(times):,} of them")
    begin = 0
    for bound in BOUNDS:
        end = sum(value <= bound for value in times)
        print(f"  up to {bound:5g} ms {end - begin:8,}")
        begin = end
    print(f"{machine()}, {options.runs} runs each")


if __name__ == "__main__":
    main()
