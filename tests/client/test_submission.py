"""How a submission is put for each kind of server."""

import json
from typing import Any

import pytest

from gearflow.client import JobRequest, Priority, ServerAddress, SubmitOptions
from gearflow.client.requests import ReservedSubmission, Tally
from gearflow.errors import LocalProtocolError, UnsupportedByServer
from gearflow.protocol.codec import decode
from gearflow.protocol.constants import HEADER
from gearflow.protocol.packets import (
    Packet,
    SubmitJob,
    SubmitJobBg,
    SubmitJobEpoch,
    SubmitJobHighBg,
    SubmitJobLow,
)
from gearflow.protocol.server_calls import RetryPlan, SubmitRequest

SERVER = ServerAddress("example.org")
PLAN = RetryPlan(delays=(1, 2))


def put(order: JobRequest, *, gearflow: bool, in_background: bool = False) -> Packet:
    class Never:
        def set(self) -> None: ...
        async def wait(self) -> None: ...

    request, packet = order.put(SERVER, Never(), gearflow=gearflow, in_background=in_background)
    assert request.function == order.function
    _, kind, size = HEADER.unpack_from(packet)
    assert HEADER.size + size == len(packet)
    return decode(kind, packet[HEADER.size :])


def order(*, detached: bool = True, priority: Priority = Priority.NORMAL, **options: Any) -> JobRequest:
    asked = SubmitOptions(**options) if options else None
    return JobRequest("f", b"x\n\0y", "k", priority, asked, detached)


def requested(order: JobRequest) -> SubmitRequest:
    packet = put(order, gearflow=True)
    assert isinstance(packet, SubmitJob)
    assert (packet.function, packet.unique) == (b"gearflow:submit", b"")
    line, _, payload = packet.workload.partition(b"\n")
    assert payload == b"x\n\0y"
    assert {"function", "unique"} <= json.loads(line).keys()
    return SubmitRequest.model_validate_json(line)


@pytest.mark.parametrize("gearflow", [True, False])
def test_without_options_it_is_the_protocols_own_packet(gearflow: bool) -> None:
    assert put(order(), gearflow=gearflow) == SubmitJobBg(b"f", b"k", b"x\n\0y")
    assert put(order(priority=Priority.HIGH), gearflow=gearflow) == SubmitJobHighBg(b"f", b"k", b"x\n\0y")
    low = order(priority=Priority.LOW, detached=False)
    assert put(low, gearflow=gearflow) == SubmitJobLow(b"f", b"k", b"x\n\0y")


def test_gearflows_server_gets_the_options_beside_the_payload() -> None:
    asked = order(
        priority=Priority.HIGH,
        delay=0.5,
        keep=0,
        expires=9,
        reuse=True,
        retries=PLAN,
        timeout=3,
        envelope=b"e",
    )
    assert requested(asked) == SubmitRequest(
        function="f",
        unique="k",
        priority=Priority.HIGH,
        detached=True,
        delay=0.5,
        keep=0,
        expires=9,
        reuse=True,
        retries=PLAN,
        timeout=3,
    )
    assert requested(order(at=1e9 + 0.5)).at == 1e9 + 0.5
    attached = requested(order(keep=3, detached=False))
    assert (attached.detached, attached.keep) == (False, 3)


def test_in_the_background_unique_and_priority_are_the_packets_so_that_requests_are_equal() -> None:
    asked = order(priority=Priority.HIGH, keep=0, retries=PLAN, envelope=b"e")
    heard = put(asked, gearflow=True, in_background=True)
    assert isinstance(heard, SubmitJobHighBg)
    assert (heard.function, heard.unique) == (b"gearflow:submit", b"k")
    line, _, payload = heard.workload.partition(b"\n")
    assert payload == b"x\n\0y"
    expected = SubmitRequest(function="f", detached=True, keep=0, retries=PLAN)
    assert SubmitRequest.model_validate_json(line) == expected


