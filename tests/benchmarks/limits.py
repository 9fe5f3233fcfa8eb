"""What limits cost, how exact rates are, and what a tenant that floods does to the others.

    python -m tests.benchmarks.limits [--rounds 5] [--jobs 100000] [--seconds 60] [--only cost,rates,tenants]

``cost`` drains a queue of jobs, with each kind of limits in turns, each with a new server. The figure is the
CPU time of the server for a job from its assignment to its end. Beside it is the ratio to the same without
limits, round by round, with the range, which shows how noisy the machine was. The limits are not reached,
except where the row says so.

``rates`` counts the jobs that start in so many seconds, after the burst, while more than enough wait.

``tenants`` has a function with ``fair``, 1,000 tenants, and workers that are busy. All tenants but one submit
a few jobs each, first alone, and then beside one that has submitted 50,000. The figures are the times from
the submission to the start. ``backlog`` submits all at once. ``steady`` submits all the time, 80 % of what
the workers can do. There the time ends with the job, because most jobs do not wait at all.
"""

import argparse
import asyncio
import json
import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, median, quantiles
from typing import Final

from gearflow.client import Client
from gearflow.client.operate import change_limits
from gearflow.protocol.codec import encode
from gearflow.protocol.constants import RES, PacketType
from gearflow.protocol.framing import FrameBuffer
from gearflow.protocol.limits import FunctionLimits, LimitRequest, LimitUse, LimitValue
from gearflow.protocol.packets import CanDo, GrabJob, PreSleep, SubmitJobBg, WorkComplete
from tests.benchmarks.report import Table, busy, conditions, shown
from tests.benchmarks.servers import Server, cpu, gearflow

GRAB: Final = encode(GrabJob())
SLEEP: Final = encode(PreSleep())
ASSIGNED: Final = int(PacketType.JOB_ASSIGN)
NO_JOB: Final = int(PacketType.NO_JOB)
NOOP: Final = int(PacketType.NOOP)
CREATED: Final = int(PacketType.JOB_CREATED)


@dataclass(frozen=True)
class Limits:
    """The limits of a function: values by name, with the key of each, and what is fair."""

    values: dict[str, tuple[LimitValue, str | None]]
    fair: str | None = None

    def apply(self, server: Server, function: str) -> None:
        """Have a server apply them to a function."""
        uses = tuple(LimitUse(limit=name, key=key) for name, (_, key) in self.values.items())
        request = LimitRequest(
            action="apply",
            origin=f"benchmark of {function}",
            limits={name: value for name, (value, _) in self.values.items()},
            functions={function: FunctionLimits(limits=uses, fair=self.fair)},
        )

        async def send() -> None:
            async with Client([f"127.0.0.1:{server.port}"]) as client:
                await change_limits(client, request)

        asyncio.run(send())


def at_once(count: int, key: str | None = None, **more: tuple[LimitValue, str | None]) -> Limits:
    return Limits({"once": (LimitValue(count=count), key), **more})


class Wire:
    """One connection, which blocks."""

    def __init__(self, server: Server) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._frames = FrameBuffer(RES, max_body=1 << 20, setting="max_workload", text=False)

    def frames(self) -> list[tuple[int, bytes]]:
        """What comes next."""
        return list(self._frames.feed(self.socket.recv(1 << 18)))


# ------------------------------------------------------------------------------------------------- cost

MANY: Final = 1_000_000_000

COSTS: Final[dict[str, tuple[Limits | None, int]]] = {
    "none": (None, 1),
    "concurrency": (at_once(MANY), 1),
    "concurrency, reached": (at_once(16), 1),
    "rate": (Limits({"rate": (LimitValue(count=MANY, per=1.0, burst=MANY), None)}), 1),
    "fair, 100 groups": (Limits({}, fair="/key"), 100),
    "a key, 10 keys": (at_once(MANY, "/key"), 10),
    "a key, 100,000 keys": (at_once(MANY, "/key"), 100_000),
    "a key, 100,000 keys, each one at a time": (at_once(1, "/key"), 100_000),
    "all of them": (
        Limits(
            {
                "once": (LimitValue(count=MANY), None),
                "of-key": (LimitValue(count=1), "/key"),
                "rate": (LimitValue(count=MANY, per=1.0, burst=MANY), None),
            },
            fair="/key",
        ),
        1000,
    ),
}
"""By the names of the rows: the limits, and how many keys the jobs have."""

