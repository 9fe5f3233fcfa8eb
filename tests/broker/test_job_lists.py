"""Lists of jobs: pages, filters, and jobs that come and go meanwhile."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as api
from gearflow.protocol.jobs import JOBS, JobPage, ListedJob
from tests.broker.harness import Durable, Peer, World
from tests.broker.test_edit import background, settle


@pytest.fixture(autouse=True)
def each_port(ports: None) -> None:
    """Once with a store that answers at once, and once with one that answers later."""


@pytest.fixture
def world() -> Durable:
    return Durable()


def ask(world: World, function_called: bytes, /, **request: object) -> Any:
    """The answer of a reserved function. A fault is its message."""
    client = world.peer()
    client(p.OptionReq(b"exceptions"))
    answers = client(p.SubmitJob(function_called, b"", json.dumps(request).encode()))
    settle(world)
    world.finish()
    settle(world)
    *_, end = answers + client.read()
    client.leave()
    if isinstance(end, p.WorkException):
        return str(json.loads(end.data)["message"])
    assert isinstance(end, p.WorkComplete)
    return json.loads(end.result)


def page(world: World, /, **request: object) -> JobPage:
    return JobPage.model_validate(ask(world, JOBS, **request), strict=False)


def pages(world: World, /, **request: object) -> list[ListedJob]:
    """All pages together. Each has as many jobs as were asked for, but the last."""
    found: list[ListedJob] = []
    after = ""
    while True:
        one = page(world, after=after, **request)
        found += one.jobs
        after = one.next
        if not after:
            return found


def handles(jobs: Sequence[ListedJob]) -> list[bytes]:
    return [job.job.handle.encode() for job in jobs]


def fail(world: Durable, worker: Peer, error: str | None = None) -> bytes:
    """The next job of a worker fails for good."""
    handle = worker.grab()
    assert handle is not None
    if error is None:
        worker(p.WorkFail(handle))
    else:
        data = json.dumps({"type": error, "message": f"no {handle.decode()}"}).encode()
        worker(p.WorkException(handle, data))
    settle(world)
    return handle


def test_live_jobs_are_listed_in_the_order_of_their_numbers(world: Durable) -> None:
    delayed = background(world, delay=60)
    jobs = [background(world) for _ in range(5)]
    attached = world.peer().submit(b"other")
    assert world.worker().grab() == jobs[0]
    for limit in (1, 2, 3, 100):
        assert handles(pages(world, limit=limit)) == [delayed, *jobs, attached]
    listed = {job.job.handle.encode(): job.listed for job in pages(world)}
    assert [listed[each] for each in (delayed, jobs[0], jobs[1])] == ["delayed", "running", "waiting"]


@pytest.mark.parametrize("many", [0, 2500])
def test_jobs_are_found_among_few_and_among_many(world: Durable, many: int) -> None:
    client = world.peer()
    for _ in range(many):
        client.submit(b"many")
    delayed = background(world, delay=60)
    running, waiting = background(world), background(world)
    assert world.worker().grab() == running
    assert handles(pages(world, states=["running"])) == [running]
    assert handles(pages(world, states=["delayed"])) == [delayed]
    assert handles(pages(world, function="work")) == [delayed, running, waiting]
    assert handles(pages(world, function="work", states=["waiting", "delayed"])) == [delayed, waiting]
    assert len(pages(world, states=["waiting"], limit=1000)) == many + 1
    assert pages(world, function="none") == []


def test_a_page_goes_on_behind_jobs_that_have_ended_or_come_meanwhile(world: Durable) -> None:
    jobs = [background(world) for _ in range(6)]
    first = page(world, limit=2)
    assert handles(first.jobs) == jobs[:2]
    for job in jobs[1:4]:
        world.broker.cancel(job)
    later = background(world)
    rest = page(world, limit=2, after=first.next)
    assert handles(rest.jobs) == jobs[4:]
    assert handles(page(world, limit=3, after=rest.next).jobs)[:1] == [later]


def test_jobs_that_come_between_two_lists_are_found(world: Durable) -> None:
    client, known = world.peer(), list[bytes]()
    for count in (1, 3, 50, 2100):
        known += [client.submit() for _ in range(count)]
        assert handles(pages(world, limit=1000)) == known
        for handle in known[::2]:
            world.broker.cancel(handle)
        client.read()
        del known[::2]
        assert handles(pages(world, limit=1000)) == known


def test_a_list_is_the_same_however_late_the_turns_are(world: Durable) -> None:
    jobs = [world.peer().submit(b"many") for _ in range(700)]
    world.be_late()
    assert handles(pages(world, limit=100)) == jobs


def test_jobs_are_selected_by_their_times_of_submission(world: Durable) -> None:
    first = background(world)
    world.pass_time(10)
    second = background(world)
    at = world.broker.clock.unix()
    world.pass_time(10)
    third = background(world)
    assert handles(pages(world, since=at)) == [second, third]
    assert handles(pages(world, until=at)) == [first]


def test_a_text_is_found_in_handles_uniques_and_payloads(world: Durable) -> None:
    client = world.peer()
    plain = client.submit(b"work", b"", b'{"customer": "Meyer"}')
    unique = client.submit(b"work", b"order-MEYER", b"x")
    client.submit(b"work", b"", b"Schulze")
    umlaut = client.submit(b"work", b"", "MÜLLER".encode())
    client(p.SubmitJobBg(b"work", b"", b"meyer" + b"x" * 2000))
    settle(world)
    (kept,) = client.read()
    assert isinstance(kept, p.JobCreated)
    assert handles(pages(world, text="meyer")) == [plain, unique, kept.handle]
    assert handles(pages(world, text="müller")) == [umlaut]
    assert handles(pages(world, text=plain.decode().upper())) == [plain]


def test_payloads_are_shown_as_far_as_was_asked(world: Durable) -> None:
    client = world.peer()
    client.submit(b"work", b"", "für".encode())
    client.submit(b"work", b"", b"\xff\xfe")
    assert [job.payload for job in pages(world)] == [None, None]
    assert [job.payload for job in pages(world, payload=100)] == ["für", None]
    assert [job.payload for job in pages(world, payload=2)] == ["f", None]


def test_dead_letters_are_listed_the_last_one_first(world: Durable) -> None:
    jobs = [background(world) for _ in range(4)]
    worker = world.worker()
    for _ in range(2):
        fail(world, worker, "builtins.KeyError")
    fail(world, worker)
    dead = list(reversed(jobs[:3]))
    assert handles(pages(world, states=["dead"])) == dead
    assert handles(pages(world, states=["dead"], limit=2)) == dead
    assert handles(pages(world, states=["waiting", "dead"], limit=1)) == [jobs[3], *dead]
    assert handles(pages(world, error="builtins.KeyError")) == dead[1:]
    assert handles(pages(world, error="WORK_FAIL")) == dead[:1]
    assert handles(pages(world, text=f"no {jobs[1].decode()}", states=["dead"])) == [jobs[1]]
    assert handles(pages(world, function="other")) == []
    (last,) = page(world, states=["dead"], limit=1, payload=10).jobs
    assert (last.listed, last.payload, last.job.dead) == ("dead", "x", True)


def test_an_expired_job_is_a_dead_letter_too(world: Durable) -> None:
    expired, other = background(world, expires=5), background(world)
    world.pass_time(6)
    settle(world)
    fail(world, world.worker())
    assert handles(pages(world, states=["expired"])) == [expired]
    assert handles(pages(world, states=["dead"])) == [other, expired]


def test_a_dead_letter_that_is_replayed_is_live_again(world: Durable) -> None:
    first, second = background(world), background(world)
    assert handles(pages(world)) == [first, second]
    fail(world, world.worker())
    assert handles(pages(world)) == [second, first]
    ask(world, api.DEAD, action="replay", handle=first.decode())
    assert [(job.job.handle.encode(), job.listed) for job in pages(world)] == [
        (first, "waiting"),
        (second, "waiting"),
    ]


def test_jobs_are_listed_after_a_restart(world: Durable) -> None:
    jobs = [background(world) for _ in range(3)]
    world = world.restarted()
    assert handles(pages(world)) == jobs
    later = background(world)
    assert handles(pages(world)) == [*jobs, later]


def test_what_is_no_next_of_a_page_is_refused(world: Durable) -> None:
    for after in ("7", "live:", "dead:-1", "live:1e3", "live:" + "9" * 30):
        assert "no next of a page" in ask(world, JOBS, after=after)
