"""Bodies of any size: every byte arrives, and the server's memory holds at most one copy of them."""

import itertools
import struct
import threading
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from gearflow.broker import Broker, SizeLimits
from gearflow.broker.parser import KEPT
from gearflow.protocol import packets as p
from gearflow.protocol.codec import encode
from gearflow.protocol.constants import HEADER, HEADER_SIZE, MAX_BODY, REQ, RES, PacketType
from tests.broker.harness import PREFIX, World
from tests.server.wire import ServerProcess, Wire, server_process

MIB: Final = 1 << 20
PART: Final = MIB
PATTERN: Final = memoryview(bytes(range(251)) * (PART // 251 + 1))[:PART]


def parts(size: int) -> Iterator[memoryview]:
    """So many bytes, no MiB of which is like another."""
    for number in range((size + PART - 1) // PART):
        part = bytearray(PATTERN)
        struct.pack_into(">Q", part, 0, number)
        yield memoryview(part)[: size - number * PART]


def pour(wire: Wire, kind: PacketType, head: bytes, size: int) -> None:
    """Send a packet whose body is ``head`` and so many bytes."""
    wire.socket.sendall(HEADER.pack(REQ, kind, len(head) + size) + head)
    for part in parts(size):
        wire.socket.sendall(part)


def drain(wire: Wire, kind: PacketType, head: bytes, size: int) -> None:
    """Receive that packet, and nothing but it."""
    assert exactly(wire, HEADER_SIZE) == HEADER.pack(RES, kind, len(head) + size)
    assert exactly(wire, len(head)) == head
    for part in parts(size):
        assert exactly(wire, len(part)) == part


def exactly(wire: Wire, size: int) -> bytearray:
    """Receive so many bytes."""
    received = bytearray(size)
    room = memoryview(received)
    while room:
        count = wire.socket.recv_into(room)
        assert count, "the server closed the connection"
        room = room[count:]
    return received


class Field:
    """A server process, and a client and a worker of it."""

    def __init__(self, server: ServerProcess, client: Wire, worker: Wire) -> None:
        self.server = server
        self.client = client
        self.worker = worker
        worker.send(p.CanDo(b"work"))
        worker.sync()
        client.sync()
        server.forget_peak()
        self._before = server.memory()

    @property
    def peak(self) -> int:
        """Bytes that the server held at the most over what it began with."""
        return self.server.peak_memory() - self._before

    @property
    def memory(self) -> int:
        """Bytes that the server holds over what it began with."""
        return self.server.memory() - self._before

    def there(self, size: int, unique: bytes = b"") -> bytes:
        """A foreground job with so large a workload, submitted and grabbed; its handle."""
        pour(self.client, PacketType.SUBMIT_JOB, b"work\0%b\0" % unique, size)
        handle = self.client.handle()
        self.worker.send(p.GrabJob())
        drain(self.worker, PacketType.JOB_ASSIGN, b"%b\0work\0" % handle, size)
        return handle

    def back(self, handle: bytes, size: int) -> None:
        """So large a result of it."""
        result = PacketType.WORK_COMPLETE, b"%b\0" % handle, size
        sending = threading.Thread(target=pour, args=(self.worker, *result))
        sending.start()
        drain(self.client, *result)
        sending.join()


@contextmanager
def field(log: Path, **settings: Any) -> Generator[Field]:
    with ExitStack() as stack:
        server = stack.enter_context(server_process(log, **settings))
        yield Field(server, stack.enter_context(Wire(server.port)), stack.enter_context(Wire(server.port)))


def test_64_mib_go_there_and_back_byte_for_byte(tmp_path: Path) -> None:
    size = 64 * MIB
    with field(tmp_path / "log") as there_is:
        handle = there_is.there(size)
        there_is.back(handle, size)
        there_is.worker.sync()
        assert there_is.peak < 2 * size * 1.2  # the workload stays until its job is done
        assert there_is.memory < 16 * MIB
        assert there_is.worker.counts(b"work") == (0, 0, 1)


def test_a_body_is_in_the_servers_memory_once(tmp_path: Path) -> None:
    size = 256 * MIB
    with field(tmp_path / "log") as there_is:
        handle = there_is.there(size)
        assert there_is.peak < 1.3 * size
        there_is.worker.send(p.WorkFail(handle))
        there_is.worker.sync()
        assert there_is.memory < 16 * MIB


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "size", [1025 * MIB, MAX_BODY - len(b"work\0\0") - 64], ids=["over 1 GiB", "4 GiB - 1"]
)
def test_a_body_up_to_the_wires_limit_is_in_the_servers_memory_once(tmp_path: Path, size: int) -> None:
    with field(tmp_path / "log", max_body=MAX_BODY) as there_is:
        # A unique as long as a handle: the assignment must fit into a packet, as the submission does.
        handle = there_is.there(size, unique=b"u" * 64)
        assert there_is.peak < 1.05 * size
        there_is.worker.send(p.WorkFail(handle))
        there_is.worker.sync()
        assert there_is.memory < 16 * MIB


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_a_result_of_over_a_gib_is_in_the_servers_memory_once(tmp_path: Path) -> None:
    size = 1025 * MIB
    with field(tmp_path / "log", max_body=2 * size) as there_is:
        there_is.back(there_is.there(1), size)
        assert there_is.peak < 1.05 * size
        there_is.worker.sync()
        assert there_is.memory < 16 * MIB


@pytest.mark.parametrize(
    "count", [200, pytest.param(5000, marks=[pytest.mark.nightly, pytest.mark.timeout(600)])]
)
def test_a_result_in_parts_is_of_any_size_however_slow_its_reader(tmp_path: Path, count: int) -> None:
    """The client begins to read when the worker cannot send any more, and then reads part by part."""
    pending = 8 * MIB
    with field(tmp_path / "log", max_pending_bytes=pending) as there_is, Wire(there_is.server.port) as other:
        handle = there_is.there(1)
        stuck = threading.Event()
        sending = threading.Thread(target=feed, args=(there_is.worker, handle, count, stuck), daemon=True)
        sending.start()
        assert stuck.wait(20)
        for part in parts(count * PART):
            other.sync()  # nobody else waits
            packet = encode(p.WorkData(handle, bytes(part)))
            assert exactly(there_is.client, len(packet)) == packet.replace(REQ, RES, 1)
        sending.join()
        assert there_is.client.receive() == p.WorkComplete(handle, b"")
        assert there_is.peak < 4 * pending + KEPT


def feed(worker: Wire, handle: bytes, count: int, stuck: threading.Event) -> None:
    """A result in so many parts; ``stuck`` is set when nothing can be sent for a while."""
    packets = (encode(p.WorkData(handle, bytes(part))) for part in parts(count * PART))
    worker.socket.settimeout(0.1)
    for packet in itertools.chain(packets, [encode(p.WorkComplete(handle, b""))]):
        rest = memoryview(packet)
        while rest:
            try:
                rest = rest[worker.socket.send(rest) :]
            except TimeoutError:
                stuck.set()


@pytest.mark.parametrize("grab", [p.GrabJob(), p.GrabJobUniq(), p.GrabJobAll()])
@pytest.mark.parametrize("unique", [b"", b"u" * 64], ids=["without unique", "with unique"])
def test_a_workload_that_fits_into_no_assignment_harms_no_worker(unique: bytes, grab: p.Packet) -> None:
    """What is said of a job to its worker is longer than what its client said, and has the same limit."""
    world = World()
    world.broker = Broker(PREFIX, lambda line: line, SizeLimits(body=MAX_BODY))
    client, worker = world.peer(), world.worker()
    head = HEADER.pack(REQ, PacketType.SUBMIT_JOB, MAX_BODY) + b"work\0%b\0" % unique
    world.broker.receive(client.session, head, world.now)
    partial = world.broker.parser.partials.get(client.session)
    assert partial is not None
    world.broker.receive_large(client.session, len(partial.room()), world.now)  # memory that nobody touches
    world.broker.receive(worker.session, encode(grab), world.now)
    (_, size) = struct.unpack_from(">II", worker.session.outbox[0], 4)
    assert size == sum(map(len, worker.session.outbox)) - HEADER_SIZE
