import json
from typing import Any

import pytest

from gearflow.broker import SizeLimits
from gearflow.broker.dispatch import WAKE_TIMEOUT
from gearflow.broker.job import JobState
from gearflow.errors import RemoteProtocolError
from gearflow.protocol import packets as p
from gearflow.protocol import server_calls
from gearflow.protocol.codec import encode
from gearflow.protocol.constants import HEADER, REQ, PacketType
from tests.broker.harness import Peer, World

NOOP = p.Noop()


def test_a_job_goes_to_a_worker_and_its_result_to_the_client(world: World, client: Peer) -> None:
    worker = world.worker().sleep()
    handle = client.submit(workload=b"cat\0png")
    assert handle == b"H:test:1"
    assert worker.read() == [NOOP]
    assert worker(p.GrabJob()) == [p.JobAssign(handle, b"work", b"cat\0png")]
    assert worker(p.WorkStatus(handle, b"1", b"2"), p.WorkData(handle, b"a\0b")) == []
    assert worker(p.WorkWarning(handle, b"w"), p.WorkComplete(handle, b"r\0r")) == []
    assert client.read() == [
        p.WorkStatus(handle, b"1", b"2"),
        p.WorkData(handle, b"a\0b"),
        p.WorkWarning(handle, b"w"),
        p.WorkComplete(handle, b"r\0r"),
    ]
    assert worker(p.GrabJob()) == [p.NoJob()]
    assert not world.broker.jobs.by_number


def test_the_grabs_differ_in_what_they_tell(world: World, client: Peer) -> None:
    for _ in range(3):
        client(p.SubmitReduceJobBackground(b"work", b"", b"reducer", b"0", b"data"))
    client.submit_background(unique=b"u")
    worker = world.worker()
    assert worker(p.GrabJob()) == [p.JobAssign(b"H:test:1", b"work", b"data")]
    assert worker(p.GrabJobUniq()) == [p.JobAssignUniq(b"H:test:2", b"work", b"", b"data")]
    assert worker(p.GrabJobAll()) == [p.JobAssignAll(b"H:test:3", b"work", b"", b"reducer", b"data")]
    assert worker(p.GrabJobAll()) == [p.JobAssignUniq(b"H:test:4", b"work", b"u", b"x")]


@pytest.mark.parametrize(
    "end", [p.WorkComplete(b"H:test:1", b"r"), p.WorkFail(b"H:test:1"), p.WorkException(b"H:test:1", b"boom")]
)
def test_all_that_joined_a_job_hear_its_end_once_for_each_time_they_joined(
    world: World, end: p.Packet
) -> None:
    twice, once = world.peer(), world.peer()
    for client in (twice, twice, once):
        client(p.OptionReq(b"exceptions"))
    assert {client.submit(unique=b"u") for client in (twice, twice, once)} == {b"H:test:1"}
    worker = world.worker()
    worker.grab()
    worker(end)
    assert twice.read() == [end, end]
    assert once.read() == [end]
    assert worker(end) == [p.Error(b"JOB_NOT_FOUND", _not_found(end))]


def _not_found(packet: p.Packet) -> bytes:
    if isinstance(packet, p.WorkException):
        return b"An exception was received for a job that does not exist"
    return b"Job given in work result not found"


def test_an_exception_is_a_clean_failure_for_those_who_did_not_ask(world: World) -> None:
    asked, plain = world.peer(), world.peer()
    assert asked(p.OptionReq(b"Exceptions")) == [p.OptionRes(b"Exceptions")]
    handle = asked.submit(unique=b"u")
    plain.submit(unique=b"u")
    worker = world.worker()
    worker.grab()
    worker(p.WorkException(handle, b"boom"))
    assert asked.read() == [p.WorkException(handle, b"boom")]
    assert plain.session.outbox == [HEADER.pack(b"\0RES", PacketType.WORK_FAIL, len(handle)) + handle]


def test_the_unique_is_free_once_the_job_has_ended(world: World, client: Peer) -> None:
    first = client.submit_background(unique=b"u")
    assert client.submit_background(unique=b"u") == first
    worker = world.worker()
    worker.grab()
    assert client.submit_background(unique=b"u") == first
    worker(p.WorkComplete(first, b""))
    assert client.submit_background(unique=b"u") != first


def test_a_dash_coalesces_by_workload(client: Peer) -> None:
    assert client.submit(unique=b"-", workload=b"same") == client.submit(unique=b"-", workload=b"same")
    assert client.submit(unique=b"-", workload=b"other") != client.submit(unique=b"-", workload=b"same")
    assert client.submit(unique=b"-", workload=b"") != client.submit(unique=b"-", workload=b"")


