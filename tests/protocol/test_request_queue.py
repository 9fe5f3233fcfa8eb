"""Which answer belongs to which request: by order alone, and by handle for what follows a submission."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearflow.errors import QueueFull, RemoteProtocolError, ServerError, SubmitUnknown
from gearflow.protocol.codec import encode_response
from gearflow.protocol.constants import AUTH, HEADER_SIZE, PacketType
from gearflow.protocol.packets import (
    EchoRes,
    Error,
    JobCreated,
    OptionRes,
    Packet,
    WorkComplete,
    WorkData,
    WorkException,
    WorkFail,
    WorkWarning,
)
from gearflow.protocol.request_queue import (
    REFUSED,
    Call,
    CallQueue,
    Identification,
    Ignored,
    Request,
    RequestQueue,
    server_fault,
)

FULL = b'{"type": "gearflow:full", "message": "no room"}'


def receive(queue: CallQueue, packet: Packet) -> Request | None:
    return queue.receive(packet.type, encode_response(packet)[HEADER_SIZE:])


def echo() -> Request:
    return Request(PacketType.ECHO_RES, "an echo", Ignored())


@given(st.lists(st.sampled_from(["echo", "submission"]), min_size=1), st.data())
def test_answers_belong_to_the_requests_in_the_order_they_were_sent(
    kinds: list[str], data: st.DataObject
) -> None:
    queue = CallQueue()
    requests = [echo() if kind == "echo" else Call(Ignored(), attached=False) for kind in kinds]
    queue.sent(requests)
    for place, request in enumerate(requests):
        assert queue.first is request
        if data.draw(st.booleans()):
            answer: Packet = Error(b"NO", b"why")
        else:
            answer = EchoRes(b"%d" % place) if kinds[place] == "echo" else JobCreated(b"H:%d" % place)
        assert receive(queue, answer) is request
        assert request.is_answered
        assert request.answer == (None if isinstance(answer, Error) else answer)
    assert queue.pending == []


def test_another_answer_than_the_one_that_is_due_breaks_the_protocol() -> None:
    queue = RequestQueue[Request]()
    with pytest.raises(RemoteProtocolError, match="ECHO_RES came, which answers nothing"):
        queue.match(PacketType.ECHO_RES)
    queue.sent([echo()])
    with pytest.raises(RemoteProtocolError, match="JOB_CREATED came where ECHO_RES was due"):
        queue.match(PacketType.JOB_CREATED)


def test_an_error_refuses_the_oldest_request_whatever_it_is() -> None:
    queue, full, other = CallQueue(), Call(Ignored()), echo()
    queue.sent([full, other])
    assert receive(queue, Error(b"QUEUE_ERROR", b"Job queue is full")) is full
    assert receive(queue, Error(b"OTHER", b"no")) is other
    assert receive(queue, Error(b"OTHER", b"no")) is None
    assert isinstance(full.failure, QueueFull)
    assert type(other.failure) is ServerError


def test_an_error_that_says_that_nobody_knows_of_the_job_is_no_refusal() -> None:
    queue, call = CallQueue(), Call(Ignored(), attached=False)
    queue.sent([call])
    assert receive(queue, Error(b"gearflow:uncertain", b"the database gives no answer")) is call
    assert isinstance(call.failure, SubmitUnknown)
    assert "the database gives no answer" in str(call.failure)


def test_an_attached_call_is_answered_by_its_end_and_others_may_be_answered_before() -> None:
    queue, first, second = CallQueue(), Call(Ignored()), Call(Ignored())
    queue.sent([first, second])
    assert receive(queue, JobCreated(b"H:1")) is None
    assert receive(queue, JobCreated(b"H:2")) is None
    assert receive(queue, WorkData(b"H:1", b"part")) is None
    assert receive(queue, WorkComplete(b"H:2", b"done")) is second
    assert queue.pending == [first]
    assert second.answer == WorkComplete(b"H:2", b"done")
    with pytest.raises(RemoteProtocolError, match="about no call of ours"):
        receive(queue, WorkComplete(b"H:2", b"again"))


@pytest.mark.parametrize(
    ("end", "code", "text"),
    [
        (WorkFail(b"H:1"), REFUSED, "the last warning"),
        (
            WorkException(b"H:1", b'{"type": "gearflow:full", "message": "no room"}'),
            "gearflow:full",
            "no room",
        ),
        (WorkException(b"H:1", b"plain"), REFUSED, "plain"),
    ],
)
def test_a_failed_call_has_the_servers_reason(end: Packet, code: str, text: str) -> None:
    queue, call = CallQueue(), Call(Ignored())
    queue.sent([call])
    receive(queue, JobCreated(b"H:1"))
    receive(queue, WorkWarning(b"H:1", b"the last warning"))
    assert receive(queue, end) is call
    assert isinstance(call.failure, ServerError)
    assert (call.failure.code, call.failure.text) == (code, text)


def test_a_closed_connection_leaves_all_that_has_no_answer() -> None:
    queue, attached, waiting = CallQueue(), Call(Ignored()), echo()
    queue.sent([attached, waiting])
    receive(queue, JobCreated(b"H:1"))
    assert queue.drain() == [waiting, attached]
    assert queue.pending == []


@pytest.mark.parametrize(
    ("answer", "is_gearflow", "wants_token"),
    [
        (OptionRes(b"gearflow"), True, False),
        (OptionRes(AUTH), True, True),
        (Error(b"UNKNOWN_OPTION", b"what?"), False, False),
    ],
)
def test_the_identification_says_which_server_it_is(
    answer: Packet, is_gearflow: bool, wants_token: bool
) -> None:
    queue, identification = CallQueue(), Identification(Ignored())
    queue.sent([identification])
    assert receive(queue, answer) is identification
    assert (identification.is_gearflow, identification.wants_token) == (is_gearflow, wants_token)


def test_the_exception_of_a_worker_is_no_fault_of_the_server() -> None:
    assert server_fault(b'{"type": "builtins.ValueError", "message": "gearflow:full"}') is None
    assert server_fault(b'"gearflow:full"') is None
    assert server_fault(b'{"type": "gearflow:timeout", "message": "later"}') == ("gearflow:timeout", "later")
