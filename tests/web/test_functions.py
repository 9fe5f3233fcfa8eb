"""The pages Overview and Functions, in a browser."""

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect

from gearflow.client import SyncClient
from gearflow.client.operate import server_info
from gearflow.server import JobServer

MARKUP = "<img src=x onerror=alert(1)>\"'&amp;"


@pytest.fixture
def client(server: JobServer) -> Iterator[SyncClient]:
    with SyncClient([server.address]) as connected:
        yield connected


def test_a_function_is_paused_and_resumed(
    dashboard: Callable[..., str], server: JobServer, client: SyncClient, tab: Page, fresh: Callable[..., str]
) -> None:
    name = fresh("resize")
    client.submit_background(name, b"")
    tab.goto(dashboard(server) + "/functions")
    row = tab.locator("tr", has_text=name)
    row.get_by_role("button", name="Pause").click()
    expect(tab.locator("#notice")).to_have_text(f"Paused {name}. 1 job waits.")
    expect(row).to_contain_text("paused")
    assert name in _paused(client)
    row.get_by_role("link", name=name).click()
    expect(tab.get_by_role("heading", level=1)).to_have_text(name)
    tab.get_by_role("button", name="Resume").click()
    expect(tab.locator("#notice")).to_contain_text(f"Resumed {name}")
    expect(tab.get_by_role("heading", level=1)).to_have_text(name)
    assert name not in _paused(client)


def test_waiting_jobs_are_cancelled_after_a_question_also_without_scripts(
    dashboard: Callable[..., str],
    server: JobServer,
    client: SyncClient,
    open_tab: Callable[..., Page],
    fresh: Callable[..., str],
) -> None:
    for scripts in (True, False):
        name = fresh("crawl")
        for _ in range(3):
            client.submit_background(name, b"")
        tab = open_tab(java_script_enabled=scripts)
        tab.goto(f"{dashboard(server)}/functions/{name}")
        expect(
            tab.get_by_text("Cancel the waiting and delayed jobs of this function, 3 now?")
        ).not_to_be_visible()
        tab.locator("summary", has_text="Purge").click()
        tab.get_by_role("button", name="Cancel them").click()
        expect(tab.locator("#notice")).to_have_text(f"Cancelled 3 jobs of {name}.")
        expect(tab.locator(".figure", has_text="Waiting")).to_contain_text("0")


def test_a_page_follows_what_happens(
    dashboard: Callable[..., str], server: JobServer, client: SyncClient, tab: Page, fresh: Callable[..., str]
) -> None:
    first, second = fresh("one"), fresh("two")
    client.submit_background(first, b"")
    tab.goto(dashboard(server) + "/functions")
    expect(tab.locator("#stream")).to_have_text("Live")
    tab.locator("tr", has_text=first).get_by_role("button").focus()
    client.submit_background(second, b"")
    expect(tab.locator("tr", has_text=second)).to_contain_text("no worker")
    expect(tab.locator("tr", has_text=first).get_by_role("button")).to_be_focused()


def test_the_overview_says_what_needs_attention(
    dashboard: Callable[..., str], server: JobServer, client: SyncClient, tab: Page, fresh: Callable[..., str]
) -> None:
    name = fresh("lonely")
    client.submit_background(name, b"")
    tab.goto(dashboard(server, "127.0.0.1:1") + "/")
    expect(tab.locator(".concerns")).to_contain_text("127.0.0.1:1 does not answer: connection refused.")
    tab.goto(dashboard(server) + "/functions?text=" + name)
    expect(tab.locator("tbody tr")).to_have_count(1)


def test_markup_in_a_name_is_text(
    dashboard: Callable[..., str], server: JobServer, client: SyncClient, tab: Page, fresh: Callable[..., str]
) -> None:
    name = f"{fresh('bad')}{MARKUP}/../%2f?#\N{RIGHT-TO-LEFT OVERRIDE}"
    client.submit_background(name, b"")
    tab.goto(f"{dashboard(server)}/functions")
    link = tab.get_by_role("link", name=name[:20])
    expect(link).to_contain_text(MARKUP)
    expect(link).to_contain_text("\\u202e")
    link.click()
    expect(tab.get_by_role("heading", level=1)).to_contain_text(MARKUP)
    tab.get_by_role("button", name="Pause").click()
    expect(tab.locator("#notice")).to_contain_text(MARKUP)
    assert name in _paused(client)
    tab.reload()
    tab.get_by_role("button", name="Resume").click()
    expect(tab.locator("#notice")).to_contain_text("Resumed")
    assert tab.locator("img").count() == 0


@pytest.mark.parametrize("name", [".", "..", "a/b", "x" * 400])
def test_every_name_has_a_page(
    dashboard: Callable[..., str], server: JobServer, client: SyncClient, tab: Page, name: str
) -> None:
    client.submit_background(name, b"")
    tab.goto(f"{dashboard(server)}/functions")
    tab.get_by_role("link", name=name, exact=True).click()
    expect(tab.get_by_role("heading", level=1)).to_have_text(name)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_gearmand_in_c_is_shown_with_what_it_tells(
    dashboard: Callable[..., str], gearmand: str, tab: Page, fresh: Callable[..., str]
) -> None:
    name = fresh("legacy")
    with SyncClient([gearmand]) as client:
        client.submit_background(name, b"")
    url = dashboard(gearmand)
    tab.goto(f"{url}/functions")
    row = tab.locator("tr", has_text=name)
    expect(row).to_be_visible()
    expect(row.get_by_role("button")).to_have_count(0)
    tab.goto(f"{url}/servers")
    expect(tab.locator("article")).to_contain_text("the server in C")


def _paused(client: SyncClient) -> tuple[str, ...]:
    return client.run(server_info).paused
