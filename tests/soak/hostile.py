"""Hostile peers of a soak.

    python -m tests.soak.hostile SEED HOST:PORT ...

It does one act after another at a random server until its standard input ends, and prints a ``Hostilities``
as JSON. Nothing kills the last server, so whatever fails there is a fault. The acts have functions of their
own, so they do not touch the jobs of the soak.
"""

import json
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from random import Random
from typing import Final

from pydantic import BaseModel

from gearflow.protocol import admin
from gearflow.protocol import packets as p
from gearflow.protocol.codec import encode
from tests.server.test_fuzz import NAMES, Fuzzer
from tests.server.wire import Wire
from tests.soak.probe import end_of_input

MIB: Final = 1 << 20

OF_THE_SOAK: Final = b"tests.soak."
"""How the names of functions begin whose jobs are not theirs."""


class Hostilities(BaseModel):
    """The acts, and what failed of them."""

    acts: Counter[str] = Counter()
    faults: list[str] = []


# --------------------------------------------------------------------------------------------- acts


def fuzz(port: int, chance: Random) -> None:
    """Packets, text and noise that break the protocol in every way."""
    fuzzer = Fuzzer(chance, lambda: b"H:nobody:1")
    for _ in range(200):
        with Wire(port) as wire, suppress(OSError):
            wire.send(*(fuzzer.burst() for _ in range(chance.randint(1, 10))))
    _do_what_is_left(port)


def ask_and_not_read(port: int, chance: Random) -> None:
    """Megabytes of answers that nobody reads, then garbage, while more connections do the same."""
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(port)) for _ in range(10)]
        for wire in wires:
            wire.socket.settimeout(0.05)
            with suppress(OSError):
                wire.send(*[p.EchoReq(bytes(50_000))] * 100)
        for wire in wires:
            with suppress(OSError):
                wire.send(b"\0garbage")


def leave_in_a_packet(port: int, chance: Random) -> None:
    """Connections that are cut in the middle of a packet."""
    packet = encode(p.SubmitJobBg(_function(chance), b"", bytes(chance.choice((100, MIB)))))
    for _ in range(100):
        with Wire(port) as wire, suppress(OSError):
            wire.send(packet[: chance.randrange(len(packet))])
            wire.reset()


def come_in_hundreds(port: int, chance: Random) -> None:
    """Hundreds of connections at a time, which do nothing."""
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(Wire(port)).send(p.CanDo(b"hostile-crowd"))


def die_with_jobs(port: int, chance: Random) -> None:
    """A worker that takes jobs and is gone, then one that does them."""
    function = _function(chance)
    with Wire(port) as client, Wire(port) as dying:
        client.send(*[p.SubmitJobBg(function, b"", b"x" * 1000)] * 200)
        dying.send(p.CanDo(function), *[p.GrabJob()] * 200)
        for _ in range(200):
            client.handle()
        dying.receive()
        dying.reset()
    _work_off(port, function, 200)


def time_out(port: int, chance: Random) -> None:
    """A worker that does not answer within its own limit, beside one that is woken for the job."""
    function = _function(chance)
    with Wire(port) as client, Wire(port) as worker, Wire(port) as other:
        client.send(p.SubmitJob(function, b"", b"x"))
        client.handle()
        worker.send(p.CanDoTimeout(function, b"1000"), p.GrabJob())
        assert isinstance(worker.receive(), p.JobAssign)
        other.send(p.CanDo(function), p.PreSleep())
        assert other.receive() == p.Noop()


def join_one_unique(port: int, chance: Random) -> None:
    """Thousands of submissions of one unique from one connection."""
    function = _function(chance)
    with Wire(port) as client:
        client.send(*[p.SubmitJob(function, b"one", b"x")] * 20_000)
        handles = {client.handle() for _ in range(20_000)}
        assert len(handles) == 1
        threading.Thread(target=_work_off, args=(port, function, 1)).start()
        assert isinstance(client.receive(), p.WorkComplete)