IN_FLIGHT: Final = 64
"""GRABs of the worker."""


def drained(server: Server, jobs: int, keys: int) -> tuple[float, float]:
    """Submit jobs and run all of them: jobs a second, and microseconds of the server for a job."""
    client, worker = Wire(server), Wire(server)
    step = 500
    for first in range(0, jobs, step):
        numbers = range(first, min(first + step, jobs))
        payloads = [b'{"key":%d}' % (number % keys) for number in numbers]
        client.socket.sendall(b"".join(encode(SubmitJobBg(b"load", b"", payload)) for payload in payloads))
        created = 0
        while created < len(numbers):
            created += sum(kind == CREATED for kind, _ in client.frames())
    before, began = cpu(server.pid), time.perf_counter()
    worker.socket.sendall(encode(CanDo(b"load")) + GRAB * IN_FLIGHT)
    done, in_flight = 0, IN_FLIGHT
    while done < jobs:
        answers: list[bytes] = []
        for kind, body in worker.frames():
            if kind == ASSIGNED:
                done += 1
                handle = body.partition(b"\0")[0]
                answers.append(encode(WorkComplete(handle, b"")) + GRAB)
            elif kind == NO_JOB:
                in_flight -= 1
                if not in_flight:
                    answers.append(SLEEP)
            elif kind == NOOP and not in_flight:
                in_flight = IN_FLIGHT
                answers.append(GRAB * IN_FLIGHT)
        worker.socket.sendall(b"".join(answers))
    seconds = time.perf_counter() - began
    return jobs / seconds, (cpu(server.pid) - before) / jobs * 1e6


def cost_table(rounds: int, jobs: int) -> Table:
    """The rows of ``COSTS``, in turns."""
    rates: dict[str, list[float]] = {name: [] for name in COSTS}
    costs: dict[str, list[float]] = {name: [] for name in COSTS}
    for _ in range(rounds):
        for name, (limits, keys) in COSTS.items():
            with gearflow() as server:
                if limits is not None:
                    limits.apply(server, "load")
                rate, cost = drained(server, jobs, keys)
            rates[name].append(rate)
            costs[name].append(cost)
    table = Table(f"Limits, {jobs:,} jobs", ("limits", "jobs/s", "CPU of a job, us", "beside none (range)"))
    for name in COSTS:
        ratio = [mine / none for mine, none in zip(costs[name], costs["none"], strict=True)]
        beside = f"{median(ratio):.2f} ({min(ratio):.2f} .. {max(ratio):.2f})"
        table.add(name, shown(median(rates[name])), shown(median(costs[name])), beside)
    return table


# ------------------------------------------------------------------------------------------------ rates

RATES: Final = {
    "10/s": LimitValue(count=10, per=1.0),
    "600/m, burst 50": LimitValue(count=600, per=60.0, burst=50),
    "100/s, burst 10": LimitValue(count=100, per=1.0, burst=10),
    "1000/s, burst 100": LimitValue(count=1000, per=1.0, burst=100),
}


class Peer(asyncio.Protocol):
    """One connection to a server, which calls back for each frame."""

    transport: asyncio.Transport

    def __init__(self, handle: Callable[["Peer", int, bytes], None]) -> None:
        self._handle = handle
        self._frames = FrameBuffer(RES, max_body=1 << 20, setting="max_workload", text=False)

    @classmethod
    async def connect(cls, server: Server, handle: Callable[["Peer", int, bytes], None]) -> "Peer":
        loop = asyncio.get_running_loop()
        _, peer = await loop.create_connection(lambda: cls(handle), "127.0.0.1", server.port)
        return peer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        for kind, body in self._frames.feed(data):
            self._handle(self, kind, body)

    def send(self, data: bytes) -> None:
        self.transport.write(data)


