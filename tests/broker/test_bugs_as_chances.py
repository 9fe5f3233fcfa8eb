"""gearmand's bugs, as chances: what a better server does. In the order of the reference's list.

The fourth, on the persistent queue, waits for one; so does half of the seventh, for TLS.
"""

import tracemalloc

import pytest

from gearflow.broker import Broker, SizeLimits
from gearflow.broker.function_table import IDLE
from gearflow.errors import RemoteProtocolError
from gearflow.protocol import packets as p
from gearflow.protocol import server_calls
from gearflow.protocol.constants import HEADER, REQ, PacketType
from gearflow.server import ServerSettings
from gearflow.server.admin import answer
from tests.broker.harness import PREFIX, Peer, World

NOOP = p.Noop()


# ------------------------------------------------------------------------------------- 1: nobody can kill it


def test_a_packet_type_with_the_top_bit_set_costs_its_sender_the_connection_and_nobody_else(
    world: World, client: Peer
) -> None:
    attacker = world.peer()
    with pytest.raises(RemoteProtocolError):
        attacker(HEADER.pack(REQ, 0x8000_0000 | PacketType.ECHO_REQ, 0))
    attacker.leave()
    assert client(p.EchoReq(b"x")) == [p.EchoRes(b"x")]


@pytest.mark.parametrize("number", [b"9" * 20, b"9" * 5000])
def test_numbers_of_any_length_kill_nobody(client: Peer, number: bytes) -> None:
    assert client(p.CanDoTimeout(b"work", number), p.EchoReq(b"x")) == [p.EchoRes(b"x")]


# -------------------------------------------------------------------------------- 2: coalescing loses no job


def test_a_background_job_outlives_the_foreground_client_that_joined_it(world: World, client: Peer) -> None:
    handle = client.submit_background(unique=b"u")
    other = world.peer()
    other.submit(unique=b"u")
    other.leave()
    assert world.worker().grab() == handle


def test_a_background_submission_makes_a_foreground_job_outlive_its_client(
    world: World, client: Peer
) -> None:
    handle = client.submit(unique=b"u")
    assert world.peer().submit_background(unique=b"u") == handle
    client.leave()
    assert world.worker().grab() == handle


def test_a_unique_whose_job_was_abandoned_is_a_new_job(world: World, client: Peer) -> None:
    abandoned = client.submit(unique=b"u")
    client.leave()
    assert world.broker.core.find(abandoned) is None
    handle = world.peer().submit(unique=b"u")
    assert handle != abandoned
    assert world.worker().grab() == handle


def test_a_client_that_joins_a_running_abandoned_job_gets_its_result(world: World, client: Peer) -> None:
    handle = client.submit(unique=b"u")
    worker = world.worker()
    worker.grab()
    client.leave()
    late = world.peer()
    assert late.submit(unique=b"u") == handle
    worker(p.WorkComplete(handle, b"r"))
    assert late.read() == [p.WorkComplete(handle, b"r")]


def test_a_cancelled_job_is_not_run_and_its_unique_is_free(world: World, client: Peer) -> None:
    handle = client.submit(unique=b"u")
    assert world.broker.cancel(handle)
    assert client.read() == [p.WorkFail(handle)]
    assert not world.broker.cancel(handle)
    again = client.submit(unique=b"u")
    assert world.worker().grab() == again


# ------------------------------------------------------------------------- 3: time limits, dropped functions


def test_a_limit_is_disarmed_by_the_end_and_armed_anew_by_the_next_job(world: World, client: Peer) -> None:
    worker = world.peer()
    worker(p.CanDoTimeout(b"work", b"1000"))
    first, second = client.submit_background(), client.submit_background()
    assert worker.grab() == first
    world.pass_time(0.9)
    worker(p.WorkComplete(first, b""))
    assert world.broker.next_due() is None
    assert worker.grab() == second
    world.pass_time(0.9)
    assert worker(p.WorkComplete(second, b"")) == []


