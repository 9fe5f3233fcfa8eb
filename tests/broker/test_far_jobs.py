"""Calls about jobs that another server has: two servers, and one store."""

import json

import pytest

from gearflow.broker.core import ServerGroup
from gearflow.broker.handles import lot_of
from gearflow.broker.storage import RecordOf
from gearflow.errors import StoreError
from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as api
from gearflow.protocol import workers
from gearflow.protocol.packets import Packet
from gearflow.protocol.server_events import read_watch_event
from tests.broker.harness import Peer
from tests.broker.sharing import Server, Truth, number_of
from tests.broker.test_streams import Stream, listening, nothing_is_left, numbered, yields


@pytest.fixture
def truth() -> Truth:
    return Truth()


@pytest.fixture
def server(truth: Truth) -> Server:
    """The server that has the jobs."""
    return Server(truth)


@pytest.fixture
def other(truth: Truth) -> Server:
    """The server that is asked."""
    return Server(truth)


@pytest.fixture
def asker(other: Server) -> Peer:
    peer = other.peer("asker")
    assert peer(p.OptionReq(b"exceptions")) == [p.OptionRes(b"exceptions")]
    return peer


def submit(server: Server, unique: str = "", **options: object) -> bytes:
    """A background job of a server's."""
    client = server.peer()
    request = json.dumps({"function": "work", "detached": True, **options}).encode()
    answers = client(p.SubmitJobBg(api.SUBMIT, unique.encode(), request + b"\nx"))
    server.settle()
    (created,) = answers + client.read()
    assert isinstance(created, p.JobCreated)
    return created.handle


def started(server: Server, **options: object) -> tuple[bytes, Peer]:
    """A running job, and its worker."""
    handle = submit(server, "", **options)
    worker = listening(server)
    assert worker.grab() == handle
    return handle, worker


def ends(server: Server, worker: Peer, packet: Packet) -> None:
    worker(packet)
    server.settle()


def failed(server: Server) -> bytes:
    """A dead letter."""
    handle, worker = started(server)
    ends(server, worker, p.WorkFail(handle))
    worker.leave()
    return handle


def ask(server: Server, peer: Peer, function: bytes, /, **request: object) -> list[Packet | bytes]:
    """A call. What is answered at once, without its handle."""
    answers = peer(p.SubmitJob(function, b"", json.dumps(request).encode()))
    server.settle()
    answers += peer.read()
    assert isinstance(answers[0], p.JobCreated)
    return answers[1:]


def fault_of(answers: list[Packet | bytes]) -> tuple[str, str]:
    (answer,) = answers
    assert isinstance(answer, p.WorkException)
    fault = api.Fault.model_validate_json(answer.data)
    return fault.type, fault.message


def text_of(answers: list[Packet | bytes]) -> bytes:
    (answer,) = answers
    assert isinstance(answer, p.WorkComplete)
    return answer.result


def done(answers: list[Packet | bytes]) -> dict[str, object]:
    found: dict[str, object] = json.loads(text_of(answers))
    return found


def move(truth: Truth, handle: bytes, source: Server, target: Server) -> None:
    """A server adopts the lot of a job."""
    lot = lot_of(number_of(handle))
    target.adopt(lot)
    target.settle()
    source.disown(lot)
    source.settle()
    assert truth.owners[lot] is target


# --------------------------------------------------------------------------------------------- results


def test_a_result_comes_when_the_job_has_ended_elsewhere(server: Server, other: Server, asker: Peer) -> None:
    handle, worker = started(server)
    assert ask(other, asker, api.RESULT, handle=handle.decode()) == []
    other.pass_time(1)
    assert asker.read() == []
    ends(server, worker, p.WorkComplete(handle, b"r"))
    other.pass_time(0.5)
    assert asker.read() == []
    other.pass_time(0.5)
    (answer,) = asker.read()
    assert isinstance(answer, p.WorkComplete)
    assert answer.result == b"r"
    assert not asker.session.waits
    assert not other.port.asked
    other.pass_time(5)
    assert other.broker.next_due() is None


def test_all_that_wait_look_in_one_turn(server: Server, other: Server) -> None:
    handles = [submit(server) for _ in range(3)]
    for seconds, handle in enumerate(handles):
        ask(other, other.peer(), api.RESULT, handle=handle.decode())
        other.pass_time(seconds / 10)
    other.prompt = False
    other.pass_time(0.8)
    questions = [question for question, _ in other.port.asked]
    assert questions == [RecordOf(number_of(handle)) for handle in handles]
    other.prompt = True
    other.settle()
    assert other.broker.next_due() == other.now + 1