class Slots:
    """A worker of a function. Its jobs take so long; ``started`` is called with the payload of each."""

    def __init__(self, slots: int, seconds: float, started: Callable[[bytes], None]) -> None:
        self.ended: Callable[[bytes], None] = lambda _: None
        self._slots = slots
        self._seconds = seconds
        self._started = started
        self._in_flight = 0
        self._free = slots

    async def work(self, server: Server, function: str) -> None:
        peer = await Peer.connect(server, self._handle)
        self._in_flight = self._slots
        peer.send(encode(CanDo(function.encode())) + GRAB * self._slots)

    def _handle(self, peer: Peer, kind: int, body: bytes) -> None:
        if kind == ASSIGNED:
            handle, _, payload = body.split(b"\0", 2)
            self._started(payload)
            self._in_flight -= 1
            self._free -= 1
            self._grab(peer, 2)
            if not self._seconds:
                self._end(peer, handle, payload)
            else:
                asyncio.get_running_loop().call_later(self._seconds, self._end, peer, handle, payload)
        elif kind == NO_JOB:
            self._in_flight -= 1
            if not self._in_flight:
                peer.send(SLEEP)
        elif kind == NOOP:
            self._grab(peer, 1)

    def _grab(self, peer: Peer, most: int) -> None:
        grabs = min(self._free - self._in_flight, most)
        if grabs > 0:
            self._in_flight += grabs
            peer.send(GRAB * grabs)

    def _end(self, peer: Peer, handle: bytes, payload: bytes) -> None:
        self._free += 1
        self._in_flight += 1
        self.ended(payload)
        peer.send(encode(WorkComplete(handle, b"")) + GRAB)


async def _submit(server: Server, function: str, payloads: Sequence[bytes]) -> None:
    """Submit background jobs, and return when the server has them."""
    done = asyncio.Event()
    created = 0

    def handle(_: Peer, kind: int, __: bytes) -> None:
        nonlocal created
        created += kind == CREATED
        if created == len(payloads):
            done.set()

    peer = await Peer.connect(server, handle)
    name = function.encode()
    for first in range(0, len(payloads), 1000):
        peer.send(b"".join(encode(SubmitJobBg(name, b"", each)) for each in payloads[first : first + 1000]))
        await asyncio.sleep(0)
    await done.wait()
    peer.transport.close()


async def _starts(server: Server, seconds: float) -> dict[str, list[float]]:
    """When the jobs of each rate started."""
    starts: dict[str, list[float]] = {name: [] for name in RATES}
    for name, value in RATES.items():
        per = value.per or 1.0
        await _submit(server, name, [b"{}"] * int(value.count / per * (seconds + 5) * 1.2 + value.burst))
    for name in RATES:
        times = starts[name]
        worker = Slots(50, 0.0, lambda _, times=times: times.append(time.monotonic()))  # type: ignore[misc]
        await worker.work(server, name)
    await asyncio.sleep(seconds + 3)
    return starts


def rate_table(seconds: float) -> Table:
    """How many jobs start in a time, after the burst."""
    with gearflow() as server:
        for name, value in RATES.items():
            Limits({name: (value, None)}).apply(server, name)
        starts = asyncio.run(_starts(server, seconds))
    table = Table(
        f"Rates over {seconds:g} s", ("rate", "jobs a second", "of the rate", "in the first second")
    )
    for name, value in RATES.items():
        times = starts[name]
        began = times[0] + 1.0
        wanted = value.count / (value.per or 1.0)
        found = sum(began <= each < began + seconds for each in times) / seconds
        first = sum(each < began for each in times)
        table.add(name, f"{found:.2f}", f"{found / wanted:.2%}", str(first))
    return table


# ---------------------------------------------------------------------------------------------- tenants

