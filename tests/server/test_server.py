import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

import anyio
import pytest
from pydantic import ValidationError

from gearflow.broker.dispatch import WAKE_TIMEOUT
from gearflow.protocol import packets as p
from gearflow.protocol.codec import encode
from gearflow.protocol.constants import HEADER, REQ, PacketType
from gearflow.protocol.jobs import JOBS, JobsRequest
from gearflow.runtime.eventloop import new_event_loop
from gearflow.server import JobServer, ServerSettings, engine
from gearflow.server.engine import Engine, Timings
from tests.server.wire import TIMEOUT, Wire, running


@contextmanager
def wires(count: int) -> Generator[list[Wire]]:
    with JobServer(port=0) as server:
        opened = [Wire(server.port) for _ in range(count)]
        try:
            yield opened
        finally:
            for wire in opened:
                wire.socket.close()


async def test_a_server_runs_for_the_time_of_a_block() -> None:
    async with JobServer(port=0) as server:
        assert server.address == f"127.0.0.1:{server.port}"
        async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
            await stream.send(encode(p.EchoReq(b"hello")))
            assert (await stream.receive())[12:] == b"hello"
            port = server.port
    with pytest.raises(OSError):
        await anyio.connect_tcp("127.0.0.1", port)


async def test_a_port_that_is_taken_is_an_oserror_that_names_it() -> None:
    async with JobServer(port=0) as server:
        with pytest.raises(OSError, match=str(server.port)):
            async with JobServer(port=server.port):
                pass
        with pytest.raises(OSError, match=str(server.port)), JobServer(port=server.port):
            pass


def test_settings_are_validated() -> None:
    with pytest.raises(ValidationError, match="port"):
        JobServer(port=70_000)
    assert JobServer(ServerSettings(port=1), port=2).settings == ServerSettings(port=2)


def test_leaving_the_block_closes_the_connections() -> None:
    with JobServer(port=0) as server:
        wire = Wire(server.port)
        wire.send(p.EchoReq(b"x"))
        assert wire.receive() == p.EchoRes(b"x")
    assert wire.receive() is None
    wire.socket.close()


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, new_event_loop])
@pytest.mark.parametrize("turns", range(6))
def test_a_connection_that_comes_as_the_server_stops_is_closed(
    make_loop: Callable[[], asyncio.AbstractEventLoop], turns: int
) -> None:
    async def main() -> None:
        async with JobServer(port=0) as server:
            wire = Wire(server.port)
            for _ in range(turns):  # of the event loop, which goes on after the block
                await asyncio.sleep(0)
        with wire, suppress(ConnectionError):  # it was not accepted any more
            assert await asyncio.to_thread(wire.receive) is None

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(main())


def test_garbage_closes_its_connection_logs_a_line_and_disturbs_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with wires(2) as (good, bad), caplog.at_level(logging.WARNING, "gearflow.server"):
        bad.send(p.EchoReq(b"before"), b"\0\1\2\3garbage garbage")
        assert bad.receive() == p.EchoRes(b"before")
        assert bad.receive() is None
        good.send(p.EchoReq(b"x"))
        assert good.receive() == p.EchoRes(b"x")
    (record,) = caplog.records
    assert record.message == "closed a connection that does not speak Gearman"
    assert "magic" in record.__dict__["reason"]


def test_a_body_over_the_limit_is_refused_and_its_sender_stays(caplog: pytest.LogCaptureFixture) -> None:
    with JobServer(port=0, max_body=1000) as server, caplog.at_level(logging.WARNING, "gearflow.server"):
        wire = Wire(server.port)
        wire.send(p.SubmitJob(b"work", b"", b"x" * 1_000_000), p.EchoReq(b"after"))
        refused = wire.receive()
        assert isinstance(refused, p.Error)
        assert refused.code == b"ARGUMENT_TOO_LARGE"
        assert wire.receive() == p.EchoRes(b"after")
        wire.socket.close()
    assert caplog.records[0].message == "refused a body of 1000006 bytes, which is over the limit"