@pytest.mark.parametrize("timeout", [0, 0.5, 1.5])
def test_a_call_waits_no_longer_than_it_says(
    server: Server, other: Server, asker: Peer, timeout: float
) -> None:
    handle = submit(server)
    answers = ask(other, asker, api.RESULT, handle=handle.decode(), timeout=timeout)
    if timeout:
        assert answers == []
        other.pass_time(timeout / 2)
        assert asker.read() == []
        other.pass_time(timeout / 2)
        answers = asker.read()
    kind, text = fault_of(answers)
    assert kind == "gearflow:timeout"
    assert text == f"job {handle.decode()} has not ended in time; another server has it"
    assert not asker.session.waits


def test_a_job_of_which_nothing_is_kept_has_ended(server: Server, other: Server, asker: Peer) -> None:
    handle, worker = started(server, keep=0)
    ask(other, asker, api.RESULT, handle=handle.decode())
    ends(server, worker, p.WorkComplete(handle, b"r"))
    other.pass_time(1)
    text = f"job {handle.decode()} has ended, and what became of it is not kept"
    assert fault_of(asker.read()) == ("gearflow:unknown", text)


@pytest.mark.parametrize("function", [api.RESULT, api.INFO, api.STREAM, api.WATCH, api.CANCEL])
def test_a_job_that_never_was_is_unknown(server: Server, other: Server, asker: Peer, function: bytes) -> None:
    handle = submit(server)
    never = b"%b%d" % (handle[: handle.rindex(b":") + 1], number_of(handle) + 7)
    assert fault_of(ask(other, asker, function, handle=never.decode()))[0] == "gearflow:unknown"
    assert other.broker.next_due() is None


def test_a_job_that_ends_between_two_questions_is_found(server: Server, other: Server, asker: Peer) -> None:
    handle, worker = started(server)
    other.prompt = False
    ask(other, asker, api.RESULT, handle=handle.decode())
    other.port.answer()  # there is no record
    ends(server, worker, p.WorkComplete(handle, b"r"))
    other.port.answer()  # and now no job
    other.prompt = True
    other.settle()
    (answer,) = asker.read()
    assert isinstance(answer, p.WorkComplete)
    assert answer.result == b"r"


def test_a_store_that_is_away_for_a_while_fails_no_call_that_waits(
    server: Server, other: Server, asker: Peer
) -> None:
    handle, worker = started(server)
    ask(other, asker, api.RESULT, handle=handle.decode())
    other.prompt = False
    for _ in range(3):
        other.pass_time(1)
        (asked,) = other.port.asked
        other.port.asked.clear()
        asked[1](StoreError("it is away"))
        assert asker.read() == []
    other.prompt = True
    ends(server, worker, p.WorkComplete(handle, b"r"))
    other.pass_time(1)
    assert isinstance(asker.read()[-1], p.WorkComplete)


@pytest.mark.parametrize("leaves", [False, True])
def test_who_leaves_is_not_waited_for(server: Server, other: Server, asker: Peer, leaves: bool) -> None:
    handle = submit(server)
    created, *_ = asker(p.SubmitJob(api.RESULT, b"", api.ResultRequest(handle=handle.decode()).to_wire()))
    other.settle()
    assert isinstance(created, p.JobCreated)
    if leaves:
        asker.leave()
    else:
        assert done(ask(other, asker, api.DETACH, handle=created.handle.decode())) == {"jobs": 1}
    assert not asker.session.waits
    other.pass_time(1)
    assert not other.port.asked
    assert other.broker.next_due() is None


def test_the_end_of_a_job_that_is_adopted_here_comes_at_once(
    truth: Truth, server: Server, other: Server, asker: Peer
) -> None:
    handle = submit(server)
    ask(other, asker, api.RESULT, handle=handle.decode())
    move(truth, handle, server, other)
    other.pass_time(1)
    worker = other.worker()
    assert worker.grab() == handle
    ends(other, worker, p.WorkComplete(handle, b"r"))
    assert isinstance(asker.read()[-1], p.WorkComplete)


@pytest.mark.parametrize("named", ["handle", "unique"])
def test_the_end_of_a_job_that_is_adopted_elsewhere_comes_too(
    truth: Truth, server: Server, other: Server, named: str
) -> None:
    handle = submit(server, unique="u") if named == "unique" else submit(server)
    name = {"handle": handle.decode()} if named == "handle" else {"function": "work", "unique": "u"}
    peers = [server.peer() for _ in range(3)]
    for peer, function in zip(peers, [api.RESULT, api.WATCH, api.STREAM], strict=True):
        ask(server, peer, function, **name)
    move(truth, handle, server, other)
    worker = other.worker()
    assert worker.grab() == handle
    ends(other, worker, p.WorkComplete(handle, b"r"))
    server.pass_time(1)
    for peer in peers:
        last = peer.read()[-1]
        assert isinstance(last, p.WorkComplete)
        assert last.result == b"r"
    assert nothing_is_left(server)


