"""The trace context of a call: kept beside its job, and given to gearflow's workers only."""

import json
from collections.abc import Callable
from functools import partial
from typing import Final

import pytest

from gearflow.broker.calls.submit import split
from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as api
from gearflow.protocol.envelope import Envelope, unwrap
from gearflow.protocol.schedules import SCHEDULE
from tests.broker.harness import Durable, Peer, World

TRACE: Final = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "baggage": "a=1"}


def line(**options: object) -> bytes:
    return json.dumps({"function": "work", "detached": True, **options}, separators=(",", ":")).encode()


def submit(world: Durable, **options: object) -> bytes:
    client = world.peer()
    client(p.SubmitJobBg(api.SUBMIT, b"", line(**options) + b"\nx"))
    world.commit()
    (created,) = client.read()
    assert isinstance(created, p.JobCreated)
    return created.handle


def gearflow_worker(world: World) -> Peer:
    worker = world.worker()
    worker(p.OptionReq(b"gearflow"))
    return worker


def assigned(worker: Peer) -> tuple[Envelope, bytes]:
    (packet,) = worker(p.GrabJob())
    assert isinstance(packet, p.JobAssign)
    return unwrap(packet.workload)


def retry(worker: Peer, handle: bytes) -> None:
    worker(p.SubmitJob(api.RETRY, b"", api.RetryRequest(handle=handle.decode()).to_wire()))


def test_a_worker_of_gearflow_gets_the_trace_in_the_envelope() -> None:
    world = Durable()
    submit(world, trace=TRACE)
    assert assigned(gearflow_worker(world)) == (Envelope(trace=TRACE), b"x")


def test_another_worker_gets_the_plain_payload() -> None:
    world = Durable()
    submit(world, trace=TRACE)
    (packet,) = world.worker()(p.GrabJob())
    assert isinstance(packet, p.JobAssign)
    assert packet.workload == b"x"


def test_the_trace_survives_a_restart_and_a_retry() -> None:
    world = Durable()
    handle = submit(world, trace=TRACE)
    worker = gearflow_worker(world)
    assert assigned(worker)[0] == Envelope(trace=TRACE)
    retry(worker, handle)
    world.commit()
    assert assigned(gearflow_worker(world.restarted()))[0] == Envelope(attempt=2, trace=TRACE)


def dies(worker: Peer, _: bytes) -> None:
    worker.leave()


def retries(worker: Peer, handle: bytes, *, counted: bool) -> None:
    request = api.RetryRequest(handle=handle.decode(), counted=counted)
    worker(p.SubmitJob(api.RETRY, b"", request.to_wire()))


def releases(worker: Peer, handle: bytes, *, begun: bool) -> None:
    request = api.ReleaseRequest(handle=handle.decode(), begun=begun)
    worker(p.SubmitJob(api.RELEASE, b"", request.to_wire()))


@pytest.mark.parametrize(
    ("ends", "is_first"),
    [
        (dies, False),
        (partial(retries, counted=True), False),
        (partial(retries, counted=False), False),
        (partial(releases, begun=True), False),
        (partial(releases, begun=False), True),
    ],
    ids=["death", "retry", "snooze", "given back", "not begun"],
)
def test_only_the_first_run_of_a_call_is_attached_to_it(
    ends: Callable[[Peer, bytes], None], is_first: bool
) -> None:
    world = World()
    client = world.peer()
    request = line(detached=False, trace={**TRACE, "attached": "1"})
    (created,) = client(p.SubmitJob(api.SUBMIT, b"", request + b"\nx"))
    assert isinstance(created, p.JobCreated)
    worker = gearflow_worker(world)
    assert assigned(worker)[0].trace == {**TRACE, "attached": "1"}
    ends(worker, created.handle)
    later = assigned(gearflow_worker(world))[0].trace
    assert later == ({**TRACE, "attached": "1"} if is_first else TRACE)


def test_a_debounced_job_has_the_trace_of_the_latest_submission() -> None:
    world = Durable()
    client = world.peer()
    for trace in ({"traceparent": "first"}, {"traceparent": "second"}):
        client(p.SubmitJob(api.SUBMIT, b"", line(unique="k", debounce=1, trace=trace) + b"\nx"))
        world.commit()
        world.finish()
        world.commit()
    world.pass_time(1)
    assert assigned(gearflow_worker(world))[0].trace == {"traceparent": "second"}


