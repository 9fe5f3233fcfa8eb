"""Looks at the servers: only while somebody watches, once for all viewers, and not too often."""

import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from playwright.sync_api import Page, expect

import gearflow.web
from gearflow.client import Client, SyncClient
from gearflow.client.admin import Admin
from gearflow.protocol.histograms import Histogram
from gearflow.protocol.metrics import FunctionMinute
from gearflow.server import JobServer
from gearflow.web import history
from gearflow.web.formatting import NOTHING
from gearflow.web.history_plots import history_plots
from gearflow.web.plots import Plot, PlotLine, bar, grouped
from gearflow.web.sampler import Sampler
from tests.web.conftest import served


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"  # as the dashboard


async def _connections(server: JobServer) -> int:
    """The connections of a server but the one that asks."""
    return len(await Admin(server.address).workers()) - 1


async def test_all_viewers_share_a_sample(server: JobServer) -> None:
    sampler = Sampler([server.address], interval=60)
    first = await sampler.sample()
    async with anyio.create_task_group() as viewers:
        for _ in range(5):
            viewers.start_soon(sampler.sample)
    assert await sampler.sample() is first
    await sampler.look_again()
    assert await sampler.sample() is not first
    await sampler.close()


async def test_a_part_is_asked_for_only_if_somebody_needs_it(server: JobServer) -> None:
    sampler = Sampler([server.address], interval=60)
    assert (await sampler.sample()).parts == {"metrics", "limits"}
    assert (await sampler.sample("schedules")).parts == {"metrics", "limits", "schedules"}
    await sampler.close()


async def test_nothing_is_connected_before_somebody_looks_and_after_it_is_closed() -> None:
    with JobServer(port=0) as server:
        sampler = Sampler([server.address])
        assert await _connections(server) == 0
        await sampler.sample()
        assert await _connections(server) == 1
        await sampler.close()
        with anyio.fail_after(20):
            while await _connections(server):  # noqa: ASYNC110  (the server tells nobody)
                await anyio.sleep(0.01)
        await sampler.look_again()  # and it opens again
        assert await _connections(server) == 1
        await sampler.close()


async def test_rates_are_those_between_two_samples(server: JobServer, fresh: Callable[..., str]) -> None:
    name = fresh()
    sampler = Sampler([server.address], interval=0)
    assert (await sampler.sample()).rates == {}
    async with Client([server.address]) as client:
        await client.submit_background(name, b"")
    await sampler.look_again()
    sample = await sampler.sample()
    assert sample.seconds > 0
    assert sample.rates[name].submitted > 0
    assert sample.rates[name].ended == 0
    await sampler.close()


async def test_gearmand_has_a_history_while_somebody_looks(gearmand: str, fresh: Callable[..., str]) -> None:
    name = fresh()
    async with Client([gearmand]) as client:
        await client.submit_background(name, b"")
    sampler = Sampler([gearmand], interval=3600)  # one look: another might be in the next minute
    await sampler.sample()
    [(_, minute)] = await sampler.minutes(3600, name)
    assert minute.waiting == 1
    await sampler.close()


async def test_a_sum_has_no_minute_that_only_gearmand_has(
    server: JobServer, gearmand: str, fresh: Callable[..., str]
) -> None:
    name = fresh()
    async with Client([gearmand]) as plain, Client([server.address]) as client:
        await plain.submit_background(name, b"")
        await client.submit_background(name, b"")
    sampler = Sampler([server.address, gearmand])
    (of,) = [each for each in (await sampler.sample()).fleet.functions if each.function == name]
    assert sum(of.waiting) == 2
    assert not [minute for _, minute in await sampler.minutes(3600, name) if minute.waiting]
    await sampler.close()


