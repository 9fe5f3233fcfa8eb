"""The specification that holds gearflow's broker, over sockets: against the bundled server, and C gearmand.

gearmand differs in the ways that ``GEARMAND`` lists, and in no other that the machine can find. Time is not
in the machine's hands here, so nothing waits for its time.

After every packet comes ECHO_REQ: both servers handle one packet after another, so what a packet leads to
has been sent when the echo comes, to the other connections too.
"""

import socket
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from gearflow.protocol import admin
from gearflow.protocol import packets as p
from gearflow.protocol.packets import Packet
from gearflow.server import JobServer
from tests.broker.model import Differences, GearflowMachine, ServerMachine
from tests.conftest import run_gearmand
from tests.server.wire import Wire

GEARMAND = Differences(
    abandoned_jobs_linger=True,
    cancelled_jobs_are_heard=True,
    newest_ability_first=True,
    withdrawing_takes_jobs_away=True,
    offering_does_not_wake=True,
    sleeping_again_is_deaf=True,
    abilities_are_counted_twice=True,
)
"""The specification says nothing of how many sleepers are woken for a job: gearmand wakes all of them."""

long = [pytest.mark.nightly, pytest.mark.timeout(1800)]

SYNC = p.EchoReq(b"sync")
IN_SYNC = p.EchoRes(b"sync")


class Socket:
    """A connection whose packets have had all their consequences when a call returns."""

    def __init__(self, port: int) -> None:
        self._wire = Wire(port)

    def __call__(self, *sent: Packet | bytes) -> list[Packet | bytes]:
        self._wire.send(*sent, SYNC)
        return list(self._until_in_sync())

    def read(self) -> list[Packet | bytes]:
        return self()

    def leave(self) -> None:
        """Hang up and wait until the server has noticed."""
        with suppress(OSError):
            self._wire.leave()
        self._wire.socket.close()

    def _until_in_sync(self) -> Iterator[Packet | bytes]:
        while (packet := self._wire.receive()) != IN_SYNC:
            assert packet is not None, "the server closed the connection"
            if isinstance(packet, p.WorkFail):  # gearmand sends a stray NUL where it was WORK_EXCEPTION
                packet = p.WorkFail(packet.handle.rstrip(b"\0"))
            yield packet


class OverSockets:
    """A server at a port, as a system."""

    def __init__(self, port: int, operator: Wire, differences: Differences) -> None:
        self.differences = differences
        self.prefix = uuid.uuid4().hex.encode() + b"."
        self._port = port
        self._operator = operator

    def connect(self) -> Socket:
        return Socket(self._port)

    def cancel(self, handle: bytes) -> bool:
        self._operator.send(b"cancel job %b\r\n" % handle)
        return self._operator.receive() == admin.OK.rstrip()

    def counts(self, function: bytes) -> tuple[int, int, int]:
        return self._operator.counts(function)


def drive(machine: type[ServerMachine], start: Callable[[], OverSockets], examples: int) -> None:
    """Run the machine against so many systems, one after another."""
    run_state_machine_as_test(
        cast(Any, lambda: machine(start())),  # a factory will do, although a class is asked for
        settings=settings(
            max_examples=examples,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


@contextmanager
def systems(
    server: Callable[[], AbstractContextManager[str]], differences: Differences
) -> Generator[Callable[[], OverSockets]]:
    """Makes a system for each example. ``server`` is asked for an address when there is none, when nobody
    is there any more (gearmand is known to die), and when the tables of functions have become long."""
    with ExitStack() as running, ExitStack() as operators:
        port = 0
        examples = 0

        def start() -> OverSockets:
            nonlocal port, examples
            operators.close()
            if examples % 50 == 0 or not _listens(port):
                running.close()
                port = int(running.enter_context(server()).rpartition(":")[2])
            examples += 1
            return OverSockets(port, operators.enter_context(Wire(port)), differences)

        yield start


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def bundled() -> Generator[str]:
    with JobServer(port=0) as server:
        yield server.address


@pytest.mark.parametrize("examples", [30, pytest.param(1000, marks=long)])
def test_the_bundled_server_is_as_the_specification_says(examples: int) -> None:
    with systems(bundled, Differences()) as start:
        drive(GearflowMachine, start, examples)


@pytest.mark.parametrize("examples", [30, pytest.param(2000, marks=long)])
def test_c_gearmand_is_as_the_specification_says_but_for_known_differences(
    program: Callable[[str], str], tmp_path: Path, examples: int
) -> None:
    gearmand = program("gearmand")
    with systems(lambda: run_gearmand(gearmand, tmp_path / "log"), GEARMAND) as start:
        drive(ServerMachine, start, examples)
