"""Pages follow the servers, with and without scripts."""

from collections.abc import Callable

from playwright.sync_api import Page, expect

from gearflow.server import JobServer


def test_a_page_shows_that_a_server_goes_and_comes_back(dashboard: Callable[..., str], tab: Page) -> None:
    with JobServer(port=0) as first:
        port, address = first.port, first.address
        tab.goto(dashboard(first) + "/servers")
        expect(tab.locator("#stream")).to_have_text("Live")
        expect(tab.locator("article", has_text=address)).to_contain_text("answers")
    expect(tab.locator("article", has_text=address)).to_contain_text("away")
    with JobServer(port=port):
        expect(tab.locator("article", has_text=address)).to_contain_text("answers")


def test_a_page_shows_the_same_without_scripts(
    dashboard: Callable[..., str], server: JobServer, open_tab: Callable[..., Page]
) -> None:
    tab = open_tab(java_script_enabled=False)
    tab.goto(dashboard(server) + "/servers")
    expect(tab.locator("article")).to_contain_text(server.address)
    expect(tab.locator("#stream")).to_have_text("Reloads every 10 s")
