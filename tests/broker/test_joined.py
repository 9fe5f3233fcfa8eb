"""Submissions of which the store says that another server has their job, or of which it says nothing."""

from collections.abc import Sequence

import pytest

from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as api
from gearflow.protocol.packets import Packet
from tests.broker.harness import Peer
from tests.broker.sharing import Server, Truth, number_of


@pytest.fixture
def truth() -> Truth:
    return Truth()


@pytest.fixture
def server(truth: Truth) -> Server:
    return Server(truth)


@pytest.fixture
def other(truth: Truth) -> Server:
    return Server(truth)


def detached(client: Peer, unique: str = "u") -> None:
    request = api.SubmitRequest(function="work", unique=unique, detached=True)
    client(p.SubmitJob(api.SUBMIT, b"", request.to_wire() + b"\nx"))


def fault_of(answers: Sequence[Packet | bytes]) -> api.Fault:
    (failed,) = [answer for answer in answers if isinstance(answer, p.WorkException)]
    return api.Fault.model_validate_json(failed.data)


def nothing_waits(server: Server) -> bool:
    broker = server.broker
    return not (broker.jobs.by_number or broker.jobs.by_unique or broker.jobs.queued_bytes)


def test_two_servers_have_one_background_job_of_a_unique(server: Server, other: Server) -> None:
    handle = server.background(server.peer(), unique=b"u")
    assert other.background(other.peer(), unique=b"u") == handle
    assert other.worker().grab() is None
    assert nothing_waits(other)
    assert other.broker.functions.by_name[b"work"].total == 0
    assert server.worker().grab() == handle


def test_all_submitters_of_a_job_that_joined_get_the_other_handle_in_order(
    server: Server, other: Server
) -> None:
    handle = server.background(server.peer(), unique=b"u")
    first, second = other.peer(), other.peer()
    first(
        p.SubmitJobBg(b"work", b"", b"x"),
        p.SubmitJobBg(b"work", b"u", b"x"),
        p.SubmitJobBg(b"work", b"", b"x"),
    )
    second(p.SubmitJobBg(b"work", b"u", b"x"))
    other.commit()
    before, joined, after = first.read()
    assert joined == p.JobCreated(handle)
    assert before != joined != after != before
    assert second.read() == [p.JobCreated(handle)]


def test_the_unique_is_free_when_the_other_job_has_ended(server: Server, other: Server) -> None:
    handle = server.background(server.peer(), unique=b"u")
    client = other.peer()
    assert other.background(client, unique=b"u") == handle
    worker = server.worker()
    worker.grab()
    worker(p.WorkComplete(handle, b"r"))
    server.commit()
    mine = other.background(client, unique=b"u")
    assert mine != handle
    assert other.worker().grab() == mine


def test_a_client_that_is_attached_to_a_job_that_joined_has_one_of_its_own(
    server: Server, other: Server
) -> None:
    handle = server.background(server.peer(), unique=b"u")
    sender, caller, worker = other.peer(), other.peer(), other.worker()
    sender(p.SubmitJobBg(b"work", b"u", b"x"))
    caller(p.SubmitJob(b"work", b"u", b"x"))
    other.commit()
    assert sender.read() == [p.JobCreated(handle)]
    (created,) = caller.read()
    assert isinstance(created, p.JobCreated)
    assert created.handle != handle
    assert [worker.grab(), worker.grab()] == [created.handle, None]
    worker(p.WorkComplete(created.handle, b"r"))
    other.commit()
    assert caller.read() == [p.WorkComplete(created.handle, b"r")]
    assert nothing_waits(other)
    assert len(server.truth.jobs()) == 1


def test_a_job_of_a_client_that_leaves_while_its_job_joins_is_gone(server: Server, other: Server) -> None:
    handle = server.background(server.peer(), unique=b"u")
    sender, caller = other.peer(), other.peer()
    sender(p.SubmitJobBg(b"work", b"u", b"x"))
    caller(p.SubmitJob(b"work", b"u", b"x"))
    caller.leave()
    other.commit()
    assert sender.read() == [p.JobCreated(handle)]
    assert nothing_waits(other)


def test_an_attached_job_goes_on_when_a_background_submission_joins_another(
    server: Server, other: Server
) -> None:
    handle = server.background(server.peer(), unique=b"u")
    caller, sender, worker = other.peer(), other.peer(), other.worker()
    attached = caller.submit(unique=b"u")
    assert worker.grab() == attached
    for _ in range(2):
        assert other.background(sender, unique=b"u") == handle
    detached(sender)
    other.commit()
    assert p.WorkComplete in map(type, sender.read())
    worker(p.WorkComplete(attached, b"r"))
    other.commit()
    assert caller.read() == [p.WorkComplete(attached, b"r")]
    assert len(server.truth.jobs()) == 1


def test_a_detached_submission_is_answered_with_the_other_handle(server: Server, other: Server) -> None:
    handle = server.background(server.peer(), unique=b"u")
    client = other.peer()
    detached(client)
    other.commit()
    *_, answer = client.read()
    assert isinstance(answer, p.WorkComplete)
    assert api.Submitted.model_validate_json(answer.result).handle == handle.decode()


# ------------------------------------------------------------------------------------ nobody knows


def refused(server: Server, client: Peer, *, stored: bool) -> Sequence[Packet | bytes]:
    server.is_away = True
    server.lose_patience(stored=stored)
    server.is_away = False
    return client.read()


