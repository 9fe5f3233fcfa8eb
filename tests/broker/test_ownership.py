"""Kept jobs that come from other servers, go to them, and are held while nobody knows whose they are."""

import pytest

from gearflow.broker import JobState
from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as api
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


def lot(server: Server) -> int:
    (only,) = server.lots
    return only


# ---------------------------------------------------------------------------------------------- holding


def test_held_jobs_are_not_given_out_and_attached_ones_are(server: Server) -> None:
    client, worker = server.peer(), server.worker()
    kept = [server.background(client) for _ in range(2)]
    attached = client.submit()
    server.hold()
    assert worker.grab() == attached
    assert worker.grab() is None
    later = client.submit()
    kept.append(server.background(client))
    assert worker.grab() == later
    assert worker.grab() is None
    server.hold(False)
    assert [worker.grab() for _ in range(4)] == [*kept, None]


def test_a_worker_that_slept_is_woken_for_attached_jobs_and_when_the_hold_is_over(server: Server) -> None:
    client, worker = server.peer(), server.worker()
    server.hold()
    worker.sleep()
    handle = server.background(client)
    assert worker.read() == []
    attached = client.submit()
    assert worker.read() == [p.Noop()]
    assert worker.grab() == attached
    worker(p.WorkComplete(attached, b""))
    assert worker.grab() is None
    worker.sleep()
    server.hold(False)
    assert worker.read() == [p.Noop()]
    assert worker.grab() == handle


def test_held_jobs_count_and_are_listed(server: Server) -> None:
    client = server.peer()
    server.background(client)
    server.hold()
    server.background(client)
    client.submit()
    function = server.broker.functions.by_name[b"work"]
    assert (function.total, function.waiting, function.waiting_of(1)) == (3, 1, 3)
    assert len(function.waiting_jobs()) == 3
    assert not server.broker.drop(b"work")
    server.hold(False)
    assert (function.total, function.waiting, function.waiting_of(1)) == (3, 3, 3)


def test_held_jobs_can_be_cancelled_and_do_not_come_back(server: Server) -> None:
    client, worker = server.peer(), server.worker()
    first, second, third = (server.background(client) for _ in range(3))
    server.hold()
    assert server.broker.cancel(first)
    assert server.broker.cancel(third)
    server.commit()
    assert server.broker.functions.by_name[b"work"].total == 1
    server.hold(False)
    assert [worker.grab(), worker.grab()] == [second, None]


def test_a_function_of_which_all_held_jobs_were_cancelled_is_as_before(server: Server) -> None:
    client = server.peer()
    handle = server.background(client)
    server.hold()
    server.broker.cancel(handle)
    server.commit()
    assert server.broker.drop(b"work")
    server.hold(False)
    handle = server.background(client)
    assert server.worker().grab() == handle


def test_a_delayed_job_that_becomes_due_is_held(server: Server) -> None:
    client, worker = server.peer(), server.worker()
    client(p.SubmitJobEpoch(b"work", b"", b"%d" % (server.now + 10), b"x"))
    server.commit()
    (created,) = client.read()
    server.hold()
    server.pass_time(11)
    assert worker.grab() is None
    server.hold(False)
    assert isinstance(created, p.JobCreated)
    assert worker.grab() == created.handle


def test_a_job_that_comes_back_from_its_worker_is_held(server: Server) -> None:
    client, first, second = server.peer(), server.worker(), server.worker()
    handle = server.background(client)
    assert first.grab() == handle
    server.hold()
    first.leave()
    assert second.grab() is None
    server.hold(False)
    assert second.grab() == handle


def test_an_attached_job_that_becomes_a_kept_one_is_held(server: Server) -> None:
    client, worker = server.peer(), server.worker()
    handle = client.submit(unique=b"u")
    later = client.submit()
    server.hold()
    assert server.background(client, unique=b"u") == handle
    assert [worker.grab(), worker.grab()] == [later, None]
    server.hold(False)
    assert worker.grab() == handle


