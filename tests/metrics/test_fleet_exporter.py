"""Several servers as one: sums that do not fall when a server restarts or is away."""

from gearflow.metrics.exporter import ServerSample
from gearflow.metrics.fleet_exporter import FleetExporter
from gearflow.protocol.histograms import Histogram
from gearflow.protocol.metrics import FunctionMetrics, Metrics
from tests.metrics.figures import BUSY, series, text_of, value


def sample(
    started: float, done: int, *, oldest: float | None = None, dead: int = 0, group: str = ""
) -> ServerSample:
    function = FunctionMetrics(
        function="f",
        submitted=done,
        succeeded=done,
        waiting=(0, 2, 0),
        oldest=oldest,
        run=Histogram(counts=(done,), sum=done / 1024),
    )
    return ServerSample(
        Metrics(time=started + 60, started=started, functions=(function,), dead=dead), group=group
    )


def foreign(waiting: int) -> ServerSample:
    function = FunctionMetrics(function="f", waiting=(0, waiting, 0), workers=1)
    return ServerSample(Metrics(time=1, started=0, functions=(function,)), has_counted=False)


def submitted(page: str) -> float:
    return value(page, "gearflow_jobs_submitted_total", function="f")


def test_counters_and_jobs_are_summed_and_the_oldest_job_is_that_of_all() -> None:
    page = text_of(
        FleetExporter().families({"a": sample(1, 10, oldest=5), "b": sample(2, 20, oldest=9), "c": None})
    )
    assert submitted(page) == 30
    assert value(page, "gearflow_jobs", function="f", priority="normal", state="waiting") == 4
    assert value(page, "gearflow_oldest_waiting_seconds", function="f") == 9
    assert value(page, "gearflow_job_run_seconds_count", function="f") == 30
    assert value(page, "gearflow_job_run_seconds_bucket", function="f", le="+Inf") == 30
    assert value(page, "gearflow_servers", state="up") == 2
    assert value(page, "gearflow_servers", state="down") == 1


def test_a_sum_does_not_fall_when_a_server_restarts() -> None:
    exporter = FleetExporter()
    text_of(exporter.families({"a": sample(1, 10), "b": sample(2, 20)}))
    page = text_of(exporter.families({"a": sample(100, 1), "b": sample(2, 25)}))
    assert submitted(page) == 10 + 1 + 25
    assert value(page, "gearflow_job_run_seconds_count", function="f") == 36
    page = text_of(exporter.families({"a": sample(200, 15), "b": sample(2, 25)}))  # more than before
    assert submitted(page) == 10 + 1 + 15 + 25


def test_a_sum_does_not_fall_while_a_server_is_away_but_its_jobs_are_not_counted() -> None:
    exporter = FleetExporter()
    text_of(exporter.families({"a": sample(1, 10), "b": sample(2, 20)}))
    page = text_of(exporter.families({"a": None, "b": sample(2, 21)}))
    assert submitted(page) == 31
    assert value(page, "gearflow_jobs", function="f", priority="normal", state="waiting") == 2
    page = text_of(exporter.families({"a": None, "b": None}))
    assert submitted(page) == 31
    assert value(page, "gearflow_servers", state="up") == 0


def test_dead_letters_of_a_group_count_once() -> None:
    samples = {
        "a": sample(1, 1, dead=7, group="g"),
        "b": sample(1, 1, dead=7, group="g"),
        "c": sample(1, 1, dead=3),
        "d": sample(1, 1, dead=4),
    }
    assert value(text_of(FleetExporter().families(samples)), "gearflow_dead_letters") == 14


def test_servers_of_others_are_in_the_sums_of_what_there_is_now() -> None:
    page = text_of(FleetExporter().families({"a": sample(1, 10), "gearmand": foreign(5)}))
    assert value(page, "gearflow_jobs", function="f", priority="normal", state="waiting") == 7
    assert submitted(page) == 10
    alone = text_of(FleetExporter().families({"gearmand": foreign(5)}))
    assert value(alone, "gearflow_jobs", function="f", priority="normal", state="waiting") == 5
    assert {name for name, _ in series(alone)} == {"gearflow_jobs", "gearflow_workers", "gearflow_servers"}


def test_no_label_has_an_address() -> None:
    page = text_of(FleetExporter().families({"jobs.example.com:4730": ServerSample(BUSY, "gearflow-1")}))
    assert "example" not in page
    assert value(page, "gearflow_server_info", version="gearflow-1") == 1