def test_requests_that_differ_in_their_trace_only_are_read_once() -> None:
    first, payload = split(line(timeout=3, trace={"traceparent": "1"}) + b"\nx")
    second, _ = split(line(timeout=3, trace={"traceparent": "2"}) + b"\nx")
    assert (first.trace, second.trace, bytes(payload)) == ({"traceparent": "1"}, {"traceparent": "2"}, b"x")
    assert first.request is second.request
    assert split(line(timeout=3) + b"\nx")[0].trace is None


@pytest.mark.parametrize(
    "request_line",
    [
        line(trace=TRACE, timeout=3),  # not the last key
        b'{"trace":{"baggage":"a=1"},"function":"work","detached":true}',
        b'{"function":"work","detached":true, "trace": {"baggage": "a=1"} }',
        b'{"function":"work","trace":{"a":"b"},"detached":true,"trace":{"baggage":"a=1"}}',
    ],
)
def test_the_place_of_the_trace_in_a_request_does_not_matter(request_line: bytes) -> None:
    asked, _ = split(request_line + b"\nx")
    assert asked.trace is not None
    assert asked.trace["baggage"] == "a=1"
    assert asked.request.detached


@pytest.mark.parametrize(
    "trace",
    [
        b'{"a":1}',
        b'{"a":{}}',
        b'["a"]',
        b'{"":"b"}',
        b'{"a":"%b"}' % (b"x" * 1025),
        b'{"%b":"b"}' % (b"x" * 65),
        b"{%b}" % b",".join(b'"%d":"b"' % number for number in range(9)),
        b'{"a":"b"},"trace":{"a":1}',
        b'{"a":"b"}},"keys":{"a":{"b":"c"}',
    ],
)
def test_a_trace_that_is_over_a_limit_or_makes_no_sense_is_refused(trace: bytes) -> None:
    world = World()
    client = world.peer()
    client(p.OptionReq(b"exceptions"))
    request = b'{"function":"work","detached":true,"trace":%b}\nx' % trace
    end = client(p.SubmitJob(api.SUBMIT, b"", request))[-1]
    assert isinstance(end, p.WorkException)
    assert json.loads(end.data)["type"] == "gearflow:invalid"


def test_a_request_of_nothing_but_traces_is_read_without_recursion() -> None:
    world = World()
    client = world.peer()
    client(p.OptionReq(b"exceptions"))
    request = b'{"function":"work"%b}\nx' % (b',"trace":{}' * 5000)
    end = client(p.SubmitJob(api.SUBMIT, b"", request))
    assert end
    assert client(p.EchoReq(b"still there")) == [p.EchoRes(b"still there")]


def schedule(world: Durable, **request: object) -> None:
    client = world.peer()
    client(p.OptionReq(b"exceptions"))
    answers = client(p.SubmitJob(SCHEDULE, b"", json.dumps(request).encode()))
    world.commit()
    world.finish()
    world.commit()
    end = (answers + client.read())[-1]
    assert isinstance(end, p.WorkComplete), end


def test_the_jobs_of_a_schedule_have_the_trace_of_the_call_that_put_it() -> None:
    world = Durable()
    spec = {"name": "hourly", "function": "work", "when": {"every": 3600}}
    schedule(world, do="put", schedules=[spec], trace=TRACE)
    schedule(world, do="put", schedules=[spec], trace={"traceparent": "of no change"})
    world = world.restarted()
    world.pass_time(3601)
    world.commit()
    worker = gearflow_worker(world)
    (packet,) = worker(p.GrabJob())
    assert isinstance(packet, p.JobAssign)
    assert unwrap(packet.workload)[0].trace == TRACE
    worker(p.WorkComplete(packet.handle, b""))
    world.commit()
    schedule(world, do="put", schedules=[{**spec, "timeout": 5}])
    world.pass_time(3601)
    world.commit()
    assert assigned(gearflow_worker(world))[0].trace is None


def test_a_job_that_is_made_by_hand_has_the_trace_of_that_call() -> None:
    world = Durable()
    spec = {"name": "hourly", "function": "work", "when": {"every": 3600}}
    schedule(world, do="put", schedules=[spec], trace=TRACE)
    schedule(world, do="trigger", name="hourly", trace={"traceparent": "by hand"})
    assert assigned(gearflow_worker(world))[0].trace == {"traceparent": "by hand"}
