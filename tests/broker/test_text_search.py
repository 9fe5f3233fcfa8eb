"""The search for a text among many jobs: what it finds, how far it has come, and when it pauses."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearflow.broker.calls import job_search, jobs
from gearflow.broker.calls.job_selection import SoughtText
from gearflow.protocol import packets as p
from gearflow.protocol.jobs import BULK, JOBS, BulkRequest, JobPage, JobsRequest
from tests.broker.costs import Shell, call
from tests.broker.harness import Durable
from tests.broker.test_job_lists import act, fail, handles, page, pages, report, submit

LETTERS = st.text(st.sampled_from("aAbß1é:\0KK"), max_size=6)
BODIES = st.lists(LETTERS.map(str.encode) | st.binary(max_size=4), max_size=5)


@pytest.fixture(autouse=True)
def each_port(ports: None) -> None:
    """Once with a store that answers at once, and once with one that answers later."""


@pytest.fixture
def world() -> Durable:
    return Durable()


@given(LETTERS.filter(bool), BODIES)
def test_a_text_is_in_none_of_many_bodies_if_it_cannot_be_in_them(text: str, bodies: Sequence[bytes]) -> None:
    sought = SoughtText(text)
    found = [text.casefold() in body.decode(errors="replace").casefold() for body in bodies]
    assert [sought.is_in(body) for body in bodies] == found
    assert sought.may_be_in(bodies) or not any(found)


@given(LETTERS.filter(bool), st.sampled_from([b"H:ab-k1:", b"H:\xc3\xa9-1:", b"H1"]), st.integers(1, 2000))
def test_a_text_is_in_no_handle_if_it_cannot_be_in_one(text: str, prefix: bytes, number: int) -> None:
    sought = SoughtText(text)
    assert sought.may_be_in_handle(prefix) or not sought.is_in(b"%b%d" % (prefix, number))


def test_a_rare_text_is_found_among_many_jobs_wherever_it_is(world: Durable) -> None:
    client = world.peer()
    for number in range(450):
        client.submit(b"work", b"", b"x" * (number % 7 * 100))
    unique = client.submit(b"work", b"the NEEDLE", b"x")
    payload = client.submit(b"work", b"", b"a needle")
    client.submit(b"work", b"", b"\xff" * 300)
    large = client.submit(b"work", b"", b"needle" + b"x" * (1 << 16))
    behind = client.submit(b"work", b"", b"x" * (1 << 16) + b"needle")
    function = client.submit(b"needlework")
    stored = submit(world, b"", b"x" * 3000 + b"needle")
    assert handles(pages(world, text="Needle")) == [unique, payload, large, function, stored]
    assert act(world, "count", text="needle", function="work").matched == 4
    assert handles(pages(world, text=behind.decode())) == [behind]
    digits = behind.decode().rpartition(":")[2]
    assert handles(pages(world, text=f":{digits}")) == [behind]
    assert len(pages(world, text=digits)) == 1


def test_a_text_in_redacted_fields_is_not_found_beside_jobs_of_other_tasks(world: Durable) -> None:
    client = world.peer()
    report(world, world.worker(b"pay"), redact={"pay": ["card"]})
    client.submit(b"pay", b"", b'{"card": "needle", "name": "Meyer"}')
    other = client.submit(b"work", b"", b'{"card": "needle"}')
    assert handles(pages(world, text="needle")) == [other]
    assert len(pages(world, text="meyer")) == 1


def search(world: Durable, /, **request: object) -> list[JobPage]:
    """All pages of a search."""
    found = [page(world, **request)]
    while found[-1].next:
        found.append(page(world, after=found[-1].next, **request))
    return found


def test_each_page_says_how_far_the_search_has_come(world: Durable, monkeypatch: pytest.MonkeyPatch) -> None:
    client = world.peer()
    for _ in range(1000):
        client.submit(b"work", b"", b"x" * 250)
    monkeypatch.setattr(jobs, "LOOKS", 300)
    found = search(world, text="needle")
    assert [each.searched for each in found] == [200, 200, 200, 200, 200, 0]
    assert [each.left for each in found] == [800, 600, 400, 200, 0, 0]
    assert not any(each.jobs for each in found)
    needle = client.submit(b"work", b"needle", b"x")
    assert handles([job for each in search(world, text="needle") for job in each.jobs]) == [needle]


def test_a_search_goes_on_among_jobs_that_have_ended(world: Durable, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = world.worker()
    for number in range(30):
        submit(world, payload=b"needle" if number == 3 else b"x")
        fail(world, worker, "KeyError")
    waiting = world.peer()
    for _ in range(250):
        waiting.submit(b"other", b"", b"x")
    monkeypatch.setattr(jobs, "LOOKS", 1)
    found = search(world, text="needle")
    assert sum(each.searched for each in found) == 280
    lefts = [each.left for each in found]
    assert lefts[0] == 80  # 50 that wait, and 30 that have ended
    assert all(left is not None for left in lefts)
    assert sorted(lefts, key=lambda left: -(left or 0)) == lefts
    assert lefts[-1] == 0
    assert [job.listed for each in found for job in each.jobs] == ["dead"]
    letters = search(world, text="needle", states=["dead"])
    assert (letters[0].searched, letters[0].left) == (1, 29)
    assert sum(each.searched for each in letters) == 30


def test_a_page_ends_when_its_time_is_over(world: Durable) -> None:
    client, other = world.peer(), world.peer()
    for _ in range(3000):
        client.submit(b"work", b"", b"x")
    world.be_late()
    client(call(JOBS, JobsRequest(text="needle")))
    world.commit()
    for _ in range(10):
        world.proceed()
    world.now += job_search.PATIENCE + 1  # the server was busy with others
    other(p.EchoReq(b"x"))
    world.finish()
    *_, end = client.read()
    assert isinstance(end, p.WorkComplete)
    found = JobPage.model_validate_json(end.result)
    assert 0 < found.searched < 3000
    assert found.searched + (found.left or 0) == 3000
    assert act(world, "count", text="x").matched == 3000


def test_no_step_of_a_search_takes_long() -> None:
    shell = Shell()
    client = shell.connect()
    for _ in range(100):
        shell.send(client, *[p.SubmitJobBg(b"work", b"", b"\xff" * (1 << 14))] * 10)
    steps = 0

    def count() -> bool:
        nonlocal steps
        steps += 1
        return False

    shell.broker.turns.is_late = count
    shell.send(client, call(JOBS, JobsRequest()))
    before, steps = steps, 0
    shell.send(client, call(BULK, BulkRequest(do="count", text="needle")))
    assert steps > before + 1000 * (1 << 14) // (1 << 17)
