"""What watching a server costs it.

    python -m tests.benchmarks.observers [--rounds 3] [--seconds 30] [--rate 10000]

A durable server gets background jobs at a steady rate, and workers run them. The observers are all there at
once: ``gearflow web`` with a browser's event stream of its overview, ``gearflow top`` in a terminal, a scrape
of ``/metrics`` every 5 seconds, and ``gearflow watch`` of a job that reports progress ten times a second.

The same load runs in turns: without observers, while they watch another server that has little to do, and
while they watch this one. The figures are the server's CPU time for each job. The second kind of run shows
what it costs a server that other processes run beside it, which depends on the machine. The last kind, beside
the second, shows what the server does for its observers.
"""

import argparse
import asyncio
import os
import pty
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Final, Literal, TypeAlias

from tests.benchmarks.report import Table, busy, conditions, shown, spread
from tests.benchmarks.servers import Server, cpu, durable, free_port

_HEADER: Final = struct.Struct(">4sII")
_REQ: Final = b"\0REQ"
_CAN_DO, _PRE_SLEEP, _NOOP, _GRAB, _NO_JOB, _ASSIGN = 1, 4, 6, 9, 10, 11
_STATUS, _COMPLETE, _SUBMIT_BG = 12, 13, 18

_BURST: Final = 0.01
"""Seconds between two bursts of submissions."""

_CLIENTS: Final = 4
_WORKERS: Final = 4
_GRABS: Final = 8
"""GRABs that a worker has under way."""

_SCRAPE: Final = 5.0
"""Seconds between two scrapes."""

_LITTLE: Final = 40
"""Jobs a second of the other server."""

Watched: TypeAlias = Literal["none", "another", "it"]

TITLES: Final[dict[Watched, str]] = {
    "none": "nobody watches",
    "another": "another server is watched",
    "it": "it is watched",
}


# ---------------------------------------------------------------------------------------------- the load


def _packet(kind: int, *fields: bytes) -> bytes:
    body = b"\0".join(fields)
    return _HEADER.pack(_REQ, kind, len(body)) + body


class _Peer(asyncio.Protocol):
    """A connection that hands on whole packets."""

    def __init__(self) -> None:
        self._rest = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        position, out = 0, bytearray()
        while len(data) - position >= _HEADER.size:
            _, kind, size = _HEADER.unpack_from(data, position)
            end = position + _HEADER.size + size
            if end > len(data):
                break
            self.received(kind, data[position + _HEADER.size : end], out)
            position = end
        self._rest = data[position:]
        if out:
            self.transport.write(out)

    def received(self, kind: int, body: bytes, out: bytearray) -> None:
        """Handle one packet."""


class _Worker(_Peer):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.done = 0
        self.transport.write(_packet(_CAN_DO, b"load") + _packet(_GRAB) * _GRABS)

    def received(self, kind: int, body: bytes, out: bytearray) -> None:
        if kind == _ASSIGN:
            self.done += 1
            out += _packet(_COMPLETE, body[: body.index(b"\0")], b"") + _packet(_GRAB)
        elif kind == _NO_JOB:
            out += _packet(_PRE_SLEEP)
        elif kind == _NOOP:
            out += _packet(_GRAB)


class _Reporter(_Peer):
    """A worker that runs one job for good, and reports progress ten times a second."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.write(_packet(_CAN_DO, b"bench.slow") + _packet(_GRAB))

    def received(self, kind: int, body: bytes, out: bytearray) -> None:
        if kind == _ASSIGN:
            self._report(body[: body.index(b"\0")], 0)
        elif kind == _NO_JOB:
            out += _packet(_PRE_SLEEP)
        elif kind == _NOOP:
            out += _packet(_GRAB)

    def _report(self, handle: bytes, done: int) -> None:
        self.transport.write(_packet(_STATUS, handle, b"%d" % done, b"1000000"))
        asyncio.get_running_loop().call_later(0.1, self._report, handle, done + 1)


async def load(port: int, rate: int) -> None:
    """Submit and run jobs at this rate until the process is ended. Prints the number of ended jobs for each
    line of input."""
    loop = asyncio.get_running_loop()
    workers = [(await loop.create_connection(_Worker, "127.0.0.1", port))[1] for _ in range(_WORKERS)]
    await loop.create_connection(_Reporter, "127.0.0.1", port)
    clients = [(await loop.create_connection(_Peer, "127.0.0.1", port))[1] for _ in range(_CLIENTS)]

    def answer() -> None:
        if sys.stdin.readline():
            print(sum(worker.done for worker in workers), flush=True)

    loop.add_reader(sys.stdin, answer)
    submission = _packet(_SUBMIT_BG, b"load", b"", b"x" * 16)
    begin, sent = loop.time(), 0
    while True:
        due = int((loop.time() - begin) * rate) - sent
        for client in clients:
            client.transport.write(submission * (due // _CLIENTS))
        sent += due // _CLIENTS * _CLIENTS
        await asyncio.sleep(_BURST)


# ----------------------------------------------------------------------------------------- the observers


@contextmanager
def _process(*command: str) -> Generator[None]:
    arguments = [sys.executable, "-m", "gearflow_cli", *command]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


@contextmanager
def _thread(target: "Scraper | Viewer") -> Generator[None]:
    thread = threading.Thread(target=target.run)
    thread.start()
    try:
        yield
    finally:
        target.stopped.set()
        thread.join()


class Scraper:
    """Reads the metrics as Prometheus does."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(_SCRAPE):
            with urllib.request.urlopen(self._url) as answer:
                answer.read()


