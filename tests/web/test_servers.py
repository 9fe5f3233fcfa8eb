"""The page Servers, and what the Overview says of servers."""

import re
from pathlib import Path

import httpx
import pytest
from markupsafe import Markup

import gearflow.web
from gearflow.observe import FleetView, ServerView
from gearflow.protocol.metrics import Metrics, StoreState
from gearflow.protocol.server_calls import ServerInfo
from gearflow.server import JobServer
from gearflow.web.formatting import unbroken
from gearflow.web.pages.overview import concerns
from gearflow.web.pages.servers import promises
from gearflow.web.sampler import Sample
from tests.web.conftest import served

GIB = 1 << 30


def view(store: StoreState | None) -> ServerView:
    info = ServerInfo(
        version="gearflow-1", durable=True, store="file", functions=(), keep=60, max_deaths=3, jobs=0
    )
    return ServerView(
        "one:4730", 1.0, info=info, kind="gearflow", metrics=Metrics(time=1, started=1, store=store)
    )


@pytest.mark.parametrize(
    ("sync", "promise"),
    [
        ("always", "A crash of its machine loses no background job, either."),
        ("batch", "A crash of its machine loses at most the background jobs of the last second."),
        ("off", "A crash of its machine may damage the file."),
    ],
)
def test_a_server_promises_what_its_sync_gives(sync: str, promise: str) -> None:
    assert list(promises(view(StoreState(sync=sync))))[1] == promise


def test_a_server_that_does_not_tell_its_sync_promises_no_more_than_it_says() -> None:
    assert not any("machine" in promise for promise in promises(view(None)))


@pytest.mark.parametrize(
    ("free", "found"),
    [
        (500 * GIB, []),
        (GIB // 2, [("warn", "has 512 MiB of disk left.")]),
        (1 << 20, [("bad", "has 1 MiB of disk left.")]),
    ],
)
def test_the_overview_names_a_server_whose_disk_is_nearly_full(
    free: int, found: list[tuple[str, str]]
) -> None:
    fleet = FleetView((view(StoreState(sync="batch", size=1, free=free, room=600 * GIB)),))
    listed, _ = concerns(Sample(fleet, 1.0, 1.0, {}), [])
    assert [(each.kind, each.text) for each in listed] == found


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("oldest 32 min 59 s", "oldest 32~min 59~s"),
        ("99 % within 512 ms", "99~% within 512~ms"),
        ("123 MiB, its disk has 65 GiB left", "123~MiB, its disk has 65~GiB left"),
    ],
)
def test_a_line_ends_behind_a_unit_and_not_before_it(text: str, shown: str) -> None:
    assert unbroken(text) == shown.replace("~", "\N{NO-BREAK SPACE}")
    assert unbroken(Markup(text)) == text


def test_the_page_shows_the_file_and_the_room_of_a_server(tmp_path: Path) -> None:
    with (
        JobServer(port=0, data=tmp_path) as server,
        served(gearflow.web.app([server.address], allow="view")) as url,
    ):
        page = httpx.get(f"{url}/servers", trust_env=False, timeout=20).text
    page = page.replace("\N{NO-BREAK SPACE}", " ")
    assert re.search(r"<dt>File</dt><dd[^>]*>[0-9.]+ [KM]iB, its disk has [0-9.]+ [MGT]iB left</dd>", page)
    assert "the background jobs of the last second" in page