def test_what_a_worker_says_of_a_job_whose_client_left_is_accepted(world: World, client: Peer) -> None:
    handle = client.submit()
    worker = world.worker()
    worker.grab()
    client.leave()
    assert worker(p.WorkData(handle, b"d"), p.WorkComplete(handle, b"r")) == []


def test_the_jobs_of_a_worker_that_dies_go_to_another_with_their_progress_void(
    world: World, client: Peer
) -> None:
    handle = client.submit()
    worker = world.worker()
    worker.grab()
    other = world.worker().sleep()
    worker(p.WorkStatus(handle, b"1", b"2"))
    worker.leave()
    assert other.read() == [NOOP]
    assert client(p.GetStatus(handle)) == [
        p.WorkStatus(handle, b"1", b"2"),
        p.StatusRes(handle, b"1", b"0", b"0", b"0"),
    ]
    assert other.grab() == handle


def test_a_dead_workers_jobs_go_to_the_end_the_last_grabbed_first(world: World, client: Peer) -> None:
    first, second, third = (client.submit_background() for _ in range(3))
    worker = world.worker()
    assert [worker.grab(), worker.grab()] == [first, second]
    worker.leave()
    other = world.worker()
    assert [other.grab() for _ in range(3)] == [third, second, first]


def test_only_the_worker_that_has_the_job_may_speak_of_it(world: World, client: Peer) -> None:
    handle = client.submit()
    world.worker().grab()
    thief = world.worker()
    error = p.Error(b"JOB_NOT_FOUND", b"Job given in work result not found")
    assert thief(p.WorkComplete(handle, b"mine")) == [error]
    assert thief(p.WorkFail(b"H:nowhere:1")) == [error]
    assert thief(p.WorkData(handle, b"")) == [p.Error(b"JOB_NOT_FOUND", b"Job does not exist on server")]
    assert client.read() == []


def test_a_worker_that_does_not_grab_is_replaced_by_one_then_two_then_all(world: World, client: Peer) -> None:
    sleepers = [world.worker().sleep() for _ in range(9)]
    client.submit_background()
    woken: list[int] = []
    for _ in range(4):
        woken.append(sum(peer.read() == [NOOP] for peer in sleepers))
        world.pass_time(WAKE_TIMEOUT)
    assert woken == [1, 1, 2, 5]


def test_another_is_woken_at_once_when_the_woken_one_goes_away(world: World, client: Peer) -> None:
    first, second = world.worker().sleep(), world.worker().sleep()
    client.submit_background()
    assert first.read() == [NOOP]
    first.leave()
    assert second.read() == [NOOP]


def test_a_woken_worker_that_takes_another_job_is_replaced(world: World, client: Peer) -> None:
    both = world.worker(b"a", b"b").sleep()
    only_a = world.worker(b"a").sleep()
    client.submit_background(b"a")
    client(p.SubmitJobHighBg(b"b", b"", b""))
    assert both.read() == [NOOP]
    assert only_a.read() == []
    assert both.grab() == b"H:test:2"
    assert only_a.read() == [NOOP]


def test_a_sleeper_that_registers_a_function_with_jobs_waiting_is_woken(world: World, client: Peer) -> None:
    client.submit_background()
    sleeper = world.worker(b"other").sleep()
    assert sleeper(p.CanDo(b"work")) == [NOOP]


def test_a_withdrawn_function_does_not_wake(world: World, client: Peer) -> None:
    sleeper = world.worker(b"work", b"other").sleep()
    sleeper(p.CantDo(b"work"))
    client.submit_background()
    assert sleeper.read() == []
    assert sleeper.grab() is None


@pytest.mark.parametrize("epoch", [b"", b"0", b"-5", b"soon", b"1", b"999"])
def test_a_time_that_is_past_or_none_is_now(world: World, client: Peer, epoch: bytes) -> None:
    client(p.SubmitJobEpoch(b"work", b"", epoch, b"x"))
    assert world.worker().grab() == b"H:test:1"


def test_an_absurd_time_is_answered_all_the_same(client: Peer) -> None:
    assert client(p.SubmitJobEpoch(b"work", b"", b"9" * 25, b"x")) == [p.JobCreated(b"H:test:1")]


