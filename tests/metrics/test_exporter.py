"""What a server has counted, as Prometheus reads it."""

import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise

import pytest

from gearflow.metrics.exporter import OUTCOMES, ServerCaps, ServerSample
from gearflow.metrics.families import LabelCap
from gearflow.protocol.histograms import BUCKETS, Histogram, bucket_end
from gearflow.protocol.metrics import FunctionMetrics, Metrics
from tests.metrics.figures import BUSY, RESIZE, exported, series, value

PAGE = exported(ServerSample(BUSY, version="gearflow-1.2"))


def test_counters_have_the_figures_of_the_server() -> None:
    for name, expected in {
        "submitted": 100,
        "joined": 4,
        "restored": 2,
        "passed_on": 1,
        "started": 90,
        "retried": 9,
    }.items():
        assert value(PAGE, f"gearflow_jobs_{name}_total", function="resize") == expected
    finished = {
        outcome: value(PAGE, "gearflow_jobs_finished_total", function="resize", outcome=outcome)
        for outcome in OUTCOMES
    }
    assert finished == {"succeeded": 70, "failed": 5, "cancelled": 6, "expired": 7, "dead": 8}


def test_gauges_have_what_there_is_now() -> None:
    jobs = {
        (dict(labels).get("priority", ""), dict(labels)["state"]): found
        for (name, labels), found in series(PAGE).items()
        if name == "gearflow_jobs" and dict(labels)["function"] == "resize"
    }
    waiting = {("high", "waiting"): 1, ("normal", "waiting"): 2, ("low", "waiting"): 3}
    assert jobs == {**waiting, ("", "delayed"): 4, ("", "running"): 5}
    assert value(PAGE, "gearflow_oldest_waiting_seconds", function="resize") == 12.5
    assert value(PAGE, "gearflow_oldest_waiting_seconds", function="idle") == 0
    assert value(PAGE, "gearflow_workers", function="resize") == 3
    assert value(PAGE, "gearflow_slots", function="resize", state="free") == 25
    assert value(PAGE, "gearflow_slots", function="resize", state="busy") == 5
    assert value(PAGE, "gearflow_function_paused", function="resize") == 1
    assert value(PAGE, "gearflow_function_paused", function="idle") == 0


def test_the_server_itself_has_metrics() -> None:
    assert value(PAGE, "gearflow_limit_waiting", limit="api") == 3
    assert value(PAGE, "gearflow_limit_running", limit="api") == 20
    for name, expected in {"ticks": 10, "missed": 2, "skipped": 3, "overlapped": 1}.items():
        assert value(PAGE, f"gearflow_schedule_{name}_total", schedule="nightly") == expected
    assert value(PAGE, "gearflow_connections") == 12
    assert value(PAGE, "gearflow_connections_accepted_total") == 40
    assert value(PAGE, "gearflow_received_bytes_total") == 1000
    assert value(PAGE, "gearflow_sent_bytes_total") == 2000
    assert value(PAGE, "gearflow_store_changes_total") == 500
    assert value(PAGE, "gearflow_store_commit_seconds_count") == 6
    assert value(PAGE, "gearflow_dead_letters") == 17
    assert value(PAGE, "gearflow_results_fetched_total") == 33
    assert value(PAGE, "gearflow_store_size_bytes") == 1_000
    assert value(PAGE, "gearflow_store_free_bytes") == 90_000
    assert value(PAGE, "gearflow_store_room_bytes") == 100_000
    assert value(PAGE, "gearflow_store_damaged_total") == 1
    assert value(PAGE, "gearflow_server_closed") == 0
    assert value(PAGE, "gearflow_server_start_time_seconds") == 1_700_000_000
    assert value(PAGE, "gearflow_server_info", version="gearflow-1.2") == 1


def test_histograms_are_cumulative_and_lose_nothing() -> None:
    assert value(PAGE, "gearflow_job_wait_seconds_bucket", function="resize", le="0.001") == 10
    assert value(PAGE, "gearflow_job_wait_seconds_bucket", function="resize", le="0.002") == 10
    assert value(PAGE, "gearflow_job_wait_seconds_bucket", function="resize", le="0.004") == 15
    assert value(PAGE, "gearflow_job_wait_seconds_bucket", function="resize", le="+Inf") == 15
    assert value(PAGE, "gearflow_job_wait_seconds_count", function="resize") == 15
    assert value(PAGE, "gearflow_job_wait_seconds_sum", function="resize") == 0.02
    # The bucket from 16 to 33 s.
    assert value(PAGE, "gearflow_job_run_seconds_bucket", function="resize", le="16.384") == 0
    assert value(PAGE, "gearflow_job_run_seconds_bucket", function="resize", le="32.768") == 7


