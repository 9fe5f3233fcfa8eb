"""JOB_CREATED of a call waits a moment for the end of its job, unless the client goes on when it has it."""

from gearflow.broker.acknowledging import LINGER
from gearflow.protocol import packets as p
from gearflow.protocol.codec import encode
from gearflow.protocol.packets import Packet
from tests.broker.harness import Peer, World

CALL = p.SubmitJob(b"work", b"", b"x")


def send(world: World, peer: Peer, *packets: Packet) -> None:
    world.broker.receive(peer.session, b"".join(map(encode, packets)), world.now)


def told(world: World, peer: Peer) -> list[type[Packet]]:
    """What the shell would write to the peer now."""
    due = list(peer.session.outbox)
    assert bool(due) == (peer.session in world.broker.dirty)
    world.broker.dirty.clear()
    return [type(packet) for packet in (peer.read() if due else []) if not isinstance(packet, bytes)]


def complete_one(worker: Peer) -> None:
    handle = worker.grab()
    assert handle is not None
    worker(p.WorkComplete(handle, b"y"))


def test_it_goes_out_with_the_end_of_a_short_job() -> None:
    world = World()
    client, worker = world.peer(), world.worker()
    for _ in range(3):
        send(world, client, CALL)
        assert told(world, client) == []
        world.pass_time(LINGER / 2)
        complete_one(worker)
        assert told(world, client) == [p.JobCreated, p.WorkComplete]


def test_it_goes_out_alone_when_nothing_has_followed() -> None:
    world = World()
    client = world.peer()
    send(world, client, CALL)
    assert world.broker.next_due() == world.now + LINGER
    world.pass_time(LINGER)
    assert told(world, client) == [p.JobCreated]
    assert world.broker.next_due() is None


def test_each_waits_its_own_time() -> None:
    world = World()
    first, second = world.peer(), world.peer()
    send(world, first, CALL)
    world.pass_time(LINGER / 2)
    send(world, second, CALL)
    world.pass_time(LINGER / 2)
    assert (told(world, first), told(world, second)) == ([p.JobCreated], [])
    world.pass_time(LINGER / 2)
    assert told(world, second) == [p.JobCreated]


def test_whoever_goes_on_when_it_has_it_is_told_at_once_from_then_on() -> None:
    world = World()
    client = world.peer()
    send(world, client, CALL)
    world.pass_time(LINGER)
    assert told(world, client) == [p.JobCreated]
    for _ in range(3):
        send(world, client, CALL)
        assert told(world, client) == [p.JobCreated]


def test_whoever_waits_for_the_end_of_a_long_job_is_not_taken_for_one_that_goes_on() -> None:
    world = World()
    client, worker = world.peer(), world.worker()
    for _ in range(3):
        send(world, client, CALL)
        world.pass_time(LINGER)
        assert told(world, client) == [p.JobCreated]
        complete_one(worker)
        assert told(world, client) == [p.WorkComplete]
    send(world, client, CALL)
    assert told(world, client) == []


def test_the_next_end_takes_it_along_where_several_calls_are_under_way() -> None:
    world = World()
    client, worker = world.peer(), world.worker()
    send(world, client, CALL, CALL)
    assert told(world, client) == [p.JobCreated, p.JobCreated]
    complete_one(worker)
    assert told(world, client) == [p.WorkComplete]
    send(world, client, CALL)
    assert told(world, client) == []
    complete_one(worker)
    assert told(world, client) == [p.JobCreated, p.WorkComplete]


def test_any_answer_takes_it_along() -> None:
    world = World()
    client = world.peer()
    send(world, client, CALL)
    send(world, client, p.EchoReq(b"?"))
    assert told(world, client) == [p.JobCreated, p.EchoRes]


def test_a_worker_that_calls_has_it_before_its_next_job() -> None:
    world = World()
    world.peer().submit(b"other")
    both = world.worker(b"other")
    send(world, both, CALL)
    assert told(world, both) == []
    send(world, both, p.GrabJob())
    assert told(world, both) == [p.JobCreated, p.JobAssign]


def test_that_of_a_background_job_does_not_wait() -> None:
    world = World()
    client = world.peer()
    send(world, client, p.SubmitJobBg(b"work", b"", b"x"))
    assert told(world, client) == [p.JobCreated]
    send(world, client, CALL)
    send(world, client, p.SubmitJobBg(b"work", b"", b"x"))
    assert told(world, client) == [p.JobCreated, p.JobCreated]


def test_nobody_is_told_who_is_gone() -> None:
    world = World()
    client = world.peer()
    send(world, client, CALL)
    client.leave()
    world.pass_time(LINGER)
    assert world.broker.dirty == []
    assert world.broker.next_due() is None