@pytest.mark.parametrize("stored", [False, True])
def test_a_client_gets_to_know_that_its_job_may_have_been_stored(server: Server, stored: bool) -> None:
    client = server.peer()
    client(p.OptionReq(b"gearflow"), p.SubmitJobBg(b"work", b"", b"x"))
    client.read()
    (error,) = refused(server, client, stored=stored)
    assert isinstance(error, p.Error)
    assert error.code == b"gearflow:uncertain"
    assert b"the job may have been stored: the database cannot be reached" in error.text


def test_other_clients_get_an_error_that_they_know(server: Server) -> None:
    client = server.peer()
    client(p.SubmitJobBg(b"work", b"", b"x"))
    (error,) = refused(server, client, stored=False)
    assert isinstance(error, p.Error)
    assert error.code == b"QUEUE_ERROR"
    assert b"may have been stored" in error.text


def test_each_client_gets_the_reason_of_its_own_job(server: Server) -> None:
    first, second = server.peer(), server.peer()
    first(p.OptionReq(b"gearflow"), p.SubmitJobBg(b"work", b"u", b"x"))
    second(p.OptionReq(b"gearflow"), p.SubmitJobBg(b"work", b"v", b"x"), p.SubmitJobBg(b"work", b"u", b"x"))
    first.read()
    second.read()
    refusals = iter(["the disk is full", None])  # of u, and of v
    for change, done in server.broker.journal.drain():
        if done is not None:
            done(next(refusals) if change is not None else None)
    assert [answer.code for answer in first.read() if isinstance(answer, p.Error)] == [b"QUEUE_ERROR"]
    assert [type(answer) for answer in second.read()] == [p.JobCreated, p.Error]


def test_a_detached_submission_may_have_been_stored(server: Server) -> None:
    client = server.peer()
    client(p.OptionReq(b"exceptions"))
    detached(client)
    fault = fault_of(refused(server, client, stored=False))
    assert fault.type == "gearflow:uncertain"
    assert "may have been stored" in fault.message


@pytest.mark.parametrize("unique", [b"", b"~" + b"0" * 32])
def test_a_job_that_nobody_else_can_have_joined_is_forgotten(server: Server, unique: bytes) -> None:
    client = server.peer()
    client(p.SubmitJobBg(b"work", unique, b"x"))
    refused(server, client, stored=True)
    assert len(server.truth.jobs()) == 1
    server.commit()
    assert server.truth.jobs() == []
    assert server.worker().grab() is None


def test_a_job_that_others_may_have_joined_runs(server: Server, other: Server) -> None:
    client = server.peer()
    client(p.SubmitJobBg(b"work", b"u", b"x"))
    refused(server, client, stored=True)
    server.commit()
    handle = other.background(other.peer(), unique=b"u")
    assert server.worker().grab() is None
    server.broker.ownership.resolve()
    server.commit()
    assert server.worker().grab() == handle


def test_a_job_in_doubt_that_was_not_stored_is_gone(server: Server) -> None:
    client = server.peer()
    client(p.SubmitJobBg(b"work", b"u", b"x"))
    refused(server, client, stored=False)
    server.broker.ownership.resolve()
    server.commit()
    assert server.worker().grab() is None
    assert server.background(client, unique=b"u") == server.worker().grab()


def test_the_next_submission_of_the_unique_joins_the_job_in_doubt(server: Server) -> None:
    client = server.peer()
    client(p.SubmitJobBg(b"work", b"u", b"x"))
    refused(server, client, stored=True)
    (job,) = server.truth.jobs()
    assert number_of(server.background(client, unique=b"u")) == job.number
    worker = server.worker()
    assert [worker.grab() is not None, worker.grab()] == [True, None]


def test_a_job_in_doubt_goes_with_its_lot(server: Server, other: Server) -> None:
    client = server.peer()
    client(p.SubmitJobBg(b"work", b"u", b"x"))
    refused(server, client, stored=True)
    mine = min(server.lots)
    other.adopt(mine)
    server.disown(mine)
    server.broker.ownership.resolve()
    server.commit()
    assert server.worker().grab() is None
    assert other.worker().grab() is not None


def test_a_job_that_is_on_its_way_to_the_store_of_a_lost_lot_is_refused(
    server: Server, other: Server
) -> None:
    client = server.peer()
    client(p.SubmitJobBg(b"work", b"u", b"x"))
    mine = min(server.lots)
    other.adopt(mine)
    server.disown(mine)
    server.commit()
    (error,) = client.read()
    assert isinstance(error, p.Error)
    assert nothing_waits(server)
    assert server.worker().grab() is None
    assert server.truth.jobs() == []


def test_a_job_that_comes_back_with_its_lot_before_its_outcome_is_known_is_kept(server: Server) -> None:
    client = server.peer()
    client(p.SubmitJobBg(b"work", b"u", b"x"))
    journal, mine = server.broker.journal, min(server.lots)
    entries = journal.drain()
    for change, _ in entries:
        if change is not None:
            server.truth.commit_one(server, change)
    server.disown(mine)
    server.adopt(mine)
    for change, done in entries:
        if done is not None:
            done("another server has the lot" if change is not None else None)
    (created,) = client.read()
    assert isinstance(created, p.JobCreated)
    worker = server.worker()
    assert [worker.grab(), worker.grab()] == [created.handle, None]


def test_a_submission_whose_unique_has_just_ended_is_refused_while_that_is_not_written(
    server: Server,
) -> None:
    client, worker = server.peer(), server.worker()
    handle = server.background(client, unique=b"u")
    worker.grab()
    worker(p.WorkComplete(handle, b"r"))
    ends = server.broker.journal.drain()
    for change, done in ends:
        if change is not None and done is not None:
            done("cannot be written now")
    client(p.SubmitJobBg(b"work", b"u", b"x"))
    server.commit()
    (error,) = client.read()
    assert isinstance(error, p.Error)
    assert b"is not written yet" in error.text
