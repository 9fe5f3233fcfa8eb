"""Parts over sockets: a worker that knows no credit, and slow readers and watchers of what it sends."""

import json
import threading
from collections.abc import Iterator

import pytest

from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as api
from gearflow.protocol.packets import Packet
from gearflow.protocol.server_events import read_watch_event
from gearflow.server import ServerSettings
from gearflow.server.engine import Engine, Timings
from tests.server.wire import Wire, running

MIB = 1 << 20


@pytest.fixture
def engine() -> Iterator[Engine]:
    with running(ServerSettings(port=0), Timings()) as engine:
        yield engine


def call(peer: Wire, function: bytes, **request: object) -> bytes:
    """Call a reserved function. The handle of the call."""
    peer.send(p.SubmitJob(function, b"", json.dumps(request).encode()))
    return peer.handle()


def job(client: Wire, worker: Wire, **options: object) -> bytes:
    """A job that the worker has. Its handle."""
    worker.send(p.CanDo(b"work"))
    request = json.dumps({"function": "work", **options}).encode()
    client.send(p.SubmitJob(api.SUBMIT, b"", request + b"\nx"))
    handle = client.handle()
    worker.send(p.GrabJob())
    assert isinstance(worker.receive(), p.JobAssign)
    return handle


def parts(peer: Wire, call: bytes) -> Iterator[Packet | bytes | None]:
    """What comes on a call."""
    while True:
        packet = peer.receive()
        assert packet is not None
        if getattr(packet, "handle", b"") == call:
            yield packet


def until(peer: Wire, kind: type[Packet]) -> Packet:
    """The next packet of a kind."""
    while not isinstance(packet := peer.receive(), kind):
        assert packet is not None
    return packet


@pytest.mark.parametrize("background", [False, True])
def test_a_worker_that_knows_no_credit_is_held_by_a_reader_that_takes_nothing(
    engine: Engine, background: bool
) -> None:
    with Wire(engine.port) as client, Wire(engine.port) as reader, Wire(engine.port) as worker:
        if background:
            worker.send(p.CanDo(b"work"))
            client.send(p.SubmitJobBg(b"work", b"u", b"x"))
            handle = client.handle()
            worker.send(p.GrabJob())
            assert isinstance(worker.receive(), p.JobAssign)
        else:
            handle = job(client, worker, parts="keep")
        stream = call(reader, api.STREAM, handle=handle.decode())
        is_sent = threading.Event()

        def work() -> None:
            for number in range(60):
                worker.send(p.WorkData(handle, b"%d" % number + bytes(MIB)))
            worker.send(p.WorkComplete(handle, b""))
            is_sent.set()

        thread = threading.Thread(target=work)
        thread.start()
        come: list[bytes] = []
        position = 0
        for packet in parts(reader, stream):
            if isinstance(packet, p.WorkComplete):
                break
            if isinstance(packet, p.WorkStatus):
                position = int(packet.numerator)
                continue
            assert isinstance(packet, p.WorkData)
            if not come:
                (running_job,) = engine.broker.jobs.by_number.values()
                log = engine.broker.streams.of(running_job)
                with Wire(engine.port) as other:  # the server serves others meanwhile
                    while log.blocked is None:
                        other.sync()
                assert log.position < 30
                assert not is_sent.is_set()
            come.append(packet.data.rstrip(b"\0"))
            position += 1
            reader.send(p.WorkStatus(stream, b"%d" % position, b"0"))
        thread.join()
        assert come == [b"%d" % number for number in range(60)]
        assert is_sent.is_set()


def test_a_watcher_that_does_not_read_misses_parts_and_the_job_goes_on(engine: Engine) -> None:
    with Wire(engine.port) as client, Wire(engine.port) as watcher, Wire(engine.port) as worker:
        handle = job(client, worker, parts="keep")
        watch = call(watcher, api.WATCH, handle=handle.decode(), parts=True)
        for number in range(60):
            worker.send(p.WorkData(handle, b"%d" % number + bytes(MIB)))
        worker.send(p.WorkComplete(handle, b"r"))
        assert client.receive() == p.WorkComplete(handle, b"r")
        events: list[str] = []
        last = 0
        for packet in parts(watcher, watch):
            if isinstance(packet, p.WorkComplete):
                break
            assert isinstance(packet, p.WorkData)
            fields, _ = read_watch_event(packet.data)
            events.append(fields["event"])
            last = fields.get("position", last)
        assert "gap" in events
        assert events.count("part") < 60
        assert last == 60


def test_a_watcher_that_does_not_read_holds_nothing_however_little_may_wait_for_it() -> None:
    with (
        running(ServerSettings(port=0, max_pending_bytes=65_536), Timings()) as engine,
        Wire(engine.port) as client,
        Wire(engine.port) as watcher,
        Wire(engine.port) as worker,
    ):
        handle = job(client, worker, parts="keep")
        call(watcher, api.WATCH, handle=handle.decode(), parts=True)
        for _ in range(2000):
            worker.send(p.WorkData(handle, bytes(10_000)))
        worker.send(p.WorkComplete(handle, b"r"))
        assert client.receive() == p.WorkComplete(handle, b"r")
        assert watcher.receive() is not None  # it is not disconnected for holding others up


def test_a_slow_stream_does_not_hold_another_job_of_the_same_connections(engine: Engine) -> None:
    with Wire(engine.port) as client, Wire(engine.port) as worker:
        handle = job(client, worker, parts="wait")
        stream = call(client, api.STREAM, handle=handle.decode())
        worker.send(*(p.WorkData(handle, bytes(10_000)) for _ in range(64)))
        for _ in range(100):
            client.send(p.SubmitJob(b"work", b"", b"x"))
            until(client, p.JobCreated)
            worker.send(p.GrabJob())
            assigned = worker.receive()
            assert isinstance(assigned, p.JobAssign)
            worker.send(p.WorkComplete(assigned.handle, b"r"))
            assert until(client, p.WorkComplete) == p.WorkComplete(assigned.handle, b"r")
        client.send(p.WorkStatus(stream, b"64", b"0"))
        worker.send(p.WorkComplete(handle, b""))
        assert p.WorkComplete(stream, b"") in (client.receive(), client.receive())
