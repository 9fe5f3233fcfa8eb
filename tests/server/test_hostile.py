"""Peers that mean harm, or are ill: the server bears them, and the others do not notice."""

import errno
import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, TypeAlias

import pytest

from gearflow.protocol import packets as p
from gearflow.protocol.codec import encode
from gearflow.protocol.constants import HEADER, REQ, UNUSED_TYPE
from tests.server.wire import TIMEOUT, ServerProcess, Wire, server_process

MIB: Final = 1 << 20
LARGE: Final = 8 * MIB

GoAway: TypeAlias = Callable[[Wire], None]

endings = pytest.mark.parametrize("go_away", [Wire.leave, Wire.reset], ids=["half-close", "reset"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server bears all the tests of this module that need no settings of their own."""
    with server_process(tmp_path_factory.mktemp("server") / "log") as process:
        yield process


@pytest.fixture
def wire(server: ServerProcess) -> Iterator[Callable[[], Wire]]:
    """``wire()`` is a connection that is closed when the test ends."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Wire(server.port))


@pytest.fixture
def work(function: str) -> bytes:
    return function.encode()


Connect: TypeAlias = Callable[[], Wire]


def round_trip(client: Wire, worker: Wire, work: bytes, workload: bytes = b"x") -> None:
    client.send(p.SubmitJob(work, b"", workload))
    handle = client.handle()
    worker.send(p.GrabJob())
    assert worker.receive() == p.JobAssign(handle, work, workload)
    worker.send(p.WorkComplete(handle, workload))
    assert client.receive() == p.WorkComplete(handle, workload)


# ------------------------------------------------------------------------------------ slow and deaf


def test_a_conversation_in_which_every_byte_is_a_segment_is_a_conversation(
    wire: Connect, work: bytes
) -> None:
    client, worker = wire(), wire()
    workload = bytes(range(256)) * 4
    for byte in encode(p.SubmitJob(work, b"u", workload)):
        client.send(bytes([byte]))
    handle = client.handle()
    for byte in encode(p.CanDo(work)) + encode(p.GrabJobUniq()):
        worker.send(bytes([byte]))
    assert worker.receive() == p.JobAssignUniq(handle, work, b"u", workload)
    for byte in encode(p.WorkComplete(handle, workload)) + b"version\r\n":
        worker.send(bytes([byte]))
    assert client.receive() == p.WorkComplete(handle, workload)
    assert isinstance(worker.receive(), bytes)


def test_a_packet_that_trickles_is_not_waited_for_for_ever(tmp_path: Path, work: bytes) -> None:
    with (
        server_process(tmp_path / "log", max_packet_time=0.3) as server,
        Wire(server.port) as client,
        Wire(server.port) as worker,
        Wire(server.port) as trickling,
    ):
        worker.send(p.CanDo(work))
        with suppress(ConnectionError):
            for byte in encode(p.SubmitJob(work, b"", bytes(1_000_000))):
                trickling.send(bytes([byte]))
                round_trip(client, worker, work)
            pytest.fail("it was waited for")
        client.sync()
        assert "closed a connection" in server.log


@pytest.mark.parametrize(
    "question", [encode(p.EchoReq(bytes(60_000))), b"status\n" * 1000], ids=["echo", "status"]
)
def test_one_that_asks_and_does_not_read_is_closed_before_its_answers_fill_the_memory(
    tmp_path: Path, work: bytes, question: bytes
) -> None:
    with (
        server_process(tmp_path / "log", max_pending_bytes=MIB, max_stall=0.3) as server,
        Wire(server.port) as client,
        Wire(server.port) as worker,
        Wire(server.port) as deaf,
    ):
        worker.send(p.CanDo(work))
        round_trip(client, worker, work)
        before = server.memory()
        deaf.socket.settimeout(0.005)
        with suppress(ConnectionError):
            for _ in range(100_000):
                with suppress(TimeoutError):
                    deaf.send(question)
                round_trip(client, worker, work)
            pytest.fail("it was read from for ever")
        assert server.peak_memory() - before < 32 * MIB
        assert "stalls others because it does not read" in server.log


def test_a_worker_that_grabs_and_does_not_read_loses_its_jobs_only_by_leaving(
    wire: Connect, work: bytes
) -> None:
    client, deaf, worker = wire(), wire(), wire()
    workload = bytes(MIB)
    client.send(*[p.SubmitJobBg(work, b"", workload)] * 50)
    handles = [client.handle() for _ in range(50)]
    deaf.send(p.CanDo(work), *[p.GrabJob()] * 50)
    client.wait_for_counts(work, 50, 50, 1)
    deaf.reset()
    client.wait_for_counts(work, 50, 0, 0)
    worker.send(p.CanDo(work))
    for handle in reversed(handles):
        worker.send(p.GrabJob())
        assert worker.receive() == p.JobAssign(handle, work, workload)
        worker.send(p.WorkComplete(handle, b""))
    assert worker.counts(work) == (0, 0, 1)


# ------------------------------------------------------------------------------------------ leaving


@endings
def test_a_client_may_leave_at_every_byte_of_its_conversation(
    wire: Connect, work: bytes, go_away: GoAway
) -> None:
    operator = wire()
    said = b"".join(
        [
            encode(p.OptionReq(b"exceptions")),
            encode(p.SubmitJob(work, b"u", b"first")),
            b"status\r\n",
            encode(p.SubmitJobLow(work, b"u", b"joined")),
            encode(p.SubmitReduceJob(work, b"", b"reducer", b"0", b"second")),
            encode(p.GetStatusUnique(b"u")),
        ]
    )
    for end in range(len(said) + 1):
        client = wire()
        client.send(said[:end])
        go_away(client)
    operator.wait_for_counts(work, 0, 0, 0)


@endings
def test_a_worker_may_leave_at_every_byte_of_its_conversation(
    wire: Connect, work: bytes, go_away: GoAway
) -> None:
    client, operator = wire(), wire()
    client.send(p.SubmitJob(work, b"u", b"x"))
    handle = client.handle()
    grabbing = encode(p.CanDo(work)) + encode(p.PreSleep()) + encode(p.GrabJobUniq())
    said = grabbing + encode(p.WorkStatus(handle, b"1", b"2")) + encode(p.WorkComplete(handle, b"r"))
    for end in range(len(said)):
        worker = wire()
        worker.send(said[:end])
        if end >= len(grabbing):
            operator.wait_for_counts(work, 1, 1, 1)
        go_away(worker)
        operator.wait_for_counts(work, 1, 0, 0)
    wire().send(said)
    while (heard := client.receive()) == p.WorkStatus(handle, b"1", b"2"):
        pass
    assert heard == p.WorkComplete(handle, b"r")


@endings
@pytest.mark.parametrize("size", [100, 70_000, LARGE])
def test_a_submission_that_breaks_off_leaves_nothing(
    wire: Connect, work: bytes, size: int, go_away: GoAway
) -> None:
    operator = wire()
    packet = encode(p.SubmitJobBg(work, b"u", bytes(size)))
    for part in (0.1, 0.5, 0.9):
        client = wire()
        client.send(packet[: int(len(packet) * part)])
        go_away(client)
    operator.sync()
    assert operator.counts(work) == (0, 0, 0)


@endings
@pytest.mark.parametrize("size", [100, 70_000, LARGE])
def test_a_result_that_breaks_off_is_not_heard_and_its_job_goes_to_another(
    wire: Connect, work: bytes, size: int, go_away: GoAway
) -> None:
    client, second = wire(), wire()
    client.send(p.SubmitJob(work, b"", b"x"))
    handle = client.handle()
    packet = encode(p.WorkComplete(handle, bytes(size)))
    for part in (0.1, 0.5, 0.9):
        worker = wire()
        worker.send(p.CanDo(work), p.GrabJob(), packet[: int(len(packet) * part)])
        second.wait_for_counts(work, 1, 1, 1)
        go_away(worker)
        second.wait_for_counts(work, 1, 0, 0)
    second.send(p.CanDo(work), p.GrabJob())
    assert second.receive() == p.JobAssign(handle, work, b"x")
    second.send(p.WorkComplete(handle, b"r"))
    assert client.receive() == p.WorkComplete(handle, b"r")


@pytest.mark.parametrize("read", [0, 1, 100_000])
def test_a_client_that_hangs_up_while_its_result_comes_hinders_nobody(
    wire: Connect, work: bytes, read: int
) -> None:
    client, other, worker = wire(), wire(), wire()
    result = bytes(LARGE)
    for peer in (client, other):
        peer.send(p.SubmitJob(work, b"u", b"x"))
        handle = peer.handle()
    worker.send(p.CanDo(work), p.GrabJob())
    worker.receive()
    worker.send(p.WorkComplete(handle, result))
    client.socket.recv(read)
    client.reset()
    assert other.receive() == p.WorkComplete(handle, result)
    worker.sync()
    assert worker.counts(work) == (0, 0, 1)


def test_a_worker_that_hangs_up_while_its_job_comes_gives_it_to_another(wire: Connect, work: bytes) -> None:
    client, first, second = wire(), wire(), wire()
    workload = bytes(LARGE)
    client.send(p.SubmitJob(work, b"", workload))
    handle = client.handle()
    second.send(p.CanDo(work))
    first.send(p.CanDo(work), p.GrabJob())
    first.socket.recv(1000)
    second.send(p.PreSleep())
    first.reset()
    assert second.receive() == p.Noop()
    second.send(p.GrabJob())
    assert second.receive() == p.JobAssign(handle, work, workload)


def test_a_client_that_leaves_with_many_jobs_leaves_nothing(tmp_path: Path, work: bytes) -> None:
    with server_process(tmp_path / "log") as server, Wire(server.port) as operator:
        peaks: list[int] = []
        for _ in range(4):
            client = Wire(server.port)
            for _ in range(100):
                client.send(*[p.SubmitJob(work, b"", bytes(4000))] * 100)
                for _ in range(100):
                    client.handle()
            assert operator.counts(work) == (10_000, 0, 0)
            client.leave()
            operator.wait_for_counts(work, 0, 0, 0)  # the server ends them in several turns
            assert operator.table(b"show jobs") == []
            assert operator.table(b"show unique jobs") == []
            peaks.append(server.peak_memory())
        assert peaks[-1] - peaks[0] < 4 * MIB, "what one client left was there when the next came"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory of a process is read there")
def test_the_memory_of_a_client_that_left_goes_back_to_the_system(tmp_path: Path, work: bytes) -> None:
    count = 20_000
    with server_process(tmp_path / "log") as server, Wire(server.port) as stays, Wire(server.port) as leaves:
        before = server.memory()
        for number in range(0, count, 100):
            names = [b"%b%d" % (work, number + more) for more in range(100)]
            leaves.send(*(p.SubmitJob(name, b"", bytes(4000)) for name in names))
            for _ in names:
                leaves.handle()
        stays.send(*[p.SubmitJob(work, b"", bytes(4000))] * 10)  # what comes last holds the heap's end
        for _ in range(10):
            stays.handle()
        grown = server.memory() - before
        assert grown > count * 4000
        leaves.leave()
        deadline = time.monotonic() + 60
        while server.memory() > before + grown // 2:
            assert time.monotonic() < deadline
            stays.send(p.EchoReq(b"x"))
            stays.receive()


@endings
def test_a_worker_that_takes_everything_and_dies_keeps_nothing(
    wire: Connect, work: bytes, go_away: GoAway
) -> None:
    client, greedy, heir = wire(), wire(), wire()
    client.send(*[p.SubmitJob(work, b"", b"x")] * 3000)
    handles = [client.handle() for _ in range(3000)]
    greedy.send(p.CanDo(work), *[p.GrabJob()] * 3000)
    client.wait_for_counts(work, 3000, 3000, 1)
    go_away(greedy)
    client.wait_for_counts(work, 3000, 0, 0)
    heir.send(p.CanDo(work))
    for handle in reversed(handles):  # the last grabbed first, as the protocol has it
        heir.send(p.GrabJob())
        assert heir.receive() == p.JobAssign(handle, work, b"x")
        heir.send(p.WorkComplete(handle, b"r"))
        assert client.receive() == p.WorkComplete(handle, b"r")
    assert client.counts(work) == (0, 0, 1)


# -------------------------------------------------------------------------------------- connections


def burst(port: int, count: int) -> int:
    """Connect so many at once, wait until each is answered; how many segments had to be sent again."""
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        peers: dict[int, socket.socket] = {}
        for _ in range(count):
            peer = stack.enter_context(socket.socket())
            peers[peer.fileno()] = peer
            peer.setblocking(False)
            assert peer.connect_ex(("127.0.0.1", port)) in (0, errno.EINPROGRESS)
            selector.register(peer, selectors.EVENT_WRITE)
        question, answer = encode(p.EchoReq(b"x")), 13
        answered = resent = 0
        while answered < count:
            events = selector.select(TIMEOUT)
            assert events, f"{answered} of {count} were answered"
            for key, ready in events:
                peer = peers[key.fd]
                if ready & selectors.EVENT_WRITE:
                    peer.send(question)
                    selector.modify(peer, selectors.EVENT_READ)
                else:
                    assert len(peer.recv(100)) == answer
                    selector.unregister(peer)
                    answered += 1
                    resent += _resent(peer)
        return resent


def _resent(peer: socket.socket) -> int:
    """How often TCP had to send something again on a connection: SYN, where a backlog was full."""
    total: int
    (total,) = struct.unpack_from("I", peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 100)
    return total


@pytest.mark.parametrize("count", [500, pytest.param(5000, marks=pytest.mark.nightly)])
def test_a_burst_of_connections_is_answered_without_a_retry(server: ServerProcess, count: int) -> None:
    assert burst(server.port, count) == 0


FILES: Final = 128
"""Descriptors of a server that is to run out of them."""


def crowd(stack: ExitStack, port: int, count: int) -> list[Wire]:
    """Connect so many one after another; those that are answered stay, until the stack ends."""
    staying: list[Wire] = []
    for _ in range(count):
        peer = stack.enter_context(Wire(port))
        with suppress(ConnectionError):
            peer.send(p.EchoReq(b"x"))
            if peer.receive() is not None:
                staying.append(peer)
                continue
        peer.socket.close()
    return staying


@pytest.mark.parametrize("limit", [None, 10_000])
def test_at_the_limit_of_descriptors_new_connections_are_refused_and_others_live_on(
    tmp_path: Path, work: bytes, limit: int | None
) -> None:
    with (
        server_process(tmp_path / "log", files=FILES, max_connections=limit) as server,
        ExitStack() as stack,
        Wire(server.port) as client,
        Wire(server.port) as worker,
    ):
        worker.send(p.CanDo(work))
        round_trip(client, worker, work)
        staying = crowd(stack, server.port, 2 * FILES)
        assert len(staying) < FILES
        for peer in staying:
            peer.sync()
        round_trip(client, worker, work)
        assert "refused a connection" in server.log
        for peer in staying[:10]:
            peer.leave()
        assert len(crowd(stack, server.port, 20)) == 10


# ------------------------------------------------------------------------------------- odd requests


def test_a_body_over_the_limit_in_a_packet_of_no_type_is_refused_and_its_sender_stays(tmp_path: Path) -> None:
    with server_process(tmp_path / "log", max_body=1000) as server, Wire(server.port) as wire:
        wire.send(HEADER.pack(REQ, UNUSED_TYPE, 2000), bytes(2000), p.EchoReq(b"after"))
        assert isinstance(wire.receive(), p.Error)
        assert wire.receive() == p.EchoRes(b"after")


def test_jobs_are_taken_back_however_short_the_time_of_their_worker(tmp_path: Path, work: bytes) -> None:
    """Some of them are overdue again before the server has dealt with the others."""
    with (
        server_process(tmp_path / "log", timings={"shortest_run": 0.0}) as server,
        Wire(server.port) as client,
        Wire(server.port) as hasty,
    ):
        client.send(*[p.SubmitJobBg(work, b"", b"x")] * 500)
        for _ in range(500):
            client.handle()
        hasty.send(p.CanDoTimeout(work, b"1"))
        for _ in range(500):
            hasty.send(*[p.GrabJob()] * 10)
        for _ in range(5000):
            assert isinstance(hasty.receive(), p.JobAssign | p.NoJob)
        client.wait_for_counts(work, 500, 0, 1)
