"""Counts of a made-up server, and a reader of metrics that is not ours."""

from collections.abc import Iterable

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from gearflow.metrics.exporter import ServerCaps, ServerSample, server_families
from gearflow.metrics.http import metrics_page
from gearflow.protocol.histograms import Histogram
from gearflow.protocol.metrics import FunctionMetrics, LimitMetrics, Metrics, ScheduleMetrics, StoreState

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]

RESIZE = FunctionMetrics(
    function="resize",
    submitted=100,
    joined=4,
    restored=2,
    passed_on=1,
    started=90,
    succeeded=70,
    failed=5,
    cancelled=6,
    expired=7,
    dead=8,
    retried=9,
    waiting=(1, 2, 3),
    delayed=4,
    running=5,
    oldest=12.5,
    workers=3,
    slots=30,
    free=25,
    paused=True,
    wait=Histogram(counts=(10, 0, 5), sum=0.02),
    run=Histogram(counts=(0,) * 15 + (7,), sum=200.0),
)

BUSY = Metrics(
    time=1_700_000_100.0,
    started=1_700_000_000.0,
    functions=(FunctionMetrics(function="idle"), RESIZE),
    limits=(LimitMetrics(name="api", waiting=3, running=20),),
    schedules=(ScheduleMetrics(name="nightly", ticks=10, missed=2, skipped=3, overlapped=1),),
    connections=12,
    accepted=40,
    received=1000,
    sent=2000,
    commits=Histogram(counts=(0, 0, 0, 6), sum=0.03),
    kept=500,
    dead=17,
    fetched=33,
    store=StoreState(sync="batch", size=1_000, free=90_000, room=100_000, damaged=1),
)


def text_of(families: Iterable[Metric], accept: str = "") -> str:
    """The page of metrics."""
    return metrics_page(families, accept).body.decode()


def exported(sample: ServerSample, caps: ServerCaps | None = None) -> str:
    """The page of metrics of a server."""
    return text_of(server_families(sample, caps or ServerCaps()))


def series(text: str) -> Series:
    """What Prometheus reads in a page. No series may be there twice."""
    found: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, key
            found[key] = sample.value
    return found


def value(text: str, name: str, **labels: str) -> float:
    """One of the series in a page."""
    return series(text)[name, frozenset(labels.items())]