def test_jobs_of_a_paused_function_are_held_until_both_are_over(server: Server) -> None:
    client, worker = server.peer(), server.worker()
    handle, attached = server.background(client), client.submit()
    function = server.broker.functions.by_name[b"work"]
    assert server.broker.dispatcher.pause(function, True) == 2
    server.hold()
    assert worker.grab() is None
    assert server.broker.dispatcher.pause(function, False) == 2
    assert [worker.grab(), worker.grab()] == [attached, None]
    server.broker.dispatcher.pause(function, True)
    server.hold(False)
    assert worker.grab() is None
    server.broker.dispatcher.pause(function, False)
    assert worker.grab() == handle


def test_a_held_grab_is_answered_with_an_attached_job_only(server: Server) -> None:
    client, worker = server.peer(), server.worker()
    assert worker.grab() is None
    worker.sleep()
    first = client.submit()
    assert worker.read() == [p.Noop()]
    assert worker.grab() == first
    worker(p.WorkComplete(first, b""))
    client.read()
    server.hold()
    assert worker(p.GrabJob()) == []  # held, as it expects a job
    handle = server.background(client)
    assert worker.read() == []
    attached = client.submit()
    assert [packet.handle for packet in worker.read() if isinstance(packet, p.JobAssign)] == [attached]
    server.hold(False)
    assert worker.grab() == handle


def test_a_function_that_becomes_known_while_jobs_are_held_holds_its_own(server: Server) -> None:
    server.hold()
    handle = server.background(server.peer(), b"new")
    worker = server.worker(b"new")
    assert worker.grab() is None
    server.hold(False)
    assert worker.grab() == handle


def test_a_worker_of_many_functions_gets_no_held_job(server: Server) -> None:
    names = [b"f%d" % n for n in range(150)]
    client, worker = server.peer(), server.worker(*names)
    handle = server.background(client, names[70])
    server.hold()
    attached = client.submit(names[70])
    assert [worker.grab(), worker.grab()] == [attached, None]
    worker.sleep()
    server.hold(False)
    assert worker.read() == [p.Noop()]
    assert worker.grab() == handle


def test_from_the_start_of_a_hold_no_kept_job_is_given_out_and_attached_ones_follow(server: Server) -> None:
    client, worker = server.peer(), server.worker()
    kept = [server.background(client) for _ in range(250)]
    attached = [client.submit() for _ in range(2)]
    server.be_late()
    server.hold()
    assert worker.grab() is None
    ended = client.submit(unique=b"ended")
    kept.append(server.background(client))
    attached.append(client.submit())
    server.broker.cancel(ended)
    server.broker.cancel(kept.pop(100))
    server.broker.cancel(attached.pop(1))
    server.commit()
    assert worker.grab() is None
    server.finish()
    assert [worker.grab() for _ in range(3)] == [*attached, None]
    server.hold(False)
    server.finish()
    assert [worker.grab() for _ in range(251)] == [*kept, None]


def test_a_hold_that_ends_early_and_begins_again_leaves_all_jobs_in_order(server: Server) -> None:
    client, worker = server.peer(), server.worker()
    kept = [server.background(client) for _ in range(350)]
    attached = client.submit()
    server.be_late()
    server.hold()
    server.proceed()
    server.hold(False)
    server.proceed()
    server.hold()
    server.proceed()
    assert worker.grab() is None
    server.finish()
    assert [worker.grab(), worker.grab()] == [attached, None]
    server.hold(False)
    server.finish()
    assert [worker.grab() for _ in range(351)] == [*kept, None]


def test_an_attached_job_becomes_a_kept_one_while_jobs_are_sorted(server: Server) -> None:
    client, worker = server.peer(), server.worker()
    joined = client.submit(unique=b"u")
    kept = [server.background(client) for _ in range(250)]
    server.be_late()
    server.hold()
    server.proceed()
    assert server.background(client, unique=b"u") == joined
    server.finish()
    assert worker.grab() is None
    server.hold(False)
    server.finish()
    assert {worker.grab() for _ in range(251)} == {*kept, joined}


# --------------------------------------------------------------------------------------- jobs that move


def test_jobs_of_an_adopted_lot_are_run_under_their_handles(server: Server, other: Server) -> None:
    handles = [server.background(server.peer()) for _ in range(2)]
    other.adopt(lot(server))
    worker = other.worker()
    assert [worker.grab(), worker.grab(), worker.grab()] == [*handles, None]
    worker(p.WorkComplete(handles[0], b"r"))
    other.commit()
    assert [job.number for job in other.truth.jobs()] == [number_of(handles[1])]


