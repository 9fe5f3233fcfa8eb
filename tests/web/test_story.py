"""An operator's story, told in a browser: a deployment breaks a task, and 3,000 jobs of customers fail.

Alerts fire, the dashboard shows since when and why, the function is paused, repaired and resumed, and then
the dead letters of that error run again, and no others. Meanwhile the server is started again. The pictures
of the docs are taken in passing.
"""

import json
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

import httpx
from playwright.sync_api import Page, expect
from prometheus_client.parser import text_string_to_metric_families

from gearflow.broker.counts import TALLIED, FunctionTally
from gearflow.broker.history import DAY, MINUTE, MinuteLine
from gearflow.broker.storage import HISTORY, Setting
from gearflow.client import SyncClient
from gearflow.client.operate import bulk, server_info
from gearflow.protocol.jobs import JobFilter, ListedState
from gearflow.protocol.metrics import ALL, FunctionMetrics
from gearflow.server import JobServer
from gearflow.server.settings import FILE_NAME
from gearflow.stores import SqliteStore
from tests.conftest import ROOT
from tests.ports import free_port
from tests.web import pictures
from tests.web.shop import Shop, open_shop, order

CHARGE: Final = "billing.charge"
CUSTOMERS: Final = 3000
LATE: Final = 100
"""Those of them who come after the server was started again."""
PATIENCE: Final = 60.0

Series = dict[str, float]


def test_a_broken_deployment_is_found_repaired_and_made_up_for(
    dashboard: Callable[..., str],
    program: Callable[[str], str],
    tmp_path: Path,
    open_tab: Callable[..., Page],
) -> None:
    data, tab = tmp_path / "server", open_tab(viewport=pictures.SIZE)
    remember_a_calm_hour(data)
    alerts = Alerts(program("promtool"), tmp_path)
    with ExitStack() as stack:
        port = free_port()
        with JobServer(port=port, data=data) as server:
            url = dashboard(server)
            shop = stack.enter_context(open_shop(server.address, concurrency=64))
            work_as_usual(shop)
            calm = series_of(url)
            assert alerts.firing(calm, calm) == set()
            deploy(shop, broken=True)
            charge_customers(shop.client, range(CUSTOMERS - LATE))
            broken = series_of(url)
            assert alerts.firing(calm, broken) >= {"GearflowDeadLetters"}
            charge = metrics_of(server)
            assert (charge.succeeded, charge.dead, charge.retried) == (200, *[CUSTOMERS - LATE] * 2)
        with JobServer(port=port, data=data) as server:
            see_since_when_and_why(tab, url, shop.client)
            see_it_on_a_telephone(open_tab(viewport=pictures.NARROW, color_scheme="dark"), url)
            pause(tab, url, shop.client)
            deploy(shop, broken=False)
            resume(tab, url, shop.client)
            replay(tab, url, shop.client)
            charge = metrics_of(server)
            assert (charge.succeeded, charge.dead, charge.retried) == (20 + CUSTOMERS, LATE, LATE)
            assert alerts.firing(broken, after := series_of(url), after) == set()
            tab.close()


def work_as_usual(shop: Shop) -> None:
    """Jobs that succeed, one that fails for another reason, and one that goes on."""
    shop.end(shop.submit("shop.fail", text="the printer is out of paper"))
    shop.client.submit_many([order(CHARGE, customer=each, card="4111") for each in range(200)])
    for handle in [shop.submit("report.build", number=each) for each in range(20)]:
        shop.end(handle)
    wait_for(shop.client, "waiting", 0)
    wait_for(shop.client, "running", 0)


def deploy(shop: Shop, *, broken: bool) -> None:
    """Another release of the shop."""
    shop.is_broken = broken


def charge_customers(client: SyncClient, customers: range) -> None:
    before = number(client, "dead")
    client.submit_many([order(CHARGE, customer=each, card="4111") for each in customers])
    wait_for(client, "dead", before + len(customers))