def test_a_job_over_its_workers_own_limit_goes_to_another(world: World, client: Peer) -> None:
    handle = client.submit()
    slow = world.peer()
    slow(p.CanDoTimeout(b"work", b"1050"))
    assert slow.grab() == handle
    other = world.worker().sleep()
    world.pass_time(1.04)
    assert other.read() == []
    assert world.broker.next_due() == pytest.approx(world.now + 0.01)
    world.pass_time(0.02)
    assert other(p.GrabJob()) == [NOOP, p.JobAssign(handle, b"work", b"x")]
    late = slow(p.WorkComplete(handle, b"late"))
    assert late == [p.Error(b"JOB_NOT_FOUND", b"Job given in work result not found")]
    other(p.WorkComplete(handle, b"r"))
    assert client.read() == [p.WorkComplete(handle, b"r")]


@pytest.mark.parametrize("limit", [b"1", b"5", b"999", b"1000"])
def test_a_limit_below_a_second_is_a_second(world: World, client: Peer, limit: bytes) -> None:
    """Many workers send seconds. In milliseconds these would take every job from them."""
    worker = world.peer()
    worker(p.CanDoTimeout(b"work", limit))
    client.submit()
    worker.grab()
    assert world.broker.next_due() == world.now + 1.0


def test_a_job_that_is_cut_off_again_and_again_ends_and_its_callers_hear_why() -> None:
    world = World(SizeLimits(deaths=3))
    caller, plain = world.peer(), world.peer()
    caller(p.OptionReq(b"exceptions"))
    handle = caller.submit(unique=b"u")
    assert plain.submit(unique=b"u") == handle
    dying = world.worker()
    assert dying.grab() == handle
    dying.leave()
    slow = world.peer()
    slow(p.SetClientId(b"tortoise"), p.CanDoTimeout(b"work", b"2000"))
    for _ in range(2):
        assert slow.grab() == handle
        world.pass_time(2)
    (ended,) = caller.read()
    assert isinstance(ended, p.WorkException)
    assert json.loads(ended.data) == {
        "type": "gearflow.errors.TaskTimeout",
        "message": "it was cut off 3 times; the last time, the worker tortoise overran its time limit "
        "(CAN_DO_TIMEOUT)",
    }
    assert plain.read() == [p.WorkFail(handle)]
    assert slow.grab() is None
    assert not world.broker.jobs.by_number
    assert world.broker.next_due() is None


def test_a_worker_that_sleeps_while_it_has_a_job_keeps_the_job(world: World, client: Peer) -> None:
    """libgearman does so after a late result: it has not read the answers that it waits for."""
    handle, waiting = client.submit(), client.submit()
    worker = world.peer()
    worker(p.CanDoTimeout(b"work", b"1000"))
    assert worker.grab() == handle
    assert worker(p.PreSleep()) == [NOOP]
    assert world.broker.next_due() == world.now + 1
    assert world.worker().grab() == waiting
    worker.sleep()
    assert world.broker.next_due() is None
    assert worker(p.WorkComplete(handle, b"r")) == []
    assert client.read() == [p.WorkComplete(handle, b"r")]


def test_a_worker_that_ends_over_a_late_result_costs_the_job_that_it_has_not_begun_no_death() -> None:
    """libgearman and Perl take the ERROR as the answer to GRAB_JOB, and end while they hold the next job."""
    world = World(SizeLimits(deaths=1))
    client = world.peer()
    first = client.submit_background()
    slow = world.peer()
    slow(p.CanDoTimeout(b"work", b"1000"))
    assert slow.grab() == first
    second = client.submit_background()
    world.pass_time(1)
    error, assigned = slow(p.WorkComplete(first, b"late"), p.GrabJob())
    assert isinstance(error, p.Error)
    assert assigned == p.JobAssign(second, b"work", b"x")
    slow.leave()
    assert world.worker().grab() == second


def test_a_worker_that_is_out_of_step_after_a_late_result_has_the_whole_limit_for_each_job(
    world: World, client: Peer
) -> None:
    """It holds the next job before it has ended one. The time of that job must not have begun."""
    first = client.submit()
    worker = world.peer()
    worker(p.CanDoTimeout(b"work", b"1000"))
    assert worker.grab() == first
    world.pass_time(1)
    second = client.submit()
    worker(p.WorkComplete(first, b"late"))
    assert worker.grab() == first
    assert worker.grab() == second
    world.pass_time(0.9)
    assert worker(p.WorkComplete(first, b"")) == []
    world.pass_time(0.9)
    assert worker(p.WorkComplete(second, b"")) == []


