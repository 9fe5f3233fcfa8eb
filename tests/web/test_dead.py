"""The page Dead letters in a browser: groups by error, replay and purge, one or all that match."""

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect

from gearflow.client import SyncClient
from gearflow.client.operate import dead_letters
from gearflow.server import JobServer
from tests.web.shop import Shop, open_shop

MARKUP = "<img src=x onerror=alert(1)>"


@pytest.fixture
def shop() -> Iterator[tuple[Shop, JobServer]]:
    """A shop of the test's own, which has no dead letters yet."""
    with JobServer(port=0) as server, open_shop(server.address) as shop:
        yield shop, server


def charge_all(shop: Shop, customers: range) -> list[str]:
    """Jobs of a deployment that is broken. Their handles."""
    shop.is_broken = True
    handles = [shop.submit("billing.charge", customer=customer, card="4111") for customer in customers]
    assert all(shop.end(handle).dead for handle in handles)
    shop.is_broken = False
    return handles


def fail_with(shop: Shop, text: str) -> str:
    """A dead letter with that error."""
    handle = shop.submit("shop.fail", text=text)
    assert shop.end(handle).dead
    return handle


def left(server: JobServer) -> list[str]:
    """The dead letters that there are."""
    with SyncClient([server.address]) as client:
        return [letter.handle for letter in client.run(lambda asked: dead_letters(asked))]


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
def test_dead_letters_are_grouped_and_one_group_is_replayed(
    shop: tuple[Shop, JobServer], dashboard: Callable[..., str], open_tab: Callable[..., Page], scripts: bool
) -> None:
    charged, other = charge_all(shop[0], range(4)), fail_with(shop[0], MARKUP)
    tab = open_tab(java_script_enabled=scripts)
    tab.goto(dashboard(shop[1]) + "/dead")
    expect(tab.locator(".bulk")).to_contain_text("5 dead letters")
    groups = tab.locator("table.groups tbody tr")
    expect(groups).to_have_count(2)
    expect(groups.nth(0)).to_contain_text("KeyError")
    expect(groups.nth(0).locator("[data-label='Dead letters']")).to_have_text("4")
    expect(groups.nth(1)).to_contain_text(MARKUP)
    expect(tab.locator("table.jobs tbody tr", has_text=other)).to_contain_text(MARKUP)
    expect(tab.locator("main img")).to_have_count(0)
    groups.nth(0).get_by_role("link", name="Replay").click()
    expect(tab.get_by_role("heading", level=1)).to_contain_text("Replay 4 dead letters of billing.charge")
    tab.get_by_role("button", name="Replay 4").click()
    expect(tab.locator("#notice")).to_contain_text("Replayed 4 dead letters of billing.charge")
    tab.goto(dashboard(shop[1]) + "/dead")
    expect(tab.locator(".bulk")).to_contain_text("1 dead letter")
    assert {shop[0].end(handle).state for handle in charged} == {"completed"}


def test_one_dead_letter_is_replayed_and_one_purged(
    shop: tuple[Shop, JobServer], dashboard: Callable[..., str], tab: Page
) -> None:
    first, second, third = charge_all(shop[0], range(3))
    tab.goto(dashboard(shop[1]) + "/dead?function=billing.charge")
    tab.get_by_role("button", name=f"Replay {first}").click()
    expect(tab.locator("#notice")).to_have_text(f"Replayed {first}.")
    expect(tab).to_have_url(dashboard_page := tab.url)
    assert dashboard_page.endswith("/dead?function=billing.charge")
    tab.get_by_label(f"Purge {second}").click()
    tab.get_by_role("button", name="Purge it").click()
    expect(tab.locator("#notice")).to_have_text(f"Purged {second}.")
    expect(tab.locator("table.jobs tbody tr")).to_have_count(1)
    assert left(shop[1]) == [third]


def test_all_that_match_a_text_are_purged(
    shop: tuple[Shop, JobServer], dashboard: Callable[..., str], tab: Page
) -> None:
    handles = [fail_with(shop[0], text) for text in ("disk full on a", "disk full on b", "no route")]
    tab.goto(dashboard(shop[1]) + "/dead")
    tab.get_by_role("searchbox").fill("disk FULL")
    tab.get_by_role("button", name="Filter").click()
    expect(tab.locator(".bulk")).to_contain_text("2 dead letters with “disk FULL” in them")
    tab.get_by_role("link", name="Purge all that match").click()
    expect(tab.locator(".question")).to_contain_text("nobody can replay them")
    tab.get_by_role("button", name="Purge 2").click()
    expect(tab.locator("#notice")).to_contain_text("Purged 2 dead letters")
    assert left(shop[1]) == [handles[2]]


def test_a_page_without_dead_letters_says_what_they_are(
    shop: tuple[Shop, JobServer], dashboard: Callable[..., str], gearmand: str, tab: Page
) -> None:
    tab.goto(dashboard(shop[1]) + "/dead")
    expect(tab.locator(".empty")).to_contain_text("A background job that fails for good is kept here")
    fail_with(shop[0], "late")
    expect(tab.locator("table.jobs tbody tr")).to_contain_text("late")
    tab.goto(dashboard(shop[1]) + "/dead?error=Nothing")
    expect(tab.locator(".empty")).to_contain_text("There is no dead letter with the error Nothing now.")
    tab.goto(dashboard(gearmand) + "/dead")
    expect(tab.locator(".empty")).to_contain_text("C gearmand forgets a job that fails.")
