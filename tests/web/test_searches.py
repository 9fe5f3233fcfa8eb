"""Searches that take longer than a page may: their steps, and how they fill a page."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import httpx
import pytest
from anyio.from_thread import start_blocking_portal
from playwright.sync_api import Page, expect

from gearflow.broker.calls import jobs
from gearflow.client import Client, SyncClient
from gearflow.protocol.jobs import LIVE
from gearflow.server import JobServer
from gearflow.web import searches
from gearflow.web.guard import Refused
from gearflow.web.job_lists import AskedServer, Listing, ListSearch
from gearflow.web.job_selection import Selection
from gearflow.web.searches import Searches

COUNT = 1200
"""Jobs of the server. One in the middle and the last one have the text."""

NEEDLE = "a needle"


class Clock:
    """A clock that stands still until somebody turns it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Steps:
    """A search that is over after so many steps, each of which takes a time."""

    def __init__(self, clock: Clock, count: int, seconds: float = 0.1, *, has_faults: bool = False) -> None:
        self._clock = clock
        self.left = count
        self._seconds = seconds
        self.has_faults = has_faults
        self.gate: anyio.Event | None = None

    @property
    def is_over(self) -> bool:
        return self.left == 0

    async def go_on(self, seconds: float) -> None:
        if self.gate is not None:
            await self.gate.wait()
        self.left -= 1
        self._clock.now += self._seconds


def run(test: Callable[..., Any], *args: Any) -> None:
    with start_blocking_portal() as portal:
        portal.call(test, *args)


def test_each_look_takes_a_search_a_step_further_until_it_is_over() -> None:
    async def look() -> None:
        clock = Clock()
        shared, made = Searches(clock), list[Steps]()

        def begin() -> Steps:
            made.append(Steps(clock, 3))
            return made[-1]

        assert [(await shared.of("key", begin, 0.05)).left for _ in range(5)] == [2, 1, 0, 0, 0]
        clock.now += 5.9  # it took 0.3 s, which is a twentieth of 6 s
        assert (await shared.of("key", begin, 0.05)) is made[0]
        clock.now += 0.2
        assert (await shared.of("key", begin, 0.05)) is made[0]  # shown while the next one is made
        assert [each.left for each in made] == [0, 2]
        await shared.of("key", begin, 0.05)
        assert (await shared.of("key", begin, 0.05)) is made[1]
        clock.now += 1000
        assert (await shared.of("key", begin, 0.05)) is made[2]  # the last one is too old
        shared.clear()
        assert (await shared.of("key", begin, 0.05)) is made[3]
        assert (await shared.of("other", begin, 0.05)) is made[4]

    run(look)


def test_an_answer_with_faults_is_used_for_a_short_time() -> None:
    async def look() -> None:
        clock = Clock()
        shared = Searches(clock)
        faulty = Steps(clock, 1, 0.5, has_faults=True)
        assert (await shared.of("key", lambda: faulty, 0.05)) is faulty
        clock.now += 2.1
        fresh = Steps(clock, 1)
        assert (await shared.of("key", lambda: fresh, 0.05)) is fresh

    run(look)


def test_a_question_is_asked_once_and_its_answer_is_there_when_somebody_looks_again() -> None:
    async def look() -> None:
        clock = Clock()
        shared, asked, gate = Searches(clock), list[int](), anyio.Event()

        async def ask() -> int:
            asked.append(len(asked))
            await gate.wait()
            return asked[-1]

        assert [await shared.answer("key", ask, 2) for _ in range(3)] == [None] * 3
        gate.set()
        clock.now += 60  # nobody looks
        await anyio.wait_all_tasks_blocked()
        assert await shared.answer("key", ask, 2) == 0
        clock.now += 1
        assert await shared.answer("key", ask, 2) == 0
        clock.now += 1
        assert await shared.answer("key", ask, 2) == 1  # the answer is too old to be one of now
        shared.clear()
        assert await shared.answer("key", ask, 2) == 2

    run(look)


def test_visitors_who_come_during_a_step_wait_for_it_and_take_none() -> None:
    async def look() -> None:
        clock = Clock()
        shared, search = Searches(clock), Steps(clock, 10)
        search.gate = anyio.Event()
        lefts: list[int] = []

        async def visit() -> None:
            lefts.append((await shared.of("key", lambda: search, 0.05)).left)

        async with anyio.create_task_group() as visitors:
            for _ in range(5):
                visitors.start_soon(visit)
            await anyio.wait_all_tasks_blocked()
            search.gate.set()
        assert lefts == [9] * 5

    run(look)


