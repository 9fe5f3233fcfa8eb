"""An operator's story, told in a browser: a deployment breaks a task, and 3,000 jobs of customers fail.

Alerts fire, the dashboard shows since when and why, the function is paused, repaired and resumed, and then
the dead letters of that error run again, and no others.
"""

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect
from prometheus_client.parser import text_string_to_metric_families

from gearflow.client import SyncClient
from gearflow.client.operate import bulk, server_info
from gearflow.protocol.jobs import JobFilter, ListedState
from gearflow.server import JobServer
from tests.conftest import ROOT
from tests.web import pictures
from tests.web.shop import Shop, open_shop, order

CHARGE = "billing.charge"
CUSTOMERS = 3000
PATIENCE = 60.0

Series = dict[str, float]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[JobServer]:
    with JobServer(port=0, data=tmp_path / "jobs") as running:
        yield running


def series_of(url: str) -> Series:
    """What Prometheus gets from the dashboard."""
    answer = httpx.get(f"{url}/metrics", headers={"accept": "text/plain"})
    return {
        f"{sample.name}{_labels(sample.labels)}": sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.name.startswith("gearflow_")
    }


def _labels(labels: Mapping[str, str]) -> str:
    pairs = ",".join(f"{name}={json.dumps(value)}" for name, value in sorted(labels.items()))
    return f"{{{pairs}}}"


def firing(promtool: str, folder: Path, *scrapes: Series) -> set[str]:
    """The alerts that fire about charging, at the end of scrapes that were each repeated for ten minutes.

    promtool evaluates the rules of the docs on these figures. It compares with what is expected, so the
    alerts are found by what it says that it got.
    """
    names = sorted({name for scrape in scrapes for name in scrape})
    inputs = [
        {
            "series": name,
            "values": " ".join(f"{scrape[name]}x9" if name in scrape else "_x9" for scrape in scrapes),
        }
        for name in names
    ]
    question = {
        "expr": f'ALERTS{{alertstate="firing", function="{CHARGE}"}}',
        "eval_time": f"{10 * len(scrapes) - 1}m",
    }
    asked = {
        "rule_files": [str(ROOT / "docs" / "operations" / "alerts.yml")],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": inputs, "promql_expr_test": [question]}],
    }
    file = folder / "story.test.json"  # JSON is YAML, too
    file.write_text(json.dumps(asked))
    done = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True, timeout=60)
    said = done.stdout + done.stderr
    assert done.returncode == 0 or "got:" in said, said
    return set(re.findall(r'alertname=\\?"(\w+)', said))


def number(client: SyncClient, state: ListedState) -> int:
    """Jobs of charging in a state."""
    select = JobFilter(states=(state,), function=CHARGE)
    return client.run(lambda asked: bulk(asked, "count", select)).matched


def wait_for(client: SyncClient, state: ListedState, wanted: int) -> None:
    until = time.monotonic() + PATIENCE
    while (found := number(client, state)) != wanted:
        assert time.monotonic() < until, f"{found} of {wanted} are {state}"
        time.sleep(0.1)


def deploy(shop: Shop, *, broken: bool) -> None:
    """Another release of the shop."""
    shop.is_broken = broken


def test_a_broken_deployment_is_found_repaired_and_made_up_for(
    server: JobServer,
    dashboard: Callable[..., str],
    program: Callable[[str], str],
    tmp_path: Path,
    open_tab: Callable[..., Page],
) -> None:
    url, promtool = dashboard(server), program("promtool")
    tab = open_tab(viewport=pictures.SIZE)
    with open_shop(server.address, concurrency=64) as shop:
        client = shop.client
        shop.end(shop.submit("shop.fail", text="the printer is out of paper"))
        client.submit_many([order(CHARGE, customer=each, card="4111") for each in range(200)])
        for handle in [shop.submit("report.build", number=each) for each in range(20)]:
            shop.end(handle)
        shop.submit("video.encode", name="holiday.mp4", frames=900)
        wait_for(client, "waiting", 0)
        calm = series_of(url)
        assert firing(promtool, tmp_path, calm, calm) == set()

        # A deployment breaks the task.
        deploy(shop, broken=True)
        for start in range(0, CUSTOMERS, 1000):
            client.submit_many(
                [order(CHARGE, customer=each, card="4111") for each in range(start, start + 1000)]
            )
        wait_for(client, "dead", CUSTOMERS)

        # Alerts fire.
        broken = series_of(url)
        assert firing(promtool, tmp_path, calm, broken) >= {"GearflowDeadLetters"}

        # The dashboard shows since when and why.
        tab.goto(url)
        expect(tab.locator(".concerns")).to_contain_text(CHARGE)
        pictures.take(tab, "overview")
        tab.get_by_role("navigation", name="Sections").get_by_role("link", name="Functions").click()
        tab.get_by_role("link", name=CHARGE).first.click()
        expect(tab.locator(".figure", has_text="Failed")).to_have_class(re.compile("bad"))
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

        # The function is paused, so that no further jobs of customers fail.
        tab.get_by_role("link", name=CHARGE).first.click()
        tab.get_by_role("button", name="Pause").click()
        expect(tab.locator("#notice")).to_contain_text(f"Paused {CHARGE}.")
        assert CHARGE in client.run(lambda asked: server_info(asked)).paused
        client.submit_many([order(CHARGE, customer=each, card="4222") for each in range(20)])
        expect(tab.locator(".figure", has_text="Waiting")).to_contain_text("20")
        tab.goto(f"{url}/jobs?function={CHARGE}&state=waiting")
        expect(tab.locator("table.jobs tbody tr")).to_have_count(20)
        expect(tab.locator("table.jobs tbody tr").first).to_contain_text("its function is paused")
        pictures.take(tab, "jobs")
        tab.goto(f"{url}/workers")
        expect(tab.locator("tr", has_text="shop-1")).to_contain_text("video.encode")
        pictures.take(tab, "workers")

        # It is repaired and resumed.
        deploy(shop, broken=False)
        tab.goto(f"{url}/functions/{CHARGE}")
        tab.get_by_role("button", name="Resume").click()
        expect(tab.locator("#notice")).to_contain_text(f"Resumed {CHARGE}.")
        expect(tab.locator(".figure", has_text="Waiting")).to_contain_text("0")
        assert number(client, "dead") == CUSTOMERS

        # The dead letters of this error run again, and no others.
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
        (charge,) = [each for each in server.metrics().functions if each.function == CHARGE]
        assert (charge.succeeded, charge.dead, charge.retried) == (200 + 20 + CUSTOMERS, CUSTOMERS, CUSTOMERS)

        # The alerts are over.
        assert firing(promtool, tmp_path, calm, broken, after := series_of(url), after) == set()