def see_since_when_and_why(tab: Page, url: str, client: SyncClient) -> None:
    """The dashboard shows it, although the server was started again. Meanwhile more jobs fail."""
    tab.goto(url)
    expect(tab.get_by_role("link", name=CHARGE)).to_be_visible()
    charge_customers(client, range(CUSTOMERS - LATE, CUSTOMERS))
    expect(tab.locator(".concerns")).to_contain_text(f"{CHARGE} fails: 100 % of its jobs")
    plot = tab.locator("figure", has_text="Jobs that ended")
    expect(plot.locator("title", has_text=re.compile(r"failed: [^0]")).first).to_be_attached()
    expect(tab.locator(".figure", has_text="Dead letters")).to_contain_text("3,001")
    pictures.take(tab, "overview")
    tab.get_by_role("navigation", name="Sections").get_by_role("link", name="Functions").click()
    tab.get_by_role("link", name=CHARGE).first.click()
    expect(plot.locator("title", has_text=re.compile(r"failed: [^0]")).first).to_be_attached()
    pictures.take(tab, "function")
    tab.get_by_role("link", name="Its dead letters").click()
    group = tab.locator("table.groups tbody tr")
    expect(group).to_have_count(1)
    expect(group).to_contain_text("KeyError")
    expect(group).to_contain_text("'currency'")
    expect(group.locator("[data-label='Dead letters']")).to_have_text("3,000")
    expect(group.locator("[data-label='First']")).to_contain_text("ago")
    pictures.take(tab, "dead-letters")
    tab.locator("table.jobs tbody tr").first.locator("th a").click()
    expect(tab.locator(".traceback")).to_contain_text('raise KeyError("currency")')
    expect(tab.locator(".timeline li.bad")).to_have_count(4)
    pictures.take(tab, "job")


def see_it_on_a_telephone(tab: Page, url: str) -> None:
    """The same on a narrow screen, in the dark."""
    tab.goto(url)
    expect(tab.locator(".figure", has_text="Dead letters")).to_contain_text("3,001")
    pictures.take(tab, "narrow-dark")


def pause(tab: Page, url: str, client: SyncClient) -> None:
    """So no further jobs of customers fail."""
    tab.get_by_role("link", name=CHARGE).first.click()
    tab.get_by_role("button", name="Pause").click()
    expect(tab.locator("#notice")).to_contain_text(f"Paused {CHARGE}.")
    assert CHARGE in client.run(lambda asked: server_info(asked)).paused
    client.submit_many([order(CHARGE, customer=each, card="4222") for each in range(20)])
    client.enqueue(order("video.encode", name="holiday.mp4", frames=900))
    expect(tab.locator(".figure", has_text="Waiting")).to_contain_text("20")
    tab.goto(f"{url}/jobs?function={CHARGE}&state=waiting")
    expect(tab.locator("table.jobs tbody tr")).to_have_count(20)
    expect(tab.locator("table.jobs tbody tr").first).to_contain_text("its function is paused")
    pictures.take(tab, "jobs")
    tab.goto(f"{url}/workers")
    expect(tab.locator("tr", has_text="shop-1")).to_contain_text("video.encode for")
    pictures.take(tab, "workers")


def resume(tab: Page, url: str, client: SyncClient) -> None:
    tab.goto(f"{url}/functions/{CHARGE}")
    tab.get_by_role("button", name="Resume").click()
    expect(tab.locator("#notice")).to_contain_text(f"Resumed {CHARGE}.")
    expect(tab.locator(".figure", has_text="Waiting")).to_contain_text("0")
    wait_for(client, "running", 0)
    assert number(client, "dead") == CUSTOMERS


def replay(tab: Page, url: str, client: SyncClient) -> None:
    """The dead letters of this error run again, and no others."""
    tab.get_by_role("link", name="Its dead letters").click()
    tab.get_by_role("link", name="Replay KeyError").click()
    heading = f"Replay 3,000 dead letters of {CHARGE} with the error KeyError?"
    expect(tab.get_by_role("heading", level=1)).to_have_text(heading)
    pictures.take(tab, "replay")
    tab.get_by_role("button", name="Replay 3,000").click()
    expect(tab.locator("#notice")).to_contain_text(f"Replayed 3,000 dead letters of {CHARGE}")
    wait_for(client, "waiting", 0)
    wait_for(client, "running", 0)
    assert number(client, "dead") == 0
    tab.goto(f"{url}/dead")
    expect(tab.locator(".bulk")).to_contain_text("1 dead letter")
    expect(tab.locator("table.jobs tbody tr")).to_contain_text("the printer is out of paper")


