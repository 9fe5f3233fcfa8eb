"""Work that takes several turns, and what others do between them."""

import json

import pytest

from gearflow.broker.turns import MANY
from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as api
from gearflow.protocol.metrics import METRICS
from gearflow.protocol.packets import Packet
from tests.broker.costs import names
from tests.broker.harness import Disk, Durable, Peer, World

COUNT = 3 * MANY


def clients_of_one_job(world: World) -> tuple[list[Peer], bytes]:
    clients = [world.peer() for _ in range(COUNT)]
    (handle,) = {client.submit(unique=b"one") for client in clients}
    return clients, handle


def worker_of_many(world: World) -> Peer:
    return world.worker(*names(COUNT))


def worker_with_stale_functions(world: World) -> Peer:
    """A worker of many functions, whose jobs another worker has taken."""
    worker, other = worker_of_many(world), worker_of_many(world)
    client = world.peer()
    client(*(p.SubmitJobBg(name, b"", b"x") for name in names(COUNT)))
    other(*[p.GrabJob()] * COUNT)
    return worker


def test_a_client_may_leave_while_the_end_of_its_job_is_sent_to_many(world: World) -> None:
    clients, handle = clients_of_one_job(world)
    worker = world.worker()
    worker.grab()
    world.be_late()
    worker(p.WorkComplete(handle, b"r"))
    assert clients[0].read() == [p.WorkComplete(handle, b"r")]
    assert clients[-1].read() == []
    clients.pop().leave()
    world.finish()
    assert all(client.read() == [p.WorkComplete(handle, b"r")] for client in clients[1:])
    assert not any(client.session.attached for client in clients)


def test_a_new_job_of_the_unique_is_none_of_the_one_that_ends(world: World) -> None:
    clients, first = clients_of_one_job(world)
    worker = world.worker()
    worker.grab()
    world.be_late()
    worker(p.WorkComplete(first, b"r"))
    second = clients[-1].submit(unique=b"one")
    assert second != first
    world.finish()
    assert clients[-1].read() == [p.WorkComplete(first, b"r")]
    assert worker.grab() == second
    assert worker(p.WorkComplete(second, b"again")) == []
    world.finish()
    assert clients[-1].read() == [p.WorkComplete(second, b"again")]


def test_all_clients_may_leave_while_their_job_is_cancelled(world: World) -> None:
    clients, handle = clients_of_one_job(world)
    worker = world.worker()
    worker(p.SubmitJob(api.EVENTS, b"", b""))
    worker.grab()
    world.be_late()
    assert world.broker.cancel(handle)
    for client in clients[MANY:]:
        client.leave()
    world.finish()
    assert all(client.read() == [p.WorkFail(handle)] for client in clients[:MANY])
    assert len(worker.read()) == 1  # one event


def test_exceptions_go_to_those_of_many_clients_that_want_them(world: World) -> None:
    clients, handle = clients_of_one_job(world)
    for client in clients[::2]:
        client(p.OptionReq(b"exceptions"))
    worker = world.worker()
    worker.grab()
    world.be_late()
    worker(p.WorkException(handle, b"oh"))
    world.finish()
    answers: list[list[Packet | bytes]] = [[p.WorkException(handle, b"oh")], [p.WorkFail(handle)]]
    assert [client.read() for client in clients] == answers * (COUNT // 2)


def test_the_requests_of_a_worker_of_many_functions_are_answered_in_order(world: World) -> None:
    worker = worker_with_stale_functions(world)
    world.be_late()
    world.peer().submit_background(b"other")
    first, last = names(COUNT)[0], names(COUNT)[-1]
    worker(p.GrabJob(), p.CantDo(first), p.CanDo(b"other"), p.GrabJob(), p.EchoReq(b"last"))
    world.peer().submit_background(last)
    world.finish()
    functions = [each.function if isinstance(each, p.JobAssign) else each for each in worker.read()]
    assert functions == [last, b"other", p.EchoRes(b"last")]


def test_a_worker_of_many_functions_may_leave_while_a_job_is_looked_for(world: World) -> None:
    worker = worker_with_stale_functions(world)
    world.be_late()
    worker(p.GrabJob())
    worker.leave()
    world.peer().submit_background(names(COUNT)[-1])
    world.finish()
    assert not any(function.workers == 2 for function in world.broker.functions.by_name.values())
    assert world.worker(names(COUNT)[-1]).grab() is not None


def test_a_worker_of_many_functions_is_woken_for_any_of_them(world: World) -> None:
    worker = worker_with_stale_functions(world)
    world.be_late()
    worker(p.PreSleep())
    world.finish()
    assert worker.read() == []
    for name in names(COUNT)[::100]:
        handle = world.peer().submit_background(name)
        assert worker.read() == [p.Noop()]
        assert worker.grab() == handle
        worker(p.PreSleep())


def test_a_worker_of_many_functions_takes_the_best_priority_and_then_turns(world: World) -> None:
    worker = worker_of_many(world)
    client = world.peer()
    some = names(COUNT)[:3]
    for name in some:
        client(
            p.SubmitJobLowBg(name, b"", b"x"), p.SubmitJobBg(name, b"", b"x"), p.SubmitJobBg(name, b"", b"x")
        )
    client(p.SubmitJobHighBg(some[1], b"", b"x"))
    answers = [worker(p.GrabJob())[0] for _ in range(10)]
    functions = [answer.function for answer in answers if isinstance(answer, p.JobAssign)]
    assert functions == [some[1], *some, *some, *some]
    assert worker.grab() is None


def test_a_function_that_was_not_served_for_long_comes_first(world: World) -> None:
    worker = worker_of_many(world)
    client = world.peer()
    busy, rare = names(COUNT)[:2]
    client(*[p.SubmitJobBg(busy, b"", b"x")] * 5)
    for _ in range(2):
        assert worker.grab() is not None
    handle = client.submit_background(rare)
    assert worker.grab() == handle


def test_a_worker_of_many_functions_gets_no_job_of_a_paused_one(world: World) -> None:
    worker = worker_of_many(world)
    name = names(COUNT)[0]
    handle = world.peer().submit_background(name)
    function = world.broker.functions.by_name[name]
    world.broker.dispatcher.pause(function, True)
    assert worker.grab() is None
    worker.sleep()
    world.broker.dispatcher.pause(function, False)
    assert worker.read() == [p.Noop()]
    assert worker.grab() == handle


def test_a_worker_withdraws_many_functions_before_it_offers_others(world: World) -> None:
    worker = worker_of_many(world)
    world.be_late()
    some = names(COUNT)[:2]
    worker(p.ResetAbilities(), *map(p.CanDo, some), p.GrabJob())
    world.finish()
    assert worker.read() == [p.NoJob()]
    workers = {function.name: function.workers for function in world.broker.functions.by_name.values()}
    assert {name for name, count in workers.items() if count} == set(some)


class Faulty(Disk):
    """A store with a bug."""

    def dead_total(self) -> int:
        raise ZeroDivisionError


def test_a_call_that_meets_a_bug_has_an_answer() -> None:
    client = Durable(Faulty()).peer()
    client(p.OptionReq(b"exceptions"))
    with pytest.raises(ZeroDivisionError):  # the shell logs it
        client(p.SubmitJob(METRICS, b"", b""))
    *_, end = client.read()
    assert isinstance(end, p.WorkException)
    assert json.loads(end.data)["message"] == "the server has a fault, which is in its log"
