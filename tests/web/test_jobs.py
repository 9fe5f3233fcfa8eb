"""The page Jobs in a browser: the list, its filters, and acts on all that match."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import httpx
import pytest
from anyio.from_thread import start_blocking_portal
from playwright.sync_api import Page, expect

import gearflow.web
from gearflow.client import JobRequest, SyncClient
from gearflow.client.operate import change_limits
from gearflow.client.submission import SubmitOptions
from gearflow.observe import FleetView, ServerView
from gearflow.protocol.codec import encode
from gearflow.protocol.jobs import ENDED, LIVE, ListedState
from gearflow.protocol.limits import FunctionLimits, LimitRequest, LimitUse, LimitValue
from gearflow.protocol.packets import CanDo, GrabJob
from gearflow.protocol.server_calls import ServerInfo
from gearflow.server import JobServer
from gearflow.web import sampler
from gearflow.web.job_lists import places, states_for
from gearflow.web.job_selection import Selection
from gearflow.web.sampler import Sampler
from gearflow.web.searches import Asking
from tests.ports import free_port
from tests.web.conftest import served

MARKUP = "<img src=x onerror=alert(1)>\"'&amp;"
OWN = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture(scope="module")
def client(server: JobServer) -> Iterator[SyncClient]:
    with SyncClient([server.address]) as connected:
        yield connected


def submit(client: SyncClient, function: str, count: int = 1, payload: str = "x") -> list[str]:
    """Background jobs. Their handles."""
    return [client.submit_background(function, payload.encode()).handle for _ in range(count)]


def states(client: SyncClient, handles: list[str]) -> list[str]:
    return [client.info(handle).state for handle in handles]


def test_jobs_are_found_by_state_function_and_text(
    dashboard: Callable[..., str], server: JobServer, client: SyncClient, tab: Page, fresh: Callable[..., str]
) -> None:
    name = fresh("resize")
    (waiting,) = submit(client, name, payload='{"order": "needle"}')
    later = SubmitOptions(delay=600)
    delayed = client.submit_background(name, b"{}", options=later).handle
    tab.goto(dashboard(server) + "/jobs")
    tab.get_by_label("Function").fill(name)
    tab.get_by_role("button", name="Filter").click()
    rows = tab.locator("table.jobs tbody tr")
    expect(rows).to_have_count(2)
    expect(tab.locator("tr", has_text=waiting)).to_contain_text("no worker offers its function")
    expect(tab.locator("tr", has_text=delayed)).to_contain_text("in 9 min")
    tab.get_by_label("State").select_option("delayed")
    tab.get_by_role("button", name="Filter").click()
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text(delayed)
    tab.get_by_label("State").select_option("")
    tab.get_by_label("Text").fill("NEEDLE")
    tab.get_by_label("Text").press("Enter")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text('{"order": "needle"}')
    tab.get_by_label("Text").fill("nothing has this")
    tab.get_by_role("button", name="Filter").click()
    expect(tab.get_by_role("heading", name="No job matches")).to_be_visible()
    expect(tab.locator(".empty")).to_contain_text(f"There is no job of {name} with “nothing has this” in it.")
    tab.locator(".empty").get_by_role("link", name="Show all jobs").click()
    expect(rows.first).to_be_visible()


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
def test_all_jobs_that_match_are_cancelled_after_a_question_with_their_number(
    dashboard: Callable[..., str],
    server: JobServer,
    client: SyncClient,
    open_tab: Callable[..., Page],
    fresh: Callable[..., str],
    scripts: bool,
) -> None:
    name, other = fresh("crawl"), fresh("other")
    mine, others = submit(client, name, 130), submit(client, other)
    tab = open_tab(java_script_enabled=scripts)
    tab.goto(f"{dashboard(server)}/jobs?function={name}")
    expect(tab.locator("table.jobs tbody tr")).to_have_count(100)
    tab.get_by_role("link", name="Cancel all that match").click()
    expect(tab.get_by_role("heading", level=1)).to_have_text(f"Cancel 130 live jobs of {name}?")
    expect(tab.locator("table.jobs tbody tr")).to_have_count(5)
    assert set(states(client, mine)) == {"waiting"}
    tab.get_by_role("button", name="Cancel 130").click()
    expect(tab.locator("#notice")).to_have_text(f"Cancelled 130 live jobs of {name}.")
    assert tab.url.endswith(f"/jobs?function={name}")
    assert set(states(client, mine)) == {"cancelled"}
    assert states(client, others) == ["waiting"]


def test_nothing_is_done_if_more_match_than_were_counted(
    dashboard: Callable[..., str], server: JobServer, client: SyncClient, tab: Page, fresh: Callable[..., str]
) -> None:
    name = fresh("crawl")
    handles = submit(client, name, 2)
    tab.goto(f"{dashboard(server)}/jobs/cancel?function={name}")
    expect(tab.get_by_role("button", name="Cancel 2")).to_be_visible()
    handles += submit(client, name)
    tab.get_by_role("button", name="Cancel 2").click()
    expect(tab.get_by_role("alert")).to_contain_text("Nothing was done.")
    expect(tab.get_by_role("alert")).to_contain_text("3 jobs match now, more than 2")
    assert set(states(client, handles)) == {"waiting"}
    tab.get_by_role("button", name="Cancel 3").click()
    expect(tab.locator("#notice")).to_have_text(f"Cancelled 3 live jobs of {name}.")
    assert set(states(client, handles)) == {"cancelled"}


def test_a_visitor_who_may_only_look_cannot_cancel(
    dashboard: Callable[..., str], server: JobServer, client: SyncClient, tab: Page, fresh: Callable[..., str]
) -> None:
    name = fresh("crawl")
    handles = submit(client, name)
    url = dashboard(server, read_only=True)
    tab.goto(f"{url}/jobs?function={name}")
    expect(tab.locator("table.jobs tbody tr")).to_have_count(1)
    expect(tab.get_by_role("link", name="Cancel all that match")).to_have_count(0)
    tab.goto(f"{url}/jobs/{handles[0]}")
    expect(tab.get_by_role("heading", name="Timeline")).to_be_visible()
    expect(tab.get_by_text("Cancel…")).to_have_count(0)
    for path in ("/jobs/cancel", f"/jobs/{handles[0]}/cancel", f"/jobs/{handles[0]}/replay"):
        form = {"function": name, f"expected:{server.address}": "1"}
        assert httpx.post(url + path, data=form, headers=OWN, timeout=20).status_code == 403
    assert httpx.get(f"{url}/jobs/cancel?function={name}", timeout=20).status_code == 403
    assert states(client, handles) == ["waiting"]


def test_another_site_cannot_cancel(
    dashboard: Callable[..., str], server: JobServer, client: SyncClient, fresh: Callable[..., str]
) -> None:
    name = fresh("crawl")
    handles = submit(client, name)
    url = dashboard(server)
    form = {"function": name, f"expected:{server.address}": "1"}
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://example.com"}, {}):
        assert httpx.post(url + "/jobs/cancel", data=form, headers=headers, timeout=20).status_code == 403
    assert states(client, handles) == ["waiting"]


def test_names_uniques_and_payloads_with_markup_are_text(
    dashboard: Callable[..., str], server: JobServer, client: SyncClient, tab: Page, fresh: Callable[..., str]
) -> None:
    name = fresh("f") + MARKUP
    handle = client.submit_background(name, MARKUP.encode(), unique=f"u{MARKUP}").handle
    url = dashboard(server)
    tab.goto(f"{url}/jobs?text={handle}")
    row = tab.locator("tr", has_text=handle)
    expect(row.locator(".function")).to_have_text(name)
    expect(row.locator(".unique")).to_have_text(f"u{MARKUP}")
    expect(row.locator(".payload")).to_have_text(MARKUP)
    row.get_by_role("link", name=handle).click()
    expect(tab.locator("pre")).to_have_text(MARKUP)
    expect(tab.locator(".card", has_text=name)).to_contain_text(f"u{MARKUP}")
    tab.goto(f"{url}/jobs/cancel?text={handle}")
    expect(tab.locator("tr", has_text=handle)).to_contain_text(name)
    expect(tab.locator("main img")).to_have_count(0)


def test_a_hundred_thousand_jobs_are_paged_and_cancelled(
    dashboard: Callable[..., str], tab: Page, fresh: Callable[..., str]
) -> None:
    name = fresh("flood")
    with JobServer(port=0) as large, SyncClient([large.address]) as client:
        for _ in range(10):
            client.submit_many([JobRequest(name, b"payload")] * 10_000)
        url = dashboard(large)
        tab.goto(f"{url}/jobs?state=waiting")
        rows = tab.locator("table.jobs tbody tr")
        expect(rows).to_have_count(100)
        first = rows.first.locator("th a").inner_text()
        tab.get_by_role("link", name="Next page").click()
        expect(rows).to_have_count(100)
        expect(rows.first.locator("th a")).not_to_have_text(first)
        tab.get_by_role("link", name="First page").click()
        expect(rows.first.locator("th a")).to_have_text(first)
        tab.goto(f"{url}/jobs?text=nothing-has-this")
        expect(tab.locator(".empty, .notice").first).to_be_visible()
        tab.goto(f"{url}/jobs/cancel?function={name}")
        tab.get_by_role("button", name="Cancel 100,000").click()
        expect(tab.locator("#notice")).to_have_text(f"Cancelled 100,000 live jobs of {name}.")


def test_the_list_follows_jobs_and_a_server_that_dies_and_comes_back(
    dashboard: Callable[..., str], tab: Page, fresh: Callable[..., str], tmp_path: Path
) -> None:
    name = fresh("work")
    with JobServer(port=free_port(), data=tmp_path / "jobs") as first:
        port, address = first.port, first.address
        tab.goto(dashboard(first) + "/jobs")
        expect(tab.get_by_role("heading", name="No jobs now")).to_be_visible()
        with SyncClient([address]) as client:
            (handle,) = submit(client, name)
        expect(tab.locator("tr", has_text=handle)).to_contain_text("waiting")
    expect(tab.locator(".notice.bad").first).to_contain_text(f"{address} does not answer")
    expect(tab.locator("tr", has_text=handle)).to_have_count(0)
    with JobServer(port=port, data=tmp_path / "jobs"):
        expect(tab.locator("tr", has_text=handle)).to_contain_text("waiting")
        expect(tab.locator(".notice.bad")).to_have_count(0)


def test_jobs_of_several_servers_are_listed_together_and_c_gearmand_too(
    dashboard: Callable[..., str],
    server: JobServer,
    client: SyncClient,
    gearmand: str,
    tab: Page,
    fresh: Callable[..., str],
) -> None:
    name = fresh("work")
    (here,) = submit(client, name)
    with JobServer(port=0) as other, SyncClient([other.address]) as there, SyncClient([gearmand]) as plain:
        (away,) = submit(there, name)
        (known,) = submit(plain, name)
        url = dashboard(server, other, gearmand)
        tab.goto(f"{url}/jobs?function={name}")
        expect(tab.locator("table.jobs tbody tr")).to_have_count(2)
        expect(tab.locator("tr", has_text=here)).to_contain_text(server.address)
        expect(tab.locator("tr", has_text=away)).to_contain_text(other.address)
        tab.get_by_role("link", name="Cancel all that match").click()
        expect(tab.locator(".facts")).to_contain_text(other.address)
        tab.get_by_role("button", name="Cancel 2").click()
        expect(tab.locator("#notice")).to_have_text(f"Cancelled 2 live jobs of {name}.")
        assert [*states(client, [here]), *states(there, [away])] == ["cancelled", "cancelled"]
        tab.goto(f"{url}/jobs?server={gearmand}")
        tab.get_by_role("link", name=known).click()
        expect(tab.locator(".card")).to_contain_text("C gearmand knows no more of a job")
        tab.locator("summary", has_text="Cancel").click()
        tab.get_by_role("button", name="Cancel it").click()
        expect(tab.locator("#notice")).to_have_text(f"Cancelled {known}.")


def test_everything_works_under_a_prefix(
    server: JobServer, client: SyncClient, tab: Page, fresh: Callable[..., str]
) -> None:
    name = fresh("work")
    (handle,) = submit(client, name)
    app = gearflow.web.app([server.address], allow="operate", prefix="/ops/queue", interval=0.2)
    with served(app) as url:
        tab.goto(f"{url}/ops/queue/jobs?function={name}")
        expect(tab.locator("#stream")).to_have_text("Live")
        tab.get_by_role("link", name=handle).click()
        expect(tab).to_have_url(f"{url}/ops/queue/jobs/{handle.replace(':', '%3A')}")
        tab.go_back()
        tab.get_by_role("link", name="Cancel all that match").click()
        tab.get_by_role("button", name="Cancel 1").click()
        expect(tab.locator("#notice")).to_have_text(f"Cancelled 1 live job of {name}.")
        assert tab.url.startswith(f"{url}/ops/queue/jobs")
        tab.close()  # it follows the server, which ends now


def test_hidden_payloads_are_nowhere_and_cannot_be_guessed(
    dashboard: Callable[..., str], server: JobServer, client: SyncClient, tab: Page, fresh: Callable[..., str]
) -> None:
    name = fresh("work")
    (handle,) = submit(client, name, payload="the-secret-of-this-job")
    url = dashboard(server, hide_payloads=True)
    tab.goto(f"{url}/jobs?function={name}")
    expect(tab.locator("tr", has_text=handle)).to_be_visible()
    tab.get_by_label("Handle").fill(handle)
    tab.get_by_label("Handle").press("Enter")
    expect(tab.get_by_role("heading", level=1)).to_have_text(handle)
    expect(tab.locator("main")).to_contain_text("This dashboard hides payloads")
    for path in ("/jobs", f"/jobs/{handle}", f"/jobs?function={name}", f"/jobs/cancel?function={name}"):
        assert "the-secret" not in httpx.get(url + path, timeout=20).text
    for path in ("/jobs?text=the-secret", "/jobs/cancel?text=the-secret", "/dead?text=the-secret"):
        assert handle not in httpx.get(url + path, follow_redirects=True, timeout=20).text


def test_hidden_payloads_are_not_in_the_keys_of_limits(
    dashboard: Callable[..., str], server: JobServer, client: SyncClient, fresh: Callable[..., str]
) -> None:
    name = fresh("sync")
    use = FunctionLimits(limits=(LimitUse(limit=name, key="/shop"),))
    request = LimitRequest(
        action="apply", origin=name, limits={name: LimitValue(count=1)}, functions={name: use}
    )
    client.run(lambda connected: change_limits(connected, request))
    handles = submit(client, name, 2, payload='{"shop": "secret.example"}')
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as worker:
        worker.sendall(encode(CanDo(name.encode())) + encode(GrabJob()))
        assert worker.recv(4096)  # one of them runs
        open_url, hidden = dashboard(server), dashboard(server, hide_payloads=True)
        path = f"/jobs?function={name}&state=waiting"
        assert f"{name} (secret.example): 1 of 1 runs" in httpx.get(open_url + path, timeout=20).text
        text = httpx.get(hidden + path, timeout=20).text
        assert f"{name}: 1 of 1 runs" in text
        pages = [httpx.get(f"{hidden}/jobs/{handle}", timeout=20).text for handle in handles]
        assert f"It waits: {name}: 1 of 1 runs" in "".join(pages)
        assert "secret" not in "".join((text, *pages))


@pytest.mark.parametrize(
    "query", ["state=eaten", "within=soon", "after=elsewhere", "after=7", "server=10.0.0.1:4730", "text=%ff"]
)
def test_a_query_that_makes_no_sense_is_refused(
    dashboard: Callable[..., str], server: JobServer, query: str
) -> None:
    assert httpx.get(f"{dashboard(server)}/jobs?{query}", timeout=20).status_code == 400


def test_a_question_that_costs_much_is_asked_seldom_and_again_after_an_act(
    server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "SHARE", 0.001)  # so that an answer is good for the time of the test
    asked: list[int] = []

    async def look() -> None:
        async def answer() -> int:
            asked.append(len(asked))
            await anyio.sleep(0.05)  # of the servers' time
            return asked[-1]

        asking = Sampler([server.address])

        async def ask(key: str) -> int | None:
            return (await asking.search(key, lambda: Asking(answer, lambda _: False))).answer

        assert [await ask(key) for key in ("key", "key", "other", "key")] == [0, 0, 1, 0]
        await asking.look_again()
        assert await ask("key") == 2
        await asking.close()

    with start_blocking_portal() as portal:
        portal.call(look)


def test_the_servers_of_a_group_are_asked_for_what_has_ended_once() -> None:
    def view(address: str, group: str = "") -> ServerView:
        info = ServerInfo(
            version="gearflow-1",
            durable=True,
            store="file",
            functions=("gearflow:jobs",),
            keep=1,
            max_deaths=3,
            jobs=0,
            group=group,
            server=address if group else "",
        )
        return ServerView(address, at=0, kind="gearflow", info=info)

    old = ServerView("old", at=0, kind="gearmand")
    fleet = FleetView((view("a", "shop"), view("b", "shop"), view("c"), old))
    every = Selection()
    asked = {each.address: each.states for each in places(fleet, every, every.states)}
    assert set(asked["a"]) == set(asked["c"]) == {*LIVE, *ENDED}
    assert asked["b"] == LIVE
    assert set(asked) == {"a", "b", "c"}
    dead = Selection(state="dead", server="b")
    assert [(each.address, each.states) for each in places(fleet, dead, dead.states)] == [("b", ("dead",))]
    assert [each.address for each in places(fleet, Selection(state="dead"), ("dead",))] == ["a", "c"]


@pytest.mark.parametrize(
    ("state", "cancelled", "replayed"),
    [
        ("", LIVE, ("dead",)),
        ("live", LIVE, ()),
        ("waiting", ("waiting",), ()),
        ("dead", (), ("dead",)),
        ("expired", (), ("expired",)),
        ("succeeded", (), ()),
    ],
)
def test_an_act_is_for_some_states_alone(
    state: str, cancelled: tuple[ListedState, ...], replayed: tuple[ListedState, ...]
) -> None:
    selection = Selection(state=state)
    assert states_for("cancel", selection) == cancelled
    assert states_for("replay", selection) == states_for("purge", selection) == replayed