def test_a_result_over_the_limit_fails_its_job_and_leaves_nothing_running() -> None:
    with JobServer(port=0, max_body=1000) as server:
        client, worker = Wire(server.port), Wire(server.port)
        client.send(p.SubmitJob(b"work", b"", b"x"))
        handle = client.handle()
        worker.send(p.CanDo(b"work"), p.GrabJob())
        worker.receive()
        worker.send(p.WorkComplete(handle, b"x" * 500_000))
        assert client.receive() == p.WorkFail(handle)
        refused = worker.receive()
        assert isinstance(refused, p.Error)
        worker.send(b"status\n")
        assert worker.receive() == b"work\t0\t0\t1"
        client.socket.close()
        worker.socket.close()


def test_one_connection_too_many_is_closed_and_the_others_live_on(caplog: pytest.LogCaptureFixture) -> None:
    with JobServer(port=0, max_connections=2) as server, caplog.at_level(logging.WARNING, "gearflow.server"):
        first, second = Wire(server.port), Wire(server.port)
        first.send(p.EchoReq(b"x"))
        assert first.receive() == p.EchoRes(b"x")
        third = Wire(server.port)
        assert third.receive() is None
        second.send(p.EchoReq(b"x"))
        assert second.receive() == p.EchoRes(b"x")
        for wire in (first, second, third):
            wire.socket.close()
    assert "the connection limit is reached" in caplog.text


def test_a_packet_that_does_not_come_whole_in_time_closes_its_connection() -> None:
    with JobServer(port=0, max_packet_time=0.1) as server:
        stuck, idle = Wire(server.port), Wire(server.port)
        stuck.send(encode(p.EchoReq(b"whole"))[:-2])
        assert stuck.receive() is None
        idle.send(p.EchoReq(b"x"))
        assert idle.receive() == p.EchoRes(b"x")
        for wire in (stuck, idle):
            wire.socket.close()


def test_as_many_bytes_are_queued_as_may_be() -> None:
    with JobServer(port=0, max_queued_bytes=1000) as server:
        wire = Wire(server.port)
        wire.send(p.SubmitJobBg(b"work", b"", b"x" * 900), p.SubmitJobBg(b"work", b"", b"x" * 101))
        handle = wire.handle()
        refused = wire.receive()
        assert isinstance(refused, p.Error)
        assert refused.code == b"QUEUE_ERROR"
        wire.send(
            p.CanDo(b"work"),
            p.GrabJob(),
            p.WorkComplete(handle, b""),
            p.SubmitJobBg(b"work", b"", b"x" * 1000),
        )
        assert isinstance(wire.receive(), p.JobAssign)
        wire.handle()
        wire.socket.close()


def stream(worker: Wire, handle: bytes, parts: int) -> None:
    """A result in parts, a MiB each, as fast as the server takes them."""
    for _ in range(parts):
        worker.send(p.WorkData(handle, b"x" * (1 << 20)))


def test_a_slow_reader_stalls_its_sender_and_gets_everything() -> None:
    """A result of 64 MiB passes through a server that holds 4 MiB of it at most."""
    with JobServer(port=0, max_pending_bytes=4 << 20) as server:
        client, worker, other = Wire(server.port), Wire(server.port), Wire(server.port)
        client.send(p.SubmitJob(b"work", b"", b"x"))
        handle = client.handle()
        worker.send(p.CanDo(b"work"), p.GrabJob())
        worker.receive()
        feeding = threading.Thread(target=stream, args=(worker, handle, 64))
        feeding.start()
        other.send(p.EchoReq(b"x"))
        assert other.receive() == p.EchoRes(b"x")
        for _ in range(64):
            part = client.receive()
            assert isinstance(part, p.WorkData)
            assert len(part.data) == 1 << 20
        feeding.join()
        worker.send(p.WorkComplete(handle, b"r"))
        assert client.receive() == p.WorkComplete(handle, b"r")
        for wire in (client, worker, other):
            wire.socket.close()