@pytest.mark.parametrize("asked", [order(reuse=True), order(keep=3, detached=False)])
def test_what_needs_more_than_one_answer_is_a_call(asked: JobRequest) -> None:
    assert isinstance(put(asked, gearflow=True, in_background=True), SubmitJob)


def test_an_envelope_alone_is_nothing_that_gearflows_server_needs() -> None:
    assert put(order(envelope=b"e:"), gearflow=True) == SubmitJobBg(b"f", b"k", b"x\n\0y")
    assert put(order(envelope=b"e:"), gearflow=False) == SubmitJobBg(b"f", b"k", b"e:x\n\0y")


def test_other_servers_pass_an_envelope_on() -> None:
    asked = order(retries=PLAN, timeout=3, envelope=b"e:", detached=False)
    assert put(asked, gearflow=False) == SubmitJob(b"f", b"k", b"e:x\n\0y")
    with pytest.raises(UnsupportedByServer, match=r"example\.org:4730 keeps no retries.*envelope"):
        put(order(retries=PLAN), gearflow=False)


def test_other_servers_start_a_job_at_whole_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1000.25)
    starts: tuple[tuple[dict[str, Any], bytes], ...] = (
        ({"delay": 0.5}, b"1001"),
        ({"delay": 1}, b"1002"),
        ({"delay": 0}, b"1001"),
        ({"at": 2000.5}, b"2001"),
        ({"at": 0}, b"0"),
    )
    for asked, start in starts:
        assert put(order(**asked), gearflow=False) == SubmitJobEpoch(b"f", b"k", start, b"x\n\0y")
    with pytest.raises(UnsupportedByServer, match=r"on example\.org:4730 .*not low.*'gearflow server'"):
        put(order(priority=Priority.LOW, delay=1), gearflow=False)


def test_other_servers_are_not_asked_for_what_they_cannot_do() -> None:
    with pytest.raises(
        UnsupportedByServer, match=r"'f': example\.org:4730 cannot honour keep=, reuse=, expires="
    ):
        put(order(keep=1, reuse=True, expires=1), gearflow=False)
    assert put(order(keep=0), gearflow=False) == SubmitJobBg(b"f", b"k", b"x\n\0y")


def test_what_can_never_be_sent_is_known_without_a_server() -> None:
    with pytest.raises(LocalProtocolError, match="NUL"):
        JobRequest("f\0", b"").check()
    with pytest.raises(LocalProtocolError, match="64 bytes"):
        JobRequest("f", b"", "u" * 64).check()
    with pytest.raises(ValueError, match="background"):
        order(at=3, detached=False).check()


async def test_a_refusal_by_the_server_is_no_failure_of_a_worker(anyio_backend: str) -> None:
    request = ReservedSubmission("f", b"", _Nothing())
    job = request.job_type(b"H:1", SERVER, "f", _Owner())
    request.job = job
    job.fail_remotely(b'{"type": "gearflow:full", "message": "no room", "traceback": null, "errors": []}')
    await request.check()  # a worker's, which only looks like it
    assert job.done


class _Nothing:
    def set(self) -> None: ...
    async def wait(self) -> None: ...


class _Owner:
    """Of jobs that nobody waits for."""

    @property
    def new_signal(self) -> Any:
        raise AssertionError("nobody waits")

    def detach(self, job: object) -> bool:
        return False

    def leave_parts(self, handle: bytes) -> None:
        pass  # there is no server that would send any


def test_a_tally_is_set_when_all_of_it_is() -> None:
    class Event:
        is_set = False

        def set(self) -> None:
            self.is_set = True

    event: Any = Event()
    tally = Tally(2, event)
    tally.set()
    assert not event.is_set
    tally.set()
    assert event.is_set


def test_what_is_sent_later_has_what_is_left_of_its_durations() -> None:
    order = JobRequest("f", b"x", options=SubmitOptions(delay=60, expires=5.0, keep=9.0))
    assert order.aged(20).options == SubmitOptions(delay=40.0, expires=0.0, keep=9.0)
    at = JobRequest("f", b"x", options=SubmitOptions(at=60))
    assert at.aged(20) is at