def test_adopted_jobs_are_held_while_the_adopter_is_in_doubt(server: Server, other: Server) -> None:
    handle = server.background(server.peer())
    other.hold()
    other.adopt(lot(server))
    worker = other.worker()
    assert worker.grab() is None
    other.hold(False)
    assert worker.grab() == handle


def test_a_job_that_was_adopted_twice_is_there_once(server: Server, other: Server) -> None:
    handle = server.background(server.peer(), unique=b"u")
    other.adopt(lot(server))
    other.adopt(lot(server))
    worker = other.worker()
    assert [worker.grab(), worker.grab()] == [handle, None]


def test_jobs_of_a_lost_lot_are_gone_and_attached_ones_stay(server: Server, other: Server) -> None:
    client, worker = server.peer(), server.worker()
    kept, attached = server.background(client, unique=b"u"), client.submit(unique=b"v")
    other.adopt(lot(server))
    server.disown(lot(server))
    assert [worker.grab(), worker.grab()] == [attached, None]
    worker(p.WorkComplete(attached, b"r"))
    assert client.read() == [p.WorkComplete(attached, b"r")]
    assert not server.broker.jobs.by_number
    assert not server.broker.jobs.by_unique
    assert server.broker.jobs.queued_bytes == 0
    assert server.broker.functions.by_name[b"work"].total == 0
    assert other.worker().grab() == kept


def test_a_delayed_job_of_a_lost_lot_does_not_become_due(server: Server) -> None:
    client = server.peer()
    client(p.SubmitJobEpoch(b"work", b"", b"%d" % (server.now + 10), b"x"))
    server.commit()
    server.disown(lot(server))
    server.pass_time(11)
    assert server.worker().grab() is None
    assert server.broker.functions.by_name[b"work"].total == 0


def test_a_run_of_a_lost_job_is_cancelled_and_its_result_is_not_known(server: Server, other: Server) -> None:
    worker = server.worker()
    created, *_ = worker(p.SubmitJob(api.EVENTS, b"", b""))
    assert isinstance(created, p.JobCreated)
    handle = server.background(server.peer())
    assert worker.grab() == handle
    other.adopt(lot(server))
    server.disown(lot(server))
    assert worker.read() == [p.WorkData(created.handle, api.cancel_event(handle))]
    (error,) = worker(p.WorkComplete(handle, b"r"))
    assert isinstance(error, p.Error)
    assert error.code == b"JOB_NOT_FOUND"
    server.commit()
    assert other.worker().grab() == handle


def test_a_result_that_comes_before_the_server_knows_is_dropped(server: Server, other: Server) -> None:
    worker = server.worker()
    handle = server.background(server.peer())
    worker.grab()
    other.adopt(lot(server))
    worker(p.WorkComplete(handle, b"r"))
    server.disown(lot(server))
    server.commit()
    assert not server.broker.journal.has_failed
    assert any("is not recorded" in notice.text for notice in server.broker.outgoing.notices)
    assert other.worker().grab() == handle


def test_ends_that_could_not_be_written_go_with_their_lot(server: Server, other: Server) -> None:
    worker = server.worker()
    handle = server.background(server.peer())
    worker.grab()
    worker(p.WorkComplete(handle, b"r"))
    server.lose_patience()
    assert server.broker.journal.has_failed
    other.adopt(lot(server))
    server.disown(lot(server))
    assert not server.broker.journal.has_failed


def test_the_attached_clients_of_a_lost_job_get_an_end(server: Server) -> None:
    client = server.peer()
    handle = server.background(client, unique=b"u")
    assert client.submit(unique=b"u") == handle
    server.disown(lot(server))
    warning, failed = client.read()
    assert isinstance(warning, p.WorkWarning)
    assert b"another server has this job" in warning.data
    assert failed == p.WorkFail(handle)
    assert not client.session.attached