@pytest.mark.parametrize("limit", [b"0", b"-1", b"soon", b"", b"\x00\x00\x03\xe8"])
def test_a_limit_that_is_none_limits_nothing(world: World, client: Peer, limit: bytes) -> None:
    worker = world.peer()
    assert worker(p.CanDoTimeout(b"work", limit)) == []
    handle = client.submit()
    worker.grab()
    assert world.broker.next_due() is None
    assert worker(p.WorkComplete(handle, b"")) == []


def test_the_last_word_on_a_limit_counts(world: World, client: Peer) -> None:
    worker = world.peer()
    worker(p.CanDoTimeout(b"work", b"50"), p.CanDo(b"work"))
    client.submit()
    worker.grab()
    assert world.broker.next_due() is None
    assert world.broker.functions.by_name[b"work"].workers == 1


def test_status_tells_of_queue_progress_and_end(world: World, client: Peer) -> None:
    handle = client.submit_background(unique=b"u")
    assert client(p.GetStatus(handle)) == [p.StatusRes(handle, b"1", b"0", b"0", b"0")]
    worker = world.worker()
    worker.grab()
    worker(p.WorkStatus(handle, b"12abc", b"0.5"))
    assert client(p.GetStatus(handle)) == [p.StatusRes(handle, b"1", b"1", b"12", b"0")]
    world.peer().submit(unique=b"u")
    assert client(p.GetStatusUnique(b"u")) == [p.StatusResUnique(b"u", b"1", b"1", b"12", b"0", b"1")]
    worker(p.WorkComplete(handle, b""))
    assert client(p.GetStatus(handle)) == [p.StatusRes(handle, b"0", b"0", b"0", b"0")]
    assert client(p.GetStatusUnique(b"u")) == [p.StatusResUnique(b"u", b"0", b"0", b"0", b"0", b"0")]


def test_perls_workers_leave_out_what_is_empty(world: World, client: Peer) -> None:
    handle = client.submit()
    worker = world.worker()
    worker.grab()
    for kind in (PacketType.WORK_STATUS, PacketType.WORK_COMPLETE):
        body = handle + (b"\x003" if kind == PacketType.WORK_STATUS else b"")
        assert worker(HEADER.pack(REQ, kind, len(body)) + body) == []
    assert client.read() == [p.WorkStatus(handle, b"3", b""), p.WorkComplete(handle, b"")]


def test_a_full_queue_refuses_by_the_limit_of_the_submissions_priority(world: World, client: Peer) -> None:
    client.submit_background(unique=b"u")
    world.broker.functions.limit(b"work", None, 1, None)
    full = p.Error(b"QUEUE_ERROR", b"Job queue is full")
    assert client(p.SubmitJob(b"work", b"", b"x")) == [full]
    assert client.submit_background(unique=b"u") == b"H:test:1"
    assert client(p.SubmitJobHigh(b"work", b"", b"x")) == [p.JobCreated(b"H:test:2")]
    world.broker.functions.limit(b"work", None, None, None)
    assert client.submit()


def test_of_a_cancelled_running_job_nothing_is_heard_any_more(world: World, client: Peer) -> None:
    handle = client.submit(unique=b"u")
    worker = world.worker()
    worker.grab()
    assert world.broker.cancel(handle)
    assert client.read() == [p.WorkFail(handle)]
    again = client.submit(unique=b"u")
    assert again != handle
    assert worker(p.WorkData(handle, b"d"), p.WorkComplete(handle, b"r")) == []
    assert client.read() == []
    assert worker.grab() == again


def test_a_cancelled_running_job_does_not_come_back_when_its_worker_dies(world: World, client: Peer) -> None:
    handle = client.submit_background()
    worker = world.worker()
    worker.grab()
    world.broker.cancel(handle)
    worker.leave()
    assert world.worker().grab() is None
    assert not world.broker.jobs.by_number


def test_reserved_functions_are_the_servers_own(world: World, client: Peer) -> None:
    (refused,) = client(p.SubmitJobBg(server_calls.EVENTS, b"", b""))
    assert isinstance(refused, p.Error)
    (refused,) = client(p.CanDo(server_calls.EVENTS))
    assert isinstance(refused, p.Error)
    world.broker.create(server_calls.EVENTS)
    client.submit(server_calls.EVENTS, workload=b"")
    assert not world.broker.functions.by_name


def _options(**changes: Any) -> bytes:
    return json.dumps({"function": "work", "detached": True, **changes}).encode()