class Viewer:
    """Reads the events of the dashboard's overview as a browser does."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.stopped = threading.Event()
        self.read = 0

    def run(self) -> None:
        with urllib.request.urlopen(self._url, timeout=30) as answer:
            while not self.stopped.is_set():
                self.read += len(answer.readline())


@contextmanager
def _top(server: Server) -> Generator[None]:
    """``gearflow top`` in a terminal that somebody reads."""
    pid, terminal = pty.fork()
    if not pid:
        os.environ["TERM"] = "xterm-256color"
        os.execv(
            sys.executable,
            [sys.executable, "-m", "gearflow_cli", "top", "-s", f"127.0.0.1:{server.port}"],
        )

    def drain() -> None:
        try:
            while os.read(terminal, 65536):
                pass
        except OSError:  # the terminal of a process that has ended
            return

    thread = threading.Thread(target=drain)
    thread.start()
    try:
        yield
    finally:
        os.write(terminal, b"q")
        os.waitpid(pid, 0)
        thread.join()
        os.close(terminal)


@contextmanager
def dashboard(server: Server) -> Generator[str]:
    """``gearflow web`` for a server: its address without a slash at the end."""
    listen = f"127.0.0.1:{free_port()}"
    with _process("web", "-s", f"127.0.0.1:{server.port}", "--listen", listen):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"http://{listen}/").close()
            except OSError:
                time.sleep(0.1)
            else:
                yield f"http://{listen}"
                return
        sys.exit("gearflow web did not begin to listen")


@dataclass(frozen=True)
class Loaded:
    """A server with its load."""

    server: Server
    metrics: int
    """The port of its metrics."""

    job: str
    """The handle of a job that reports progress."""

    generator: "subprocess.Popen[str]"

    def ended(self) -> int:
        """The number of jobs that have ended."""
        assert self.generator.stdin is not None
        assert self.generator.stdout is not None
        self.generator.stdin.write("\n")
        self.generator.stdin.flush()
        return int(self.generator.stdout.readline())


@contextmanager
def observers(of: Loaded) -> Generator[None]:
    """All observers at once."""
    with ExitStack() as stack:
        stack.enter_context(_process("watch", "-s", f"127.0.0.1:{of.server.port}", of.job))
        stack.enter_context(_top(of.server))
        stack.enter_context(_thread(Scraper(f"http://127.0.0.1:{of.metrics}/metrics")))
        web = stack.enter_context(dashboard(of.server))
        viewer = Viewer(f"{web}/events?page=/")
        stack.enter_context(_thread(viewer))
        yield
        assert viewer.read, "the dashboard sent no events"


# ------------------------------------------------------------------------------------------- the figures


@contextmanager
def _loaded(rate: int) -> Generator[Loaded]:
    """A durable server that gets jobs at this rate."""
    metrics = free_port()
    with durable(further=("--metrics", f"127.0.0.1:{metrics}", "--keep", "10")) as server:
        job = ("submit", "--bg", "-s", f"127.0.0.1:{server.port}", "bench.slow", "x=1")
        command = [sys.executable, "-m", "gearflow_cli", *job]
        watched = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        arguments = [sys.executable, "-m", __spec__.name, "--load", str(server.port), "--rate", str(rate)]
        with subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as generator:
            try:
                yield Loaded(server, metrics, watched, generator)
            finally:
                generator.terminate()


def measure(seconds: float, rate: int, watched: Watched) -> tuple[float, float]:
    """Microseconds of the server's CPU time for each job, and jobs a second."""
    with ExitStack() as stack:
        other = stack.enter_context(_loaded(_LITTLE))
        it = stack.enter_context(_loaded(rate))
        if watched != "none":
            stack.enter_context(observers(it if watched == "it" else other))
        time.sleep(3)  # until all are at their pace
        jobs, used, begin = it.ended(), cpu(it.server.pid), time.monotonic()
        time.sleep(seconds)
        jobs, used = it.ended() - jobs, cpu(it.server.pid) - used
        return used / jobs * 1e6, jobs / (time.monotonic() - begin)


def table(rounds: int, seconds: float, rate: int) -> Table:
    """The server without observers, with those of another server, and with its own."""
    runs: dict[Watched, list[tuple[float, float]]] = {watched: [] for watched in TITLES}
    for _ in range(rounds):
        for watched, figures in runs.items():
            figures.append(measure(seconds, rate, watched))
    columns = ("", "jobs/s", "CPU for a job, us", "to another server watched")
    result = Table("What watching costs the server", columns)
    for watched, figures in runs.items():
        costs = [cost for cost, _ in figures]
        result.add(
            TITLES[watched],
            shown(median(rate for _, rate in figures)),
            spread(costs),
            _more(runs["another"], costs),
        )
    return result


def _more(others: Sequence[tuple[float, float]], costs: Sequence[float]) -> str:
    each = [cost / other - 1 for cost, (other, _) in zip(costs, others, strict=True)]
    return f"{median(each):+.1%} ({min(each):+.1%} .. {max(each):+.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rate", type=int, default=10_000)
    parser.add_argument("--load", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        asyncio.run(load(options.load, options.rate))
        return
    print(table(options.rounds, options.seconds, options.rate))
    print(f"{conditions()}\n{options.rounds} runs each in turns, {busy()} at the end")


if __name__ == "__main__":
    main()
