"""Pages follow the servers, with and without scripts."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from gearflow.client import SyncClient
from gearflow.server import JobServer
from tests.ports import free_port


def test_a_page_shows_that_a_server_goes_and_comes_back(dashboard: Callable[..., str], tab: Page) -> None:
    with JobServer(port=free_port()) as first:
        port, address = first.port, first.address
        tab.goto(dashboard(first) + "/servers")
        expect(tab.locator("#stream")).to_have_text("Live")
        expect(tab.locator("article", has_text=address)).to_contain_text("answers")
    expect(tab.locator("article", has_text=address)).to_contain_text("away")
    with JobServer(port=port):
        expect(tab.locator("article", has_text=address)).to_contain_text("answers")


@pytest.mark.parametrize("about", ["/functions/crawl", "/jobs/{handle}"])
def test_a_page_of_one_thing_follows_it_again_when_its_server_is_back(
    dashboard: Callable[..., str], tab: Page, tmp_path: Path, about: str
) -> None:
    with JobServer(port=free_port(), data=tmp_path) as first, SyncClient([first.address]) as client:
        port = first.port
        handle = client.submit_background("crawl", b"").handle
        tab.goto(dashboard(first) + about.format(handle=handle))
        expect(tab.locator("#stream")).to_have_text("Live")
    expect(tab.locator("#stream")).to_contain_text("does not answer")
    with JobServer(port=port, data=tmp_path) as again, SyncClient([again.address]) as client:
        expect(tab.locator("#stream")).to_have_text("Live")
        client.cancel(handle)
        expect(tab.locator("main")).to_contain_text("cancelled" if "jobs" in about else "Waiting\n0")


def test_an_act_of_which_nothing_is_known_stays_on_the_page(
    dashboard: Callable[..., str], server: JobServer, open_tab: Callable[..., Page], fresh: Callable[..., str]
) -> None:
    name = fresh()
    with SyncClient([server.address]) as client:
        client.submit_background(name, b"")
    tab = open_tab(quiet=False)  # its console has the failure, as it should
    tab.goto(f"{dashboard(server)}/functions/{name}")
    expect(tab.locator("#stream")).to_have_text("Live")
    tab.route("**/pause", lambda route: route.abort())
    tab.get_by_role("button", name="Pause").click()
    expect(tab.get_by_role("alert")).to_contain_text("It is not known whether this was done.")
    expect(tab.locator("#stream")).to_have_text("Live")
    expect(tab.get_by_role("alert")).to_be_visible()
    tab.unroute("**/pause")
    tab.get_by_role("button", name="Pause").click()
    expect(tab.locator("#notice")).to_contain_text(f"Paused {name}")
    expect(tab.get_by_role("alert")).to_have_count(0)


def test_a_page_shows_the_same_without_scripts(
    dashboard: Callable[..., str], server: JobServer, open_tab: Callable[..., Page]
) -> None:
    tab = open_tab(java_script_enabled=False)
    tab.goto(dashboard(server) + "/servers")
    expect(tab.locator("article")).to_contain_text(server.address)
    expect(tab.locator("#stream")).to_have_text("Reloads every 30 s")


def test_the_question_that_answers_an_act_stays_as_it_is(
    dashboard: Callable[..., str], server: JobServer, open_tab: Callable[..., Page], fresh: Callable[..., str]
) -> None:
    """Its path is that of the act, so it cannot be loaded again."""
    name = fresh()
    with SyncClient([server.address]) as client:
        client.submit_background(name, b"")
    url = dashboard(server)
    for scripts in (True, False):
        tab = open_tab(java_script_enabled=scripts)
        tab.goto(f"{url}/jobs/cancel?function={name}")
        if scripts:
            tab.evaluate("document.querySelectorAll('[name^=expected]').forEach((field) => field.remove())")
        else:
            text = tab.content().replace('name="expected', 'name="removed')
            tab.route("**/jobs/cancel?*", lambda route: route.fulfill(body=text, content_type="text/html"))  # noqa: B023
            tab.reload()
        tab.locator("main form[method=post] button").click()
        expect(tab.locator("#stream")).to_have_text("Waits for you")
        expect(tab.get_by_role("heading", level=1)).to_contain_text("Cancel")
        assert "data-events" not in tab.content()
        assert scripts or "http-equiv" not in tab.content()
