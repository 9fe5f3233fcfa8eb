"""Every page, in a browser: narrow and wide, with the keyboard, for screen readers, and without scripts."""

from collections.abc import Callable, Iterator
from typing import Final

import pytest
from playwright.sync_api import Page, expect

from gearflow import Cron
from gearflow.client import SyncClient
from gearflow.client.operate import change_limits
from gearflow.protocol.limits import FunctionLimits, LimitRequest, LimitUse, LimitValue
from gearflow.server import JobServer
from gearflow.web.pages import SECTIONS

LONG: Final = "a.function.with.a_name_that_is_long." + "x" * 120
PAGES: Final = [
    route.pattern.replace("{name}", LONG)
    for section in SECTIONS
    for route in section.routes
    if not route.is_act and route.pattern != "/metrics" and "{handle}" not in route.pattern
]

FAULTS: Final = """() => {
  const faults = [];
  const seen = new Set();
  const name = (node) => (node.getAttribute("aria-label") ?? "") + node.textContent + (node.title ?? "")
    + [...(node.labels ?? [])].map((label) => label.textContent).join("");
  const controls = "a, button, summary, input:not([type=hidden]), select, textarea";
  for (const node of document.querySelectorAll(controls))
    if (!name(node).trim()) faults.push("no name: " + node.outerHTML);
  for (const node of document.querySelectorAll("svg"))
    if (node.getAttribute("aria-hidden") !== "true" && !node.getAttribute("aria-label"))
      faults.push("no label: " + node.outerHTML.slice(0, 100));
  for (const node of document.querySelectorAll("[id]")) {
    if (seen.has(node.id)) faults.push("twice: " + node.id);
    seen.add(node.id);
  }
  for (const attribute of ["aria-labelledby", "aria-describedby"])
    for (const node of document.querySelectorAll(`[${attribute}]`))
      if (!document.getElementById(node.getAttribute(attribute))) faults.push("not there: " + node.outerHTML);
  for (const node of document.querySelectorAll("th:not([scope])")) faults.push("no scope: " + node.outerHTML);
  for (const [kind, number] of [["h1", 1], ["main", 1], ["nav", 1], ["header.side", 1]])
    if (document.querySelectorAll(kind).length < number) faults.push("no " + kind);
  if (document.querySelectorAll("h1").length !== 1) faults.push("several h1");
  if (document.documentElement.lang !== "en") faults.push("no language");
  const levels = [...document.querySelectorAll("h1, h2, h3, h4")].map((node) => Number(node.nodeName[1]));
  for (const [index, level] of levels.entries())
    if (index && level > levels[index - 1] + 1) faults.push("a level is left out");
  return faults;
}"""


@pytest.fixture(scope="module")
def url(server: JobServer, dashboard: Callable[..., str]) -> Iterator[str]:
    """A dashboard with something on each page."""
    request = LimitRequest(
        action="apply",
        origin="layout",
        limits={"smtp": LimitValue(count=4), LONG: LimitValue(count=100, per=60)},
        functions={LONG: FunctionLimits(limits=(LimitUse(limit="smtp"), LimitUse(limit=LONG)))},
    )
    with SyncClient([server.address]) as client:
        client.run(lambda connected: change_limits(connected, request))
        client.schedules.put(LONG, LONG, Cron("0 3 * * *"))
        client.submit_background(LONG, b'{"n": 1}')
        yield dashboard(server, "127.0.0.1:1")


@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (1280, "dark")])
def test_every_page_fits_and_can_be_read(
    url: str, open_tab: Callable[..., Page], width: int, scheme: str
) -> None:
    tab = open_tab(viewport={"width": width, "height": 800}, color_scheme=scheme)
    for path in PAGES:
        tab.goto(url + path)
        expect(tab.locator("#stream")).to_have_text("Live")
        tab.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, path
        assert tab.evaluate(FAULTS) == [], path


def test_every_page_has_the_same_headings_and_acts_without_scripts(
    url: str, open_tab: Callable[..., Page]
) -> None:
    tabs = [open_tab(java_script_enabled=scripts) for scripts in (True, False)]
    for path in PAGES:
        shown: list[list[str]] = []
        for tab in tabs:
            tab.goto(url + path)
            texts = tab.locator("h1, h2, th, main button, summary").all_inner_texts()
            shown.append([text.strip() for text in texts])
        assert shown[0] == shown[1], path


def test_the_keyboard_reaches_the_content_first(url: str, tab: Page) -> None:
    tab.goto(url + "/functions")
    tab.keyboard.press("Tab")
    expect(tab.get_by_text("Skip to the content")).to_be_focused()
    expect(tab.get_by_text("Skip to the content")).to_be_in_viewport()
    tab.keyboard.press("Enter")
    expect(tab.locator("main")).to_be_focused()
    tab.keyboard.press("/")
    expect(tab.get_by_role("searchbox")).to_be_focused()
    tab.keyboard.type("no such function")
    tab.keyboard.press("Enter")
    expect(tab.get_by_role("heading", name="No function matches")).to_be_visible()


def test_escape_closes_a_question(url: str, tab: Page) -> None:
    tab.goto(f"{url}/functions/{LONG}")
    question = tab.locator("summary", has_text="Purge")
    question.focus()
    tab.keyboard.press("Enter")
    expect(tab.get_by_role("button", name="Cancel them")).to_be_visible()
    tab.keyboard.press("Escape")
    expect(tab.get_by_role("button", name="Cancel them")).not_to_be_visible()
    expect(question).to_be_focused()


def test_an_open_question_stays_open_while_the_page_changes(url: str, server: JobServer, tab: Page) -> None:
    tab.goto(f"{url}/functions/{LONG}")
    tab.locator("summary", has_text="Purge").click()
    with SyncClient([server.address]) as client:
        client.submit_background(LONG, b'{"n": 2}')
        expect(tab.get_by_text("2 now?")).to_be_visible()


def test_times_are_those_of_the_visitor(url: str, open_tab: Callable[..., Page]) -> None:
    tab = open_tab(timezone_id="Asia/Tokyo", locale="en-GB")
    tab.goto(f"{url}/schedules/{LONG}")
    expect(tab.locator(".times li").first).to_contain_text("12:00:00")  # 03:00 UTC
    without = open_tab(java_script_enabled=False)
    without.goto(f"{url}/schedules/{LONG}")
    expect(without.locator(".times li").first).to_contain_text("03:00:00 UTC")


def test_an_act_that_fails_says_why_in_place(
    dashboard: Callable[..., str], open_tab: Callable[..., Page], fresh: Callable[..., str]
) -> None:
    name, tab = fresh(), open_tab(quiet=False)  # the browser writes the status 503 on its console
    with JobServer(port=0) as short_lived:
        with SyncClient([short_lived.address]) as client:
            client.submit_background(name, b"")
        tab.goto(dashboard(short_lived, interval=60) + "/functions")
        expect(tab.locator("#stream")).to_have_text("Live")
    tab.locator("tr", has_text=name).get_by_role("button", name="Pause").click()
    expect(tab.get_by_role("alert")).to_contain_text("No Gearman server can be reached")
    expect(tab.get_by_role("heading", level=1)).to_have_text("Functions")