def watch_one_job(port: int, chance: Random) -> None:
    """Thousands of questions for one result."""
    function = _function(chance)
    with Wire(port) as client, Wire(port) as watcher:
        client.send(p.SubmitJobBg(function, b"", b"x"))
        request = json.dumps({"handle": client.handle().decode(), "timeout": 60}).encode()
        for _ in range(10):
            watcher.send(*[p.SubmitJob(b"gearflow:result", b"", request)] * 1000)
            for _ in range(1000):
                watcher.handle()
    _work_off(port, function, 1)


def pause_many(port: int, chance: Random) -> None:
    """Hundreds of functions are paused and resumed."""
    names = [_function(chance).decode() for _ in range(500)]
    with Wire(port) as wire:
        for paused in (True, False):
            calls = [json.dumps({"function": name, "paused": paused}).encode() for name in names]
            wire.send(*(p.SubmitJob(b"gearflow:pause", b"", call) for call in calls))
            for _ in range(2 * len(names)):
                assert wire.receive() is not None


def use_names_once(port: int, chance: Random) -> None:
    """Thousands of functions that are used once."""
    with Wire(port) as client:
        client.send(*[p.SubmitJob(_function(chance), b"", b"x") for _ in range(5_000)])
        for _ in range(5_000):
            client.handle()


def ask_for_status(port: int, chance: Random) -> None:
    """All lists, over and over."""
    with Wire(port) as wire:
        for _ in range(10):
            for command in (b"status", b"workers", b"prioritystatus", b"show jobs", b"show unique jobs"):
                with suppress(AssertionError):
                    wire.table(command)


def send_a_large_body(port: int, chance: Random) -> None:
    """A background job of 32 MiB, and its worker."""
    function = _function(chance)
    with Wire(port) as client:
        client.send(p.SubmitJobBg(function, b"", bytes(32 * MIB)))
        client.handle()
    _work_off(port, function, 1)


Act = Callable[[int, Random], None]

ACTS: Final[Sequence[Act]] = (
    fuzz,
    ask_and_not_read,
    leave_in_a_packet,
    come_in_hundreds,
    die_with_jobs,
    time_out,
    join_one_unique,
    watch_one_job,
    pause_many,
    use_names_once,
    ask_for_status,
    send_a_large_body,
)


def _function(chance: Random) -> bytes:
    return b"hostile-%d" % chance.getrandbits(48)


def _do_what_is_left(port: int) -> None:
    """Do the background jobs that the fuzzing peers have submitted, for they would wait for ever."""
    # A name with a newline is no row, and one that status escapes may be too long for CAN_DO.
    with Wire(port) as worker, suppress(AssertionError, ConnectionError):
        names = [row.name for row in admin.parse_status(worker.table(b"status"))]
        worker.send(*(p.CanDo(name) for name in {*NAMES, *names} if not name.startswith(OF_THE_SOAK)))
        worker.send(p.GrabJob())
        while isinstance(job := worker.receive(), p.JobAssign):
            worker.send(p.WorkComplete(job.handle, b""), p.GrabJob())


def _work_off(port: int, function: bytes, jobs: int) -> None:
    """Do so many jobs of a function."""
    with Wire(port) as worker, suppress(OSError):
        worker.send(p.CanDo(function))
        while jobs:
            worker.send(p.GrabJob())
            match worker.receive():
                case p.JobAssign(handle):
                    worker.send(p.WorkComplete(handle, b"done"))
                    jobs -= 1
                case p.NoJob():
                    worker.send(p.PreSleep())
                    worker.receive()
                case _:
                    return
        worker.sync()


def main(seed: int, ports: Sequence[int]) -> Hostilities:
    """Act until standard input ends."""
    found = Hostilities()
    chance = Random(seed)
    over = end_of_input()
    while not over.wait(chance.random()):
        act, port = chance.choice(ACTS), chance.choice(ports)
        found.acts[act.__name__.replace("_", " ")] += 1
        try:
            act(port, chance)
        except (OSError, AssertionError) as error:
            if port == ports[-1]:
                found.faults.append(f"{act.__name__}: {error!r}, {traceback.format_exc(limit=-2)}")
    return found


if __name__ == "__main__":
    result = main(int(sys.argv[1]), [int(address.rpartition(":")[2]) for address in sys.argv[2:]])
    sys.stdout.write(result.model_dump_json())