@pytest.mark.parametrize("end", [b"", b"\n", b"\nx\n\0y"])
def test_a_background_submission_with_options_is_answered_as_any(
    world: World, client: Peer, end: bytes
) -> None:
    for _ in range(2):  # the request is read once
        (created,) = client(p.SubmitJobBg(server_calls.SUBMIT, b"u", _options(delay=5, keep=0) + end))
        assert created == p.JobCreated(b"H:test:1")
    job = world.broker.core.find(b"H:test:1")
    assert job is not None
    assert job.details is not None
    assert (job.workload, job.details.keep, job.state) == (end[1:], 0.0, JobState.DELAYED)
    assert not job.clients


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (_options(unique="u"), b"a background submission"),
        (_options(priority="high"), b"a background submission"),
        (_options(unique="u", reuse=True), b"a background submission"),
        (_options(detached=False), b"a background submission"),
        (_options(function="gearflow:info"), b"a reserved function"),
        (_options(function="f" * 10_000), b"a function name of 10000 bytes"),
        (_options(keep=-1), b"the request cannot be read: keep"),
        (b"{" + b" " * 70_000, b"the options do not end"),
        (b"", b"the request cannot be read: function"),
    ],
)
def test_a_background_submission_with_options_that_cannot_be_is_refused(
    client: Peer, asked: bytes, reason: bytes
) -> None:
    for _ in range(2):
        (refused, created) = client(
            p.SubmitJobBg(server_calls.SUBMIT, b"", asked), p.SubmitJobBg(b"work", b"u", b"")
        )
        assert isinstance(refused, p.Error)
        assert refused.code == b"gearflow:invalid"
        assert refused.text.startswith(reason)
        assert created == p.JobCreated(b"H:test:1")


def test_a_full_queue_refuses_a_background_submission_with_options(world: World, client: Peer) -> None:
    client.submit_background()
    world.broker.functions.limit(b"work", 1, 1, 1)
    (refused,) = client(p.SubmitJobBg(server_calls.SUBMIT, b"", _options(keep=0)))
    assert refused == p.Error(b"QUEUE_ERROR", b"Job queue is full")


def test_only_a_plain_background_submission_brings_options(client: Peer) -> None:
    (refused,) = client(p.SubmitJobEpoch(server_calls.SUBMIT, b"", b"1", _options()))
    assert isinstance(refused, p.Error)
    assert refused.code == b"INVALID_FUNCTION_NAME"


def test_a_reserved_function_that_is_none_fails_with_a_reason(world: World, client: Peer) -> None:
    reason = b"there is no reserved function gearflow:nonsense; there are gearflow:auth, "
    created, warning, failed = client(p.SubmitJob(b"gearflow:nonsense", b"", b""))
    assert isinstance(created, p.JobCreated)
    assert isinstance(warning, p.WorkWarning)
    assert warning.data.startswith(reason)
    assert failed == p.WorkFail(created.handle)
    client(p.OptionReq(b"exceptions"))
    created, exception = client(p.SubmitJob(b"gearflow:nonsense", b"", b""))
    assert isinstance(exception, p.WorkException)
    fault = server_calls.Fault.model_validate_json(exception.data)
    assert fault.type == "gearflow:unknown"
    assert fault.message.encode() == warning.data


@pytest.mark.parametrize(
    "event", [b"", b"{", b"[]", b'{"event": "cancel"}', b'{"event": "later", "handle": "H"}']
)
def test_events_that_are_not_known_are_no_cancellations(event: bytes) -> None:
    assert server_calls.cancelled_handle(event) is None


def test_text_and_packets_are_answered_in_order(client: Peer) -> None:
    answers = client(p.EchoReq(b"1"), b"hello\r\n", p.EchoReq(b""))
    assert answers == [p.EchoRes(b"1"), b"you said hello", p.EchoRes(b"")]


def test_packets_a_server_sends_are_refused_and_the_connection_goes_on(client: Peer) -> None:
    refused = p.Error(b"INVALID_COMMAND", b"Command not expected")
    assert client(p.Noop(), p.JobCreated(b"h"), p.AllYours(), p.SubmitJobSched(*[b"1"] * 8)) == [
        *[p.Error(b"INVALID_MAGIC", b"Request magic expected")] * 2,
        *[refused] * 2,
    ]
    assert client(p.EchoReq(b"x")) == [p.EchoRes(b"x")]