async def test_a_history_is_asked_for_again_although_the_clock_was_set_back(
    gearmand: str, fresh: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gearflow.web.sampler._HISTORY_AGE", 0.0)
    name = fresh()
    sampler = Sampler([gearmand], interval=0.0)
    assert await sampler.minutes(86_400, name) == []
    async with Client([gearmand]) as client:
        await client.submit_background(name, b"")
    hour_ago = time.time() - 3600
    with monkeypatch.context() as patch:
        patch.setattr("gearflow.web.sampler.time.time", lambda: hour_ago)
        await sampler.sample("workers")  # a part that the last look did not have
        [(_, minute)] = await sampler.minutes(86_400, name)
    assert minute.waiting == 1
    await sampler.close()


def test_a_dashboard_whose_token_may_only_look_shows_no_buttons(
    tmp_path: Path, tab: Page, fresh: Callable[..., str]
) -> None:
    name = fresh()
    token, viewer = "operate" * 4, "viewer" * 4
    file = tmp_path / "tokens"
    file.write_text(f"all:{token}\nview:{viewer}\n")
    with JobServer(port=0, token_file=file) as server:
        with SyncClient([server.address], token=token) as client:
            client.submit_background(name, b"")
        with served(gearflow.web.app([server.address], allow="operate", token=viewer)) as url:
            tab.goto(f"{url}/functions")
            expect(tab.locator("tbody tr")).to_contain_text(name)
            expect(tab.get_by_role("button", name="Pause")).to_have_count(0)
            tab.goto("about:blank")


# ---------------------------------------------------------------------------------------- the last hours


def minute(
    at: float, *, succeeded: int = 0, failed: int = 0, waiting: int = 0
) -> tuple[float, FunctionMinute]:
    return at, FunctionMinute(succeeded=succeeded, failed=failed, waiting=waiting)


def test_the_histories_of_servers_are_added_up() -> None:
    one = [minute(0, succeeded=1, waiting=2), minute(60, succeeded=2)]
    other = [minute(60, succeeded=5, waiting=1), minute(180, failed=1)]
    found = history.merged([one, other])
    assert [at for at, _ in found] == [0, 60, 180]
    assert [each.succeeded for _, each in found] == [1, 7, 0]
    assert [each.waiting for _, each in found] == [2, 1, 0]


def test_minutes_are_grouped_for_a_long_time() -> None:
    minutes = [minute(60 * number, succeeded=1, waiting=number) for number in range(10)]
    [(begin, first, seconds), (_, second, _)] = history.coarser(minutes, 5)
    assert (begin, seconds) == (0, 300)
    assert (first.succeeded, second.succeeded) == (5, 5)
    assert (first.waiting, second.waiting) == (4, 9)
    assert [grouped(span) for span in (3600, 21_600, 86_400)] == [1, 5, 15]


def test_a_plot_has_gaps_where_no_server_ran() -> None:
    times = [30.0, 90.0, 150.0, 390.0, 450.0]
    plot = Plot("Queue", times, [PlotLine("waiting", 1, [1, 2, 3, 4, None])], (0, 600), 60)
    drawing = plot.__html__()
    line, dot = [part for part in drawing.split("<path ") if part.startswith('class="line')]
    assert (line.count("M"), line.count("L"), dot.count("M")) == (1, 2, 1)
    assert f"now {NOTHING}, most 4" in drawing
    assert "1970-01-01 00:02:30 UTC\nwaiting: 3" in drawing


def test_a_plot_of_durations_has_a_logarithmic_axis() -> None:
    counts = Histogram(counts=(0, 0, 0, 0, 8)).counts
    plots = history_plots([(0, FunctionMinute(run=counts, wait=counts, succeeded=8))], 3600, 3600)
    assert [plot.title for plot in plots] == ["Jobs that ended", "Queue", "Time to wait", "Time to run"]
    assert "100 ms" in plots[3].__html__()
    assert "10 ms" in plots[3].__html__()


def test_a_point_without_neighbours_is_drawn_as_a_dot() -> None:
    plot = Plot("Queue", [30.0, 390.0, 450.0], [PlotLine("waiting", 1, [1, 2, 3])], (0, 600), 60)
    paths = [part for part in plot.__html__().split("<path ") if part.startswith('class="line')]
    assert [(path.split('"')[1], path.count("M")) for path in paths] == [("line s1", 1), ("line dot s1", 1)]


@pytest.mark.parametrize(("seconds", "labels"), [(500.0, ["17 min", "100 s"]), (20_000.0, ["28 h", "2.8 h"])])
def test_the_axis_of_long_durations_has_short_labels(seconds: float, labels: list[str]) -> None:
    plot = Plot("Time to wait", [30.0], [PlotLine("half within", 1, [seconds])], (0, 600), 60, log=True)
    axis = plot.__html__().split('<div class="plot-y"')[1].split("</div>")[0]
    assert [label.split("<")[0] for label in axis.split("<span>")[1:]] == labels


def test_a_plot_without_values_can_be_drawn() -> None:
    for log in (False, True):
        assert "<svg" in Plot("Empty", [], [PlotLine("none", 1, [])], (0, 60), 60, log=log).__html__()


def test_names_in_plots_are_text() -> None:
    assert "<b>" not in Plot("<b>", [1], [PlotLine("<b>", 1, [1])], (0, 60), 60).__html__()
    assert "<b>" not in bar([(1, 1)], 2, "<b>")


def test_a_bar_is_never_longer_than_its_whole() -> None:
    assert 'width="100.00"' in bar([(30, 1)], 20, "30 of 20")
    assert 'width="0.00"' in bar([(0, 1)], 0, "nothing")


@pytest.mark.parametrize(("first", "begin"), [(7000.0, 6600.0), (5000.0, 4980.0), (60.0, 3600.0)])
def test_a_plot_begins_with_the_first_minute_that_is_known(first: float, begin: float) -> None:
    plot, *_ = history_plots([minute(first, succeeded=1)], 3600, 7200)
    assert plot.span == (begin, 7200)
