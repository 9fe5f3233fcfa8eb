"""Answers that no server should give: a client ends its calls with one of gearflow's own errors."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Final

import anyio
import anyio.to_thread
import pytest
from anyio.abc import SocketStream
from hypothesis import given, settings
from hypothesis import strategies as st

from gearflow.client import Admin, Client, JobRequest, SubmitOptions, SyncClient, Timeouts, connect, operate
from gearflow.client.schedules import show_schedules
from gearflow.errors import ConnectionLost, GearflowError, RemoteProtocolError
from gearflow.protocol.codec import decode, encode_response
from gearflow.protocol.constants import HEADER, MAX_PAYLOAD, REQ, RES, SUBMIT, PacketType
from gearflow.protocol.framing import TEXT, FrameBuffer
from gearflow.protocol.packets import (
    EchoReq,
    EchoRes,
    JobCreated,
    OptionReq,
    OptionRes,
    StatusRes,
    SubmitJob,
    SubmitJobBg,
    WorkComplete,
)
from gearflow.protocol.schedules import SchedulesRequest
from gearflow.tasks import Ref
from tests import strategies
from tests.client.conftest import Call, Scripted, listening
from tests.client.test_silent_server import ACTS, OLDER

TIMEOUTS: Final = Timeouts(connect=2.0, answer=0.5, heartbeat=10.0)
CALLS: Final = sorted(
    ACTS.keys() - {"echo", "features", "status", "status of a unique", "submit", "background"}
)

BODIES: Final = {
    "nothing": b"",
    "no JSON": b"nonsense",
    "no UTF-8": b'{"handle": "\xff\xfe"}',
    "a lone surrogate": b'{"handle": "\\ud800"}',
    "lists in lists": b"[" * 100_000,
    "objects in objects": b'{"handle":' * 100_000,
    "a list": b"[]",
    "null": b"null",
    "a number": b"1e400",
    "not a number": b"NaN",
    "a number of many digits": b'{"jobs": %b}' % (b"9" * 5000),
    "other types": b'{"handle": 5, "jobs": "many", "workers": {}, "letters": 1, "state": []}',
    "NULs": bytes(1000),
    "UTF-16": '{"handle": "x"}'.encode("utf-16"),
}


class HostileServer:
    """Shakes hands, and then answers everything with these bytes. Commands as well.

    Background jobs with options are calls to it, as to an older server, because only calls have answers with
    a content.
    """

    def __init__(self, said: bytes) -> None:
        self._said = said

    async def talk(self, stream: SocketStream) -> None:
        frames = FrameBuffer(REQ)
        async with stream:
            try:
                while True:
                    for kind, body in frames.feed(await stream.receive()):
                        packet = None if kind == TEXT else decode(kind, body)
                        if isinstance(packet, OptionReq):
                            await stream.send(encode_response(OptionRes(packet.option)))
                        elif packet == EchoReq(b"gearflow"):  # the greeting of a blocking connection
                            await stream.send(encode_response(EchoRes(b"gearflow")))
                        elif isinstance(packet, SubmitJobBg) and packet.function == SUBMIT:
                            await stream.send(encode_response(OLDER))
                        else:
                            await stream.send(self._said)
            except (anyio.EndOfStream, anyio.BrokenResourceError, GearflowError):
                return


def server_that_says(said: bytes) -> AbstractAsyncContextManager[str]:
    """The address of such a server."""
    return listening(HostileServer(said).talk)


def answer(body: bytes) -> bytes:
    """The bytes of a call that ends with this."""
    return encode_response(JobCreated(b"C:1")) + encode_response(WorkComplete(b"C:1", body))


# ------------------------------------------------------------------------------- answers to reserved calls


@pytest.mark.parametrize("body", BODIES)
async def test_an_answer_that_cannot_be_read_names_its_server(body: str) -> None:
    async with server_that_says(answer(BODIES[body])) as address, connect(address) as client:
        ref = Ref[bytes]("H:1", "f", bytes)
        for ask in (ref.ainfo, ref.astatus, ref.acancel):
            with anyio.fail_after(10), pytest.raises(RemoteProtocolError, match=address):
                await ask()
        with anyio.fail_after(10), pytest.raises(RemoteProtocolError, match=address):
            await client.submit_background("f", b"", options=SubmitOptions(keep=60))


async def _schedules(client: Client) -> object:
    return await show_schedules(client, SchedulesRequest(), client.servers[0])


@pytest.mark.parametrize(
    ("ask", "said", "key"),
    [
        (operate.metrics, b'{"time":1,"started":1,"kept":-1}', "kept: Input should be greater than"),
        (
            operate.metrics,
            b'{"time":1,"started":1,"sent":%b}' % (b"9" * 400),
            "sent: Input should be less than",
        ),
        (operate.metrics, b'{"time":1e12,"started":1}', "time: Input should be less than"),
        (operate.limits, b'{"limits":[{"name":"l","next":1e300}]}', "limits.0.next: "),
        (operate.group_info, b'{"group":"g","servers":[],"jobs":-1}', "jobs: Input should be"),
        (operate.jobs, b'{"jobs":[],"searched":%b}' % (b"9" * 400), "searched: Input should be"),
        (
            operate.workers,
            b'{"workers":[{"client_id":"w","address":"a","functions":[],"since":-1e300}]}',
            "workers.0.since: Input should be",
        ),
        (
            _schedules,
            b'{"schedules":[{"schedule":{"name":"s","function":"f","when":{"every":60}},"next":[1e300]}]}',
            "schedules.0.next.0: Input should be",
        ),
    ],
)
async def test_a_number_that_cannot_be_is_named(
    ask: Callable[[Client], Awaitable[object]], said: bytes, key: str
) -> None:
    async with server_that_says(answer(said)) as address, Client([address], timeouts=TIMEOUTS) as client:
        with anyio.fail_after(10), pytest.raises(RemoteProtocolError, match=f"which is no [A-Za-z]+: {key}"):
            await ask(client)


@pytest.mark.parametrize("act", CALLS)
async def test_no_call_ends_with_the_error_of_another_library(act: str) -> None:
    for body in BODIES.values():
        async with (
            server_that_says(answer(body)) as address,
            Client([address], timeouts=TIMEOUTS) as client,
        ):
            with anyio.fail_after(10):
                try:
                    outcome = await ACTS[act](client)
                except (GearflowError, TimeoutError):
                    continue
        if act == "many":
            assert all(isinstance(each, RemoteProtocolError) for each in outcome)
        else:
            assert act == "result in time"
            assert outcome == body


async def test_one_unreadable_answer_among_many_submissions_is_that_ones_error(scripted: Scripted) -> None:
    orders = [JobRequest("f", b"", options=SubmitOptions(keep=60))] * 2
    async with scripted(gearflow=True) as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.submit_many, orders)
        tasks.start_soon(call.run)
        for _ in orders:
            await peer.expect_a(SubmitJobBg)
            await peer.send(OLDER)
        for handle, result in ((b"C:1", b'{"handle": "H:7"}'), (b"C:2", b"{}")):
            await peer.expect_a(SubmitJob)
            await peer.send(JobCreated(handle), WorkComplete(handle, result))
        first, second = await call.outcome()
        assert first.handle == "H:7"
        assert isinstance(second, RemoteProtocolError)


async def test_a_number_of_many_digits_in_a_status_counts_as_none(scripted: Scripted) -> None:
    async with scripted() as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.status, "H:1")
        tasks.start_soon(call.run)
        await peer.receive()
        await peer.send(StatusRes(b"H:1", b"1", b"1", b"9" * 5000, b"9" * 21))
        status = await call.outcome()
        assert (status.numerator, status.denominator) == (0, 0)


@pytest.mark.parametrize("line", ["OK ²\n".encode(), b"OK %b\n" % (b"9" * 5000), b"OK \xff\n"])
async def test_what_is_no_process_id_is_the_servers_fault(line: bytes) -> None:
    async with server_that_says(line) as address:
        with anyio.fail_after(10), pytest.raises(RemoteProtocolError, match="is no process id"):
            await Admin(address).pid()


# ------------------------------------------------------------------------------------------ any packet


@settings(max_examples=60)
@given(kind=strategies.packet_types, body=strategies.data, more=strategies.garbage)
@pytest.mark.parametrize("act", ["echo", "status", "submit", "background", "info", "many"])
def test_whatever_a_server_says_is_an_answer_or_an_error_of_ours(
    act: str, kind: PacketType, body: bytes, more: bytes
) -> None:
    said = HEADER.pack(RES, kind, len(body)) + body + more

    async def ask() -> None:
        async with server_that_says(said) as address, Client([address], timeouts=TIMEOUTS) as client:
            with anyio.move_on_after(0.02), suppress(GearflowError, TimeoutError):
                job = await ACTS[act](client)
                if act == "submit":
                    await job.result()

    anyio.run(ask)


@settings(max_examples=30)
@given(kind=strategies.packet_types, body=strategies.data, more=strategies.garbage)
def test_a_blocking_submission_ends_with_an_error_of_ours(kind: PacketType, body: bytes, more: bytes) -> None:
    said = HEADER.pack(RES, kind, len(body)) + body + more

    def submit(address: str) -> None:
        with SyncClient([address], timeouts=Timeouts(answer=0.05)) as client, suppress(GearflowError):
            client.submit_background("f", b"")

    async def ask() -> None:
        async with server_that_says(said) as address:
            await anyio.to_thread.run_sync(submit, address)

    anyio.run(ask)


@given(st.binary(max_size=200))
@settings(max_examples=30)
def test_an_answer_to_a_command_is_a_table_or_an_error_of_ours(line: bytes) -> None:
    async def ask() -> None:
        async with server_that_says(line + b"\n.\n") as address:
            admin = Admin(address, timeout=0.05)
            for command in (admin.status, admin.workers, admin.jobs, admin.version, admin.pid):
                with suppress(GearflowError, TimeoutError):
                    await command()

    anyio.run(ask)


# ------------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (PacketType.WORK_COMPLETE, 0xFFFF_FFFF),
        (PacketType.WORK_DATA, MAX_PAYLOAD + (1 << 20)),
        (PacketType.WORK_EXCEPTION, 0xFFFF_FFFF),
        (PacketType.JOB_CREATED, 1 << 20),
        (PacketType.ERROR, 1 << 20),
    ],
)
async def test_a_body_over_the_limit_is_refused_at_its_header(
    scripted: Scripted, kind: PacketType, size: int
) -> None:
    async with scripted() as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.submit, "f", b"")
        tasks.start_soon(call.run)
        await peer.expect_a(SubmitJob)
        await peer.send(JobCreated(b"H:1"))
        job = await call.outcome()
        await peer.send(HEADER.pack(RES, kind, size))
        with anyio.fail_after(10), pytest.raises(ConnectionLost, match=f"a body of {size} bytes is over"):
            await job.result()


async def test_nothing_large_comes_before_it_was_asked_for(scripted: Scripted) -> None:
    async with scripted() as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.echo, b"x")
        tasks.start_soon(call.run)
        await peer.expect(EchoReq(b"x"))
        await peer.send(HEADER.pack(RES, PacketType.WORK_COMPLETE, 1 << 20))
        with pytest.raises(ConnectionLost, match="a body of 1048576 bytes is over the limit of 65536"):
            await call.outcome()


async def test_an_echo_may_be_as_large_as_what_was_sent(bundled: str) -> None:
    data = bytes(1 << 20)
    async with Client([bundled]) as client:
        assert await client.echo(data) == data


async def test_a_result_over_the_limit_is_not_asked_for_again(scripted: Scripted) -> None:
    """The server would give the same answer each time."""
    async with scripted(gearflow=True) as (client, peer), anyio.create_task_group() as tasks:
        call = Call(client.result, "H:1")
        tasks.start_soon(call.run)
        await peer.expect_a(SubmitJob)
        await peer.send(JobCreated(b"C:1"), HEADER.pack(RES, PacketType.WORK_COMPLETE, 0xFFFF_FFFF))
        with pytest.raises(ConnectionLost, match="max_result sets it"):
            await call.outcome()


async def test_the_largest_result_is_a_setting(bundled: str) -> None:
    with pytest.raises(ValueError, match="max_result=0"):
        Client([bundled], max_result=0)
    async with connect(bundled, max_result=1 << 20) as client:
        assert await client.echo(b"x") == b"x"