def test_each_bucket_of_the_server_is_in_one_of_the_metrics() -> None:
    everywhere = FunctionMetrics(function="f", run=Histogram(counts=(1,) * BUCKETS, sum=1))
    page = exported(ServerSample(Metrics(time=1, started=1, functions=(everywhere,))))
    buckets = sorted(
        (float(dict(labels)["le"]), found)
        for (name, labels), found in series(page).items()
        if name == "gearflow_job_run_seconds_bucket"
    )
    assert [end for end, _ in buckets][:-1] == sorted({end for end, _ in buckets[:-1]})
    assert all(bucket_end(int(below) - 1) == end for end, below in buckets[:-1])
    assert all(one <= two for (_, one), (_, two) in pairwise(buckets))
    assert buckets[-1] == (float("inf"), BUCKETS)


def test_no_label_has_a_host_a_process_a_job_or_its_unique() -> None:
    labels = {name for _, labels in series(PAGE) for name, _ in labels}
    assert labels == {
        *("function", "outcome", "priority", "state", "le"),
        *("limit", "schedule", "version"),
    }


def many(count: int) -> tuple[FunctionMetrics, ...]:
    return tuple(
        FunctionMetrics(
            function=f"f{number}",
            submitted=number,
            waiting=(number, 0, 0),
            oldest=float(number),
            run=Histogram(counts=(number,), sum=number),
        )
        for number in range(count)
    )


def test_functions_beyond_the_limit_are_one_and_no_job_is_lost() -> None:
    caps = ServerCaps(functions=LabelCap(10))
    page = exported(ServerSample(Metrics(time=1, started=1, functions=many(100))), caps)
    found = series(page)
    named = {dict(labels)["function"] for name, labels in found if name == "gearflow_workers"}
    assert named == {"other", *(f"f{number}" for number in range(90, 100))}
    assert value(page, "gearflow_jobs_submitted_total", function="other") == sum(range(90))
    assert value(page, "gearflow_oldest_waiting_seconds", function="other") == 89
    assert value(page, "gearflow_job_run_seconds_count", function="other") == sum(range(90))


def test_a_function_keeps_its_series_however_many_come_later() -> None:
    caps = ServerCaps(functions=LabelCap(3))
    exported(ServerSample(Metrics(time=1, started=1, functions=many(2))), caps)
    later = (*many(2), *(FunctionMetrics(function=f"new{n}", submitted=1000) for n in range(5)))
    page = exported(ServerSample(Metrics(time=2, started=1, functions=later)), caps)
    named = {dict(labels)["function"] for name, labels in series(page) if name == "gearflow_workers"}
    assert named == {"f0", "f1", "new0", "other"}
    assert value(page, "gearflow_jobs_submitted_total", function="other") == 4000


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", "müll", "\udcff", '{le="1"}', "other", ""])
def test_a_name_cannot_break_the_page(name: str) -> None:
    function = FunctionMetrics(function=name, submitted=3)
    clash = FunctionMetrics(function="\\udcff", submitted=4)
    page = exported(ServerSample(Metrics(time=1, started=1, functions=(clash, function))))
    submitted = [found for (key, _), found in series(page).items() if key == "gearflow_jobs_submitted_total"]
    assert sum(submitted) == 7


def test_a_name_cannot_steer_a_terminal_or_make_a_page_huge() -> None:
    names = ("\x1b]0;x\x07", "\u202e", "a" * 8000, "a" * 7999 + "b")
    functions = tuple(FunctionMetrics(function=name, submitted=1) for name in names)
    page = exported(ServerSample(Metrics(time=1, started=1, functions=functions)))
    assert page.replace("\n", "").isprintable()
    assert max(map(len, page.splitlines())) < 400
    labels = {dict(labels)["function"] for name, labels in series(page) if name == "gearflow_workers"}
    assert len(labels) == len(names)


def test_a_server_that_does_not_count_has_only_what_there_is_now() -> None:
    page = exported(ServerSample(Metrics(time=1, started=0, functions=(RESIZE,)), has_counted=False))
    names = {name for name, _ in series(page)}
    assert names == {"gearflow_jobs", "gearflow_workers"}


def test_promtool_finds_no_fault(program: Callable[[str], str]) -> None:
    done = subprocess.run(
        [program("promtool"), "check", "metrics"], input=PAGE, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_prometheus_client_the_error_has_the_remedy() -> None:
    program = "import sys; sys.modules['prometheus_client'] = None; import gearflow.metrics.exporter"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "pip install 'gearflow[metrics]'" in done.stderr