def test_calls_that_wait_for_a_lost_job_look_again(server: Server) -> None:
    client = server.peer()
    handle = server.background(client, unique=b"u")
    request = api.ResultRequest(handle=handle.decode()).to_wire()
    client(p.OptionReq(b"exceptions"), p.SubmitJob(api.RESULT, b"", request))
    server.commit()
    watch = api.WatchRequest(handle=handle.decode()).to_wire()
    stream = api.StreamRequest(handle=handle.decode()).to_wire()
    client(p.SubmitJob(api.WATCH, b"", watch), p.SubmitJob(api.STREAM, b"", stream))
    server.disown(lot(server))
    server.commit()
    assert not [packet for packet in client.read() if isinstance(packet, p.WorkException)]
    assert len(client.session.waits) == 2
    assert len(client.session.readers) == 1
    assert not server.broker.jobs.by_number


def test_a_lot_comes_back_to_its_server(server: Server, other: Server) -> None:
    client, worker = server.peer(), server.worker()
    running, waiting = server.background(client), server.background(client, unique=b"u")
    assert worker.grab() == running
    mine = lot(server)
    server.disown(mine)
    server.adopt(mine)
    second = server.worker()
    assert [second.grab(), second.grab()] == [running, waiting]
    (error,) = worker(p.WorkComplete(running, b"late"))
    assert isinstance(error, p.Error)
    assert second(p.WorkComplete(running, b"r"), p.WorkComplete(waiting, b"r")) == []
    server.commit()
    assert not server.truth.jobs()


@pytest.mark.parametrize("is_written", [True, False])
def test_a_job_that_ends_while_its_lot_is_read_does_not_run_again(
    server: Server, other: Server, is_written: bool
) -> None:
    handle = other.background(other.peer(), unique=b"u")
    adopt = server.read(lot(other))
    client, worker = server.peer(), server.worker()
    client(p.SubmitJobBg(b"work", b"u", b"x"))  # it joins that job, which is found by that
    server.commit()
    assert worker.grab() == handle
    worker(p.WorkComplete(handle, b"r"))
    if is_written:
        server.commit()
    adopt()
    assert worker.grab() is None
    server.settle()
    assert worker.grab() is None
    assert not server.truth.jobs()


def test_a_job_runs_again_if_its_lot_was_lost_before_its_end_was_kept(server: Server, other: Server) -> None:
    handle = server.background(server.peer())
    worker, mine = server.worker(), lot(server)
    assert worker.grab() == handle
    other.adopt(mine)
    worker(p.WorkComplete(handle, b"r"))
    server.disown(mine)
    server.commit()
    other.disown(mine)
    server.adopt(mine)
    assert worker.grab() == handle


def test_a_lot_comes_back_while_its_jobs_are_on_their_way_out(server: Server) -> None:
    client, worker = server.peer(), server.worker()
    handles = [server.background(client) for _ in range(5)]
    mine = lot(server)
    server.be_late()
    server.disown(mine)
    assert worker.grab() is None
    server.adopt(mine)
    server.finish()
    assert [worker.grab() for _ in range(6)] == [*handles, None]


def test_no_job_of_a_lot_is_given_out_while_its_jobs_go(server: Server, other: Server) -> None:
    client, worker = server.peer(), server.worker()
    for _ in range(5):
        server.background(client)
    attached = client.submit()
    adopted = other.background(other.peer())
    server.adopt(lot(other))
    mine = min(server.lots)
    server.be_late()
    server.disown(mine)
    assert worker.grab() is None
    server.finish()
    assert [worker.grab(), worker.grab(), worker.grab()] in (
        [attached, adopted, None],
        [adopted, attached, None],
    )


def test_a_lost_lot_leaves_the_jobs_of_others(server: Server, other: Server) -> None:
    handle = server.background(server.peer())
    other.background(other.peer())
    mine = lot(server)
    server.adopt(lot(other))
    server.disown(lot(other))
    assert server.lots == {mine}
    worker = server.worker()
    assert [worker.grab(), worker.grab()] == [handle, None]


def test_a_cancelled_job_that_comes_back_stays_cancelled(server: Server) -> None:
    worker = server.worker()
    handle = server.background(server.peer())
    worker.grab()
    mine = lot(server)
    server.is_away = True
    server.broker.cancel(handle)
    server.lose_patience()
    server.is_away = False
    server.disown(mine)
    server.adopt(mine)
    server.commit()
    assert server.truth.jobs() == []
    assert worker(p.WorkComplete(handle, b"r")) == []
    assert server.worker().grab() is None


