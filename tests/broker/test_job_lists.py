"""Lists of jobs: pages, filters, and jobs that come and go meanwhile."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from gearflow.broker.storage import Change
from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as api
from gearflow.protocol.chunk import pack_payloads
from gearflow.protocol.envelope import wrap
from gearflow.protocol.jobs import BULK, JOBS, BulkDone, JobPage, ListedJob
from gearflow.protocol.workers import REPORT
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


def submit(world: Durable, unique: bytes = b"", payload: bytes = b"x") -> bytes:
    """A background job."""
    client = world.peer()
    answers = client(p.SubmitJobBg(b"work", unique, payload))
    settle(world)
    (created,) = answers + client.read()
    assert isinstance(created, p.JobCreated)
    return created.handle


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


def test_a_job_is_selected_by_its_handle_alone(world: Durable) -> None:
    jobs = [submit(world, payload=b"payload %d" % number) for number in range(12)]
    dead = fail(world, world.worker(), "KeyError")
    assert dead == jobs[0]
    for handle in (dead, jobs[1], jobs[11]):
        (found,) = pages(world, handle=handle.decode(), payload=100)
        assert (found.job.handle, found.payload) == (handle.decode(), f"payload {jobs.index(handle)}")
    assert pages(world, handle=dead.decode(), states=["waiting"]) == []
    assert pages(world, handle=jobs[3].decode(), states=["dead"]) == []
    assert pages(world, handle=jobs[3].decode(), function="other") == []
    assert pages(world, handle=jobs[3].decode()[:-1] + "999") == []
    assert pages(world, handle="H:elsewhere:7") == []
    worker = world.worker()
    assert worker.grab() == jobs[1]
    worker(p.WorkComplete(jobs[1], b""))
    settle(world)
    assert [job.listed for job in pages(world, handle=jobs[1].decode())] == ["succeeded"]
    assert pages(world, handle=jobs[1].decode(), states=["failed"]) == []
    assert [job.listed for job in pages(world, handle=dead.decode(), states=["dead"])] == ["dead"]
    assert ask(world, BULK, do="count", handle=jobs[2].decode())["matched"] == 1


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
    kept = submit(world, b"", b"meyer" + b"x" * 2000)
    assert handles(pages(world, text="meyer")) == [plain, unique, kept]
    assert handles(pages(world, text="müller")) == [umlaut]
    assert handles(pages(world, text=plain.decode().upper())) == [plain]
    assert len(pages(world, text="WOR")) == 5


def test_a_text_is_not_found_between_two_names(world: Durable) -> None:
    client = world.peer()
    client.submit(b"work", b"order", b"x")
    with_nul = client.submit(b"work", b"", b"a\0b")
    assert handles(pages(world, text="\0")) == [with_nul]
    assert handles(pages(world, text="work\0order")) == []


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
    assert handles(pages(world, error="KeyError")) == dead[1:]
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


def test_jobs_that_have_ended_come_after_those_that_live_and_the_last_one_first(world: Durable) -> None:
    jobs = [background(world) for _ in range(6)]
    worker = world.worker()
    for _ in range(2):
        handle = worker.grab()
        assert handle is not None
        worker(p.WorkComplete(handle, b"r"))
        world.pass_time(1)
    fail(world, worker, "a.Wrong")
    world.broker.cancel(jobs[3])
    settle(world)
    world.pass_time(1)
    at = world.broker.clock.unix()
    fail(world, worker)
    for limit in (1, 2, 100):
        found = pages(world, limit=limit)
        assert handles(found) == [jobs[5], jobs[4], jobs[3], jobs[2], jobs[1], jobs[0]]
    listed = ["waiting", "dead", "cancelled", "dead", "succeeded", "succeeded"]
    assert [job.listed for job in found] == listed
    assert handles(pages(world, states=["succeeded"], limit=1)) == [jobs[1], jobs[0]]
    assert handles(pages(world, states=["succeeded", "dead"], since=at)) == [jobs[4]]
    assert handles(pages(world, states=["succeeded", "dead"], until=at)) == [jobs[2], jobs[1], jobs[0]]
    assert handles(pages(world, states=["cancelled", "failed"], text=jobs[3].decode())) == [jobs[3]]
    assert handles(pages(world, error="a.Wrong")) == [jobs[2]]
    assert act(world, "count").matched == 6
    assert act(world, "count", states=["succeeded", "waiting"]).matched == 3


def test_an_attached_job_that_failed_is_listed_as_failed(world: Durable) -> None:
    client = world.peer()
    request = json.dumps({"function": "work", "keep": 100}).encode()
    (created,) = client(p.SubmitJob(api.SUBMIT, b"", request + b"\nx"))
    assert isinstance(created, p.JobCreated)
    fail(world, world.worker(), "a.Wrong")
    (job,) = pages(world)
    assert (job.listed, job.job.dead) == ("failed", False)
    assert pages(world, states=["dead"]) == []
    assert handles(pages(world, states=["failed"], error="a.Wrong")) == [created.handle]


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
    for after in ("7", "live:", "dead:-1", "live:1e3", "live:" + "9" * 30, "ended:7", "ended:7:x"):
        assert "no next of a page" in ask(world, JOBS, after=after)


# ------------------------------------------------------------------------------------ acts on many jobs


def act(world: World, do: str, /, **request: object) -> BulkDone:
    return BulkDone.model_validate(ask(world, BULK, do=do, **request), strict=False)


def states(world: World, jobs: Sequence[bytes]) -> list[str]:
    return [ask(world, api.INFO, handle=handle.decode())["state"] for handle in jobs]


def test_all_live_jobs_that_match_are_cancelled(world: Durable) -> None:
    jobs = [background(world), background(world), background(world, delay=60)]
    client = world.peer()
    other = client.submit(b"other")
    assert world.worker().grab() == jobs[0]
    assert act(world, "count", function="work").matched == 3
    assert act(world, "cancel", function="work", states=["waiting"]) == BulkDone(matched=1, done=1)
    assert states(world, jobs) == ["running", "cancelled", "delayed"]
    assert act(world, "cancel") == BulkDone(matched=3, done=3)
    assert client.read() == [p.WorkFail(other)]
    assert states(world, jobs) == ["cancelled"] * 3
    assert act(world, "cancel") == BulkDone(matched=0)


def test_nothing_is_done_to_more_jobs_than_were_counted(world: Durable) -> None:
    jobs = [background(world) for _ in range(3)]
    assert "3 jobs match now, more than 2" in ask(world, BULK, do="cancel", expected=2)
    assert states(world, jobs) == ["waiting"] * 3
    assert act(world, "cancel", expected=3).done == 3


def test_dead_letters_that_match_are_replayed_and_purged(world: Durable) -> None:
    jobs = [background(world) for _ in range(5)]
    worker = world.worker()
    for error in ("a.Wrong", "b.Bad", "a.Wrong", "b.Bad"):
        fail(world, worker, error)
    assert act(world, "replay", error="a.Wrong", expected=2) == BulkDone(matched=2, done=2)
    assert [worker.grab() for _ in range(3)] == [jobs[4], jobs[0], jobs[2]]
    assert act(world, "purge", text=f"no {jobs[1].decode()}") == BulkDone(matched=1, done=1)
    assert handles(pages(world, states=["dead"])) == [jobs[3]]
    assert act(world, "purge") == BulkDone(matched=1, done=1)
    assert states(world, [jobs[0], jobs[2]]) == ["running"] * 2


def test_a_dead_letter_stays_if_another_job_has_its_unique(world: Durable) -> None:
    letter = submit(world, b"u")
    fail(world, world.worker())
    live = submit(world, b"u")
    assert act(world, "replay") == BulkDone(matched=1, done=0, left=1)
    assert handles(pages(world)) == [live, letter]


def test_many_dead_letters_are_replayed_in_the_order_of_their_numbers(world: Durable) -> None:
    jobs = [background(world) for _ in range(450)]
    worker = world.worker()
    for _ in jobs:
        fail(world, worker)
    world.be_late()
    assert act(world, "replay").done == 450
    assert [worker.grab() for _ in jobs] == jobs


def test_dead_letters_are_grouped_by_function_and_error(world: Durable) -> None:
    background(world, function="other", expires=1)
    world.pass_time(2)
    jobs = [background(world) for _ in range(3)]
    worker = world.worker()
    for _ in range(2):
        fail(world, worker, "a.Wrong")
        world.pass_time(1)
    fail(world, worker)
    done = act(world, "errors")
    assert done.matched == 4
    shown = [(each.function, each.error, each.count) for each in done.errors]
    assert shown[0] == ("work", "a.Wrong", 2)
    assert sorted(shown[1:]) == [("other", "Expired", 1), ("work", "WORK_FAIL", 1)]
    largest = done.errors[0]
    assert largest.handle.encode() == jobs[1]
    assert largest.message == f"no {jobs[1].decode()}"
    assert largest.last - largest.first == 1
    assert act(world, "errors", function="other").matched == 1


def test_an_act_is_refused_for_states_that_it_is_not_for(world: Durable) -> None:
    assert "cancel is not for jobs that are dead" in ask(world, BULK, do="cancel", states=["dead"])
    assert "replay is not for jobs that are waiting" in ask(world, BULK, do="replay", states=["waiting"])


def test_what_could_not_be_cancelled_durably_is_reported(world: Durable) -> None:
    background(world)
    world.disk.full = True
    assert "after a restart now" in ask(world, BULK, do="cancel")


def test_a_server_that_dies_meanwhile_has_done_a_part(
    world: Durable, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [background(world) for _ in range(450)]
    worker = world.worker()
    for _ in jobs:
        fail(world, worker)
    assert len(world.disk.dead(None, 0, 1000)) == 450
    write = world.disk.write

    def write_or_die(changes: Sequence[Change]) -> None:
        if len(world.disk.dead(None, 0, 1000)) < 250:
            raise KeyboardInterrupt
        write(changes)

    monkeypatch.setattr(world.disk, "write", write_or_die)
    with pytest.raises(KeyboardInterrupt):
        ask(world, BULK, do="replay")
    monkeypatch.undo()
    left = len(world.disk.dead(None, 0, 1000))
    assert 0 < left < 450
    world = world.restarted()
    assert len(handles(pages(world, states=["waiting"], limit=1000))) == 450 - left
    assert act(world, "replay").done == left
    assert handles(pages(world, states=["waiting"], limit=1000)) == jobs


# ----------------------------------------------------------------------- fields that a task redacts


def report(world: Durable, worker: Peer, **fields: object) -> None:
    *_, end = worker(p.SubmitJob(REPORT, b"", json.dumps(fields).encode()))
    settle(world)
    end = [end, *worker.read()][-1]
    assert isinstance(end, p.WorkComplete)


CARD = '{"card": "4111", "items": [{"card": 7, "name": "für"}], "id": 1}'
HIDDEN = '{"card": "(redacted)", "items": [{"card": "(redacted)", "name": "für"}], "id": 1}'


def test_fields_that_a_worker_redacts_are_shown_nowhere(world: Durable) -> None:
    report(world, world.worker(), redact={"work": ["card"]})
    handle = submit(world, b"", CARD.encode())
    assert [job.payload for job in pages(world, payload=1000)] == [HIDDEN]
    assert [job.payload for job in pages(world, payload=12)] == [HIDDEN[:12]]
    assert pages(world, text="4111") == []
    assert handles(pages(world, text='"name": "FÜR')) == [handle]
    fail(world, world.worker())
    assert [job.payload for job in pages(world, payload=1000)] == [HIDDEN]
    assert pages(world, text="4111") == []
    assert act(world, "count", states=["dead"], text="4111").matched == 0
    assert ask(world, api.DEAD, action="show", handle=handle.decode())["text"] == HIDDEN
    ask(world, api.DEAD, action="replay", handle=handle.decode())
    worker = world.worker()
    (assigned,) = worker(p.GrabJob())
    assert isinstance(assigned, p.JobAssign)
    assert assigned.workload == CARD.encode()


def test_fields_are_redacted_after_a_restart_without_any_worker(world: Durable) -> None:
    worker = world.worker()
    report(world, worker, redact={"work": ["card"]})
    worker.leave()
    submit(world, b"", CARD.encode())
    world = world.restarted()
    assert [job.payload for job in pages(world, payload=1000)] == [HIDDEN]


@pytest.mark.parametrize(
    ("payload", "fields"),
    [
        (b"4111", {"redact": {"work": ["card"]}}),  # JSON, but no object
        (b"not JSON: 4111", {"redact": {"work": ["card"]}}),
        (b"[" * 100_000, {"redact": {"work": ["card"]}}),
        (b'{"card": "%b"}' % (b"4" * 300_000), {"redact": {"work": ["card"]}}),
        (b'{"other": "4111"}', {"redact": {"work": ["*"]}}),
        (b"\0gf1\0\0", {"redact": {"work": ["card"]}}),
    ],
)
def test_a_payload_in_which_fields_cannot_be_replaced_is_not_shown(
    world: Durable, payload: bytes, fields: dict[str, object]
) -> None:
    report(world, world.worker(), **fields)
    world.peer().submit(b"work", b"", payload)
    (job,) = pages(world, payload=65536)
    assert job.payload is not None
    assert "not shown because the task redacts" in job.payload
    assert "4" not in job.payload.partition("bytes")[2]


def test_fields_are_redacted_in_envelopes_and_in_chunks(world: Durable) -> None:
    report(world, world.worker(), redact={"work": ["card"]})
    client = world.peer()
    client.submit(b"work", b"", wrap(CARD.encode(), attempt=2))
    client.submit(b"work", b"", wrap(pack_payloads([CARD.encode(), b"{}"]), chunk=2))
    client.submit(b"free", b"", wrap(pack_payloads([CARD.encode(), b"{}"]), chunk=2))
    assert [job.payload for job in pages(world, payload=1000)] == [HIDDEN, f"{HIDDEN}\n{{}}", f"{CARD}\n{{}}"]