# --------------------------------------------------------------------------------- what is shown of it


def test_a_far_job_is_described_with_its_owner(server: Server, other: Server, asker: Peer) -> None:
    handle = submit(server, delay=100)
    lot = lot_of(number_of(handle))
    other.broker.group = ServerGroup("g", "me", (), "", {lot: "host:4730"})
    info = api.JobInfo.model_validate_json(text_of(ask(other, asker, api.INFO, handle=handle.decode())))
    assert (info.state, info.owner, info.function, info.size) == ("delayed", "host:4730", "work", 1)
    other.now += 200
    assert done(ask(other, asker, api.INFO, handle=handle.decode()))["state"] == "waiting"


def test_a_watcher_sees_the_state_and_the_end(server: Server, other: Server, asker: Peer) -> None:
    handle, worker = started(server)
    (event,) = ask(other, asker, api.WATCH, handle=handle.decode())
    assert isinstance(event, p.WorkData)
    assert read_watch_event(event.data)[0]["state"] == "waiting"
    other.pass_time(1)
    assert asker.read() == []
    worker.leave()
    server.settle()
    other.pass_time(1)
    (event,) = asker.read()
    assert isinstance(event, p.WorkData)
    again = server.worker()
    assert again.grab() == handle
    ends(server, again, p.WorkComplete(handle, b"r"))
    other.pass_time(1)
    (answer,) = asker.read()
    assert isinstance(answer, p.WorkComplete)


# -------------------------------------------------------------------------------------------- streams


def test_a_reader_gets_kept_parts_and_then_the_end(server: Server, other: Server) -> None:
    handle, worker = started(server, stream_keep=1 << 20)
    stream = Stream(other.peer(), handle)
    other.settle()
    assert stream.read() == [(0, 1)]
    seen: list[object] = []
    for first in (1, 101, 201):
        yields(worker, handle, numbered(first, first + 99))
        server.settle()
        other.pass_time(1)
        seen += stream.read()
        while new := stream.take(len(seen)):
            seen += new
    assert seen == numbered(1, 300)
    yields(worker, handle, [b"last"])
    ends(server, worker, p.WorkComplete(handle, b"r"))
    other.pass_time(1)
    assert stream.read() == [(300, 1), b"last", p.WorkComplete(stream.call, b"r")]
    assert nothing_is_left(other)
    other.pass_time(2)
    assert other.broker.next_due() is None


def test_two_readers_of_a_far_job_are_where_they_are(server: Server, other: Server) -> None:
    handle, worker = started(server)
    yields(worker, handle, numbered(1, 10))
    server.settle()
    first, latest, third = (Stream(other.peer(), handle, after=after) for after in (0, "latest", 8))
    other.settle()
    assert first.read() == [(0, 1), *numbered(1, 10)]
    assert latest.read() == [(10, 1)]
    assert third.read() == [(8, 1), b"9", b"10"]
    yields(worker, handle, [b"11"])
    server.settle()
    other.pass_time(1)
    assert first.read() == latest.read() == third.read() == [b"11"]
    assert first.leave() == latest.leave() == third.leave() == 1
    other.pass_time(1)
    assert nothing_is_left(other)
    assert other.broker.next_due() is None


def test_a_reader_begins_again_with_the_parts_of_another_run(server: Server, other: Server) -> None:
    handle, worker = started(server)
    yields(worker, handle, numbered(1, 10))
    server.settle()
    stream = Stream(other.peer(), handle)
    other.settle()
    assert stream.read() == [(0, 1), *numbered(1, 10)]
    worker.leave()
    again = listening(server)
    assert again.grab() == handle
    yields(again, handle, [b"second 1", b"second 2"])
    ends(server, again, p.WorkComplete(handle, b"r"))
    other.pass_time(1)
    end = p.WorkComplete(stream.call, b"r")
    assert stream.read() == [(0, 2), b"second 1", b"second 2", end]


def test_a_reader_goes_on_when_the_job_comes_here(truth: Truth, server: Server, other: Server) -> None:
    handle, worker = started(server)
    yields(worker, handle, numbered(1, 10))
    server.settle()
    stream, at_owner = Stream(other.peer(), handle), Stream(server.peer(), handle)
    other.settle()
    assert stream.read() == at_owner.read() == [(0, 1), *numbered(1, 10)]
    move(truth, handle, server, other)
    other.pass_time(1)
    again = listening(other)
    again(p.SubmitJob(workers.REPORT, b"", b'{"resumable":["work"]}'))
    assert again.grab() == handle
    yields(again, handle, [b"11"])
    other.settle()
    assert [item for item in stream.read() if isinstance(item, bytes)] == [b"11"]
    server.pass_time(1)
    assert [item for item in at_owner.read() if isinstance(item, bytes)] == [b"11"]