def test_limits_of_jobs_that_ended_do_not_pile_up(world: World, client: Peer) -> None:
    worker = world.peer()
    worker(p.CanDoTimeout(b"work", b"3600000"))
    for _ in range(1000):
        handle = client.submit_background()
        worker.grab()
        worker(p.WorkComplete(handle, b""))
    assert len(world.broker.core.timeouts.heap) < 100


def test_a_function_is_dropped_only_without_workers_and_jobs(world: World, client: Peer) -> None:
    world.broker.create(b"work")
    worker = world.worker()
    assert not world.broker.drop(b"work")
    worker.leave()
    client.submit_background()
    assert not world.broker.drop(b"work")
    assert world.worker().grab()
    world.broker.create(b"other")
    assert world.broker.drop(b"other")
    with pytest.raises(KeyError):
        world.broker.drop(b"other")


# -------------------------------------------------------------------------- 5: jobs that wait for their time


def test_a_delayed_job_waits_for_its_time_and_wakes_a_worker(world: World, client: Peer) -> None:
    worker = world.worker().sleep()
    when = b"%d" % (world.now + 3)
    (created,) = client(p.SubmitJobEpoch(b"work", b"", when, b"x"))
    assert isinstance(created, p.JobCreated)
    assert worker(p.GrabJob()) == [p.NoJob()]
    worker.sleep()
    world.pass_time(2.9)
    assert worker.read() == []
    assert world.broker.next_due() == pytest.approx(world.now + 0.1)
    world.pass_time(0.2)
    assert worker(p.GrabJob()) == [NOOP, p.JobAssign(created.handle, b"work", b"x")]


def test_a_delayed_job_does_not_hide_others(world: World, client: Peer) -> None:
    client(
        p.SubmitJobEpoch(b"work", b"", b"%d" % (world.now + 3), b"later"),
        p.SubmitJobLowBg(b"work", b"", b"now"),
    )
    worker = world.worker()
    assert worker(p.PreSleep()) == [NOOP]
    assert worker.grab() == b"H:test:2"
    assert worker(p.PreSleep()) == []


# ------------------------------------------------------------------------------------------- 6: long uniques


@pytest.mark.parametrize("size", [63, 64])
def test_a_long_unique_reaches_the_worker_whole_and_moves_no_byte_of_the_workload(
    world: World, client: Peer, size: int
) -> None:
    handle = client.submit(unique=b"u" * size, workload=b"\0workload")
    assert client.submit(unique=b"u" * size) == handle
    assert world.worker()(p.GrabJobUniq()) == [
        p.JobAssignUniq(handle, b"work", b"u" * size, b"\0workload"),
    ]


@pytest.mark.parametrize(("unique", "reducer"), [(b"u" * 65, b"r"), (b"u" * 8000, b"r"), (b"u", b"r" * 65)])
def test_a_unique_or_reducer_that_is_too_long_is_refused_and_nothing_of_the_memory_shown(
    world: World, client: Peer, unique: bytes, reducer: bytes
) -> None:
    refused = p.Error(b"ARGUMENT_TOO_LARGE", b"Unique value too large")
    assert client(p.SubmitReduceJob(b"work", unique, reducer, b"0", b"x")) == [refused]
    assert world.worker()(p.GrabJobAll()) == [p.NoJob()]


# ------------------------------------------------------------------------------------------------- 7: limits


def test_there_is_a_limit_to_what_a_peer_sends_stores_and_leaves_unfinished(world: World) -> None:
    world.broker = Broker(PREFIX, lambda line: line, SizeLimits(body=100, queued=150, packet_time=10))
    client = world.peer()
    (refused,) = client(p.EchoReq(bytes(101)))
    assert isinstance(refused, p.Error)
    client.submit_background(workload=bytes(90))
    (refused,) = client(p.SubmitJobBg(b"work", b"", bytes(90)))
    assert isinstance(refused, p.Error)
    client(b"stat")
    assert world.broker.parser.overdue(world.now + 9) == []
    assert world.broker.parser.overdue(world.now + 11) == [client.session]


