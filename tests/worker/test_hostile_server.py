"""What no server should send: a worker ends the connection at most, and serves on."""

import json
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearflow.client.transport import Unreachable
from gearflow.errors import PayloadInvalid, RemoteProtocolError
from gearflow.protocol.constants import HEADER, RES, PacketType
from gearflow.protocol.envelope import MAGIC, unwrap
from gearflow.protocol.packets import (
    Error,
    GrabJobUniq,
    JobAssignUniq,
    JobCreated,
    NoJob,
    OptionRes,
    Packet,
    WorkComplete,
    WorkData,
    WorkException,
)
from gearflow.tasks import Retry, task
from gearflow.worker import Worker
from gearflow.worker.session import WorkerSession
from gearflow.worker.settings import TimeLimits
from gearflow.worker.slots import ServerSlots, SlotAllocator
from tests import strategies
from tests.worker.scripted import WorkerServer, scripted_server
from tests.worker.test_server_link import echo_task

DEEP = b"[" * 100_000


async def until_back(server: WorkerServer) -> None:
    """The worker has given its connection up, and serves on a new one."""
    again = await server.accept()
    await again.register()
    await again.send(NoJob())


@pytest.mark.parametrize(
    "event",
    [
        DEEP,
        b'{"event":' * 100_000,
        b"\xff\xfe",
        b"",
        b"9" * 5000,
        b'{"event": "cancel", "handle": "\\ud800"}',
    ],
    ids=["lists", "objects", "bytes", "nothing", "digits", "surrogate"],
)
async def test_an_event_that_cannot_be_read_is_ignored(function: str, event: bytes) -> None:
    with anyio.fail_after(10):
        async with (
            scripted_server() as server,
            Worker([echo_task(function)], servers=[server.address], concurrency=1),
        ):
            peer = await server.accept()
            await peer.register()
            await peer.send(WorkData(b"H:events", event))
            await peer.assign(function.encode(), b"x")
            await peer.expect(WorkComplete(b"H:1", b"x"))
            await peer.expect(GrabJobUniq())
            await peer.send(NoJob())


@pytest.mark.parametrize(
    "header",
    [
        DEEP,
        b'{"retries": %b}' % (b"[" * 500 + b"]" * 500),
        b'{"attempt": %b}' % (b"9" * 4000),
        b'{"attempt": 1e300}',
        b'{"timeout": %b}' % (b"9" * 4000),
        b'{"timeout": Infinity}',
        b'{"timeout": "\\ud800"}',
        b"\xff\xff",
    ],
    ids=["deep", "retries", "digits", "attempt", "long", "infinite", "surrogate", "bytes"],
)
async def test_a_job_whose_envelope_cannot_be_read_fails_and_the_worker_serves_on(
    function: str, header: bytes
) -> None:
    with anyio.fail_after(10):
        async with (
            scripted_server() as server,
            Worker([echo_task(function)], servers=[server.address], concurrency=1),
        ):
            peer = await server.accept()
            await peer.register()
            await peer.assign(function.encode(), MAGIC + len(header).to_bytes(4, "big") + header)
            failure = json.loads((await peer.expect_a(WorkException)).data)
            assert failure["type"] == "gearflow.errors.PayloadInvalid"
            await peer.expect(GrabJobUniq())
            await peer.assign(function.encode(), b"x", b"H:2")
            await peer.expect(WorkComplete(b"H:2", b"x"))
            await peer.expect(GrabJobUniq())
            await peer.send(NoJob())


@given(
    st.dictionaries(
        st.sampled_from(["attempt", "timeout", "retries", "detached", "raw", "more"]),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
            lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
            max_leaves=5,
        ),
    )
)
def test_an_envelope_is_read_or_is_no_valid_payload(options: dict[str, Any]) -> None:
    header = json.dumps(options).encode()
    try:
        envelope, payload = unwrap(MAGIC + len(header).to_bytes(4, "big") + header + b"x")
    except PayloadInvalid:
        return
    assert payload == b"x"
    assert envelope.attempt >= 1


