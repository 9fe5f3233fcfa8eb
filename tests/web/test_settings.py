"""The pages Limits and Schedules, in a browser."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
from playwright.sync_api import Page, expect

from gearflow import Cron, Every
from gearflow.client import SyncClient
from gearflow.client.operate import change_limits
from gearflow.protocol.limits import FunctionLimits, LimitRequest, LimitUse, LimitValue
from gearflow.protocol.schedules import ScheduleWhen
from gearflow.server import JobServer
from gearflow.web.schedule_texts import when_text
from tests.web.shop import open_shop


@pytest.fixture
def client(server: JobServer) -> Iterator[SyncClient]:
    with SyncClient([server.address]) as connected:
        yield connected


def _declare(client: SyncClient, name: str, function: str) -> None:
    request = LimitRequest(
        action="apply",
        origin=name,
        limits={name: LimitValue(count=4)},
        functions={function: FunctionLimits(limits=(LimitUse(limit=name),))},
    )
    client.run(lambda connected: change_limits(connected, request))


def test_a_limit_is_paused_and_resumed(
    dashboard: Callable[..., str], server: JobServer, client: SyncClient, tab: Page, fresh: Callable[..., str]
) -> None:
    name, function = fresh("smtp"), fresh("send")
    _declare(client, name, function)
    client.submit_background(function, b"")
    tab.goto(dashboard(server) + "/limits")
    row = tab.locator("tr", has_text=name)
    expect(row).to_contain_text("0 of 4 run")
    row.get_by_role("button", name="Pause").click()
    expect(tab.locator("#notice")).to_contain_text(f"Paused {name}.")
    expect(row).to_contain_text("paused, starts nothing")
    assert client.limits.list(name).limits[0].paused
    tab.goto(f"{dashboard(server)}/functions/{function}")
    expect(tab.locator("#live_now")).to_contain_text(f"limit {name} 4 (paused)")
    tab.goto(dashboard(server) + "/limits")
    row.get_by_role("button", name="Resume").click()
    expect(tab.locator("#notice")).to_have_text(f"Resumed {name}.")
    assert not client.limits.list(name).limits[0].paused


def test_a_schedule_is_triggered_paused_and_resumed(
    dashboard: Callable[..., str], server: JobServer, client: SyncClient, tab: Page, fresh: Callable[..., str]
) -> None:
    name = fresh("report/<b>")
    client.schedules.put(name, "report", Cron("0 3 * * *", tz="Europe/Berlin"))
    tab.goto(dashboard(server) + "/schedules")
    row = tab.locator("tr", has_text=name)
    expect(row).to_contain_text("every day at 03:00, Europe/Berlin")
    row.get_by_role("button", name="Trigger").click()
    expect(tab.locator("#notice")).to_contain_text("Made the job H:")
    handle = tab.locator("#notice").inner_text().split()[3]
    assert client.run(lambda connected: connected.info(handle)).function == "report"
    row.get_by_role("link", name=name).click()
    expect(tab.locator(".times li")).to_have_count(8)
    tab.get_by_role("button", name="Pause").click()
    expect(tab.locator("#notice")).to_contain_text(f"Paused {name}.")
    expect(tab.get_by_text("None, because it is paused.")).to_be_visible()
    assert client.schedules.get(name).paused
    tab.get_by_role("button", name="Resume").click()
    expect(tab.locator(".times li")).to_have_count(8)
    assert not client.schedules.get(name).paused


def test_a_schedule_whose_job_failed_says_so(
    dashboard: Callable[..., str], server: JobServer, client: SyncClient, tab: Page, fresh: Callable[..., str]
) -> None:
    name = fresh("nightly")
    client.schedules.put(name, "shop.fail", Every(hours=1, start=datetime.now(UTC)), args={"text": "no"})
    with open_shop(server.address):
        tab.goto(dashboard(server) + "/schedules")
        state = tab.locator("tr", has_text=name).locator("td .sub")
        expect(state).to_have_text("failed")
    expect(state).to_have_class("sub bad")
    expect(state).to_have_css("color", "rgb(176, 36, 28)")  # --bad
    tab.get_by_role("link", name=name).click()
    expect(tab.locator(".facts")).to_contain_text(", failed")


def test_pages_without_anything_say_how_to_begin(dashboard: Callable[..., str], tab: Page) -> None:
    with JobServer(port=0) as empty:
        url = dashboard(empty)
        for path, text in {
            "/": "gearflow worker myapp.tasks",
            "/functions": "gearflow worker myapp.tasks",
            "/limits": "gearflow limit apply myapp.tasks",
            "/schedules": "gearflow cron apply myapp.tasks",
        }.items():
            tab.goto(url + path)
            expect(tab.locator(".empty")).to_contain_text(text)


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("* * * * *", "every minute"),
        ("*/5 * * * *", "every 5 min"),
        ("15 * * * *", "every hour at :15"),
        ("0 */6 * * *", "every 6 h at :00, UTC"),
        ("0 3 * * *", "every day at 03:00, UTC"),
        ("0 9,17 * * MON-FRI", "on weekdays at 09:00 and 17:00, UTC"),
        ("0 9 * * 6,0", "on weekends at 09:00, UTC"),
        ("30 8 * * mon,THU", "every Monday and Thursday at 08:30, UTC"),
        ("0 0 1 * *", "on day 1 of each month at 00:00, UTC"),
        ("@yearly", "each 1 January at 00:00, UTC"),
        ("*/7 3-9 * 2 1", "cron */7 3-9 * 2 1, UTC"),
    ],
)
def test_a_cron_expression_in_words(expression: str, words: str) -> None:
    assert when_text(ScheduleWhen(cron=expression)) == words


def test_an_interval_in_words() -> None:
    assert when_text(ScheduleWhen(every=90)) == "every 1 min 30 s"
