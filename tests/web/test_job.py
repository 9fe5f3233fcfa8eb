"""The page of one job in a browser: its life, its failure, its payload, and live how far it is."""

from collections.abc import Callable, Iterator

import httpx
import pytest
from playwright.sync_api import Page, expect

from gearflow.client import SyncClient
from gearflow.protocol.server_calls import Failure, JobInfo, PastRun
from gearflow.server import JobServer
from gearflow.web.job_contents import shown
from gearflow.web.job_timeline import WIDTH, bars, moments
from tests.web.shop import Shop, open_shop
from tests.web.test_layout import FAULTS

MARKUP = '<script>alert(1)</script><b>bold</b> & "quoted"'


@pytest.fixture(scope="module")
def shop(server: JobServer) -> Iterator[Shop]:
    with open_shop(server.address) as shop:
        yield shop


@pytest.fixture(scope="module")
def url(dashboard: Callable[..., str], server: JobServer) -> str:
    return dashboard(server)


def test_a_dead_letter_shows_its_runs_its_traceback_and_its_payload(shop: Shop, url: str, tab: Page) -> None:
    shop.is_broken = True
    handle = shop.submit("billing.charge", customer=7, card="4111")
    assert shop.end(handle).dead
    shop.is_broken = False
    tab.goto(f"{url}/jobs/{handle}")
    life = tab.locator(".timeline li")
    expect(life).to_have_count(5)
    expect(life.nth(0)).to_contain_text("Submitted")
    expect(life.nth(1)).to_contain_text("Run 1 took")
    expect(life.nth(1)).to_contain_text("on shop-1")
    expect(life.nth(1)).to_contain_text("KeyError: 'currency'")
    expect(life.nth(2)).to_contain_text("Run 2 took")
    expect(life.nth(3)).to_contain_text("Failed")
    expect(life.nth(4)).to_contain_text("A dead letter")
    expect(tab.locator("svg.runs rect.bad")).to_have_count(2)
    expect(tab.locator(".traceback")).to_contain_text("in charge")
    expect(tab.get_by_label("Payload")).to_contain_text('"card": "4111"')
    tab.get_by_role("button", name="Replay").click()
    expect(tab.locator("#notice")).to_have_text(f"Replayed {handle}.")
    expect(life.last).to_contain_text("Succeeded")
    expect(tab.get_by_label("Result")).to_have_text("customer 7 paid with 4111")


def test_an_error_with_markup_is_text(shop: Shop, url: str, tab: Page) -> None:
    handle = shop.submit("shop.fail", text=MARKUP)
    assert shop.end(handle).dead
    tab.goto(f"{url}/jobs/{handle}")
    expect(tab.locator("p.reason")).to_contain_text(MARKUP)
    expect(tab.locator(".traceback")).to_contain_text(MARKUP)
    expect(tab.locator(".timeline")).to_contain_text(MARKUP)
    expect(tab.locator("main b, main script")).to_have_count(0)


def test_progress_is_live_and_the_job_is_cancelled(shop: Shop, url: str, tab: Page) -> None:
    handle = shop.submit("video.encode", name=f"holiday {MARKUP}", frames=10_000)
    tab.goto(f"{url}/jobs/{handle}")
    bar = tab.locator("progress")
    expect(bar).to_have_attribute("max", "10000")
    first = int(bar.get_attribute("value") or 0)
    assert first >= 4000
    expect(bar).not_to_have_attribute("value", str(first))
    expect(tab.locator(".progress")).to_contain_text(f"of holiday {MARKUP}")
    expect(tab.locator(".badge", has_text="running")).to_be_visible()
    tab.locator("summary", has_text="Cancel").click()
    expect(tab.get_by_text("Its worker stops it.")).to_be_visible()
    tab.get_by_role("button", name="Cancel it").click()
    expect(tab.locator("#notice")).to_have_text(f"Cancelled {handle}.")
    expect(tab.locator(".badge", has_text="cancelled")).to_be_visible()
    expect(tab.locator(".timeline")).to_contain_text("Cancelled")


def test_parts_are_live(shop: Shop, url: str, tab: Page) -> None:
    handle = shop.submit("story.tell", words=["once", "upon", f"a {MARKUP}"])
    tab.goto(f"{url}/jobs/{handle}")
    parts = tab.locator(".parts li")
    expect(parts).to_have_text(["once", "upon", f"a {MARKUP}"])
    shop.doors.set()
    expect(parts).to_have_text(["once", "upon", f"a {MARKUP}", "the end"])
    expect(tab.locator(".badge", has_text="succeeded")).to_be_visible()
    shop.doors.clear()


def test_a_job_that_waits_says_why_and_for_what_also_without_scripts(
    server: JobServer, url: str, open_tab: Callable[..., Page], fresh: Callable[..., str]
) -> None:
    with SyncClient([server.address]) as client:
        handle = client.submit_background(fresh("lonely"), b"\xff\xfe", unique="order-1").handle
    tab = open_tab(java_script_enabled=False)
    tab.goto(f"{url}/jobs/{handle}")
    expect(tab.locator(".notice")).to_have_text("It waits: no worker offers its function")
    expect(tab.locator(".facts")).to_contain_text("order-1")
    expect(tab.locator("main")).to_contain_text("2 B that are not text")
    tab.locator("summary", has_text="Cancel").click()
    tab.get_by_role("button", name="Cancel it").click()
    expect(tab.locator("#notice")).to_have_text(f"Cancelled {handle}.")