def test_uniques_over_64_bytes_are_refused(client: Peer) -> None:
    assert client.submit(unique=b"u" * 64) == client.submit(unique=b"u" * 64)
    assert client(p.SubmitJob(b"work", b"u" * 65, b"")) == [
        p.Error(b"ARGUMENT_TOO_LARGE", b"Unique value too large")
    ]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0BAD" + bytes(8),
        b"\0B",
        HEADER.pack(REQ, 0, 0),
        HEADER.pack(REQ, 43, 0),
        HEADER.pack(REQ, 0xFFFF_FFFF, 0),
        HEADER.pack(REQ, PacketType.SUBMIT_JOB, 3) + b"f\0u",
        b"x" * 8193,
        HEADER.pack(REQ, PacketType.CAN_DO, 9000) + b"f" * 9000,
    ],
)
def test_bytes_that_are_not_gearmans_are_refused_after_what_came_before_them(
    client: Peer, garbage: bytes
) -> None:
    with pytest.raises(RemoteProtocolError):
        client(p.EchoReq(b"before"), garbage)
    assert client.read() == [p.EchoRes(b"before")]


def receive_in_place(world: World, client: Peer, packet: bytes) -> None:
    """Send a large packet as the event loop receives it: into the buffer of its body."""
    position = 10_000
    world.broker.receive(client.session, packet[:position], world.now)
    while position < len(packet):
        partial = world.broker.parser.partials.get(client.session)
        assert partial is not None
        room = partial.room()
        count = min(len(room), 100_000)
        room[:count] = packet[position : position + count]
        position += count
        world.broker.receive_large(client.session, count, world.now)


def test_a_large_body_is_received_in_place_and_handed_on_as_it_is(world: World, client: Peer) -> None:
    workload = bytes(range(256)) * 1024
    receive_in_place(world, client, encode(p.SubmitJob(b"work", b"u", workload)))
    (created,) = client.read()
    assert isinstance(created, p.JobCreated)
    worker = world.worker()
    world.broker.receive(worker.session, encode(p.GrabJobUniq()), world.now)
    assert isinstance(worker.session.outbox[-1], memoryview)
    assert worker.read() == [p.JobAssignUniq(created.handle, b"work", b"u", workload)]


def test_what_follows_a_large_packet_that_took_long_is_handled_in_a_later_turn(
    world: World, client: Peer
) -> None:
    world.broker.turns.is_late = lambda: True
    request = b" " * 200_000 + server_calls.DetachRequest(handle="H:test:1").to_wire()
    receive_in_place(world, client, encode(p.SubmitJob(server_calls.DETACH, b"", request)))
    assert [type(answer) for answer in client.read()] == [p.JobCreated, p.WorkComplete]
    assert client(p.EchoReq(b"behind")) == []
    assert world.broker.proceed(world.now) is client.session
    world.broker.resume(client.session, world.now)
    assert client.read() == [p.EchoRes(b"behind")]


@pytest.mark.parametrize("others", [0, 3000], ids=["alone", "with others"])
def test_a_large_workload_keeps_little_in_memory_beside_itself(others: int) -> None:
    world = World()
    client = world.peer()
    workload = bytes(range(256)) * 280
    small = encode(p.SubmitJobBg(b"other", b"", b"x" * 30))
    data = small * others + encode(p.SubmitJob(b"work", b"", workload))
    world.broker.receive(client.session, data, world.now)
    kept = next(job.workload for job in world.broker.jobs.by_number.values() if job.function.name == b"work")
    whole = kept.obj if isinstance(kept, memoryview) else kept
    assert isinstance(whole, bytes)
    assert len(whole) < 2 * len(workload)
    (assigned,) = world.worker()(p.GrabJob())
    assert isinstance(assigned, p.JobAssign)
    assert assigned.workload == workload


@pytest.mark.parametrize(
    ("askedof_many", "message"),
    [
        (b'{"unknown": "%b"}' % (b"x" * (1 << 20)), "the request has 1048591 bytes, more than 1048576"),
        (
            b"{%b}" % b",".join(b'"unknown%d": 1' % n for n in range(101)),
            "the request cannot be read: it has 101 faults",
        ),
    ],
    ids=["long", "many faults"],
)
def test_a_askedthat_would_take_long_to_refuse_is_refused_briefly(
    client: Peer, askedof_many: bytes, message: str
) -> None:
    client(p.OptionReq(b"exceptions"))
    _, exception = client(p.SubmitJob(server_calls.INFO, b"", askedof_many))
    assert isinstance(exception, p.WorkException)
    fault = server_calls.Fault.model_validate_json(exception.data)
    assert (fault.type, fault.message) == ("gearflow:invalid", message)