# ------------------------------------------------------------------------ 8: withdrawing, and offering twice


@pytest.mark.parametrize("withdrawal", [p.CantDo(b"work"), p.ResetAbilities()])
def test_withdrawing_a_function_does_not_take_the_running_job_away(
    world: World, client: Peer, withdrawal: p.Packet
) -> None:
    handle = client.submit()
    worker = world.worker()
    worker.grab()
    assert worker(withdrawal, p.WorkComplete(handle, b"r")) == []
    assert client.read() == [p.WorkComplete(handle, b"r")]
    assert world.worker().grab() is None


def test_a_worker_that_offers_a_function_twice_is_one_worker(world: World) -> None:
    worker = world.worker(b"work", b"work")
    assert world.broker.functions.by_name[b"work"].workers == 1
    worker(p.CantDo(b"work"))
    assert world.broker.functions.by_name[b"work"].workers == 0


# ---------------------------------------------------------------------- 9: no herd, priority over all, turns


def test_as_many_sleepers_are_woken_as_there_are_jobs(world: World, client: Peer) -> None:
    sleepers = [world.worker().sleep() for _ in range(4)]
    client.submit_background()
    client.submit_background()
    assert [peer.read() for peer in sleepers] == [[NOOP], [NOOP], [], []]


def test_priority_counts_across_all_functions_of_a_worker(world: World, client: Peer) -> None:
    client(
        p.SubmitJobLowBg(b"a", b"", b"low"),
        p.SubmitJobBg(b"b", b"", b"normal"),
        p.SubmitJobHighBg(b"a", b"", b"high"),
    )
    worker = world.worker(b"a", b"b")
    assert [worker.grab() for _ in range(4)] == [b"H:test:3", b"H:test:2", b"H:test:1", None]


def test_functions_of_one_priority_take_turns(world: World, client: Peer) -> None:
    for _ in range(3):
        client.submit_background(b"busy")
    client.submit_background(b"rare")
    worker = world.worker(b"rare", b"busy")
    taken = [worker(p.GrabJob())[0] for _ in range(4)]
    assert b"rare" in [job.function for job in taken[:2] if isinstance(job, p.JobAssign)]


# ---------------------------------------------------------------------------------------- 10: abandoned jobs


def test_abandoned_jobs_keep_no_memory(world: World) -> None:
    for _ in range(1000):
        client = world.peer()
        client.submit(workload=b"x" * 1000)
        client.leave()
    function = world.broker.functions.by_name[b"work"]
    assert function.total == 0
    assert sum(map(len, function.lanes)) < 100


def test_an_abandoned_job_does_not_fill_the_queue_for_others(world: World, client: Peer) -> None:
    leaving = world.peer()
    leaving.submit()
    world.broker.functions.limit(b"work", 1, 1, 1)
    assert isinstance(client(p.SubmitJob(b"work", b"", b"x"))[0], p.Error)
    leaving.leave()
    assert client.submit()


def test_of_the_names_that_nobody_uses_those_used_last_are_kept(world: World, client: Peer) -> None:
    waiting = client.submit_background(b"waiting")
    worker = world.worker(b"offered")
    world.broker.create(b"limited")
    world.broker.functions.limit(b"limited", 5, 5, 5)
    world.broker.dispatcher.pause(world.broker.functions.ensure(b"paused"), True)
    for number in range(IDLE + 500):
        world.broker.create(b"%d" % number)
    names = world.broker.functions.by_name.keys()
    assert len(names) <= IDLE + 4
    assert {b"waiting", b"offered", b"limited", b"paused", b"%d" % (IDLE + 499)} <= names
    assert b"0" not in names
    assert world.worker(b"waiting").grab() == waiting
    offered = client.submit_background(b"offered")
    assert worker.grab() == offered