def test_an_attached_job_that_turns_out_to_be_kept_is_a_kept_job(server: Server) -> None:
    client = server.peer()
    handle = client.submit(unique=b"u")
    server.is_away = True
    client(p.SubmitJobBg(b"work", b"u", b"x"))
    server.lose_patience(stored=True)
    server.is_away = False
    mine = lot(server)
    server.disown(mine)
    assert server.broker.core.find(handle) is not None
    server.adopt(mine)
    job = server.broker.core.find(handle)
    assert job is not None
    assert (job.kept, job.background, job.state) == (True, True, JobState.WAITING)
    worker = server.worker()
    assert [worker.grab(), worker.grab()] == [handle, None]


# --------------------------------------------------------------------- workloads that the store has


def fetching(server: Server) -> tuple[Peer, bytes]:
    """A worker that was given a job whose workload is on its way from the store."""
    client, worker = server.peer(), server.worker()
    client(p.SubmitJobBg(b"work", b"", b"x" * 5000))
    server.commit()
    (created,) = client.read()
    assert isinstance(created, p.JobCreated)
    server.prompt = False
    assert worker(p.GrabJob()) == []
    return worker, created.handle


def answer(server: Server) -> None:
    server.prompt = True
    server.commit()


def assigned(worker: Peer) -> list[bytes]:
    return [answer.handle for answer in worker.read() if isinstance(answer, p.JobAssign)]


def test_a_job_whose_workload_comes_during_a_hold_is_not_given_out(server: Server) -> None:
    worker, handle = fetching(server)
    server.hold()
    answer(server)
    assert worker.read() == [p.NoJob()]
    worker.sleep()
    server.hold(False)
    assert worker.read() == [p.Noop()]
    assert worker.grab() == handle


def test_a_job_whose_workload_comes_after_its_lot_was_lost_is_not_given_out(server: Server) -> None:
    worker, _ = fetching(server)
    attached = server.peer().submit()
    server.disown(lot(server))
    answer(server)
    assert assigned(worker) == [attached]
    assert server.broker.functions.by_name[b"work"].running == 1
    worker(p.WorkComplete(attached, b""))
    assert not server.broker.jobs.by_number


def test_a_job_whose_lot_came_back_before_its_workload_is_given_out_once(server: Server) -> None:
    worker, handle = fetching(server)
    mine = lot(server)
    server.disown(mine)
    server.adopt(mine)
    answer(server)
    assert assigned(worker) == [handle]
    assert server.worker().grab() is None
    worker(p.WorkComplete(handle, b"r"))
    server.commit()
    assert not server.truth.jobs()
    assert server.broker.functions.by_name[b"work"].total == 0


def test_a_worker_may_leave_while_the_workload_of_a_lost_job_comes(server: Server) -> None:
    worker, _ = fetching(server)
    server.disown(lot(server))
    worker.leave()
    answer(server)
    assert server.broker.functions.by_name[b"work"].total == 0


def test_the_parts_of_a_lost_job_are_read_from_where_the_reader_was(server: Server) -> None:
    client, worker = server.peer(), server.worker()
    handle = server.background(client)
    worker.grab()
    client(p.OptionReq(b"exceptions"))
    request = api.StreamRequest(handle=handle.decode(), after=0).to_wire()
    client(p.SubmitJob(api.STREAM, b"", request))
    server.commit()
    worker(p.WorkData(handle, b"1"), p.WorkData(handle, b"2"))
    server.commit()
    assert [answer.data for answer in client.read() if isinstance(answer, p.WorkData)] == [b"1", b"2"]
    mine = lot(server)
    server.disown(mine)
    server.adopt(mine)
    assert not client.session.readers
    server.commit()
    assert len(client.session.readers) == 1
    second = server.worker()
    assert second.grab() == handle
    second(p.WorkData(handle, b"3"), p.WorkComplete(handle, b"r"))
    server.commit()
    answers = client.read()
    assert [answer.data for answer in answers if isinstance(answer, p.WorkData)] == [b"3"]
    assert [answer.result for answer in answers if isinstance(answer, p.WorkComplete)] == [b"r"]