TENANTS: Final = 1000
FLOOD: Final = 50_000
SLOTS: Final = 40
TAKES: Final = 0.04  # seconds of a job, so that the workers do a thousand a second
BUSY: Final = 0.8  # of that, in steady state


async def _waits(server: Server, *, flood: int, steady: float, jobs: int) -> list[float]:
    """The times that the jobs of all tenants but the first wait; in steady state, until they have ended."""
    waits: list[float] = []
    wanted = (TENANTS - 1) * jobs if not steady else int(steady * BUSY * SLOTS / TAKES)
    done = asyncio.Event()

    def measured(payload: bytes) -> None:
        job = json.loads(payload)
        if job["tenant"]:
            waits.append(time.monotonic() - job["at"])
            if len(waits) == wanted:
                done.set()

    def ignored(_: bytes) -> None:
        """The other end of the job counts."""

    def job(tenant: int) -> bytes:
        return b'{"tenant":%d,"at":%f}' % (tenant, time.monotonic())

    if flood:
        await _submit(server, "tenants", [job(0)] * flood)
    worker = Slots(SLOTS, TAKES, ignored if steady else measured)
    if steady:
        worker.ended = measured
        await worker.work(server, "tenants")
        peer = await Peer.connect(server, lambda _peer, _kind, _body: None)
        draw, due = random.Random(7), time.monotonic()
        for _ in range(wanted):
            due += draw.expovariate(BUSY * SLOTS / TAKES)
            if (early := due - time.monotonic()) > 0:
                await asyncio.sleep(early)
            peer.send(encode(SubmitJobBg(b"tenants", b"", job(draw.randrange(1, TENANTS)))))
    else:
        await _submit(server, "tenants", [job(tenant) for _ in range(jobs) for tenant in range(1, TENANTS)])
        await worker.work(server, "tenants")
    await done.wait()
    return waits


def tenant_table(rounds: int, steady: float, jobs: int, flood: int) -> Table:
    """The others' times alone and beside a flood."""
    columns = ("load", "alone, ms", "beside a flood, ms", "times as long, mean (range)", "p99")
    table = Table(f"{TENANTS:,} tenants, of which one has {flood:,} jobs", columns)
    for name, seconds in (("backlog", 0.0), ("steady", steady)):
        alone: list[list[float]] = []
        beside: list[list[float]] = []
        for _ in range(rounds):
            for times, jobs_of_one in ((alone, 0), (beside, flood)):
                with gearflow() as server:
                    Limits({}, fair="/tenant").apply(server, "tenants")
                    times.append(asyncio.run(_waits(server, flood=jobs_of_one, steady=seconds, jobs=jobs)))
        ratio = [mean(mine) / mean(other) for mine, other in zip(beside, alone, strict=True)]
        worst = [_p99(mine) / _p99(other) for mine, other in zip(beside, alone, strict=True)]
        table.add(
            name,
            shown(median(map(mean, alone)) * 1e3),
            shown(median(map(mean, beside)) * 1e3),
            f"{median(ratio):.2f} ({min(ratio):.2f} .. {max(ratio):.2f})",
            f"{median(worst):.2f}",
        )
    return table


def _p99(times: Sequence[float]) -> float:
    return quantiles(times, n=100)[-1]


def tables(only: Sequence[str], rounds: int, jobs: int, seconds: float) -> Iterator[Table]:
    """The tables that were asked for."""
    if "cost" in only:
        yield cost_table(rounds, jobs)
    if "rates" in only:
        yield rate_table(seconds)
    if "tenants" in only:
        yield tenant_table(min(rounds, 3), min(seconds, 20.0), 5, min(FLOOD, jobs))


PARTS: Final = ("cost", "rates", "tenants")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--only", default=",".join(PARTS))
    options = parser.parse_args()
    print(conditions(), busy(), sep="\n")
    for table in tables(options.only.split(","), options.rounds, options.jobs, options.seconds):
        print(table, busy(), sep="\n", flush=True)


if __name__ == "__main__":
    main()