@pytest.fixture(scope="module")
def server() -> Iterator[JobServer]:
    with JobServer(port=0) as running:
        with SyncClient([running.address]) as client:
            for number in range(COUNT):
                has_it = number in (COUNT // 2, COUNT - 1)
                client.submit_background("crawl", NEEDLE.encode() if has_it else b"hay")
        yield running


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server looks at 200 jobs for a page, and the dashboard asks for one page in a step."""
    monkeypatch.setattr(jobs, "LOOKS", 200)
    monkeypatch.setattr(searches, "STEP", 0.0)


def test_a_page_is_searched_for_as_long_as_a_step_takes(server: JobServer, short: None) -> None:
    async def look() -> None:
        clock = Clock()

        def tick() -> float:
            clock.now += 1
            return clock.now

        async with Client([server.address]) as client:

            async def connected() -> Client:
                return client

            def search(after: str = "") -> ListSearch:
                place = AskedServer(server.address, LIVE)
                return ListSearch(connected, [place], Selection(text=NEEDLE), after, clock=tick)

            one = search()
            await one.go_on(2.5)  # as long as three questions
            assert shown(one.listing) == (0, True, 600, COUNT)
            other = search(one.listing.next)
            await one.go_on(0)
            assert shown(one.listing) == (1, True, 800, COUNT)
            await one.go_on(100)
            assert shown(one.listing) == (2, False, COUNT, COUNT)
            assert (one.is_over, one.listing.next) == (True, "")
            await other.go_on(0)
            assert shown(other.listing) == (1, True, 800, COUNT)
            for wrong in ("[]", '{"x": 1}', "{", json.dumps({server.address: ["a", "b", None]})):
                with pytest.raises(Refused):
                    search(wrong)

    run(look)


def shown(listing: Listing) -> tuple[int, bool, int, int | None]:
    return len(listing.jobs), listing.is_short, listing.searched, listing.total


def test_what_a_server_that_fails_had_found_stays(server: JobServer, short: None) -> None:
    async def look() -> None:
        async with Client([server.address]) as client:

            async def connected() -> Client:
                return client

            places = [AskedServer(server.address, LIVE), AskedServer("127.0.0.1:1", LIVE)]
            search = ListSearch(connected, places, Selection(text=NEEDLE))
            for _ in range(4):
                await search.go_on(0)
            assert (search.has_faults, list(search.listing.faults)) == (True, ["127.0.0.1:1"])
            assert shown(search.listing) == (1, True, 800, COUNT)

    run(look)


def test_the_page_fills_itself_while_the_search_goes_on(
    dashboard: Callable[..., str], server: JobServer, short: None, tab: Page
) -> None:
    came = tab.goto(f"{dashboard(server)}/jobs?text={NEEDLE}")
    assert came is not None
    assert re.search(r"Searching\. 0 jobs found in 200 of 1,200\.", came.text())
    rows = tab.locator("table.jobs tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text(NEEDLE)
    expect(tab.locator(".search")).to_have_count(0)
    expect(tab.get_by_role("link", name="Next page")).to_have_count(0)


def test_without_scripts_a_link_continues_the_search_and_so_does_a_reload(
    dashboard: Callable[..., str], server: JobServer, short: None, open_tab: Callable[..., Page]
) -> None:
    tab = open_tab(java_script_enabled=False)
    tab.goto(f"{dashboard(server)}/jobs?text={NEEDLE}&function=crawl")
    expect(tab.locator(".search")).to_contain_text("0 jobs found in 200 of 1,200")
    for searched in ("400", "600", "800"):
        tab.get_by_role("link", name="Continue the search").click()
        expect(tab.locator(".search")).to_contain_text(f"in {searched} of 1,200")
    rows = tab.locator("table.jobs tbody tr")
    expect(rows).to_have_count(1)
    for found in ("1 job found in 1,000 of 1,200", "2 jobs found in 1,200 of 1,200"):
        tab.reload()
        expect(tab.locator(".search")).to_contain_text(found)
    tab.reload()
    expect(rows).to_have_count(2)
    expect(tab.locator(".search")).to_have_count(0)
    expect(tab.get_by_role("link", name="First page")).to_be_visible()


def test_nothing_is_said_of_no_match_before_all_is_searched(
    dashboard: Callable[..., str], server: JobServer, short: None
) -> None:
    url = f"{dashboard(server)}/jobs?text=no such text"
    answers = [httpx.get(url, timeout=20).text for _ in range(8)]
    assert ["Searching." in each for each in answers] == [True] * 6 + [False] * 2
    assert ["No job matches" in each for each in answers] == [False] * 6 + [True] * 2


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
def test_the_question_before_an_act_shows_its_number_when_all_are_counted(
    dashboard: Callable[..., str],
    server: JobServer,
    short: None,
    open_tab: Callable[..., Page],
    scripts: bool,
) -> None:
    tab = open_tab(java_script_enabled=scripts)
    came = tab.goto(f"{dashboard(server)}/jobs/cancel?text={NEEDLE}&within={'3600' if scripts else '900'}")
    assert came is not None
    assert "Counting live jobs with “a needle” in them" in came.text()
    assert 'method="post"' not in came.text()
    title = tab.get_by_role("heading", level=1)
    for _ in range(100):
        if scripts or "Counting" not in title.inner_text():
            break
        tab.get_by_role("link", name="Look again").click()
    expect(title).to_contain_text("Cancel 2 live jobs with “a needle” in them")
    expect(tab.get_by_role("button", name="Cancel 2")).to_be_visible()


def test_the_dead_letters_are_shown_before_they_are_counted(
    dashboard: Callable[..., str], server: JobServer, short: None, tab: Page
) -> None:
    came = tab.goto(f"{dashboard(server)}/dead?text=no such text")
    assert came is not None
    assert "Counting…" in came.text()
    assert "No dead letter matches" not in came.text()
    expect(tab.get_by_role("heading", name="No dead letter matches")).to_be_visible()