def test_a_reader_that_lets_others_wait_too_long_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    with (
        JobServer(port=0, max_pending_bytes=1 << 20, max_stall=0.2) as server,
        caplog.at_level(logging.WARNING, "gearflow.server"),
    ):
        client, worker = Wire(server.port), Wire(server.port)
        client.send(p.SubmitJob(b"work", b"", b"x"))
        handle = client.handle()
        worker.send(p.CanDo(b"work"), p.GrabJob())
        worker.receive()
        stream(worker, handle, 64)  # returns only because the client is thrown out
        worker.send(p.WorkComplete(handle, b"r"), p.EchoReq(b"x"))
        assert worker.receive() == p.EchoRes(b"x")
        client.socket.close()
        worker.socket.close()
    assert "stalls others because it does not read" in caplog.text


def test_a_peer_that_closes_its_sending_side_still_gets_its_answer() -> None:
    with wires(1) as (wire,):
        wire.send(b"version\n")
        wire.socket.shutdown(socket.SHUT_WR)
        answer = wire.receive()
        assert isinstance(answer, bytes)
        assert answer.startswith(b"OK gearflow-")
        assert wire.receive() is None


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 1 << 20, 20 << 20])
def test_bodies_of_any_size_go_there_and_back(size: int) -> None:
    data = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    with wires(2) as (client, worker):
        worker.send(p.CanDo(b"work"), p.PreSleep())
        client.send(p.SubmitJob(b"work", b"u", data))
        handle = client.handle()
        assert worker.receive() == p.Noop()
        worker.send(p.GrabJobUniq())
        assert worker.receive() == p.JobAssignUniq(handle, b"work", b"u", data)
        worker.send(p.WorkData(handle, data), p.WorkComplete(handle, data))
        assert client.receive() == p.WorkData(handle, data)
        assert client.receive() == p.WorkComplete(handle, data)


def test_a_large_body_that_is_only_announced_costs_nothing_and_hinders_nobody() -> None:
    with wires(12) as (client, *claimants):
        for claimant in claimants:
            claimant.send(HEADER.pack(REQ, PacketType.SUBMIT_JOB, 1 << 30) + b"work\0u\0x")
        client.send(p.EchoReq(b"x"))
        assert client.receive() == p.EchoRes(b"x")


def test_a_delayed_job_fires_by_itself_and_not_before_its_time() -> None:
    with wires(2) as (client, worker):
        worker.send(p.CanDo(b"work"), p.PreSleep())
        due = int(time.time()) + 1
        client.send(p.SubmitJobEpoch(b"work", b"", b"%d" % due, b"x"))
        handle = client.handle()
        assert worker.receive() == p.Noop()
        assert due <= time.time()
        worker.send(p.GrabJob())
        assert worker.receive() == p.JobAssign(handle, b"work", b"x")


def test_a_delayed_job_follows_the_clock_that_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, ahead = time.time, 0.0
    monkeypatch.setattr(time, "time", lambda: clock() + ahead)
    with wires(2) as (client, worker):
        worker.send(p.CanDo(b"work"), p.PreSleep())
        client.send(p.SubmitJobEpoch(b"work", b"", b"%d" % (time.time() + 3600), b"x"))
        client.handle()
        ahead = 7200.0
        assert worker.receive() == p.Noop()