@given(st.lists(st.tuples(strategies.packet_types, strategies.data), max_size=6), st.booleans())
def test_whatever_a_server_says_is_taken_in_or_its_own_fault(
    said: list[tuple[PacketType, bytes]], gearflow: bool
) -> None:
    lane = ServerSlots(SlotAllocator(2), lambda: None)
    session = WorkerSession(lane, [b"f"], b"id", None)
    session.hello()
    session.requests(0.0)
    answer = OptionRes(b"gearflow") if gearflow else Error(b"UNKNOWN_OPTION", b"no")
    body = answer.option if isinstance(answer, OptionRes) else b"UNKNOWN_OPTION\0no"
    session.received(answer.type, body, 0.0)
    session.requests(0.0)
    session.received(PacketType.JOB_CREATED, b"H:events", 0.0)
    try:
        for kind, data in said:
            session.received(kind, data, 0.0)
            session.received(PacketType.WORK_DATA, b"H:events\0" + data, 0.0)
    except (RemoteProtocolError, Unreachable):
        return


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (PacketType.JOB_ASSIGN_UNIQ, 0xFFFF_FFFF),
        (PacketType.JOB_ASSIGN, 0xFFFF_FFFF),
        (PacketType.WORK_DATA, 0xFFFF_FFFF),
        (PacketType.NO_JOB, 1 << 20),
    ],
)
async def test_a_body_over_the_limit_ends_the_connection_at_its_header(
    function: str, kind: PacketType, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    with anyio.fail_after(10):
        async with (
            scripted_server() as server,
            Worker([echo_task(function)], servers=[server.address], first_retry=0.001),
        ):
            peer = await server.accept()
            await peer.register()
            await peer.send(HEADER.pack(RES, kind, size))
            await until_back(server)
    assert f"a body of {size} bytes is over the limit" in caplog.text


async def test_the_largest_workload_is_a_setting(function: str) -> None:
    with anyio.fail_after(10):
        async with (
            scripted_server() as server,
            Worker([echo_task(function)], servers=[server.address], max_workload=1 << 20, first_retry=0.001),
        ):
            peer = await server.accept()
            await peer.register()
            await peer.assign(function.encode(), bytes(1 << 20))
            while not isinstance(heard := await peer.expect_a(Packet), WorkComplete):
                pass
            assert len(heard.result) == 1 << 20
            await peer.assign(function.encode(), bytes(1 << 21))
            await until_back(server)


async def test_a_server_that_leaves_a_grab_without_an_answer_is_given_up(function: str) -> None:
    """It echoes, so it is there."""
    limits = TimeLimits(answer=0.2)
    with anyio.fail_after(10):
        async with (
            scripted_server() as server,
            Worker([echo_task(function)], servers=[server.address], time_limits=limits, first_retry=0.001),
        ):
            peer = await server.accept()
            await peer.register()
            await until_back(server)


async def test_a_server_that_leaves_a_retry_without_an_answer_is_given_up_and_gets_its_jobs_back(
    function: str,
) -> None:
    @task(name=function, retries=Retry(3, backoff=60))
    async def fail(data: bytes) -> bytes:
        raise ValueError

    limits = TimeLimits(answer=0.2)
    with anyio.fail_after(10):
        async with (
            scripted_server() as server,
            Worker(
                [fail], servers=[server.address], concurrency=1, time_limits=limits, first_retry=0.001
            ) as worker,
        ):
            peer = await server.accept()
            await peer.register()
            await peer.assign(function.encode(), b"x")
            assert (await peer.called(b"gearflow:retry"))["handle"] == "H:1"
            again = await server.accept()
            await again.register()
            await again.assign(function.encode(), b"x")
            await again.answered(b"gearflow:retry")
            await again.expect(GrabJobUniq())
            await again.send(NoJob())
            assert worker.failed == 0


async def test_a_job_that_runs_is_given_back_to_a_server_that_answers_no_call(function: str) -> None:
    @task(name=function)
    async def wait(data: bytes) -> bytes:
        await anyio.sleep_forever()
        return b""

    with anyio.fail_after(10):
        async with (
            scripted_server() as server,
            Worker(
                [wait],
                servers=[server.address],
                concurrency=2,
                time_limits=TimeLimits(answer=0.2),
                first_retry=0.001,
                release_timeout=0.2,
            ),
        ):
            peer = await server.accept()
            await peer.register()
            await peer.send(JobAssignUniq(b"H:1", function.encode(), b"", b""))
            await peer.expect(GrabJobUniq())  # which has no answer
            assert (await peer.called(b"gearflow:release", b"C:1")) == {"handle": "H:1", "begun": True}
            again = await server.accept()
            await again.registering()
            await again.send(JobCreated(b"H:events"), NoJob())
