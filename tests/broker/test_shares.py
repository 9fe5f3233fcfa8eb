"""What a server gives out with the slots and starts that it has of a limit of all servers."""

import pytest

from gearflow.broker.buckets import FunctionRules, LimitSpec, Rule
from gearflow.broker.shares import LimitShares
from tests.broker.sharing import Server, Truth

LIMIT = b"limit"
BUCKET = LIMIT, ""


@pytest.fixture
def server() -> Server:
    return Server(Truth())


def limited(server: Server, spec: LimitSpec, jobs: int) -> LimitShares:
    """Jobs of a function with a limit."""
    limiter = server.broker.core.limiter
    limiter.set_limit(LIMIT, spec)
    limiter.set_rules(server.broker.functions.ensure(b"work"), FunctionRules((Rule(LIMIT),)))
    server.settle()
    client = server.peer()
    for _ in range(jobs):
        server.background(client)
    assert limiter.shares is not None
    return limiter.shares


def test_nothing_is_given_out_before_there_are_slots(server: Server) -> None:
    shares = limited(server, LimitSpec("concurrency", 5), 4)
    worker = server.worker()
    assert worker.grab() is None
    assert shares.take_noted() == [BUCKET]
    shares.set_slots(BUCKET, 2)
    server.settle()
    assert worker.grab() is not None
    assert worker.grab() is not None
    assert worker.grab() is None


def test_slots_that_are_taken_away_end_no_run(server: Server) -> None:
    shares = limited(server, LimitSpec("concurrency", 5), 3)
    shares.set_slots(BUCKET, 2)
    worker = server.worker()
    assert worker.grab() is not None
    shares.set_slots(BUCKET, 0)
    server.settle()
    assert worker.grab() is None
    bucket = shares.bucket(BUCKET)
    assert bucket is not None
    assert len(bucket.jobs) == 1


@pytest.mark.parametrize("interval", [0.05, 0.1, 1 / 3, 0.6, 7.0])
def test_as_many_jobs_start_as_starts_were_taken(server: Server, interval: float) -> None:
    shares = limited(server, LimitSpec("rate", 10, per=10 * interval), 60)
    worker = server.worker()
    assert worker.grab() is None
    shares.set_starts(BUCKET, server.now, server.now + 20 * interval)
    given = 0
    for _ in range(25 * 4):
        while worker.grab() is not None:
            given += 1
        server.pass_time(interval / 4)
    assert given == 20
