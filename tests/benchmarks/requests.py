"""What does each kind of request cost with 1,000 and with 100,000 jobs, functions or connections around it?

    python -m tests.benchmarks.requests [KIND ...] [--objects 1000 100000] [--turn 0.005] [--wait]

For each kind (``tests.broker.costs``) as many requests are made as there are objects, by a broker with a
store in memory, without a network. The table has microseconds of CPU time for each request, and milliseconds
of the longest turn. Of a request about all objects, the cost is that for each object. ``--wait`` asks a real
server instead: its table has how long an ECHO_REQ of another connection waits at most, while some kinds of
requests come.
"""

import argparse
import gc
import socket
import threading
import time
from collections.abc import Sequence
from typing import Final

from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as api
from gearflow.protocol.codec import encode
from tests.benchmarks.report import machine
from tests.benchmarks.servers import gearflow
from tests.broker.costs import KINDS, Shell, call, names

_ECHO: Final = encode(p.EchoReq(b"ping"))

_BETWEEN: Final = 0.001
"""Seconds between two questions of the client that waits."""

_FLOOD: Final = 40_000
"""Requests of a flood."""


def cost(kind: str, objects: int, turn: float) -> tuple[float, float]:
    """Microseconds of a request, and milliseconds of the longest turn."""
    shell = Shell(turn)
    work = KINDS[kind].prepare(shell, objects)
    next(work)
    gc.collect()
    gc.disable()  # a server collects garbage seldom: ``JobServer`` sees to that
    shell.longest = shell.handled = 0.0
    next(work, None)
    gc.enable()
    times = max(KINDS[kind].few, 1)
    return shell.handled / objects / times * 1e6, shell.longest * 1e3


def floods() -> dict[str, bytes]:
    """Requests that one connection sends as fast as it can."""
    wait = call(api.RESULT, api.ResultRequest(function="waiting", unique="one", timeout=60))
    pauses = (call(api.PAUSE, api.PauseRequest(function=name.decode())) for name in names(20_000))
    functions = (p.SubmitJob(name, b"", b"x") for name in names(100_000))
    return {
        "gearflow:result": encode(wait) * _FLOOD,
        "gearflow:pause": b"".join(map(encode, pauses)),
        "join a job": encode(p.SubmitJob(b"work", b"one", b"x")) * 60_000,
        "status": b"".join(map(encode, functions)) + b"status\n" * 30,
    }


def longest_wait(port: int, flood: bytes) -> float:
    """Milliseconds that an ECHO_REQ waits at most while the flood is handled."""
    sender = socket.create_connection(("127.0.0.1", port))
    sender.sendall(encode(p.SubmitJobBg(b"waiting", b"one", b"x")))
    sender.recv(1000)  # JOB_CREATED
    done = threading.Event()

    def read() -> None:
        end = b""
        while b"ping" not in end:
            end = end[-3:] + sender.recv(1 << 20)
        done.set()

    threads = [threading.Thread(target=read), threading.Thread(target=sender.sendall, args=(flood + _ECHO,))]
    longest = 0.0
    with socket.create_connection(("127.0.0.1", port)) as client:
        for thread in threads:
            thread.start()
        while not done.wait(_BETWEEN):
            began = time.perf_counter()
            client.sendall(_ECHO)
            missing = len(_ECHO)
            while missing:
                missing -= len(client.recv(missing))
            longest = max(longest, time.perf_counter() - began)
    sender.close()
    return longest * 1e3


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", default=list(KINDS))
    parser.add_argument("--objects", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--turn", type=float, default=0.005, help="seconds after which a turn is late")
    parser.add_argument("--wait", action="store_true", help="ask a real server")
    options = parser.parse_args(arguments)
    print(machine())
    if options.wait:
        for kind, flood in floods().items():
            with gearflow() as server:
                print(f"{kind:20}{longest_wait(server.port, flood):10.1f} ms", flush=True)
        return
    for kind in options.kinds:
        row = [cost(kind, objects, options.turn) for objects in options.objects]
        figures = "".join(f"{each:10.2f} us{longest:8.1f} ms" for each, longest in row)
        print(f"{kind:42}{figures}", flush=True)


if __name__ == "__main__":
    main()