def test_a_job_that_no_server_knows_is_not_found(url: str) -> None:
    for handle in ("H:nowhere-00000000:1", "%3Cb%3E", "x" * 200):
        answer = httpx.get(f"{url}/jobs/{handle}", timeout=20)
        assert answer.status_code == 404
        assert "<b>" not in answer.text


def test_a_result_is_shown_as_it_is_unless_it_is_json(shop: Shop, url: str, tab: Page) -> None:
    handle = shop.submit("report.build", number=12)
    shop.end(handle)
    tab.goto(f"{url}/jobs/{handle}")
    expect(tab.get_by_label("Result")).to_have_text('{\n  "number": 12,\n  "pages": 12\n}')
    for text in (
        '{"big": 12345678901234567890123}',
        "[1.10]",
        '{"a":1, "a":2}',
        "plain",
        "[" * 5000,
        '"text"',
    ):
        content = shown(text, len(text))
        assert "".join(content.text.split()) == "".join(text.split())
    assert shown("x" * 70_000, 70_000).note == "Only the beginning is shown. It has 68.4 KiB."
    assert shown("", 0).note == "It is empty."


def test_jobs_that_have_ended_are_listed_by_their_outcome(shop: Shop, url: str, tab: Page) -> None:
    done, failed = shop.submit("report.build", number=1), shop.submit("shop.fail", text="no paper")
    assert (shop.end(done).state, shop.end(failed).state) == ("completed", "raised")
    for state, mine, other in (("succeeded", done, failed), ("dead", failed, done)):
        tab.goto(f"{url}/jobs?state={state}")
        expect(tab.locator("tr", has_text=mine).first).to_contain_text(state)
        expect(tab.get_by_role("link", name=other, exact=True)).to_have_count(0)
    tab.goto(f"{url}/jobs?error=RuntimeError&text=no+paper")
    expect(tab.locator("table.jobs tbody tr")).to_have_count(1)


@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (1280, "dark")])
def test_the_page_of_a_job_fits_and_can_be_read(
    shop: Shop, url: str, open_tab: Callable[..., Page], width: int, scheme: str
) -> None:
    failed = shop.submit("shop.fail", text="a.message.without.blanks." + "x" * 200)
    shop.end(failed)
    running = shop.submit("story.tell", words=["y" * 200, MARKUP])
    tab = open_tab(viewport={"width": width, "height": 800}, color_scheme=scheme)
    for handle in (failed, running):
        tab.goto(f"{url}/jobs/{handle}")
        expect(tab.locator("#stream")).to_have_text("Live")
        tab.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate(FAULTS) == []
    shop.client.cancel(running)


# ------------------------------------------------------------------------------------------- the timeline


def test_the_timeline_of_a_job_that_runs_for_the_third_time() -> None:
    runs = (
        PastRun(attempt=1, started=10, ended=12, worker="w1", reason="KeyError"),
        PastRun(attempt=2, started=20, ended=20, worker="w2", reason="the worker w2 went away"),
    )
    job = JobInfo(
        handle="H:1",
        function="f",
        state="running",
        submitted=10,
        started=30,
        attempt=3,
        worker="w3",
        runs=runs,
    )
    assert [(each.title, each.at, each.took, each.worker) for each in moments(job, 50)] == [
        ("Submitted", 10, None, ""),
        ("Run 1", 10, 2, "w1"),
        ("Run 2", 20, 0, "w2"),
        ("Run 3", 30, 20, "w3"),
    ]
    first, second, third = bars(job, 50)
    assert (first.x, first.width) == (0, WIDTH * 2 / 40)
    assert second.width > 0
    assert (third.x, third.x + third.width) == (WIDTH / 2, WIDTH)


@pytest.mark.parametrize(
    ("state", "last"),
    [
        ("completed", "Succeeded"),
        ("workers_died", "Given up"),
        ("expired", "Expired"),
        ("cancelled", "Cancelled"),
    ],
)
def test_the_timeline_ends_as_the_job_ended(state: str, last: str) -> None:
    fields = {"handle": "H:1", "function": "f", "state": state, "submitted": 1.0, "ended": 9.0}
    job = JobInfo.model_validate({**fields, "failure": Failure(type="E", message="one\ntwo")})
    assert [each.title for each in moments(job, 10)] == ["Submitted", last]
    assert moments(job, 10)[-1].text == "E: one"
    assert bars(job, 10) == []


def test_runs_that_are_not_kept_are_counted() -> None:
    runs = tuple(PastRun(attempt=number, started=number, ended=number) for number in (1, 20, 21))
    job = JobInfo(handle="H:1", function="f", state="delayed", submitted=0, due=99, attempt=21, runs=runs)
    titles = [each.title for each in moments(job, 50)]
    assert titles == [
        "Submitted",
        "Run 1",
        "18 runs of which nothing is kept",
        "Run 20",
        "Run 21",
        "Not due before",
    ]
