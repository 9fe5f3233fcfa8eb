"""The page Workers in a browser: what each runs and since when, quiet and resume."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest
from playwright.sync_api import Page, expect

from gearflow.client import SyncClient
from gearflow.client.operate import workers
from gearflow.protocol.codec import encode as packet
from gearflow.protocol.packets import CanDo, GrabJob, SetClientId
from gearflow.server import JobServer
from tests.web.shop import Shop, open_shop

MARKUP = "<img src=x onerror=alert(1)>"


@pytest.fixture
def shop() -> Iterator[tuple[Shop, JobServer]]:
    with JobServer(port=0) as server, open_shop(server.address) as shop:
        yield shop, server


def is_quiet(server: JobServer) -> list[bool]:
    with SyncClient([server.address]) as client:
        return [worker.quiet for worker in client.run(lambda asked: workers(asked))]


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
def test_a_worker_shows_what_it_runs_and_is_made_quiet_and_resumed(
    shop: tuple[Shop, JobServer], dashboard: Callable[..., str], open_tab: Callable[..., Page], scripts: bool
) -> None:
    (running, server) = shop
    video = running.submit("video.encode", name="holiday.mp4", frames=100)
    running.begin(video)
    tab = open_tab(java_script_enabled=scripts)
    tab.goto(dashboard(server) + "/jobs")
    expect(tab.locator("tr", has_text=video)).to_contain_text("running")
    tab.goto(dashboard(server) + "/workers")
    row = tab.locator("tr", has_text="shop-1")
    expect(row).to_contain_text("video.encode")
    expect(row).to_contain_text("1 of 8")
    expect(row).to_contain_text("billing.charge")
    row.get_by_role("button", name="Make quiet").click()
    expect(tab.locator("#notice")).to_have_text("shop-1 gets no more jobs. It ends 1 job first.")
    expect(row.locator(".badge")).to_have_text("quiet")
    expect(tab.locator(".figure", has_text="Quiet")).to_contain_text("1")
    assert is_quiet(server) == [True]
    waits = running.submit("report.build", number=1)
    row.get_by_role("button", name="Resume").click()
    expect(tab.locator("#notice")).to_have_text("shop-1 gets jobs again.")
    assert is_quiet(server) == [False]
    assert running.end(waits).state == "completed"
    row.get_by_role("link", name="video.encode").click()
    expect(tab.get_by_role("heading", level=1)).to_have_text(video)


def test_workers_come_and_go_and_are_found_by_function(
    dashboard: Callable[..., str], tab: Page, fresh: Callable[..., str]
) -> None:
    with JobServer(port=0) as server:
        tab.goto(dashboard(server) + "/workers")
        expect(tab.locator(".empty")).to_contain_text("gearflow worker myapp.tasks")
        with open_shop(server.address, name="shop-7"):
            expect(tab.locator("tr", has_text="shop-7")).to_be_visible()
            tab.get_by_role("searchbox").fill("VIDEO")
            tab.get_by_role("searchbox").press("Enter")
            expect(tab.locator("tr", has_text="shop-7")).to_be_visible()
            tab.get_by_role("searchbox").fill("nothing")
            tab.get_by_role("searchbox").press("Enter")
            expect(tab.locator(".empty")).to_contain_text("No worker has “nothing” in its name")
        tab.goto(dashboard(server) + "/workers")
        expect(tab.locator(".empty")).to_be_visible()


def test_what_workers_of_gearmand_run_is_not_known(
    server: JobServer, gearmand: str, dashboard: Callable[..., str], tab: Page, fresh: Callable[..., str]
) -> None:
    with open_shop(server.address, gearmand, name=fresh("shop")):
        tab.goto(dashboard(server, gearmand) + "/workers")
        expect(tab.locator("tr", has_text=f"at {gearmand}")).to_contain_text("not known")
        expect(tab.locator("tr", has_text=f"at {server.address}")).to_contain_text("nothing")
        expect(tab.locator(".figure", has_text="Jobs that run")).to_contain_text(
            "without those of C gearmand"
        )


def test_workers_of_gearmand_that_look_the_same_stay_apart(
    gearmand: str, dashboard: Callable[..., str], tab: Page, fresh: Callable[..., str]
) -> None:
    name, (host, _, port) = fresh(), gearmand.rpartition(":")
    rows = tab.locator("tr", has_text=name)
    tab.goto(f"{dashboard(gearmand)}/workers")
    with ExitStack() as workers:
        for count in (1, 2, 3):
            worker = workers.enter_context(socket.create_connection((host, int(port))))
            worker.sendall(packet(CanDo(name.encode())))
            expect(rows).to_have_count(count)


def test_a_plain_worker_with_markup_in_its_names_is_shown_and_made_quiet(
    dashboard: Callable[..., str], server: JobServer, tab: Page, fresh: Callable[..., str]
) -> None:
    function = fresh("f") + MARKUP
    with (
        SyncClient([server.address]) as client,
        socket.create_connection(("127.0.0.1", server.port)) as plain,
    ):
        handle = client.submit_background(function, b"x").handle
        plain.sendall(
            packet(SetClientId(b"<b>php</b>")) + packet(CanDo(function.encode())) + packet(GrabJob())
        )
        tab.goto(dashboard(server) + "/workers")
        row = tab.locator("tr", has_text="<b>php</b>")
        expect(row.locator(".functions-of")).to_have_text(function)
        expect(row.get_by_role("link", name=function)).to_have_attribute(
            "href", f"/jobs/{handle.replace(':', '%3A')}"
        )
        expect(tab.locator("main img, main b")).to_have_count(0)
        row.get_by_role("button", name="Make quiet").click()
        expect(tab.locator("#notice")).to_have_text("<b>php</b> gets no more jobs. It ends 1 job first.")
        expect(row.locator(".badge")).to_have_text("quiet")


def test_jobs_that_no_worker_can_run_are_named(
    dashboard: Callable[..., str], tab: Page, fresh: Callable[..., str]
) -> None:
    name = fresh("lonely")
    with JobServer(port=0) as server, SyncClient([server.address]) as client:
        client.submit_background(name, b"")
        tab.goto(dashboard(server) + "/workers")
        expect(tab.locator(".notice.warn")).to_have_text(f"Jobs wait, and no worker offers {name}.")


def test_a_visitor_who_may_only_look_makes_no_worker_quiet(
    shop: tuple[Shop, JobServer], dashboard: Callable[..., str], tab: Page
) -> None:
    _, server = shop
    url = dashboard(server, read_only=True)
    tab.goto(url + "/workers")
    expect(tab.locator("tr", has_text="shop-1")).to_be_visible()
    expect(tab.get_by_role("button", name="Make quiet")).to_have_count(0)
    with SyncClient([server.address]) as client:
        (worker,) = client.run(lambda asked: workers(asked))
    answer = httpx.post(
        f"{url}/workers/{worker.id}/quiet", headers={"Sec-Fetch-Site": "same-origin"}, timeout=20
    )
    assert answer.status_code == 403
    assert is_quiet(server) == [False]


def test_a_worker_that_has_gone_cannot_be_made_quiet(
    dashboard: Callable[..., str], server: JobServer
) -> None:
    answer = httpx.post(
        f"{dashboard(server)}/workers/none-1/quiet", headers={"Sec-Fetch-Site": "same-origin"}, timeout=20
    )
    assert answer.status_code == 502
    assert "none-1" in answer.text