@pytest.mark.parametrize("last_use", ["cancelled", "completed", "withdrawn", "unlimited", "resumed", "left"])
def test_a_name_is_dropped_once_it_is_used_no_more(world: World, client: Peer, last_use: str) -> None:
    functions = world.broker.functions
    for number in range(2 * IDLE):
        name = b"%d" % number
        match last_use:
            case "cancelled":
                world.broker.cancel(client.submit_background(name))
            case "completed":
                handle = client.submit_background(name)
                worker = world.worker(name)
                assert worker.grab() == handle
                worker.leave()
                assert world.worker(name)(p.GrabJob(), p.WorkComplete(handle, b""), p.ResetAbilities())
            case "withdrawn":
                world.worker(name)(p.CantDo(name))
            case "unlimited":
                functions.ensure(name)
                functions.limit(name, 1, 1, 1)
                functions.limit(name, None, None, None)
            case "resumed":
                world.broker.dispatcher.pause(functions.ensure(name), True)
                world.broker.dispatcher.pause(functions.ensure(name), False)
            case _:
                leaving = world.peer()
                leaving.submit(name)
                leaving.leave()
    assert len(functions.by_name) <= IDLE
    assert b"%d" % (2 * IDLE - 1) in functions.by_name


def test_a_name_that_nobody_uses_costs_little_memory() -> None:
    world = World()
    tracemalloc.start()
    try:
        for number in range(1000):
            leaving = world.peer()
            leaving.submit(b"%d" % number)
            leaving.leave()
            world.broker.outgoing.dirty.clear()  # as the shell does
        assert len(world.broker.functions.by_name) == 1000
        assert tracemalloc.get_traced_memory()[0] < 1000 * 1100
    finally:
        tracemalloc.stop()


# --------------------------------------------------------------------------------- 11: bursts of connections


def test_a_thousand_connections_find_room_in_the_backlog() -> None:
    assert ServerSettings().backlog >= 1024


# ----------------------------------------------------------------------------------------- 12: text commands


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_created_function_has_its_whole_name_however_the_line_ends(world: World, end: bytes) -> None:
    world.broker = Broker(PREFIX, lambda line: answer(world.broker, line))
    assert world.peer()(b"create function resize" + end) == [b"OK"]
    assert list(world.broker.functions.by_name) == [b"resize"]


def test_dropping_a_function_drops_that_one_and_none_that_differs_in_case(world: World) -> None:
    world.broker = Broker(PREFIX, lambda line: answer(world.broker, line))
    operator = world.peer()
    operator(b"create function Work\ncreate function work\n")
    assert operator(b"drop function work\n") == [b"OK"]
    assert list(world.broker.functions.by_name) == [b"Work"]


def test_a_client_id_with_a_line_end_stays_in_its_row(world: World) -> None:
    world.broker = Broker(PREFIX, lambda line: answer(world.broker, line))
    worker = world.worker()
    worker(p.SetClientId(b"two words\nand a line"))
    assert worker(b"workers\n") == [b"7 worker two words\\nand a line : work", b"."]


# ------------------------------------------------------------------------------- 13: what the protocol lacks


def test_an_extension_is_asked_for_by_an_option_which_fails_softly_elsewhere(client: Peer) -> None:
    assert client(p.OptionReq(b"gearflow")) == [p.OptionRes(b"gearflow")]
    assert client(p.OptionReq(b"another"), p.EchoReq(b"x")) == [
        p.Error(b"UNKNOWN_OPTION", b"Server does not recognize given option"),
        p.EchoRes(b"x"),
    ]


def test_a_worker_that_listens_hears_that_its_running_job_was_cancelled(world: World, client: Peer) -> None:
    handle = client.submit()
    worker, other = world.worker(), world.worker()
    events = worker.submit(server_calls.EVENTS, workload=b"")
    other.submit(server_calls.EVENTS, workload=b"")
    worker.grab()
    world.broker.cancel(handle)
    (told,) = worker.read()
    assert isinstance(told, p.WorkData)
    assert told.handle == events
    assert server_calls.cancelled_handle(told.data) == handle
    assert other.read() == []
    assert worker(p.WorkFail(handle)) == []
    assert not world.broker.jobs.by_number