# ---------------------------------------------------------------------------------------------- orders


def test_a_far_job_is_cancelled_by_its_owner(
    truth: Truth, server: Server, other: Server, asker: Peer
) -> None:
    handle = submit(server)
    assert ask(other, asker, api.CANCEL, handle=handle.decode()) == []
    assert len(truth.orders) == 1
    other.pass_time(1)
    assert asker.read() == []
    server.beat()
    assert not server.broker.jobs.by_number
    other.pass_time(1)
    assert done(asker.read()) == {"jobs": 1}
    assert truth.jobs() == []


def test_an_order_that_nobody_carries_out_is_late(
    truth: Truth, server: Server, other: Server, asker: Peer
) -> None:
    handle = submit(server)
    ask(other, asker, api.CANCEL, handle=handle.decode())
    for _ in range(10):
        assert asker.read() == []
        other.pass_time(1)
    assert fault_of(asker.read())[0] == "gearflow:timeout"
    assert server.broker.core.find(handle) is not None


def test_an_order_for_a_job_that_is_adopted_here_is_carried_out_here(
    truth: Truth, server: Server, other: Server, asker: Peer
) -> None:
    handle = submit(server)
    ask(other, asker, api.CANCEL, handle=handle.decode())
    move(truth, handle, server, other)
    other.pass_time(1)
    assert done(asker.read()) == {"jobs": 1}
    assert truth.jobs() == []
    other.beat()


def test_orders_may_come_twice(truth: Truth, server: Server, other: Server, asker: Peer) -> None:
    handle = submit(server)
    for _ in range(2):
        server.broker.carry_out(number_of(handle), "cancel")
        server.settle()
    letter = failed(server)
    for _ in range(2):
        server.broker.carry_out(number_of(letter), "replay")
    server.settle()
    server.broker.carry_out(number_of(letter), "replay")
    server.settle()
    worker = server.worker()
    assert worker.grab() == letter
    assert worker(p.GrabJob()) == [p.NoJob()]
    assert not server.broker.outgoing.notices


def test_a_letter_of_another_server_is_replayed_there(
    truth: Truth, server: Server, other: Server, asker: Peer
) -> None:
    handle = failed(server)
    request = {"action": "replay", "handle": handle.decode()}
    assert ask(other, asker, api.DEAD, **request) == []
    assert handle in {server.broker.core.handles.handle(order.number) for order in truth.orders}
    server.beat()
    other.pass_time(1)
    assert done(asker.read()) == {"jobs": 1}
    assert not other.broker.jobs.by_number
    assert server.worker().grab() == handle


def test_a_letter_that_is_one_again_at_once_was_replayed(server: Server, other: Server, asker: Peer) -> None:
    handle = failed(server)
    assert ask(other, asker, api.DEAD, action="replay", handle=handle.decode()) == []
    server.beat()
    server.now += 0.5
    worker = server.worker()
    assert worker.grab() == handle
    ends(server, worker, p.WorkFail(handle))
    other.pass_time(1)
    assert done(asker.read()) == {"jobs": 1}


def test_all_letters_of_all_servers_are_replayed(server: Server, other: Server, asker: Peer) -> None:
    handles = [failed(server), failed(other), failed(server)]
    assert ask(other, asker, api.DEAD, action="replay") == []
    server.beat()
    other.pass_time(1)
    assert done(asker.read()) == {"jobs": 3}
    worker, far = other.worker(), server.worker()
    assert {worker.grab(), far.grab(), far.grab()} == set(handles)


def test_a_letter_that_is_not_replayed_in_time_is_left(
    truth: Truth, server: Server, other: Server, asker: Peer
) -> None:
    handle = failed(server)
    ask(other, asker, api.DEAD, action="replay")
    one = other.peer("one")
    one(p.OptionReq(b"exceptions"))
    ask(other, one, api.DEAD, action="replay", handle=handle.decode())
    for _ in range(10):
        other.pass_time(1)
    assert done(asker.read()) == {"jobs": 0, "left": 1}
    assert fault_of(one.read())[0] == "gearflow:timeout"


def test_letters_of_all_servers_are_listed_and_purged(server: Server, other: Server, asker: Peer) -> None:
    handles = [failed(server), failed(other)]
    letters = api.Letters.model_validate_json(text_of(ask(other, asker, api.DEAD, action="list"))).letters
    assert [letter.handle.encode() for letter in letters] == sorted(handles, key=number_of)
    assert done(ask(other, asker, api.DEAD, action="purge")) == {"jobs": 2}
    assert other.truth.dead(None, 0, 10) == []
