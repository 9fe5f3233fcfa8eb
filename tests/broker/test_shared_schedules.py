"""Servers that share a store share their schedules: one job a tick, whichever of them is first."""

import json
from typing import Any

import pytest

from gearflow.broker.storage import StoredJob
from gearflow.protocol import packets as p
from tests.broker.clockwork import NOON, scheduled_at
from tests.broker.sharing import Server, Truth


class Pair:
    """Two servers, and one clock."""

    def __init__(self) -> None:
        self.truth = Truth()
        self.servers = [Server(self.truth), Server(self.truth)]
        for server in self.servers:
            server.broker.clock.offset = NOON - server.now

    def call(self, number: int, function: bytes, **request: Any) -> Any:
        """The answer of a server to a call."""
        server = self.servers[number]
        caller = server.peer("caller")
        caller(p.OptionReq(b"exceptions"))
        answers = caller(p.SubmitJob(function, b"", json.dumps(request).encode()))
        server.settle()
        answers += caller.read()
        last = answers[-1]
        assert isinstance(last, p.WorkComplete), answers
        return json.loads(last.result)

    def put(self, number: int = 0, **when: Any) -> None:
        spec = {"name": "s", "function": "work", "when": {"every": 60, **when}}
        self.call(number, b"gearflow:schedule", do="put", schedules=[spec])
        for server in self.servers:
            server.beat()

    def pass_time(self, seconds: float, *numbers: int, beats: bool = True) -> None:
        """Time passes for all. Only these servers see it pass, or all of them."""
        for place, server in enumerate(self.servers):
            if not numbers or place in numbers:
                for _ in range(int(seconds * 2)):
                    server.pass_time(0.5)
                    if beats:
                        server.beat()
            else:
                server.now += seconds
                server.broker.clock.now = server.now

    def jobs(self) -> list[StoredJob]:
        return [job for job in self.truth.jobs() if job.unique.startswith(b"cron:")]

    def minutes(self) -> list[float]:
        """The times of the ticks whose jobs have not ended, in minutes after noon."""
        return sorted((scheduled_at(job) - NOON) / 60 for job in self.jobs())

    def progress(self, number: int) -> Any:
        return self.servers[number].broker.schedules.table[b"s"].progress


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_the_server_that_is_second_takes_over_what_the_first_has_kept(pair: Pair) -> None:
    pair.put(overlap="allow")
    pair.pass_time(63, beats=False)  # neither hears of the other
    assert pair.minutes() == [1]
    assert pair.progress(0) == pair.progress(1)
    pair.pass_time(60, beats=False)
    assert pair.minutes() == [1, 2]
    assert pair.progress(0).ticks == pair.progress(1).ticks == 2


@pytest.mark.parametrize("alive", [0, 1])
def test_one_server_alone_makes_all_jobs(pair: Pair, alive: int) -> None:
    pair.put(overlap="allow")
    pair.pass_time(64)
    pair.pass_time(120, alive)
    assert pair.minutes() == [1, 2, 3]


def test_a_server_that_holds_its_jobs_makes_no_tick(pair: Pair) -> None:
    pair.put(overlap="allow")
    pair.servers[0].hold()
    pair.pass_time(64, 0)
    assert pair.minutes() == []
    pair.servers[0].hold(False)
    pair.pass_time(2, 0)
    assert pair.minutes() == [1]


def test_a_server_that_comes_back_makes_no_tick_that_another_made(pair: Pair) -> None:
    pair.put(overlap="allow", missed="all")
    pair.pass_time(200, 0)
    assert pair.minutes() == [1, 2, 3]
    pair.servers[1].pass_time(1)  # it has not heard of them
    pair.pass_time(5, 1, beats=False)
    assert pair.minutes() == [1, 2, 3]
    assert pair.progress(1).ticks == 3


@pytest.mark.parametrize("overlap", ["skip", "queue", "cancel"])
def test_the_overlap_sees_a_job_of_another_server(pair: Pair, overlap: str) -> None:
    pair.put(overlap=overlap)
    pair.pass_time(64, 0)
    (job,) = pair.jobs()
    pair.servers[1].beat()
    pair.pass_time(60, 1)  # the first server does nothing
    if overlap == "cancel":
        assert pair.minutes() == [1, 2]
        pair.servers[0].beat()
        assert pair.minutes() == [2]
        return
    assert pair.minutes() == [1]
    assert (pair.progress(1).overlapped, pair.progress(1).queued) == (
        (1, None) if overlap == "skip" else (0, NOON + 120)
    )
    worker = pair.servers[0].worker()
    (assigned,) = worker(p.GrabJob())
    assert isinstance(assigned, p.JobAssign)
    assert assigned.handle.endswith(b":%d" % job.number)
    worker(p.WorkComplete(assigned.handle, b""))
    pair.servers[0].settle()
    pair.pass_time(3, 1)
    assert pair.minutes() == ([2] if overlap == "queue" else [])


def test_a_pause_at_one_server_holds_at_the_other(pair: Pair) -> None:
    pair.put(overlap="allow")
    pair.call(1, b"gearflow:schedule", do="pause", name="s")
    pair.pass_time(64, 0, beats=False)  # the other has not heard of it
    assert pair.minutes() == []
    assert pair.progress(0).paused


def test_a_change_that_was_overtaken_is_made_again(pair: Pair) -> None:
    pair.put(overlap="allow")
    pair.pass_time(64, 0)
    assert pair.progress(1).ticks == 0  # it has not heard of the tick
    shown = pair.call(1, b"gearflow:schedule", do="pause", name="s")
    assert (shown["paused"], shown["ticks"], shown["next"]) == (True, 1, [NOON + 120])


def test_an_adopted_job_keeps_the_time_of_its_tick(pair: Pair) -> None:
    pair.put(overlap="allow")
    pair.pass_time(64, 0)
    (job,) = pair.jobs()
    other = pair.servers[1]
    other.adopt(job.number >> 40)
    worker = other.worker()
    worker(p.OptionReq(b"gearflow"))
    (assigned,) = worker(p.GrabJobUniq())
    assert isinstance(assigned, p.JobAssignUniq)
    assert b'"scheduled_at": [%f' % (NOON + 60) in assigned.workload.replace(b".0,", b".000000,")


def test_a_deleted_schedule_is_deleted_at_all_servers(pair: Pair) -> None:
    pair.put(overlap="allow")
    pair.call(1, b"gearflow:schedule", do="delete", name="s")
    pair.pass_time(64, 0, beats=False)
    assert pair.minutes() == []
    assert not pair.servers[0].broker.schedules.table