# ------------------------------------------------------------------------------------------------ figures


class Alerts:
    """The alert rules of the docs, as Prometheus evaluates them."""

    def __init__(self, promtool: str, folder: Path) -> None:
        self._promtool = promtool
        self._file = folder / "story.test.json"  # JSON is YAML, too

    def firing(self, *scrapes: Series) -> set[str]:
        """The alerts that fire about charging, at the end of scrapes that each went on for ten minutes.

        promtool compares with what is expected, so the alerts are found by what it says that it got.
        """
        inputs = [
            {
                "series": name,
                "values": " ".join(f"{scrape[name]}x9" if name in scrape else "_x9" for scrape in scrapes),
            }
            for name in sorted({name for scrape in scrapes for name in scrape})
        ]
        expression = f'ALERTS{{alertstate="firing", function="{CHARGE}"}}'
        question = {"expr": expression, "eval_time": f"{10 * len(scrapes) - 1}m"}
        asked = {
            "rule_files": [str(ROOT / "docs" / "operations" / "alerts.yml")],
            "evaluation_interval": "1m",
            "tests": [{"interval": "1m", "input_series": inputs, "promql_expr_test": [question]}],
        }
        self._file.write_text(json.dumps(asked))
        done = subprocess.run(
            [self._promtool, "test", "rules", self._file], capture_output=True, text=True, timeout=60
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0 or "got:" in said, said
        return set(re.findall(r'alertname=\\?"(\w+)', said))


def series_of(url: str) -> Series:
    """What Prometheus gets from the dashboard."""
    answer = httpx.get(f"{url}/metrics", headers={"accept": "text/plain"}, timeout=20)
    return {
        f"{sample.name}{_labels(sample.labels)}": sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.name.startswith("gearflow_")
    }


def _labels(labels: Mapping[str, str]) -> str:
    pairs = ",".join(f"{name}={json.dumps(value)}" for name, value in sorted(labels.items()))
    return f"{{{pairs}}}"


def metrics_of(server: JobServer) -> FunctionMetrics:
    """What the server has counted of charging."""
    (found,) = server.metrics(functions=[CHARGE]).functions
    return found


def number(client: SyncClient, state: ListedState) -> int:
    """Jobs of charging in a state."""
    select = JobFilter(states=(state,), function=CHARGE)
    return client.run(lambda asked: bulk(asked, "count", select)).matched


def wait_for(client: SyncClient, state: ListedState, wanted: int) -> None:
    until = time.monotonic() + PATIENCE
    while (found := number(client, state)) != wanted:
        assert time.monotonic() < until, f"{found} of {wanted} are {state}"
        time.sleep(0.1)


def remember_a_calm_hour(data: Path) -> None:
    """Give the file of a server the minutes of an hour in which 40 cards a minute were charged."""
    data.mkdir()
    with closing(SqliteStore(data / FILE_NAME)) as store:
        store.load()
        last = int(time.time() // MINUTE) - 1
        store.write([_calm(minute) for minute in range(last - 57, last + 1)])


def _calm(minute: int) -> Setting:
    count = 36 + minute * 7 % 11
    happened = {"submitted": count, "started": count, "succeeded": count}
    numbers = [happened.get(name, 0) for name in TALLIED]
    waits, runs = [0, 0, 0, count - 3, 3], [*([0] * 6), count - 2, 2]
    line = MinuteLine(FunctionTally(numbers, waits, runs), 0, 1, None).to_json()
    value = json.dumps([minute, {ALL: line, CHARGE: line}]).encode()
    return Setting(b"%d" % (minute % DAY), HISTORY, value)