def test_a_clock_that_is_set_back_starts_no_job_early(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, ahead = time.time, 0.0
    monkeypatch.setattr(time, "time", lambda: clock() + ahead)
    with running(ServerSettings(port=0), Timings(clock_check=0.01)) as server, Wire(server.port) as wire:
        wire.sync()
        before = server.broker.clock.offset
        ahead = -7200.0
        deadline = time.monotonic() + TIMEOUT
        while server.broker.clock.offset > before - 7000:
            assert time.monotonic() < deadline, "no job waits, and the server does not look at its clock"
        wire.send(p.SubmitJobEpoch(b"work", b"", b"%d" % (time.time() + 600), b"x"))
        wire.handle()
        wire.send(p.CanDo(b"work"), p.GrabJob())
        assert wire.receive() == p.NoJob()


def test_the_job_of_a_worker_that_hangs_up_goes_to_another() -> None:
    with wires(3) as (client, first, second):
        client.send(p.SubmitJob(b"work", b"", b"x"))
        handle = client.handle()
        first.send(p.CanDo(b"work"), p.GrabJob())
        assert first.receive() == p.JobAssign(handle, b"work", b"x")
        second.send(p.CanDo(b"work"), p.PreSleep())
        first.socket.close()
        assert second.receive() == p.Noop()
        second.send(p.GrabJob())
        assert second.receive() == p.JobAssign(handle, b"work", b"x")


def test_a_sleeper_that_is_woken_and_hangs_is_replaced() -> None:
    with wires(3) as (client, stuck, second):
        for worker in (stuck, second):
            worker.send(p.CanDo(b"work"), p.PreSleep(), p.EchoReq(b"asleep"))
            assert worker.receive() == p.EchoRes(b"asleep")
        client.send(p.SubmitJobBg(b"work", b"", b"x"))
        assert stuck.receive() == p.Noop()
        assert second.receive() == p.Noop()  # nobody but time made it


def test_a_peer_that_does_not_read_hinders_nobody() -> None:
    with wires(3) as (deaf, client, worker):
        deaf.send(*[p.EchoReq(b"x" * 60_000)] * 200)  # more than the sockets between us hold
        worker.send(p.CanDo(b"work"), p.PreSleep())
        client.send(p.SubmitJob(b"work", b"", b"x"))
        handle = client.handle()
        assert worker.receive() == p.Noop()
        worker.send(p.GrabJob())
        worker.receive()
        worker.send(p.WorkComplete(handle, b"r"))
        assert client.receive() == p.WorkComplete(handle, b"r")


def test_a_worker_that_expects_a_job_hears_in_time_that_there_is_none() -> None:
    with wires(2) as (worker, client):
        worker.send(p.CanDo(b"work"), p.GrabJob())
        assert worker.receive() == p.NoJob()
        worker.send(p.PreSleep(), p.EchoReq(b"asleep"))
        assert worker.receive() == p.EchoRes(b"asleep")
        client.send(p.SubmitJob(b"work", b"", b"x"))
        assert worker.receive() == p.Noop()
        worker.send(p.GrabJob())
        job = worker.receive()
        assert isinstance(job, p.JobAssign)
        worker.send(p.WorkComplete(job.handle, b""))
        assert client.handle() == job.handle
        assert client.receive() == p.WorkComplete(job.handle, b"")
        until = time.monotonic() + 2 * WAKE_TIMEOUT
        while time.monotonic() < until:  # the server looks once more whether the worker has come
            client.send(p.EchoReq(b""))
            client.receive()
        worker.send(p.GrabJob())  # and nothing else happens
        assert worker.receive() == p.NoJob()


def test_answers_are_written_before_the_next_step_of_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    unwritten: list[int] = []
    proceed = Engine._proceed  # pyright: ignore[reportPrivateUsage]

    def watched(server: Engine) -> None:
        unwritten.append(len(server.broker.outgoing.dirty))
        proceed(server)

    monkeypatch.setattr(Engine, "_proceed", watched)
    monkeypatch.setattr(engine, "_TURN", -1.0)  # each step is late
    with wires(2) as (client, other):
        client.send(*[p.SubmitJobBg(b"work", b"", b"x")] * 1000)
        for _ in range(1000):
            assert isinstance(client.receive(), p.JobCreated)
        client.send(p.SubmitJob(JOBS, b"", JobsRequest(text="needle").to_wire()))
        assert isinstance(client.receive(), p.JobCreated)
        other.send(p.EchoReq(b"x"))
        assert other.receive() == p.EchoRes(b"x")
        assert isinstance(client.receive(), p.WorkComplete)
    assert len(unwritten) > 5
    assert not any(unwritten)
